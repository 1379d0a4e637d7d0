//! Where the cycles of a training step for a v6e go: its instructions in groups, each with the compiler's estimate, the
//! static cycles of hand-written kernels, and the roofline. No figure is a run time; they are for comparing programs.

use engine::hlo::{FREE_CALLS, Hlo, Instruction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Floating point operations of large bf16 matmuls in a cycle of a v6e, 94 % of its peak at 1.75 GHz.
pub(crate) const FLOPS_PER_CYCLE: f64 = 493e3;

/// Bytes of main memory in a cycle of a v6e.
pub(crate) const BYTES_PER_CYCLE: f64 = 936.0;

/// Work without an estimate is listed if it has this share of the roofline; custom calls always are.
const TOLD: f64 = 1e-4;

/// The part of a step that an instruction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Matmuls and what is fused into them, all but those of the vocabulary.
    LayerMatmuls,
    /// Hand-written attention.
    Attention,
    /// Heads and loss; embedding and its gradient.
    Vocabulary,
    /// Passes over activations.
    Elementwise,
    /// The update, the norm of the gradient, and clearing its accumulators.
    Optimiser,
    /// What only moves numbers: relayouts, slices of stacks.
    Copies,
}

/// Source files whose instructions belong to one group.
const PLACES: [(&str, Group); 5] = [
    ("kernels/src/cached_attention/", Group::Attention),
    ("kernels/src/diff_attention/", Group::Attention),
    ("kernels/src/cross_entropy.rs", Group::Vocabulary),
    ("model/src/loss.rs", Group::Vocabulary),
    ("train/src/step.rs", Group::Optimiser),
];

/// Instructions that compute nothing.
const MOVES: [&str; 16] = [
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "reshape",
    "copy",
    "transpose",
    "slice",
    "dynamic-slice",
    "dynamic-update-slice",
    "concatenate",
    "broadcast",
    "iota",
    "pad",
    "fusion",
];

/// Static cycles of a hand-written kernel, for which the compiler has no estimate.
struct StaticCycles {
    kernel: &'static str,
    cycles: f64,
    /// Floating point operations that such a call states; a call that states more costs more in proportion.
    flops: f64,
}

/// One layer of `1b` and one sequence of 2048: 6 heads, 2 groups, 512-tiles. libtpu 0.0.52, 2026-11-23, forward 2026-11-29;
/// `kernels/src/diff_attention/tpu/tiling.rs` says how they were measured.
const KERNELS: [StaticCycles; 2] = [
    StaticCycles { kernel: "diff_attention", cycles: 115_653.0, flops: 24_159_191_040.0 },
    StaticCycles { kernel: "diff_attention_backward", cycles: 157_000.0, flops: 40_265_318_400.0 },
];

/// The cycles of a step by group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breakdown {
    /// Every group.
    pub groups: BTreeMap<Group, Figures>,
    /// Instructions over a hundredth of all cycles, most first.
    pub large: Vec<Part>,
    /// Work without known cycles, the largest roofline first: all custom calls, and other work that is not negligible.
    pub untold: Vec<Part>,
    /// Cycles of the bytes of transfers to and from vector memory, which run beside the instructions: in no group.
    pub transfers: f64,
}

/// Cycles of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The compiler's estimate.
    pub estimated: f64,
    /// Static cycles of hand-written kernels.
    pub kernels: f64,
    /// For each instruction what takes longer, its matmuls or its bytes of main memory. What lies in vector memory, vector
    /// work and latency are free, so this is a lower limit.
    pub roofline: f64,
    /// The floor: the matmuls alone, without those of kernels.
    pub matmuls: f64,
}

/// Instructions of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Where they belong.
    pub group: Group,
    /// Cycles of all runs; 0 if they are not known.
    pub cycles: f64,
    /// The roofline of all runs.
    pub roofline: f64,
    /// How often they run.
    pub runs: u64,
    /// Name and type, or what they call.
    pub what: String,
    /// The author's line.
    pub at: Option<String>,
}

