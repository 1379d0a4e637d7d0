//! Programs as a compiler left them, read from their HLO text: which instructions run, how often, the TPU compiler's estimate
//! of their cycles, and their roofline. A fusion is one instruction. Calls of hand-written kernels carry no estimate.
//!
//! It reads text alone and uses nothing else of the engine; `train --plan` and `dump-hlo` use it.

mod roofline;
mod text;

pub use roofline::FREE_CALLS;

use base64::prelude::{BASE64_STANDARD, Engine};
use std::collections::{BTreeMap, BTreeSet};
use text::{Computation, Line, Module, between};

/// One instruction that is reached from the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// Its name, without `%`.
    pub name: String,
    /// `fusion`, `dot`, `while`.
    pub opcode: String,
    /// The names of all that is fused into it, its own among them.
    pub inside: BTreeSet<String>,
    /// The type of its result without layouts: `f32[8,128]`, `(f32[], s32[])`.
    pub ty: String,
    /// Bytes of the result.
    pub bytes: u64,
    /// The computation that holds it: a loop's body, for instance.
    pub computation: String,
    /// How often it runs.
    pub runs: u64,
    /// The compiler's estimate for all runs together.
    pub cycles: Option<u64>,
    /// Floating point operations of the matmuls of one run; for a hand-written kernel, those that its call states.
    pub matmul_flops: f64,
    /// Bytes that one run moves to and from the device's main memory. Arrays in vector memory are free; of an array that is
    /// sliced or updated in place only the slices count.
    pub traffic: u64,
    /// What a custom call calls: `tpu_custom_call diff_attention`.
    pub calls: Option<String>,
    /// The author's file and line; of a fusion without one, that of the last instruction inside that has one.
    pub at: Option<String>,
    /// The author's file and line of the loop around it.
    pub loop_at: Option<String>,
}

/// The instructions of a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hlo {
    /// In the order of the text, each computation where it is first reached.
    pub instructions: Vec<Instruction>,
    /// Loops whose turns are not in the text; their bodies count once.
    pub open_loops: u64,
}

/// A computation that runs: how often, and the author's line of the loop whose body it is.
#[derive(Clone)]
struct Reached<'t> {
    computation: &'t str,
    runs: u64,
    loop_at: Option<String>,
}

impl Hlo {
    /// Reads the text of one module.
    pub fn parse(text: &str) -> Hlo {
        let module = Module::parse(text);
        let mut hlo = Hlo::default();
        let mut open = vec![Reached { computation: module.entry, runs: 1, loop_at: None }];
        while let Some(reached) = open.pop() {
            let Some(computation) = module.computation(reached.computation) else { continue };
            for line in &computation.lines {
                hlo.instructions.push(instruction(&module, computation, line, &reached));
                let same = |computation| Reached { computation, ..reached.clone() };
                match line.opcode {
                    "while" => {
                        let turns =
                            turns(line, line.part("condition=").and_then(|name| module.computation(name)));
                        hlo.open_loops += u64::from(turns.is_none());
                        let runs = reached.runs * turns.unwrap_or(1);
                        let loop_at = line.at().or(reached.loop_at.clone());
                        open.extend(line.part("body=").map(|computation| Reached {
                            computation,
                            runs,
                            loop_at,
                        }));
                    }
                    "call" => open.extend(line.part("to_apply=").map(same)),
                    "conditional" => {
                        let keys = ["true_computation=", "false_computation="];
                        open.extend(keys.into_iter().filter_map(|key| line.part(key)).map(same));
                        let several = line.attribute("branch_computations={", "}").unwrap_or_default();
                        let names = several.split(", ").filter(|name| !name.is_empty());
                        open.extend(names.map(text::name_at_start).map(same));
                    }
                    _ => {}
                }
            }
        }
        hlo
    }

    /// Cycles of all instructions that have an estimate.
    pub fn cycles(&self) -> u64 {
        self.instructions.iter().filter_map(|instruction| instruction.cycles).sum()
    }

    /// Floating point operations of all matmuls.
    pub fn matmul_flops(&self) -> f64 {
        self.instructions.iter().map(|instruction| instruction.runs as f64 * instruction.matmul_flops).sum()
    }

    /// Seconds that one run takes at least on a device that does so many floating point operations and moves so many bytes of
    /// its main memory a second: of each instruction what takes longer.
    pub fn roofline(&self, flops: f64, bandwidth: f64) -> f64 {
        let seconds = self.instructions.iter().map(|instruction| {
            let longer = (instruction.matmul_flops / flops).max(instruction.traffic as f64 / bandwidth);
            instruction.runs as f64 * longer
        });
        seconds.sum()
    }

    /// Custom calls, by what they call: places and runs.
    pub fn custom_calls(&self) -> BTreeMap<String, (u64, u64)> {
        let mut calls: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for instruction in &self.instructions {
            if let Some(callee) = &instruction.calls {
                let entry = calls.entry(callee.clone()).or_default();
                entry.0 += 1;
                entry.1 += instruction.runs;
            }
        }
        calls
    }
}

