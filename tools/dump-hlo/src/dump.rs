//! [`Dump`]: the figures of a program, as JSON, and the difference of two.

use crate::groups::Breakdown;
use engine::Form;
use engine::hlo::Hlo;
use engine::pjrt::Value;
use engine::work::{Work, result_bytes};
use engine::{Program, Type};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use train::compiler::{Made, Place};

/// The figures of a program at one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// `step`, `kernel:swiglu`.
    pub program: String,
    /// Where it would run.
    pub platform: String,
    /// `stablehlo` or `optimized`.
    pub stage: String,
    /// Operations of the text at this stage, by name.
    pub ops: BTreeMap<String, Uses>,
    /// The same by name and result types; two dumps are compared by these.
    pub ops_by_type: BTreeMap<String, Uses>,
    /// Floating point operations of one run.
    pub flops: Flops,
    /// Kernels and the form chosen for each.
    pub kernels: BTreeMap<String, String>,
    /// Custom calls at this stage, by what they call.
    pub custom_calls: BTreeMap<String, Uses>,
    /// The largest values, largest first; after the compiler, the largest buffers of its assignment.
    pub largest: Vec<Large>,
    /// Loops whose turns are known only at run time: their bodies are counted once.
    pub open_loops: u64,
    /// What the compiler says.
    pub compiled: Option<Compiled>,
}

/// How often something occurs and how often it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Uses {
    /// Places in the program.
    pub count: u64,
    /// Times that these run, loops counted as often as they turn.
    pub runs: f64,
}

/// Floating point operations of the program as written; kernels count as their portable form does, which leaves out
/// what a causal mask hides. A multiply-add counts 2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// All.
    pub total: f64,
    /// By operation, those that have any.
    pub by_op: BTreeMap<String, f64>,
}

/// A large value or buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Large {
    /// Its size.
    pub bytes: u64,
    /// Operation and types, or the types of the values that share the buffer.
    pub what: String,
    /// The author's line, where it is one value.
    pub at: Option<String>,
}

/// What the compiler says of its program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compiled {
    /// How long it took.
    pub seconds: f64,
    /// Bytes on the device.
    pub memory: Memory,
    /// Its estimate of the work; a loop's body counts once.
    pub cost: BTreeMap<String, f64>,
    /// Its estimate of time, if it makes one.
    pub cycles: Option<Cycles>,
}

/// Bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Memory {
    pub arguments: i64,
    pub outputs: i64,
    pub aliased: i64,
    pub temporaries: i64,
    pub code: i64,
    pub peak: i64,
}

/// The TPU compiler's estimate of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cycles {
    /// All together, without hand-written kernels, for which there is no estimate.
    pub total: u64,
    /// By computation: the entry and the bodies of loops, most first.
    pub by_computation: Vec<Computation>,
    /// By the part of the step that instructions belong to, with the kernels and the roofline beside it.
    pub breakdown: Breakdown,
}

/// The cycles of one computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Computation {
    /// Cycles of all its runs.
    pub cycles: u64,
    /// How often it runs.
    pub runs: u64,
    /// Its name.
    pub name: String,
}

/// Entries of the list of large values.
const LISTED: usize = 20;

impl Dump {
    /// Reads the figures; with what the compiler made of the program, those of the optimised stage.
    pub fn new(
        name: &str,
        place: &Place,
        program: &Program,
        lowered: &Program,
        forms: &[(String, Form)],
        made: Option<&Made>,
    ) -> Dump {
        // Counted before kernels are chosen, because a native kernel does not tell its operations.
        let work = Work::of(program);
        let by_op = work.uses().into_iter().filter(|(_, uses)| uses.flops > 0.0);
        let mut dump = Dump {
            program: name.to_owned(),
            platform: place.to_string(),
            stage: if made.is_some() { "optimized" } else { "stablehlo" }.to_owned(),
            ops: BTreeMap::new(),
            ops_by_type: BTreeMap::new(),
            flops: Flops { total: work.flops(), by_op: by_op.map(|(op, uses)| (op, uses.flops)).collect() },
            kernels: forms
                .iter()
                .map(|(name, form)| (name.clone(), format!("{form:?}").to_lowercase()))
                .collect(),
            custom_calls: BTreeMap::new(),
            largest: Vec::new(),
            open_loops: 0,
            compiled: None,
        };
        match made {
            None => dump.read_program(&Work::of(lowered)),
            Some(made) => dump.read_made(made),
        }
        dump.largest.sort_by_key(|large| std::cmp::Reverse(large.bytes));
        dump.largest.truncate(LISTED);
        dump
    }

    fn count(&mut self, op: &str, types: &str, runs: f64) {
        for (map, key) in [(&mut self.ops, op.to_owned()), (&mut self.ops_by_type, format!("{op} {types}"))] {
            let uses = map.entry(key).or_default();
            uses.count += 1;
            uses.runs += runs;
        }
    }

    fn read_program(&mut self, work: &Work) {
        self.open_loops = work.open_loops;
        for site in &work.sites {
            let types = site.types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            self.count(&site.op, &types, site.runs);
            if let Some((_, target)) = site.op.split_once("_call @") {
                let uses = self.custom_calls.entry(target.to_owned()).or_default();
                uses.count += 1;
                uses.runs += site.runs;
            }
            self.largest.push(Large {
                bytes: result_bytes(&site.types),
                what: format!("{} {types}", site.op),
                at: Some(format!("{}:{}", site.at.file(), site.at.line())),
            });
        }
    }

