//! Optimised programs as HLO text: which instructions run, how often, and the TPU compiler's estimate of their cycles.
//! A fusion is one instruction. Calls of hand-written kernels carry no estimate.

use std::collections::{BTreeMap, HashMap};

/// One instruction that is reached from the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// Its name, without `%`.
    pub name: String,
    /// `fusion`, `dot`, `while`.
    pub opcode: String,
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
    /// Whom a custom call calls.
    pub calls: Option<String>,
    /// The author's file and line.
    pub at: Option<String>,
}

/// The instructions of a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hlo {
    /// In the order of the text, each computation where it is first reached.
    pub instructions: Vec<Instruction>,
    /// Loops whose turns are not in the text; their bodies count once.
    pub open_loops: u64,
}

impl Hlo {
    /// Reads the text of one module.
    pub fn parse(text: &str) -> Hlo {
        let mut computations: HashMap<&str, Vec<&str>> = HashMap::new();
        let (mut entry, mut current) = ("", None);
        for line in text.lines() {
            if !line.starts_with(' ') && line.ends_with('{') && line.contains("->") {
                let name = name_at_start(line.strip_prefix("ENTRY ").unwrap_or(line));
                if line.starts_with("ENTRY ") {
                    entry = name;
                }
                current = Some(name);
            } else if line.starts_with('}') {
                current = None;
            } else if let Some(name) = current {
                computations.entry(name).or_default().push(line);
            }
        }
        let mut hlo = Hlo::default();
        let mut open = vec![(entry, 1u64)];
        while let Some((computation, runs)) = open.pop() {
            for line in computations.get(computation).into_iter().flatten() {
                let Some(mut instruction) = instruction(line) else { continue };
                instruction.computation = computation.to_owned();
                instruction.runs = runs;
                instruction.cycles = instruction.cycles.map(|cycles| cycles * runs);
                let part = |key| between(line, key, ",").map(name_at_start);
                match instruction.opcode.as_str() {
                    "while" => {
                        let turns = turns(line, part("condition=").and_then(|name| computations.get(name)));
                        hlo.open_loops += u64::from(turns.is_none());
                        open.extend(part("body=").map(|body| (body, runs * turns.unwrap_or(1))));
                        // The sum of its body, which is counted there.
                        instruction.cycles = None;
                    }
                    "call" => open.extend(part("to_apply=").map(|callee| (callee, runs))),
                    "conditional" => {
                        let keys = ["true_computation=", "false_computation="];
                        open.extend(keys.into_iter().filter_map(part).map(|callee| (callee, runs)));
                        let several = between(line, "branch_computations={", "}").unwrap_or_default();
                        let names = several.split(", ").filter(|name| !name.is_empty());
                        open.extend(names.map(|name| (name_at_start(name), runs)));
                    }
                    _ => {}
                }
                hlo.instructions.push(instruction);
            }
        }
        hlo
    }

    /// Cycles of all instructions that have an estimate.
    pub fn cycles(&self) -> u64 {
        self.instructions.iter().filter_map(|instruction| instruction.cycles).sum()
    }

    /// Custom calls that do work and have no estimate, by whom they call: places and runs.
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
fn turns(line: &str, condition: Option<&Vec<&str>>) -> Option<u64> {
    let known = between(line, "\"known_trip_count\":{\"n\":\"", "\"").and_then(|n| n.parse().ok());
    known.or_else(|| {
        let lines = condition?;
        let mut constants = lines.iter().filter_map(|line| between(line, "constant(", ")"));
        let bound = constants.next()?.parse().ok()?;
        constants.next().is_none().then_some(bound)
    })
}

/// `%name = type opcode(operands), attributes`; the computation and its runs are filled in by the caller.
fn instruction(line: &str) -> Option<Instruction> {
    let line = line.trim();
    let line = line.strip_prefix("ROOT ").unwrap_or(line);
    let (name, rest) = line.split_once(" = ")?;
    let end = type_end(rest)?;
    let (ty, rest) = rest.split_at(end);
    let (opcode, _) = rest.trim_start().split_once('(')?;
    let cycles = between(line, "\"estimated_cycles\":\"", "\"").and_then(|n| n.parse::<i64>().ok());
    let file = between(line, "source_file=\"", "\"").filter(|file| *file != "-");
    let at = file.map(|file| match between(line, "source_line=", " ") {
        Some(number) => format!("{file}:{}", number.trim_end_matches(['}', ','])),
        None => file.to_owned(),
    });
    let calls = (opcode == "custom-call").then(|| {
        let target = between(line, "custom_call_target=\"", "\"").unwrap_or("?").to_owned();
        match between(line, "kernel_name=\"", "\"").or_else(|| between(line, "kernel_name = \"", "\"")) {
            Some(kernel) => format!("{target} {kernel}"),
            None => target,
        }
    });
    let ty = without_layouts(ty);
    Some(Instruction {
        name: name.trim_start_matches('%').to_owned(),
        opcode: opcode.to_owned(),
        bytes: type_bytes(&ty),
        ty,
        computation: String::new(),
        runs: 1,
        // Values near the largest number mean "unknown".
        cycles: cycles.filter(|n| (1..1 << 62).contains(n)).map(|n| n as u64),
        calls,
        at,
    })
}

/// Where the type at the start of a text ends: tuples have blanks inside.
fn type_end(text: &str) -> Option<usize> {
    let mut depth = 0i32;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ' ' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// `f32[8,128]{1,0:T(8,128)}` -> `f32[8,128]`, in tuples too; comments go with them.
fn without_layouts(ty: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0;
    let mut rest = ty;
    while let Some(letter) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
            continue;
        }
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            other if depth == 0 => plain.push(other),
            _ => {}
        }
        rest = &rest[letter.len_utf8()..];
    }
    plain
}

/// Bytes of all arrays in a type without layouts.
fn type_bytes(ty: &str) -> u64 {
    let mut bytes = 0;
    for part in ty.split('[').collect::<Vec<_>>().windows(2) {
        let name = part[0].rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let dims = part[1].split(']').next().unwrap_or_default();
        let extents = dims.split(',').filter(|dim| !dim.is_empty());
        let elements: u64 =
            extents.map(|dim| dim.trim_start_matches("<=").parse::<u64>().unwrap_or(1)).product();
        let bits: u64 = match name {
            "pred" => 8,
            other => other.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(match other {
                "token" | "opaque" => 0,
                _ => 8,
            }),
        };
        bytes += elements * bits / 8;
    }
    bytes
}

fn name_at_start(text: &str) -> &str {
    let text = text.trim_start_matches('%');
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).unwrap_or(text.len());
    &text[..end]
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after).unwrap_or(rest.len())])
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
