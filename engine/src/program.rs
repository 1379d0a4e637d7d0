//! [`Program`]: a main function with named inputs and outputs, the unit that is printed, compiled and run.

use crate::ir::{Builder, Func, Tensor, Value};
use crate::ops::Op;
use crate::ops::collective::Sharding;
use crate::text::{self, Locations};
use crate::types::Type;

/// A named input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Path in the caller's tree, `params.layers.gate`.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// How it is cut over devices, if the program runs on several.
    pub sharding: Option<Sharding>,
    /// For an input that is donated: the output that is written over it.
    pub replaced_by: Option<usize>,
}

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
        let builder = Builder::new();
        body(&builder);
        let (outputs, values): (Vec<Port>, Vec<Value>) = builder.outputs().into_iter().unzip();
        assert!(!outputs.is_empty(), "program {name}: it has no output");
        let inputs = builder.inputs();
        let main = builder.finish_with(inputs.len(), &values);
        Program { name: name.to_owned(), main, inputs, outputs }
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
        let known = self.inputs().iter().any(|other| other.name == port.name);
        assert!(!known, "input `{}`: there is another one of this name", port.name);
        let tensor = self.parameter(port.ty.clone());
        self.add_input(port);
        tensor
    }

    /// Declares the next output of the program.
    #[track_caller]
    pub fn output(&'f self, name: &str, value: Tensor<'f>) {
        let known = self.outputs().iter().any(|(port, _)| port.name == name);
        assert!(!known, "output `{name}`: there is another one of this name");
        let port = Port { name: name.to_owned(), ty: value.ty(), sharding: None, replaced_by: None };
        self.add_output(port, self.capture(value).value());
    }

    /// Declares an output that is written over an input: the input is donated and its memory is used again.
    ///
    /// # Panics
    /// If the donation cannot be used: the tensor is not an input, was donated already, or has another type.
    #[track_caller]
    pub fn output_over(&'f self, name: &str, value: Tensor<'f>, input: Tensor<'f>) {
        let node = self.node(input.value().node);
        let Op::Parameter(parameter) = &node.op else {
            panic!(
                "output `{name}`: it cannot be written over the result of {}, which is not an input",
                node.op.name()
            )
        };
        let inputs = self.inputs();
        let port = &inputs[parameter.index];
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
        let output = self.outputs().len();
        self.output(name, value);
        if let Some(sharding) = &port.sharding {
            self.shard_output(output, sharding.clone());
        }
        self.set_donation(parameter.index, output);
    }
}
