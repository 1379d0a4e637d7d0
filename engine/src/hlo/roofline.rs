//! The roofline of an instruction: the floating point operations of its matmuls, and the bytes that it must move to and from
//! the device's main memory.

use super::text::{Computation, Line, Module, between};
use std::collections::BTreeSet;

/// Instructions that only name what is there, wait for it, or hold instructions that count by themselves.
const FREE: [&str; 15] = [
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "copy-done",
    "async-done",
    "after-all",
    "optimization-barrier",
    "opt-barrier",
    "partition-id",
    "replica-id",
];

/// Custom calls that only name memory.
pub const FREE_CALLS: [&str; 2] = ["AllocateBuffer", "ConcatBitcast"];

/// The names of an instruction and of everything that is fused into it.
pub(super) fn opcodes(module: &Module<'_>, line: &Line<'_>, found: &mut BTreeSet<String>) {
    found.insert(line.opcode.to_owned());
    for inner in module.callee(line).iter().flat_map(|callee| &callee.lines) {
        opcodes(module, inner, found);
    }
}

/// Floating point operations of the matmuls of an instruction and of everything that is fused into it; the call of a
/// hand-written kernel states its own.
pub(super) fn matmul_flops(module: &Module<'_>, computation: &Computation<'_>, line: &Line<'_>) -> f64 {
    match line.opcode {
        "convolution" => convolution_flops(computation, line).unwrap_or(0.0),
        "dot" => dot_flops(computation, line).unwrap_or(0.0),
        "custom-call" if is_cublas(line) => cublas_flops(computation, line).unwrap_or(0.0),
        "custom-call" => kernel_cost(line, "flops").unwrap_or(0.0),
        _ => match module.callee(line) {
            Some(callee) => callee.lines.iter().map(|inner| matmul_flops(module, callee, inner)).sum(),
            None => 0.0,
        },
    }
}

fn dot_flops(computation: &Computation<'_>, line: &Line<'_>) -> Option<f64> {
    product_flops(computation, line, line.attribute("lhs_contracting_dims={", "}")?)
}

/// Whether a call is a matmul of NVIDIA's library. Its results are the product and a workspace.
fn is_cublas(line: &Line<'_>) -> bool {
    line.attribute("custom_call_target=\"", "\"").is_some_and(|target| target.starts_with("__cublas$"))
}

fn cublas_flops(computation: &Computation<'_>, line: &Line<'_>) -> Option<f64> {
    let contracted = line.attribute("\"lhs_contracting_dimensions\":[", "]")?;
    product_flops(computation, line, &contracted.replace('"', ""))
}

/// Of the first result, for the dimensions of the left operand that are summed over: `1`, `0,2`.
fn product_flops(computation: &Computation<'_>, line: &Line<'_>, contracted: &str) -> Option<f64> {
    let left = computation.arrays(*line.operands.first()?).first()?;
    let contracted = contracted.split(',').filter_map(|dim| left.dims.get(dim.parse::<usize>().ok()?));
    Some(
        2.0 * elements(&line.arrays.first()?.dims) * contracted.map(|&extent| extent as f64).product::<f64>(),
    )
}

