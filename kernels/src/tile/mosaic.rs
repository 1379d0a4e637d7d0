//! Mosaic text: what libtpu compiles for a core of a TPU.
//!
//! Form A of the serialised dialect: generic operations named `stable_mosaic.<dialect>.<op>`, version 11, which libtpu
//! upgrades to its own. The text goes in base64 into the configuration of the call `tpu_custom_call`.

use super::is_float;
use super::{
    Binary, BlockSpec, Body, Compare, DimensionSemantics, Id, Instruction, MemorySpace, Reduce, Ref, Rhs,
    Statement, TileKernel, Unary, ValueType,
};
use base64::prelude::{BASE64_STANDARD, Engine};
use engine::{CustomCall, DType, Interpreter, Type};
use half::bf16;
use std::fmt::Write;
use std::sync::Arc;

/// Vector memory that the compiler may take beside blocks and scratch, for values that do not fit the registers.
const SPILL: usize = 8 << 20;

impl TileKernel {
    /// The call that a TPU program makes.
    pub fn custom_call(self) -> CustomCall {
        let body = BASE64_STANDARD.encode(self.mosaic());
        let cost = self.spec.cost;
        let limit = self.vector_memory() + SPILL;
        // Color 0 is the chip's memory.
        let left = (self.spec.left.iter())
            .map(|input| format!("{{\"operand_index\":{},\"color\":0}}", self.spec.prefetch.len() + input));
        let left = left.collect::<Vec<_>>().join(",");
        let backend_config = format!(
            "{{\"custom_call_config\":{{\"body\":\"{body}\",\"serialization_format\":1,\"needs_layout_passes\":true,\
             \"input_memory_space_colors\":[{left}],\"cost_estimate\":{{\"flops\":{},\"transcendentals\":{},\"bytes_accessed\":{}}}}},\
             \"scoped_memory_configs\":[{{\"memory_space\":1,\"offset\":0,\"size\":{limit}}}]}}",
            cost.flops, cost.transcendentals, cost.bytes,
        );
        CustomCall {
            target: "tpu_custom_call".to_owned(),
            backend_config,
            kernel_name: self.spec.name.clone(),
            results: self.result_types(),
            aliases: (self.spec.prefetch.len() + self.spec.inputs.len()..)
                .zip(&self.spec.aliases)
                .map(|(operand, &(output, _))| (output, operand))
                .collect(),
            interpreter: Some(Interpreter(Arc::new(move |operands| self.interpret(operands)))),
            in_place: None,
        }
    }

    /// The kernel as Mosaic text.
    pub fn mosaic(&self) -> String {
        let spec = &self.spec;
        let mut text = "module attributes {stable_mosaic.version = 11 : i64} {\n".to_owned();
        let grid = vec!["i32".to_owned(); spec.grid.len()];
        let blocks = || spec.inputs.iter().chain(&spec.outputs);
        fn refs_of(blocks: &[(Ref, BlockSpec)]) -> impl Iterator<Item = &Ref> {
            blocks.iter().map(|(reference, _)| reference)
        }
        let refs = (spec.prefetch.iter())
            .chain(refs_of(&spec.inputs))
            .chain(spec.aliases.iter().map(|(_, operand)| operand))
            .chain(refs_of(&spec.outputs))
            .chain(&spec.scratch);
        let attributes = {
            let order = |(_, order): &(usize, DimensionSemantics)| match order {
                DimensionSemantics::Parallel => "#tpu.dimension_semantics<parallel>",
                DimensionSemantics::Arbitrary => "#tpu.dimension_semantics<arbitrary>",
            };
            let block = |(i, (_, block)): (usize, &(Ref, BlockSpec))| {
                let bounds = list(&block.block_shape);
                format!("{{transform_indices = @t{i}, window_bounds = array<i64: {bounds}>}}")
            };
            let mut block_params: Vec<String> = blocks().enumerate().map(block).collect();
            let nowhere = spec.aliases.iter().map(|_| "{}".to_owned());
            block_params.splice(spec.inputs.len()..spec.inputs.len(), nowhere);
            let bounds: Vec<usize> = spec.grid.iter().map(|&(extent, _)| extent).collect();
            format!(
                ", dimension_semantics = [{}], iteration_bounds = array<i64: {}>, scalar_prefetch = {} : i64, \
                 scratch_operands = {} : i64, tpu.core_type = #tpu.core_type<tc>, window_params = [{}]",
                spec.grid.iter().map(order).collect::<Vec<_>>().join(", "),
                list(&bounds),
                spec.prefetch.len(),
                spec.scratch.len(),
                block_params.join(", "),
            )
        };
        let mut printer = Printer { refs: &spec.refs, text: String::new() };
        printer.function(&spec.name, &self.body, &grid, &refs.copied().collect::<Vec<_>>(), &attributes);
        for (i, (_, block)) in blocks().enumerate() {
            printer.function(&format!("t{i}"), &block.index_map, &grid, &spec.prefetch, "");
        }
        text += &printer.text;
        text + "}\n"
    }
}