impl Group {
    /// All of them.
    pub const ALL: [Group; 6] = [
        Group::LayerMatmuls,
        Group::Attention,
        Group::Vocabulary,
        Group::Elementwise,
        Group::Optimiser,
        Group::Copies,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Group::LayerMatmuls => "layer matmuls",
            Group::Attention => "attention kernels",
            Group::Vocabulary => "vocabulary",
            Group::Elementwise => "norms and elementwise",
            Group::Optimiser => "optimiser",
            Group::Copies => "copies",
        }
    }

    /// The group of an instruction, by what it is and by the source file of its author's line.
    pub fn of(instruction: &Instruction) -> Group {
        let by_file = |at: &Option<String>| {
            let at = at.as_ref()?;
            PLACES.iter().find(|(place, _)| at.contains(place)).map(|(_, group)| *group)
        };
        let inside = |opcode: &str| instruction.inside.contains(opcode);
        // The loop over micro-batches stands in the optimiser's file; what is in the loop is not the optimiser's.
        let by_loop = by_file(&instruction.loop_at).filter(|group| *group == Group::Vocabulary);
        if let Some(group) = by_file(&instruction.at).or(by_loop) {
            group
        } else if inside("gather") || inside("scatter") || inside("async-update") {
            Group::Vocabulary
        } else if instruction.matmul_flops > 0.0 {
            Group::LayerMatmuls
        } else if instruction.inside.iter().all(|opcode| MOVES.contains(&opcode.as_str())) {
            Group::Copies
        } else {
            Group::Elementwise
        }
    }
}

impl Breakdown {
    /// None if the compiler estimates no cycles.
    pub fn of(hlo: &Hlo) -> Option<Breakdown> {
        let mut breakdown = Breakdown {
            groups: Group::ALL.map(|group| (group, Figures::default())).into(),
            large: Vec::new(),
            untold: Vec::new(),
            transfers: 0.0,
        };
        // Calls from one line are put together. The flag: whether it is a custom call.
        let mut untold: BTreeMap<(String, Option<String>), (Part, bool)> = BTreeMap::new();
        for instruction in &hlo.instructions {
            let runs = instruction.runs as f64;
            let bytes = runs * instruction.traffic as f64 / BYTES_PER_CYCLE;
            let is_transfer = matches!(instruction.opcode.as_str(), "copy-start" | "async-start");
            if is_transfer && instruction.cycles.is_none() {
                breakdown.transfers += bytes;
                continue;
            }
            let group = Group::of(instruction);
            let figures = breakdown.groups.entry(group).or_default();
            let matmuls = runs * instruction.matmul_flops / FLOPS_PER_CYCLE;
            let roofline = matmuls.max(bytes);
            figures.roofline += roofline;
            if instruction.calls.is_none() {
                figures.matmuls += matmuls;
            }
            let estimated = instruction.cycles.map(|cycles| cycles as f64);
            let kernel = static_cycles(instruction).map(|cycles| runs * cycles);
            figures.estimated += estimated.unwrap_or(0.0);
            figures.kernels += kernel.unwrap_or(0.0);
            let part = |cycles, what| Part {
                group,
                cycles,
                roofline,
                runs: instruction.runs,
                what,
                at: instruction.at.clone(),
            };
            if let Some(cycles) = estimated.or(kernel) {
                breakdown.large.push(part(cycles, format!("{} {}", instruction.name, instruction.ty)));
            } else if roofline > 0.0 || is_call(&instruction.calls) {
                let what = instruction.calls.clone().unwrap_or_else(|| stem(&instruction.name));
                match untold.entry((what.clone(), instruction.at.clone())) {
                    Entry::Vacant(place) => {
                        place.insert((part(0.0, what), is_call(&instruction.calls)));
                    }
                    Entry::Occupied(mut known) => {
                        known.get_mut().0.runs += instruction.runs;
                        known.get_mut().0.roofline += roofline;
                    }
                }
            }
        }
        let all = breakdown.sum();
        let told = |part: &Part| part.roofline > TOLD * all.roofline;
        breakdown.untold =
            untold.into_values().filter(|(part, call)| *call || told(part)).map(|(part, _)| part).collect();
        breakdown.untold.sort_by(|a, b| b.roofline.total_cmp(&a.roofline));
        breakdown.large.retain(|part| part.cycles > all.cycles() / 100.0);
        breakdown.large.sort_by(|a, b| b.cycles.total_cmp(&a.cycles));
        (all.estimated > 0.0).then_some(breakdown)
    }

    /// All groups together.
    pub fn sum(&self) -> Figures {
        self.groups.values().fold(Figures::default(), |sum, part| Figures {
            estimated: sum.estimated + part.estimated,
            kernels: sum.kernels + part.kernels,
            roofline: sum.roofline + part.roofline,
            matmuls: sum.matmuls + part.matmuls,
        })
    }
}