    fn read_made(&mut self, made: &Made) {
        let hlo = Hlo::parse(&made.optimized);
        self.open_loops = hlo.open_loops;
        for instruction in &hlo.instructions {
            self.count(&instruction.opcode, &instruction.ty, instruction.runs as f64);
        }
        let calls = hlo.custom_calls().into_iter();
        self.custom_calls =
            calls.map(|(callee, (count, runs))| (callee, Uses { count, runs: runs as f64 })).collect();
        let buffers = made.buffers.iter();
        self.largest = buffers
            .map(|buffer| Large { bytes: buffer.bytes, what: buffer.shapes.clone(), at: None })
            .collect();
        let number = |value: &Value| match value {
            Value::Float(number) => Some(f64::from(*number)),
            Value::Int(number) => Some(*number as f64),
            _ => None,
        };
        let memory = made.memory;
        self.compiled = Some(Compiled {
            seconds: made.took.as_secs_f64(),
            memory: Memory {
                arguments: memory.arguments,
                outputs: memory.outputs,
                aliased: memory.aliased,
                temporaries: memory.temporaries,
                code: memory.code,
                peak: memory.peak,
            },
            // Figures for single operands ("bytes accessed0{}") are left out.
            cost: (made.cost.iter())
                .filter(|(name, _)| !name.contains('{'))
                .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
                .collect(),
            cycles: cycles(&hlo),
        });
    }

    /// The difference from an earlier dump as a table: places and runs of operations, then figures.
    pub fn difference(&self, earlier: &Dump) -> String {
        let title = |dump: &Dump| format!("{} for {} ({})", dump.program, dump.platform, dump.stage);
        let mut text = format!("from {}\nto   {}\n", title(earlier), title(self));
        let start = text.len();
        let mut line = |name: &str, before: f64, after: f64| {
            if before != after {
                let change = if before == 0.0 {
                    String::new()
                } else {
                    format!("{:+.1} %", 100.0 * (after / before - 1.0))
                };
                let _ = writeln!(text, "{:>16} -> {:<16} {change:>9}  {name}", number(before), number(after));
            }
        };
        let tables = [
            ("places", &earlier.ops_by_type, &self.ops_by_type),
            ("custom calls", &earlier.custom_calls, &self.custom_calls),
        ];
        for (kind, before, after) in tables {
            for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let [before, after] = [before, after].map(|uses| uses.get(name).copied().unwrap_or_default());
                line(&format!("{kind} {name}"), before.count as f64, after.count as f64);
                if before.count == after.count || before.count * after.count == 0 {
                    // Otherwise the line above says it.
                    line(&format!("runs   {name}"), before.runs, after.runs);
                }
            }
        }
        for name in earlier.flops.by_op.keys().chain(self.flops.by_op.keys()).collect::<BTreeSet<_>>() {
            let [before, after] =
                [earlier, self].map(|dump| dump.flops.by_op.get(name).copied().unwrap_or(0.0));
            line(&format!("flops  {name}"), before, after);
        }
        let figures = |dump: &Dump| -> BTreeMap<String, f64> {
            let mut figures = BTreeMap::from([("flops  all".to_owned(), dump.flops.total)]);
            if let Some(Compiled { memory, cost, cycles, .. }) = &dump.compiled {
                let bytes = [
                    ("arguments", memory.arguments),
                    ("outputs", memory.outputs),
                    ("aliased", memory.aliased),
                    ("temporaries", memory.temporaries),
                    ("code", memory.code),
                    ("peak", memory.peak),
                ];
                figures.extend(bytes.map(|(name, bytes)| (format!("bytes  {name}"), bytes as f64)));
                figures.extend(cost.iter().map(|(name, cost)| (format!("cost   {name}"), *cost)));
                figures.extend(cycles.as_ref().map(|cycles| ("cycles".to_owned(), cycles.total as f64)));
            }
            figures
        };
        let (before, after) = (figures(earlier), figures(self));
        for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let [before, after] = [&before, &after].map(|figures| figures.get(name).copied().unwrap_or(0.0));
            line(name, before, after);
        }
        if text.len() == start {
            text += "nothing differs\n";
        }
        text
    }
}

/// Whole numbers as they are, large ones in short.
fn number(value: f64) -> String {
    if value.abs() < 1e15 && value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.4e}") }
}

fn cycles(hlo: &Hlo) -> Option<Cycles> {
    let breakdown = Breakdown::of(hlo)?;
    let mut by_computation: BTreeMap<&str, Computation> = BTreeMap::new();
    for instruction in &hlo.instructions {
        let Some(cycles) = instruction.cycles else { continue };
        let name = &instruction.computation;
        let part = by_computation.entry(name).or_insert_with(|| Computation {
            cycles: 0,
            runs: instruction.runs,
            name: name.clone(),
        });
        part.cycles += cycles;
    }
    let mut by_computation: Vec<Computation> = by_computation.into_values().collect();
    by_computation.sort_by_key(|part| std::cmp::Reverse(part.cycles));
    Some(Cycles { total: hlo.cycles(), by_computation, breakdown })
}