struct Printer<'p> {
    refs: &'p [(Type, MemorySpace)],
    text: String,
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::Bf16 | DType::I32 | DType::Bool => dtype.mlir(),
        other => panic!("tile: no {other} on the TPU"),
    }
}

fn shaped(ty: &Type) -> String {
    let extents: String = ty.shape.iter().map(|extent| format!("{extent}x")).collect();
    extents + element(ty.dtype)
}

fn value_type(ty: &ValueType) -> String {
    match ty {
        ValueType::Index => "index".to_owned(),
        ValueType::Of(ty) if ty.rank() == 0 => element(ty.dtype).to_owned(),
        ValueType::Of(ty) => format!("vector<{}>", shaped(ty)),
    }
}

/// Exact in any element type: floats by their bits.
fn literal(number: f64, ty: &ValueType) -> String {
    let ValueType::Of(of) = ty else { return format!("{} : index", number as i64) };
    let digits = match of.dtype {
        DType::F32 => format!("0x{:08X}", (number as f32).to_bits()),
        DType::Bf16 => format!("0x{:04X}", bf16::from_f64(number).to_bits()),
        _ => format!("{}", number as i64),
    };
    match of.rank() {
        0 => format!("{digits} : {}", value_type(ty)),
        _ => format!("dense<{digits}> : {}", value_type(ty)),
    }
}