/// The TPU compiler writes every matmul as a convolution: contracted and batched dimensions may be windows. Only pairs
/// of a place in the window and a result count for which there is input, neither padding nor a hole.
fn convolution_flops(computation: &Computation<'_>, line: &Line<'_>) -> Option<f64> {
    let [input, kernel] = [0, 1].map(|k| computation.arrays(*line.operands.get(k)?).first());
    let (input, kernel, result) = (input?, kernel?, line.arrays.first()?);
    let labels = line.attribute("dim_labels=", ",")?;
    let (sides, result_labels) = labels.split_once("->")?;
    let (input_labels, kernel_labels) = sides.split_once('_')?;
    let extent = |labels: &str, dims: &[u64], label: char| dims.get(labels.find(label)?).copied();
    let window = line.attribute("window={", "}").unwrap_or_default();
    let property = |name: &str, dim: usize| {
        let (_, list) =
            window.split(' ').filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name)?;
        list.split('x').nth(dim)
    };
    let mut flops = 2.0 * elements(&result.dims) * extent(kernel_labels, &kernel.dims, 'i')? as f64;
    for (dim, label) in ('0'..='9').enumerate() {
        let Some(results) = extent(result_labels, &result.dims, label).filter(|&n| n > 0) else { break };
        let inputs = extent(input_labels, &input.dims, label)? as i64;
        let number = |name| property(name, dim).and_then(|number| number.parse::<i64>().ok());
        let [stride, holes, spread] =
            ["stride", "lhs_dilate", "rhs_dilate"].map(|name| number(name).unwrap_or(1));
        let before =
            property("pad", dim).and_then(|pad| pad.split_once('_')?.0.parse::<i64>().ok()).unwrap_or(0);
        let size = number("size").unwrap_or(1);
        let there = |result: i64, place: i64| {
            let at = result * stride + place * spread - before;
            at >= 0 && at % holes == 0 && at / holes < inputs
        };
        let pairs = (0..results as i64).map(|r| (0..size).filter(|&place| there(r, place)).count());
        flops *= pairs.sum::<usize>() as f64 / results as f64;
    }
    Some(flops)
}

fn elements(dims: &[u64]) -> f64 {
    dims.iter().map(|&extent| extent as f64).product()
}

/// Bytes to and from main memory of one run. What lies in vector memory is free; of an array that is only sliced the
/// slices count, and of one that is updated in place the update.
pub(super) fn traffic(module: &Module<'_>, computation: &Computation<'_>, line: &Line<'_>) -> u64 {
    if FREE.contains(&line.opcode) {
        return 0;
    }
    if line.opcode == "custom-call" {
        let target = line.attribute("custom_call_target=\"", "\"").unwrap_or_default();
        if FREE_CALLS.contains(&target) {
            return 0;
        }
        // It may take a stack and read one layer of it.
        if let Some(bytes) = kernel_cost(line, "bytes_accessed") {
            return bytes as u64;
        }
    }
    match line.opcode {
        // Its result shows both ends.
        "copy-start" => {
            return line.arrays.iter().take(2).filter(|array| array.in_hbm).map(|array| array.padded).sum();
        }
        // The offloaded gather of a table's rows: read and written once. Its start has no operands yet; its type lists
        // them before the result.
        "async-start" if line.operands.is_empty() => return 0,
        "async-update" => {
            let operands = line.operands.len().saturating_sub(1);
            return line.arrays.get(operands).map_or(0, |array| 2 * array.padded);
        }
        _ => {}
    }
    let mut bytes = 0;
    for (place, operand) in line.operands.iter().enumerate() {
        for array in
            computation.arrays(*operand).iter().filter(|array| array.in_hbm && !array.dims.contains(&0))
        {
            let all = elements(&array.dims);
            let read = needed(module, computation, line, place, all).min(all);
            bytes += (array.padded as f64 * read / all) as u64;
        }
    }
    bytes
        + match line.opcode {
            // Its type lists operands, results and a flag.
            "async-start" => match module.callee(line) {
                Some(callee) => callee.root().map_or(0, |root| written(module, callee, root)),
                None => 0,
            },
            _ => written(module, computation, line),
        }
}

/// How many of its elements an instruction needs of an operand that has `all`.
fn needed(
    module: &Module<'_>,
    computation: &Computation<'_>,
    line: &Line<'_>,
    place: usize,
    all: f64,
) -> f64 {
    let result = || line.arrays.first().map_or(0.0, |array| elements(&array.dims));
    let of_operand = |k: usize| {
        let arrays = line.operands.get(k).map(|operand| computation.arrays(*operand));
        arrays.and_then(|arrays| arrays.first()).map_or(0.0, |array| elements(&array.dims))
    };
    match (line.opcode, place) {
        ("slice", _) | ("dynamic-slice" | "gather", 0) => result(),
        ("dynamic-update-slice", 0) => 0.0,
        ("dynamic-update-slice", 1) => all,
        // Rows are added to, so they are read.
        ("scatter", 0) => of_operand(2),
        _ => match module.callee(line) {
            Some(callee) => {
                callee.parameter(place).map_or(all, |parameter| used(module, callee, parameter, all))
            }
            None => all,
        },
    }
}