impl Figures {
    /// Estimated cycles, with the kernels' static ones.
    pub fn cycles(&self) -> f64 {
        self.estimated + self.kernels
    }
}

/// Static cycles of one run of a known kernel.
fn static_cycles(instruction: &Instruction) -> Option<f64> {
    let kernel = instruction.calls.as_ref()?.strip_prefix("tpu_custom_call ")?;
    let known = KERNELS.iter().find(|known| known.kernel == kernel)?;
    let share = instruction.matmul_flops / known.flops;
    // None if the call does not state its operations.
    (share > 0.0).then_some(known.cycles * share)
}

/// Whether a call does work.
fn is_call(calls: &Option<String>) -> bool {
    calls.as_ref().is_some_and(|callee| !FREE_CALLS.contains(&callee.as_str()))
}

/// A name without its numbers: `fusion.3` -> `fusion`.
fn stem(name: &str) -> String {
    let parts = name.split('.').filter(|part| part.parse::<u64>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, Engine};
    use std::path::Path;

    /// A step of one loop of 24 layers and a loss, and what each instruction is for.
    fn text() -> String {
        let kernel =
            BASE64_STANDARD.encode("func() {} {sym_name = \"diff_attention\"} func() {} {sym_name = \"t0\"}");
        let flops = 2 * 24_159_191_040u64;
        format!(
            r#"HloModule step

%product (x: bf16[16384,1536], w: bf16[1536,4096]) -> bf16[16384,4096] {{
  %x = bf16[16384,1536]{{1,0}} parameter(0)
  %w = bf16[1536,4096]{{1,0}} parameter(1)
  ROOT %c = bf16[16384,4096]{{1,0}} convolution(%x, %w), dim_labels=bf_io->bf, metadata={{source_file="model/src/forward.rs" source_line=9 }}
}}

%sum (a: bf16[16384,1536], b: bf16[16384,1536]) -> bf16[16384,1536] {{
  %a = bf16[16384,1536]{{1,0}} parameter(0)
  %b = bf16[16384,1536]{{1,0}} parameter(1)
  ROOT %s = bf16[16384,1536]{{1,0}} add(%a, %b)
}}

%layer (arg: (bf16[16384,1536], bf16[1536,4096])) -> (bf16[16384,1536], bf16[1536,4096]) {{
  %arg = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) parameter(0)
  %start = (bf16[1536,4096]{{1,0:S(1)}}, bf16[1536,4096]{{1,0}}, u32[]{{:S(2)}}) copy-start(%arg#1)
  %up = bf16[16384,4096]{{1,0}} fusion(%arg#0, %arg#1), kind=kOutput, calls=%product, backend_config={{"estimated_cycles":"500000"}}
  %name.1 = bf16[16384,1536]{{1,0}} custom-call(%arg#0), custom_call_target="tpu_custom_call", metadata={{source_file="kernels/src/diff_attention/mod.rs" source_line=3 }}, backend_config={{"custom_call_config":{{"body":"{kernel}","cost_estimate":{{"bytes_accessed":"936000","flops":"{flops}"}}}}}}
  %name.2 = bf16[16384,1536]{{1,0}} custom-call(%arg#0), custom_call_target="tpu_custom_call", kernel_name="wat"
  %turned = bf16[16384,1536]{{0,1}} copy(%name.2), backend_config={{"estimated_cycles":"300000"}}
  %added = bf16[16384,1536]{{1,0}} fusion(%turned, %name.1), kind=kLoop, calls=%sum, backend_config={{"estimated_cycles":"200000"}}
  ROOT %out = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) tuple(%added, %arg#1)
}}

%chunk (arg.1: (bf16[16384,1536], bf16[1536,4096])) -> (bf16[16384,1536], bf16[1536,4096]) {{
  %arg.1 = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) parameter(0)
  %moved = bf16[16384,1536]{{0,1}} copy(%arg.1#0), backend_config={{"estimated_cycles":"40000"}}
  ROOT %out.1 = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) tuple(%moved, %arg.1#1)
}}

%below (arg.2: (bf16[16384,1536], bf16[1536,4096])) -> pred[] {{
  %n = s32[] constant(24)
  ROOT %less = pred[] compare(%n, %n), direction=LT
}}

ENTRY %main (p: (bf16[16384,1536], bf16[1536,4096])) -> f32[1000,1000] {{
  %p = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) parameter(0)
  %layers = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) while(%p), condition=%below, body=%layer, metadata={{source_file="train/src/step.rs" source_line=5 }}
  %loss = (bf16[16384,1536]{{1,0}}, bf16[1536,4096]{{1,0}}) while(%layers), condition=%below, body=%chunk, metadata={{source_file="kernels/src/cross_entropy.rs" source_line=5 }}
  %g = f32[1000,1000]{{1,0}} broadcast(%loss#0), backend_config={{"estimated_cycles":"7000000"}}, metadata={{source_file="train/src/step.rs" source_line=7 }}
  ROOT %rows = f32[1000,1000]{{1,0}} scatter(%g, %loss#1, %loss#0), to_apply=%below
}}
"#
        )
    }

    #[test]
    fn every_instruction_has_its_group_and_every_sum_its_parts() {
        let hlo = Hlo::parse(&text());
        let found = Breakdown::of(&hlo).unwrap();
        let estimated = |group| found.groups[&group].estimated;
        assert_eq!(estimated(Group::LayerMatmuls), 24.0 * 500_000.0);
        assert_eq!(estimated(Group::Attention), 0.0);
        // It has no line of its own, but stands in the loop of the loss.
        assert_eq!(estimated(Group::Vocabulary), 24.0 * 40_000.0);
        assert_eq!(estimated(Group::Elementwise), 24.0 * 200_000.0);
        assert_eq!(estimated(Group::Optimiser), 7_000_000.0);
        // The loop of micro-batches stands in step.rs; what is in it does not.
        assert_eq!(estimated(Group::Copies), 24.0 * 300_000.0);
        assert_eq!(found.sum().estimated, hlo.cycles() as f64);

        // Twice the operations of a sequence, twice its cycles.
        assert_eq!(found.groups[&Group::Attention].kernels, 24.0 * 2.0 * 115_653.0);
        assert_eq!(found.sum().cycles(), hlo.cycles() as f64 + 24.0 * 2.0 * 115_653.0);

        let floor = 24.0 * 2.0 * 16384.0 * 1536.0 * 4096.0 / 493e3;
        assert_eq!(found.sum().matmuls, floor);
        assert_eq!(found.groups[&Group::LayerMatmuls].roofline, floor);
        let attention = 24.0 * 2.0 * 24_159_191_040.0 / 493e3;
        assert!((found.groups[&Group::Attention].roofline / attention - 1.0).abs() < 1e-12);
        let row = (16384 * 1536 * 2) as f64 / 936.0;
        // Two read, one written, and the unknown kernel's operand and result.
        assert!((found.groups[&Group::Elementwise].roofline / (24.0 * 5.0 * row) - 1.0).abs() < 1e-12);
        assert_eq!(found.transfers, 24.0 * (1536 * 4096 * 2) as f64 / 936.0);
    }

    #[test]
    fn large_instructions_and_those_without_an_estimate_are_listed() {
        let found = Breakdown::of(&Hlo::parse(&text())).unwrap();
        let large: Vec<_> = found.large.iter().map(|part| part.what.split(' ').next().unwrap()).collect();
        assert_eq!(large, ["up", "turned", "g", "name.1", "added", "moved"]);
        assert_eq!(found.large[0].at.as_deref(), Some("model/src/forward.rs:9"));
        let untold: Vec<_> =
            found.untold.iter().map(|part| (part.what.as_str(), part.runs, part.group)).collect();
        let expected = [("tpu_custom_call wat", 24, Group::Elementwise), ("rows", 1, Group::Vocabulary)];
        assert_eq!(untold, expected);
        // A kernel that does not state its operations is listed, not taken for free.
        let silent = text().replace("flops", "wat");
        let found = Breakdown::of(&Hlo::parse(&silent)).unwrap();
        assert!(found.untold.iter().any(|part| part.what == "tpu_custom_call diff_attention"));
        assert_eq!(Breakdown::of(&Hlo::parse(&text().replace("estimated_cycles", "wat"))), None);
    }

    #[test]
    fn the_places_that_tell_a_group_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        for (place, _) in PLACES {
            assert!(root.join(place).exists(), "{place}");
        }
    }
}
