//! StableHLO text. Equal programs print equal text: names are counted in the order of nodes, nothing depends on
//! hash maps, floats are hex bits. Only what StableHLO 1.13 knows is printed.

use crate::ir::Port;
use crate::ir::{Body, Func, Node};
use crate::ops::Op;
use crate::ops::collective::Sharding;
use crate::program::Program;
use crate::types::Type;
use std::panic::Location;

/// Whether the text says where each op was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locations {
    /// No; the text depends on the program alone.
    Omit,
    /// `loc("model/src/attention.rs":41:12)` after each op.
    Print,
}

/// What an op's printing rule sees of its node.
pub(crate) struct Line<'a> {
    /// `%3`, or `%3:2` for two results.
    pub(crate) result: String,
    pub(crate) operands: &'a [String],
    pub(crate) operand_types: &'a [Type],
    pub(crate) types: &'a [Type],
}

impl Line<'_> {
    pub(crate) fn result_types(&self) -> String {
        let types: Vec<String> = self.types.iter().map(Type::mlir).collect();
        match &types[..] {
            [one] => one.clone(),
            _ => format!("({})", types.join(", ")),
        }
    }

    /// `(tensor<2xf32>, tensor<i32>) -> tensor<2xf32>`
    pub(crate) fn signature(&self) -> String {
        let types: Vec<String> = self.operand_types.iter().map(Type::mlir).collect();
        format!("({}) -> {}", types.join(", "), self.result_types())
    }
}

/// Writes text, counts names and collects the functions that calls mention.
pub(crate) struct Printer {
    text: String,
    indent: usize,
    count: usize,
    locations: Locations,
    functions: Vec<(Body, String)>,
    /// Set by [`Printer::aliases`]: the node's results have these names.
    names: Option<Vec<String>>,
}

impl Printer {
    /// One line at the current indentation.
    pub(crate) fn line(&mut self, line: &str) {
        for _ in 0..self.indent {
            self.text.push_str("  ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    pub(crate) fn indented(&mut self, print: impl FnOnce(&mut Printer)) {
        self.indent += 1;
        print(self);
        self.indent -= 1;
    }

    /// A name that no other value has.
    pub(crate) fn fresh(&mut self) -> String {
        self.count += 1;
        format!("%{}", self.count - 1)
    }

    /// `%2 = op %0, %1 : type`
    pub(crate) fn same(&mut self, op: &str, line: &Line) {
        self.line(&format!("{} = {op} {} : {}", line.result, line.operands.join(", "), line.types[0].mlir()));
    }

    /// `%2 = op %0, %1 : (types) -> type`
    pub(crate) fn op(&mut self, op: &str, line: &Line) {
        self.op_with(op, line, "");
    }

    /// `%2 = op %0, %1attributes : (types) -> type`
    pub(crate) fn op_with(&mut self, op: &str, line: &Line, attributes: &str) {
        let operands = line.operands.join(", ");
        self.line(&format!("{} = {op} {operands}{attributes} : {}", line.result, line.signature()));
    }

    /// The only result goes by this name.
    pub(crate) fn alias(&mut self, line: &Line, name: &str) {
        self.aliases(line, vec![name.to_owned()]);
    }

    /// The results go by these names instead of `line.result`.
    pub(crate) fn aliases(&mut self, line: &Line, names: Vec<String>) {
        assert!(names.len() == line.types.len(), "a name for each result");
        self.names = Some(names);
    }

    /// `stablehlo.return %1, %2 : types`
    pub(crate) fn returned(&mut self, values: &[String], types: &[Type]) {
        let types: Vec<String> = types.iter().map(Type::mlir).collect();
        match values {
            [] => self.line("stablehlo.return"),
            _ => self.line(&format!("stablehlo.return {} : {}", values.join(", "), types.join(", "))),
        }
    }

    /// The symbol of the private function with this body; equal bodies are one function.
    pub(crate) fn callee(&mut self, label: &str, body: &Body) -> String {
        if let Some((_, name)) =
            self.functions.iter().find(|(known, name)| known == body && base(name) == symbol(label))
        {
            return name.clone();
        }
        let name = format!("{}.{}", symbol(label), self.functions.len());
        self.functions.push((body.clone(), name.clone()));
        name
    }

    /// The nodes of a function, with these names for its parameters; returns the names of its results.
    pub(crate) fn body(&mut self, func: &Func, params: &[String]) -> Vec<String> {
        let mut names: Vec<Vec<String>> = Vec::with_capacity(func.nodes().len());
        for node in func.nodes() {
            let made = match &node.op {
                Op::Parameter(parameter) => vec![params[parameter.index].clone()],
                op => self.node(func, node, op, &names),
            };
            names.push(made);
        }
        func.results().iter().map(|value| names[value.node as usize][value.result as usize].clone()).collect()
    }

    fn node(&mut self, func: &Func, node: &Node, op: &Op, names: &[Vec<String>]) -> Vec<String> {
        let operands: Vec<String> = node
            .operands
            .iter()
            .map(|value| names[value.node as usize][value.result as usize].clone())
            .collect();
        let operand_types: Vec<Type> = node.operands.iter().map(|&value| func.ty(value).clone()).collect();
        let before = self.text.len();
        let count = self.count;
        let name = self.fresh();
        let several = node.types.len() != 1;
        let result = if several { format!("{name}:{}", node.types.len()) } else { name.clone() };
        let line = Line { result, operands: &operands, operand_types: &operand_types, types: &node.types };
        op.rules().print(self, &line);
        if self.text.len() == before {
            self.count = count;
        } else if self.locations == Locations::Print {
            self.text.pop();
            self.text.push_str(&location(node.at));
            self.text.push('\n');
        }
        match self.names.take() {
            Some(names) => names,
            None if several => (0..node.types.len()).map(|i| format!("{name}#{i}")).collect(),
            None => vec![name],
        }
    }
}

fn location(at: &Location) -> String {
    format!(" loc(\"{}\":{}:{})", at.file().replace('\\', "/"), at.line(), at.column())
}

/// Letters, digits and underscores only.
fn symbol(label: &str) -> String {
    let letters = label.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' });
    let symbol: String = letters.collect();
    if symbol.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
        symbol
    } else {
        format!("f_{symbol}")
    }
}

fn base(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(base, _)| base)
}