impl Printer<'_> {
    fn memref(&self, reference: Ref) -> String {
        let (ty, memory) = &self.refs[reference.0];
        let space = match memory {
            MemorySpace::Vmem => "vmem",
            MemorySpace::Smem => "smem",
            MemorySpace::Any => "any",
        };
        format!("memref<{}, #tpu.memory_space<{space}>>", shaped(ty))
    }

    fn function(&mut self, name: &str, body: &Body, grid: &[String], refs: &[Ref], attributes: &str) {
        let indices = body.params.iter().map(|id| format!("%v{id}: i32"));
        let memory = refs.iter().map(|&reference| format!("%p{}: {}", reference.0, self.memref(reference)));
        let params: Vec<String> = indices.chain(memory).collect();
        let types: Vec<String> =
            grid.iter().cloned().chain(refs.iter().map(|&reference| self.memref(reference))).collect();
        self.text += &format!("\"stable_mosaic.func.func\"() ({{\n^bb0({}):\n", params.join(", "));
        for &(id, number) in &body.constants {
            let ty = &body.types[id];
            let value = literal(number, ty);
            let ty = value_type(ty);
            writeln!(
                self.text,
                "%v{id} = \"stable_mosaic.arith.constant\"() {{value = {value}}} : () -> {ty}"
            )
            .expect("a string");
        }
        self.region(body, &body.code);
        let results = body.results.iter().map(|id| format!("%v{id}")).collect::<Vec<_>>().join(", ");
        let result_types = vec!["i32"; body.results.len()].join(", ");
        self.text += &format!("\"stable_mosaic.func.return\"({results}) : ({result_types}) -> ()\n");
        self.text += &format!(
            "}}) {{sym_name = \"{name}\", function_type = ({}) -> ({result_types}){attributes}}} : () -> ()\n",
            types.join(", ")
        );
    }

    fn region(&mut self, body: &Body, code: &[Statement]) {
        for statement in code {
            self.statement(body, statement);
        }
    }

    fn statement(&mut self, body: &Body, statement: &Statement) {
        let operands = &statement.operands;
        let name = |id: &Id| format!("%v{id}");
        let ty = |id: &Id| value_type(&body.types[*id]);
        let mut names: Vec<String> = operands.iter().map(name).collect();
        let mut types: Vec<String> = operands.iter().map(ty).collect();
        let result = statement.result.map(|id| (id, &body.types[id]));
        let is_float_value = |id: Id| matches!(&body.types[id], ValueType::Of(ty) if is_float(ty.dtype));
        let extent = |id: Id| match &body.types[id] {
            ValueType::Of(ty) => ty.shape.clone(),
            ValueType::Index => Vec::new(),
        };
        let mut attributes = String::new();
        let op = match &statement.op {
            Instruction::For { index, body: code } => {
                let one = "\"stable_mosaic.arith.constant\"() {value = 1 : index} : () -> index";
                self.text += &format!("%one{index} = {one}\n");
                self.text += &format!(
                    "\"stable_mosaic.scf.for\"({}, %one{index}) ({{\n^bb0(%v{index}: index):\n",
                    names.join(", ")
                );
                self.region(body, code);
                self.text += "\"stable_mosaic.scf.yield\"() : () -> ()\n}) : (index, index, index) -> ()\n";
                return;
            }
            Instruction::If(code) => {
                self.text += &format!("\"stable_mosaic.scf.if\"({}) ({{\n", names[0]);
                self.region(body, code);
                self.text += "\"stable_mosaic.scf.yield\"() : () -> ()\n}, {\n}) : (i1) -> ()\n";
                return;
            }
            Instruction::Load(reference) | Instruction::LoadScalar(reference) => {
                names.insert(0, format!("%p{}", reference.0));
                types.insert(0, self.memref(*reference));
                if matches!(statement.op, Instruction::Load(_)) { "vector.load" } else { "memref.load" }
            }
            Instruction::Store(reference) => {
                names.insert(1, format!("%p{}", reference.0));
                types.insert(1, self.memref(*reference));
                let rank = operands.len() - 1;
                attributes =
                    format!("operandSegmentSizes = array<i32: 1, 1, {rank}, 0>, strides = array<i32>");
                "tpu.vector_store"
            }
            Instruction::Binary(binary) => match (binary, is_float_value(operands[0])) {
                (Binary::Add, true) => "arith.addf",
                (Binary::Add, false) => "arith.addi",
                (Binary::Sub, true) => "arith.subf",
                (Binary::Sub, false) => "arith.subi",
                (Binary::Mul, true) => "arith.mulf",
                (Binary::Mul, false) => "arith.muli",
                (Binary::Div, true) => "arith.divf",
                (Binary::Div, false) => "arith.divsi",
                (Binary::Rem, false) => "arith.remsi",
                (Binary::Max, true) => "arith.maximumf",
                (Binary::Max, false) => "arith.maxsi",
                (Binary::Min, false) => "arith.minsi",
                (Binary::And, false) => "arith.andi",
                (Binary::Or, false) => "arith.ori",
                (Binary::Xor, false) => "arith.xori",
                (Binary::ShiftRight, false) => "arith.shrui",
                (other, true) => panic!("tile: no {other:?} of floats"),
            },
            Instruction::Unary(unary) => match unary {
                Unary::Exp2 => "math.exp2",
                Unary::Log2 => "math.log2",
                Unary::Tanh => "math.tanh",
                Unary::Rsqrt => "math.rsqrt",
            },
            Instruction::Matmul(rhs) => {
                let dims = match rhs {
                    Rhs::Plain => "[1], [0], [0], [1], [0, 0, 1, 1], [], []",
                    Rhs::Transposed => "[1], [1], [0], [0], [0, 0, 1, 0], [], []",
                };
                attributes = format!(
                    "dimension_numbers = #tpu.dot_dimension_numbers<{dims}>, transpose_lhs = false, \
                     transpose_rhs = false, transpose_lhs_hint = false"
                );
                "tpu.matmul"
            }
            Instruction::Reduce(reduce, axis) => {
                let (kind, start) = match reduce {
                    Reduce::Sum => ("add", 0.0),
                    Reduce::Max => ("maximumf", f64::NEG_INFINITY),
                };
                let (id, ty) = result.expect("a reduction has a result");
                let ty_text = value_type(ty);
                let value = literal(start, ty);
                self.text += &format!(
                    "%start{id} = \"stable_mosaic.arith.constant\"() {{value = {value}}} : () -> {ty_text}\n"
                );
                names.push(format!("%start{id}"));
                types.push(ty_text);
                attributes = format!("kind = #vector.kind<{kind}>, reduction_dims = array<i64: {axis}>");
                "vector.multi_reduction"
            }
            Instruction::Broadcast => "vector.broadcast",
            Instruction::ShapeCast => "vector.shape_cast",
            Instruction::Transpose => {
                attributes = "permutation = array<i64: 1, 0>".to_owned();
                "tpu.transpose"
            }
            Instruction::Rows(start) => {
                let sizes = list(&extent(result.expect("rows are a value").0));
                attributes = format!("offsets = [{start}, 0], sizes = [{sizes}], strides = [1, 1]");
                "vector.extract_strided_slice"
            }
            Instruction::Rotate(by) => {
                let (id, _) = result.expect("a rotation is a value");
                self.text += &format!(
                    "%by{id} = \"stable_mosaic.arith.constant\"() {{value = {by} : i32}} : () -> i32\n"
                );
                names.push(format!("%by{id}"));
                types.push("i32".to_owned());
                attributes = "dimension = 1 : si32".to_owned();
                "tpu.dynamic_rotate"
            }
            Instruction::Iota(axis) => {
                attributes = format!("dimensions = array<i32: {axis}>");
                "tpu.iota"
            }
            Instruction::Convert => {
                match (&body.types[operands[0]], result.expect("a conversion has a result").1) {
                    (ValueType::Of(from), ValueType::Of(to)) => match (from.dtype, to.dtype) {
                        (DType::F32, DType::Bf16) => "arith.truncf",
                        (DType::Bf16, DType::F32) => "arith.extf",
                        (from, to) => panic!("tile: no conversion of {from} to {to}"),
                    },
                    _ => unreachable!("addresses are not converted"),
                }
            }
            Instruction::IndexCast => "arith.index_cast",
            Instruction::Compare(compare) => {
                assert!(!is_float_value(operands[0]), "tile: floats are not compared");
                let predicate = match compare {
                    Compare::Eq => 0,
                    Compare::Lt => 2,
                    Compare::Le => 3,
                    Compare::Ge => 5,
                };
                attributes = format!("predicate = {predicate} : i64");
                "arith.cmpi"
            }
            Instruction::Select => "arith.select",
            Instruction::MultipleOf(number) => {
                attributes = format!("multiple = {number} : i32");
                "tpu.assume_multiple"
            }
        };
        let (left, right) = match result {
            Some((id, ty)) => (format!("%v{id} = "), value_type(ty)),
            None => (String::new(), "()".to_owned()),
        };
        let attributes = if attributes.is_empty() { attributes } else { format!(" {{{attributes}}}") };
        self.text += &format!(
            "{left}\"stable_mosaic.{op}\"({}){attributes} : ({}) -> {right}\n",
            names.join(", "),
            types.join(", ")
        );
    }
}