/// How many elements of a value its users need together; a computation is fused, so what keeps the number of elements
/// passes on the need of its own users.
fn used(module: &Module<'_>, computation: &Computation<'_>, value: &Line<'_>, all: f64) -> f64 {
    let users = computation.users(value.name).map(|(line, place)| match line.opcode {
        // The result of the whole is counted where it is written.
        "tuple" => 0.0,
        "bitcast" | "convert" | "copy" | "reshape" | "transpose" | "negate"
            if computation.users(line.name).next().is_some() =>
        {
            used(module, computation, line, all)
        }
        _ => needed(module, computation, line, place, all),
    });
    users.sum::<f64>().min(all)
}

/// Bytes of main memory that an instruction writes.
fn written(module: &Module<'_>, computation: &Computation<'_>, line: &Line<'_>) -> u64 {
    let callee = module.callee(line);
    // A fusion of several results ends in a tuple.
    let makers: Vec<Option<(&Computation<'_>, &Line<'_>)>> =
        match callee.and_then(|callee| Some((callee, callee.root()?))) {
            Some((callee, root)) if root.opcode == "tuple" => {
                root.operands.iter().map(|operand| Some((callee, callee.line(operand.name)?))).collect()
            }
            Some((callee, root)) => vec![Some((callee, root))],
            None => vec![Some((computation, line))],
        };
    let mut bytes = 0;
    let results = if is_cublas(line) { 1 } else { line.arrays.len() };
    for (place, array) in line.arrays.iter().take(results).enumerate().filter(|(_, array)| array.in_hbm) {
        let update = makers.get(place).copied().flatten().and_then(|(holder, maker)| update(holder, maker));
        bytes += update.unwrap_or(array.padded);
    }
    bytes
}

/// Bytes of what an instruction puts into an array that stays in its place, seen through changes of form.
fn update(computation: &Computation<'_>, line: &Line<'_>) -> Option<u64> {
    let padded = |k: usize| Some(computation.arrays(*line.operands.get(k)?).first()?.padded);
    match line.opcode {
        "bitcast" => update(computation, computation.line(line.operands.first()?.name)?),
        "dynamic-update-slice" => padded(1),
        "scatter" => padded(2),
        _ => None,
    }
}