/// The text of a program: one module with `@main` and the private functions that it calls.
pub(crate) fn print(program: &Program, locations: Locations) -> String {
    let mut p =
        Printer { text: String::new(), indent: 1, count: 0, locations, functions: Vec::new(), names: None };
    let main = program.main();
    // In a program for several devices, a port without a sharding is whole on each of them.
    let partitions = program.partitions();
    let sharding = |port: &Port| match &port.sharding {
        Some(sharding) => Some(sharding.text()),
        None if partitions > 1 => Some(Sharding::replicated(port.ty.rank(), partitions).text()),
        None => None,
    };
    let mut names: Vec<String> = Vec::new();
    let mut params = Vec::new();
    for port in program.inputs() {
        let mut name = format!("%{}", symbol(&port.name));
        while names.contains(&name) {
            name.push('_');
        }
        let mut attributes = Vec::new();
        if let Some(output) = port.replaced_by {
            attributes.push(format!("tf.aliasing_output = {output} : i32"));
        }
        if let Some(sharding) = sharding(port) {
            attributes.push(format!("mhlo.sharding = \"{sharding}\""));
        }
        let attributes =
            if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) };
        params.push(format!("{name}: {}{attributes}", port.ty.mlir()));
        names.push(name);
    }
    let results: Vec<String> = (program.outputs().iter())
        .map(|port| match sharding(port) {
            Some(sharding) => format!("{} {{mhlo.sharding = \"{sharding}\"}}", port.ty.mlir()),
            None => port.ty.mlir(),
        })
        .collect();
    p.line(&format!("func.func public @main({}) -> ({}) {{", params.join(", "), results.join(", ")));
    p.indented(|p| {
        let values = p.body(main, &names);
        let types: Vec<String> = program.outputs().iter().map(|port| port.ty.mlir()).collect();
        // A name may hold anything, but must not end the comment.
        let outputs: Vec<String> =
            program.outputs().iter().map(|port| port.name.escape_debug().to_string()).collect();
        p.line(&format!("// {}", outputs.join(", ")));
        p.line(&format!("return {} : {}", values.join(", "), types.join(", ")));
    });
    p.line("}");
    let mut printed = 0;
    while printed < p.functions.len() {
        let (body, name) = p.functions[printed].clone();
        printed += 1;
        p.count = 0;
        let args: Vec<String> = (0..body.params().len()).map(|i| format!("%arg{i}")).collect();
        let typed: Vec<String> =
            args.iter().zip(body.param_types()).map(|(arg, ty)| format!("{arg}: {}", ty.mlir())).collect();
        let types: Vec<String> = body.result_types().iter().map(Type::mlir).collect();
        p.line(&format!("func.func private @{name}({}) -> ({}) {{", typed.join(", "), types.join(", ")));
        p.indented(|p| {
            let values = p.body(&body, &args);
            p.line(&format!("return {} : {}", values.join(", "), types.join(", ")));
        });
        p.line("}");
    }
    format!("module @{} {{\n{}}}\n", symbol(program.name()), p.text)
}