/// Turns of a loop: the compiler's figure, or the one constant that its condition compares with, from 0 by 1.
fn turns(line: &Line<'_>, condition: Option<&Computation<'_>>) -> Option<u64> {
    let known = line.attribute("\"known_trip_count\":{\"n\":\"", "\"").and_then(|n| n.parse().ok());
    known.or_else(|| {
        let mut constants = condition?.lines.iter().filter_map(Line::constant);
        let bound = constants.next()?;
        constants.next().is_none().then_some(bound)
    })
}

fn instruction<'t>(
    module: &Module<'t>,
    computation: &Computation<'t>,
    line: &Line<'t>,
    reached: &Reached<'_>,
) -> Instruction {
    let cycles = line.attribute("\"estimated_cycles\":\"", "\"").and_then(|n| n.parse::<u64>().ok());
    // A loop's is the sum of its body, which is counted there; values near the largest number mean "unknown".
    let cycles = cycles.filter(|n| line.opcode != "while" && (1..1 << 62).contains(n));
    let mut inside = BTreeSet::new();
    roofline::opcodes(module, line, &mut inside);
    Instruction {
        name: line.name.to_owned(),
        opcode: line.opcode.to_owned(),
        inside,
        ty: text::without_layouts(line.ty),
        bytes: line.arrays.iter().map(|array| array.bytes).sum(),
        computation: reached.computation.to_owned(),
        runs: reached.runs,
        cycles: cycles.map(|cycles| cycles * reached.runs),
        matmul_flops: roofline::matmul_flops(module, computation, line),
        traffic: roofline::traffic(module, computation, line),
        calls: (line.opcode == "custom-call").then(|| callee(line)),
        at: at(module, line),
        loop_at: reached.loop_at.clone(),
    }
}

/// The author's line of an instruction; the compiler's own fusions have only those of what is inside.
fn at(module: &Module<'_>, line: &Line<'_>) -> Option<String> {
    line.at().or_else(|| module.callee(line)?.lines.iter().rev().find_map(|inner| at(module, inner)))
}

/// What a custom call calls, with the name of a kernel: from its attribute, or from the kernel's text.
fn callee(line: &Line<'_>) -> String {
    let target = line.attribute("custom_call_target=\"", "\"").unwrap_or("?").to_owned();
    let named = ["kernel_name=\"", "kernel_name = \""].into_iter().find_map(|key| line.attribute(key, "\""));
    let kernel = named.map(str::to_owned).or_else(|| {
        let text = BASE64_STANDARD.decode(line.attribute("\"body\":\"", "\"")?).ok()?;
        // The first function is the kernel; those after it place its windows.
        between(&String::from_utf8(text).ok()?, "sym_name = \"", "\"").map(str::to_owned)
    });
    match kernel {
        Some(kernel) => format!("{target} {kernel}"),
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"HloModule step, is_scheduled=true

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %t = f32[8,128]{1,0} tanh(%p), backend_config={"estimated_cycles":"7"}
}

%condition (arg: (s32[], f32[8,128])) -> pred[] {
  %arg = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %n = s32[] constant(24)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (arg.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg.1 = (s32[], /*index=1*/f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%arg.1), index=1
  %y = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, metadata={source_file="model/src/forward.rs" source_line=41 source_column=3}, backend_config={"estimated_cycles":"100"}
  %z = bf16[4]{0} custom-call(%y), custom_call_target="tpu_custom_call", backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %out = (s32[], f32[8,128]{1,0}) tuple(%i, %y)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %w = (s32[], f32[8,128]{1,0}) while(%a), condition=%condition, body=%body, backend_config={"estimated_cycles":"2400"}
  ROOT %r = f32[8,128]{1,0} fusion(%w), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"11"}
}
"#;

    #[test]
    fn cycles_count_as_often_as_loops_turn() {
        let hlo = Hlo::parse(TEXT);
        assert_eq!(hlo.cycles(), 24 * 100 + 11);
        assert_eq!(hlo.open_loops, 0);
        assert_eq!(hlo.custom_calls(), BTreeMap::from([("tpu_custom_call".to_owned(), (1, 24))]));
        let y = hlo.instructions.iter().find(|instruction| instruction.name == "y").unwrap();
        assert_eq!((y.opcode.as_str(), y.ty.as_str(), y.bytes, y.runs), ("fusion", "f32[8,128]", 4096, 24));
        assert_eq!(y.at.as_deref(), Some("model/src/forward.rs:41"));
        let w = hlo.instructions.iter().find(|instruction| instruction.opcode == "while").unwrap();
        assert_eq!((w.ty.as_str(), w.bytes), ("(s32[], f32[8,128])", 4100));
        // A fusion counts as a whole; its operand lies in vector memory.
        assert!(y.inside.contains("tanh") && y.traffic == 4096);
        // Instructions inside a fusion do not run by themselves.
        assert!(hlo.instructions.iter().all(|instruction| instruction.opcode != "tanh"));
    }

    #[test]
    fn a_loop_with_an_unknown_end_is_said_to_be_one() {
        let text = TEXT.replace("constant(24)", "parameter(1)");
        let hlo = Hlo::parse(&text);
        assert_eq!((hlo.open_loops, hlo.cycles()), (1, 111));
    }
}