/// A figure of a hand-written kernel's own estimate.
fn kernel_cost(line: &Line<'_>, figure: &str) -> Option<f64> {
    let estimate = line.attribute("\"cost_estimate\":{", "}")?;
    between(estimate, &format!("\"{figure}\":"), ",")?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use crate::hlo::{Hlo, Instruction};

    /// The only instruction of an entry that takes `parameters` and applies `line`, with other computations before it.
    fn one(before: &str, parameters: &[&str], line: &str) -> Instruction {
        let listed = (0..).zip(parameters).map(|(k, ty)| format!("  %p{k} = {ty} parameter({k})\n"));
        let text = format!(
            "HloModule m\n\n{before}\nENTRY %main (a: f32[]) -> f32[] {{\n{}  ROOT %r = {line}\n}}\n",
            listed.collect::<String>()
        );
        Hlo::parse(&text).instructions.into_iter().find(|instruction| instruction.name == "r").unwrap()
    }

    #[test]
    fn a_matmul_multiplies_what_its_window_covers() {
        let flops = |parameters: [&str; 2], line: &str| one("", &parameters, line).matmul_flops;
        // y[16, 64] = x[16, 32] w[32, 64], as it is and as the TPU compiler writes it.
        let product = 2.0 * 16.0 * 32.0 * 64.0;
        let dot = "f32[16,64]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}";
        assert_eq!(flops(["f32[16,32]{1,0}", "f32[32,64]{1,0}"], dot), product);
        let plain = "f32[16,64]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf";
        assert_eq!(flops(["f32[16,32]{1,0}", "f32[32,64]{1,0}"], plain), product);
        // Two sequences of 8 whose tokens are contracted: the gradient of a weight.
        let gradient = "f32[32,64,1]{1,0,2} convolution(%p0, %p1), window={size=2}, dim_labels=0fb_0io->bf0";
        assert_eq!(flops(["f32[2,8,32]{2,1,0}", "f32[2,8,64]{2,1,0}"], gradient), product);
        // Five products of 16 x 32 and 32 x 64 at once: of the padded window only one place meets input.
        let batched = "f32[5,16,64]{2,1,0} convolution(%p0, %p1), window={size=5 stride=4 pad=4_4 lhs_dilate=5}, \
                       dim_labels=0bf_0io->0bf";
        assert_eq!(flops(["f32[5,16,32]{2,1,0}", "f32[5,32,64]{2,1,0}"], batched), 5.0 * product);
    }

    #[test]
    fn a_gpu_multiplies_in_fusions_and_in_its_library() {
        let product = 2.0 * 16.0 * 32.0 * 64.0;
        let library = "(f32[16,64]{1,0}, s8[33554432]{0}) custom-call(%p0, %p1), custom_call_target=\"__cublas$gemm\", \
                       backend_config={\"gemm_backend_config\":{\"dot_dimension_numbers\":\
                       {\"lhs_contracting_dimensions\":[\"1\"],\"rhs_contracting_dimensions\":[\"0\"]}}}";
        let found = one("", &["f32[16,32]{1,0}", "f32[32,64]{1,0}"], library);
        assert_eq!((found.matmul_flops, found.traffic), (product, 4 * (16 * 32 + 32 * 64 + 16 * 64)));
        // A fusion that the compiler starts ahead of its time, and that writes one layer of a stack.
        let fused = "%tiles (x: f32[16,32], w: f32[32,64]) -> f32[16,64] {
  %x = f32[16,32]{1,0} parameter(0)
  %w = f32[32,64]{1,0} parameter(1)
  ROOT %d = f32[16,64]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%stacked (stack: f32[24,16,64], i: s32[], x.1: f32[16,32], w.1: f32[32,64]) -> f32[24,16,64] {
  %stack = f32[24,16,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x.1 = f32[16,32]{1,0} parameter(2)
  %w.1 = f32[32,64]{1,0} parameter(3)
  %z = s32[] constant(0)
  %f = f32[16,64]{1,0} fusion(%x.1, %w.1), kind=kCustom, calls=%tiles
  %b = f32[1,16,64]{2,1,0} bitcast(%f)
  ROOT %u = f32[24,16,64]{2,1,0} dynamic-update-slice(%stack, %b, %i, %z, %z)
}

%ahead (stack.1: f32[24,16,64], i.1: s32[], x.2: f32[16,32], w.2: f32[32,64]) -> f32[24,16,64] {
  %stack.1 = f32[24,16,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x.2 = f32[16,32]{1,0} parameter(2)
  %w.2 = f32[32,64]{1,0} parameter(3)
  ROOT %g = f32[24,16,64]{2,1,0} fusion(%stack.1, %i.1, %x.2, %w.2), kind=kLoop, calls=%stacked
}
";
        let line = "((f32[24,16,64], s32[], f32[16,32], f32[32,64]), f32[24,16,64], u32[]) \
                    async-start(%p0, %p1, %p2, %p3), calls=%ahead";
        let operands = ["f32[24,16,64]{2,1,0}", "s32[]", "f32[16,32]{1,0}", "f32[32,64]{1,0}"];
        let found = one(fused, &operands, line);
        assert_eq!((found.matmul_flops, found.traffic), (product, 4 * (1 + 16 * 32 + 32 * 64 + 16 * 64)));
    }

    #[test]
    fn a_fusion_of_a_slice_reads_the_slice() {
        let fused = "%weight (w: bf16[24,32,64], i: s32[]) -> bf16[32,64] {
  %w = bf16[24,32,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = bf16[1,32,64]{2,1,0} dynamic-slice(%w, %i, %z, %z), dynamic_slice_sizes={1,32,64}
  ROOT %b = bf16[32,64]{1,0} bitcast(%s)
}

%product (x: bf16[16,32], w.1: bf16[24,32,64], i.1: s32[]) -> bf16[16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w.1 = bf16[24,32,64]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %f = bf16[32,64]{1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%weight
  ROOT %c = bf16[16,64]{1,0} convolution(%x, %f), dim_labels=bf_io->bf
}
";
        let line = "bf16[16,64]{1,0} fusion(%p0, %p1, %p2), kind=kOutput, calls=%product";
        let found = one(fused, &["bf16[16,32]{1,0}", "bf16[24,32,64]{2,1,0}", "s32[]"], line);
        assert_eq!(found.matmul_flops, 2.0 * 16.0 * 32.0 * 64.0);
        assert!(found.inside.contains("convolution") && found.inside.contains("dynamic-slice"));
        let [x, weight, index, y] = [16 * 32, 32 * 64, 2, 16 * 64].map(|elements| 2 * elements);
        assert_eq!(found.traffic, x + weight + index + y);
        // In vector memory both ends are free.
        let line = line.replacen("{1,0}", "{1,0:T(8,128)(2,1)S(1)}", 1);
        let found = one(fused, &["bf16[16,32]{1,0:S(1)}", "bf16[24,32,64]{2,1,0}", "s32[]{:S(6)}"], &line);
        assert_eq!(found.traffic, weight);
    }

    #[test]
    fn what_is_updated_in_place_costs_its_update() {
        let fused = "%update (stack: f32[24,16,128], x: bf16[16,128], i: s32[]) -> f32[24,16,128] {
  %stack = f32[24,16,128]{2,1,0} parameter(0)
  %x = bf16[16,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %old = f32[1,16,128]{2,1,0} dynamic-slice(%stack, %i, %z, %z), dynamic_slice_sizes={1,16,128}
  %wide = f32[16,128]{1,0} convert(%x)
  %new = f32[1,16,128]{2,1,0} bitcast(%wide)
  %sum = f32[1,16,128]{2,1,0} add(%old, %new)
  ROOT %u = f32[24,16,128]{2,1,0} dynamic-update-slice(%stack, %sum, %i, %z, %z)
}
";
        let line = "f32[24,16,128]{2,1,0} fusion(%p0, %p1, %p2), kind=kLoop, calls=%update";
        let found = one(fused, &["f32[24,16,128]{2,1,0}", "bf16[16,128]{1,0}", "s32[]{:S(6)}"], line);
        assert_eq!(found.traffic, 16 * 128 * (4 + 2 + 4));
        let line = "f32[1000,128]{1,0} scatter(%p0, %p1, %p2), to_apply=%add";
        let found = one("", &["f32[1000,128]{1,0}", "s32[8]{0:S(1)}", "f32[8,128]{1,0}"], line);
        assert_eq!(found.traffic, 8 * 128 * (4 + 4 + 4));
    }

    #[test]
    fn transfers_and_kernels_tell_their_bytes() {
        let line = "(f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%p0)";
        assert_eq!(one("", &["f32[8,128]{1,0}"], line).traffic, 4096);
        let slice = "%part (s: s8[4096]) -> s8[1024] {
  %s = s8[4096]{0} parameter(0)
  ROOT %t = s8[1024]{0:S(1)} slice(%s), slice={[0:1024]}
}
";
        let line = "((s8[4096]{0}), s8[1024]{0:S(1)}, s32[]{:S(2)}) async-start(%p0), calls=%part";
        assert_eq!(one(slice, &["s8[4096]{0}"], line).traffic, 1024);
        // A kernel that takes a stack and reads one layer of it says so.
        let line = "f32[16,128]{1,0} custom-call(%p0), custom_call_target=\"tpu_custom_call\", \
                    backend_config={\"custom_call_config\":{\"cost_estimate\":{\"bytes_accessed\":\"16384\",\"flops\":\"77\"}}}";
        let found = one("", &["f32[24,16,128]{2,1,0}"], line);
        assert_eq!((found.traffic, found.matmul_flops), (16384, 77.0));
        let line = "f32[16,128]{1,0} custom-call(), custom_call_target=\"AllocateBuffer\"";
        assert_eq!(one("", &[], line).traffic, 0);
    }
}
