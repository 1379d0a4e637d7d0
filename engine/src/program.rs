//! [`Program`]: a main function with named inputs and outputs, the unit that is printed, compiled and run.

use crate::ir::{Builder, Func, Port, Ports, Tensor, Value};
use crate::ops::Op;
use crate::ops::collective::Sharding;
use crate::text::{self, Locations};
use crate::types::Type;
use std::collections::BTreeSet;

/// A closed program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    name: String,
    main: Func,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Program {
    /// Builds a program: `body` declares inputs ([`Builder::input`]) and outputs ([`Builder::output`]) as it goes.
    ///
    /// # Panics
    /// At the author's line, on shape errors and on ports that make no sense.
    #[track_caller]
    pub fn build(name: &str, body: impl for<'f> FnOnce(&'f Builder<'f>)) -> Program {
        let builder = Builder::program();
        body(&builder);
        let Ports { inputs, outputs } = builder.with_ports(std::mem::take).unwrap_or_default();
        let (outputs, values): (Vec<Port>, Vec<Value>) = outputs.into_iter().unzip();
        assert!(!outputs.is_empty(), "program {name}: it has no output");
        let main = builder.finish_with(inputs.len(), &values);
        let program = Program { name: name.to_owned(), main, inputs, outputs };
        let counts = program.shardings();
        assert!(
            counts.len() < 2,
            "program {name}: its shardings are for {counts:?} devices; they must agree"
        );
        program
    }

    /// The numbers of devices that its shardings are for.
    fn shardings(&self) -> BTreeSet<usize> {
        fn of(func: &Func, found: &mut BTreeSet<usize>) {
            for node in func.nodes() {
                if let Op::ShardingConstraint(constraint) = &node.op {
                    found.insert(constraint.sharding.devices);
                }
                node.op.bodies().into_iter().for_each(|body| of(body, found));
            }
        }
        let ports = self.inputs.iter().chain(&self.outputs).filter_map(|port| port.sharding.as_ref());
        let mut found = ports.map(|sharding| sharding.devices).collect();
        of(&self.main, &mut found);
        found
    }

    /// Number of devices that share the work: that of its shardings; 1 if it has none.
    pub fn partitions(&self) -> usize {
        self.shardings().pop_first().unwrap_or(1)
    }

    pub(crate) fn with_main(&self, main: Func) -> Program {
        Program { main, ..self.clone() }
    }

    /// The name of the module.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The main function; its parameters and results are the ports, in order.
    pub fn main(&self) -> &Func {
        &self.main
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// StableHLO text. Equal programs give equal text.
    pub fn text(&self, locations: Locations) -> String {
        text::print(self, locations)
    }
}

impl<'f> Builder<'f> {
    /// Declares the next input of the program.
    #[track_caller]
    pub fn input(&'f self, name: &str, ty: Type) -> Tensor<'f> {
        self.port(Port { name: name.to_owned(), ty, sharding: None, replaced_by: None })
    }

    /// Declares the next input of the program, cut over devices.
    #[track_caller]
    pub fn input_sharded(&'f self, name: &str, ty: Type, sharding: Sharding) -> Tensor<'f> {
        if let Err(reason) = sharding.check(&ty) {
            panic!("input `{name}`: {reason}");
        }
        self.port(Port { name: name.to_owned(), ty, sharding: Some(sharding), replaced_by: None })
    }

    #[track_caller]
    fn port(&'f self, port: Port) -> Tensor<'f> {
        let (name, ty) = (port.name.clone(), port.ty.clone());
        let fresh = self.with_ports(|ports| {
            let fresh = ports.inputs.iter().all(|other| other.name != port.name);
            ports.inputs.push(port);
            fresh
        });
        match fresh {
            Some(true) => self.parameter(ty),
            Some(false) => panic!("input `{name}`: there is another one of this name"),
            None => panic!("input `{name}`: a body has no inputs; take outer values in with `capture`"),
        }
    }

    /// Declares the next output of the program.
    ///
    /// # Panics
    /// If there is another one of this name, or this is the body of a loop or call.
    #[track_caller]
    pub fn output(&'f self, name: &str, value: Tensor<'f>) {
        self.result(Port { name: name.to_owned(), ty: value.ty(), sharding: None, replaced_by: None }, value);
    }

    /// Declares the next output of the program, cut over devices.
    ///
    /// # Panics
    /// As [`Builder::output`], and if the sharding does not fit.
    #[track_caller]
    pub fn output_sharded(&'f self, name: &str, value: Tensor<'f>, sharding: Sharding) {
        let ty = value.ty();
        if let Err(reason) = sharding.check(&ty) {
            panic!("output `{name}`: {reason}");
        }
        self.result(Port { name: name.to_owned(), ty, sharding: Some(sharding), replaced_by: None }, value);
    }

    #[track_caller]
    fn result(&'f self, port: Port, value: Tensor<'f>) {
        let name = port.name.clone();
        let value = self.capture(value).value();
        let fresh = self.with_ports(|ports| {
            let fresh = ports.outputs.iter().all(|(other, _)| other.name != port.name);
            ports.outputs.push((port, value));
            fresh
        });
        match fresh {
            Some(true) => {}
            Some(false) => panic!("output `{name}`: there is another one of this name"),
            None => panic!("output `{name}`: a body has no outputs; return the value from it"),
        }
    }

    /// Declares an output that is written over an input: the input is donated and its memory is used again. It is
    /// cut over devices as the input is.
    ///
    /// # Panics
    /// If the donation cannot be used: the tensor is not an input, was donated already, or has another type.
    #[track_caller]
    pub fn output_over(&'f self, name: &str, value: Tensor<'f>, input: Tensor<'f>) {
        let (port, index, output) = match self.donatable(input) {
            Ok(found) => found,
            Err(what) => {
                panic!(
                    "output `{name}`: it cannot be written over {what}, which is not an input of this program"
                )
            }
        };
        assert!(
            port.ty == value.ty(),
            "output `{name}` ({}) cannot be written over input `{}` ({}): the types differ",
            value.ty(),
            port.name,
            port.ty
        );
        assert!(
            port.replaced_by.is_none(),
            "output `{name}` cannot be written over input `{}`: another output is already",
            port.name
        );
        match port.sharding {
            Some(sharding) => self.output_sharded(name, value, sharding),
            None => self.output(name, value),
        }
        self.with_ports(|ports| ports.inputs[index].replaced_by = Some(output));
    }

    /// The port of an input, its index, and the index of the next output; or what the tensor is instead.
    fn donatable(&self, input: Tensor<'_>) -> Result<(Port, usize, usize), String> {
        if !self.is(input.builder()) {
            return Err(format!("a value of another function ({})", input.ty()));
        }
        let index = self.with_node(input.value().node, |node| match &node.op {
            Op::Parameter(parameter) => Ok(parameter.index),
            op => Err(format!("the result of {}", op.name())),
        })?;
        let known = self.with_ports(|ports| (ports.inputs.get(index).cloned(), ports.outputs.len()));
        let Some((Some(port), output)) = known else { return Err(format!("parameter {index} of a body")) };
        Ok((port, index, output))
    }
}
