//! The table of a compiled step for a v6e: its cycles by group, the roofline, what a change did, and the JAX peer.

use crate::dump::Dump;
use crate::groups::{BYTES_PER_CYCLE, Breakdown, FLOPS_PER_CYCLE, Figures, Group, Part};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

/// A good JAX program's step of the same model: 24 layers, 8 micro-batches of 8 x 2048 tokens, layers recomputed in the
/// backward pass, attention by `splash_attention`. In millions of cycles: estimate, roofline, matmuls.
///
/// `compile_v6e.py step 8 8 2048 remat=full` with jax 0.10.2 and libtpu 0.0.52, 2026-11-22. Its HLO was grouped by the
/// rules of [`Group::of`], with its functions in the place of our files: the loss for `cross_entropy.rs`, the update and the
/// sum over micro-batches for `step.rs`, `splash_attention` for `diff_attention`.
const PEER: [(Group, [f64; 3]); 6] = [
    (Group::LayerMatmuls, [2448.18, 1307.54, 1211.86]),
    (Group::Attention, [219.75, 256.87, 0.0]),
    (Group::Vocabulary, [1852.18, 1193.20, 743.93]),
    (Group::Elementwise, [1883.61, 651.92, 0.0]),
    (Group::Optimiser, [223.56, 133.34, 0.0]),
    (Group::Copies, [759.36, 145.37, 0.0]),
];

/// The peer's attention kernels, in millions of cycles: the compiler does not estimate them, so their operations at half of
/// the peak.
const PEER_KERNELS: f64 = 613.0;

/// The peer's transfers, in millions of cycles.
const PEER_TRANSFERS: f64 = 162.3;

/// The peer's peak memory in GiB, and the seconds of its compilation on two cores.
const PEER_PEAK: f64 = 21.6;
const PEER_SECONDS: f64 = 108.0;

/// Letters of an instruction's name and type that are listed.
const LETTERS: usize = 72;

/// One column of the table.
struct Side {
    groups: BTreeMap<Group, Figures>,
    transfers: f64,
    peak: f64,
    seconds: f64,
}

/// One of the figures of a group.
type Figure = fn(&Figures) -> f64;

/// The table, and in it what an earlier dump of the program had.
///
/// # Errors
/// If one of them has no estimate of cycles.
pub(crate) fn table(dump: &Dump, earlier: Option<&Dump>) -> Result<String> {
    let breakdown = breakdown(dump)?;
    let now = Side::of(dump)?;
    let before = earlier.map(Side::of).transpose().context("what --against names")?;
    // The peer makes the same step, nothing else.
    let peer = (dump.program == "step").then(peer);

    let mut text = format!("{} for {}, millions of cycles\n\n", dump.program, dump.platform);
    let mut head = vec!["", "now", "share"];
    head.extend(before.as_ref().map_or(&[][..], |_| &["before", "change"]));
    head.extend(peer.as_ref().map(|_| "peer"));
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    let mut row = |name: &str, figure: &dyn Fn(&Side) -> f64, all: Option<f64>| {
        let value = figure(&now);
        let mut cells = vec![name.to_owned(), format!("{value:.1}")];
        cells.push(all.map_or(String::new(), |all| format!("{:.1} %", 100.0 * value / all)));
        if let Some(before) = before.as_ref().map(figure) {
            cells.extend([format!("{before:.1}"), format!("{:+.1}", value - before)]);
        }
        cells.extend(peer.as_ref().map(|peer| format!("{:.1}", figure(peer))));
        rows.push(cells);
    };
    let total =
        |figure: fn(&Figures) -> f64| move |side: &Side| side.groups.values().map(figure).sum::<f64>() / 1e6;
    let sections: [(&str, Figure); 2] =
        [("estimate and kernels", Figures::cycles), ("roofline", |figures| figures.roofline)];
    for (title, figure) in sections {
        row(title, &total(figure), None);
        for group in Group::ALL {
            let in_group = |side: &Side| figure(&side.groups[&group]) / 1e6;
            row(&format!("  {}", group.name()), &in_group, Some(total(figure)(&now)));
        }
    }
    row("matmul floor", &total(|figures| figures.matmuls), None);
    row("estimate without kernels", &total(|figures| figures.estimated), None);
    row("transfers beside, in no sum", &|side| side.transfers / 1e6, None);
    row("peak memory, GiB", &|side| side.peak, None);
    row("compiled in, seconds", &|side| side.seconds, None);
    text += &aligned(&rows, 0..1);

    let all = breakdown.sum();
    text += "\nover 1 % of the estimate:\n";
    text += &listed(&breakdown.large, all.cycles());
    if !breakdown.untold.is_empty() {
        text += "\nwithout an estimate, in the roofline only:\n";
        text += &listed(&breakdown.untold, all.cycles());
    }
    let _ = write!(
        text,
        "
None of this is a run time; it is for comparing programs.
Estimated: the compiler's cycles, times the turns of the loops. Attention kernels carry none: they have the static cycles
of one layer and sequence, times the operations of the call.
Roofline: of each instruction what takes longer, its matmuls at {:.0} kflop a cycle or its bytes of main memory at
{BYTES_PER_CYCLE:.0} a cycle; the matmul floor is the former alone, without attention kernels.
",
        FLOPS_PER_CYCLE / 1e3
    );
    if peer.is_some() {
        let _ = writeln!(
            text,
            "Peer: a JAX program's step of 24 layers, 8 x 8 x 2048 tokens, layers recomputed. Its {PEER_KERNELS:.0} of attention kernels are
assumed, half of the peak; its roofline has their bytes only."
        );
    }
    Ok(text)
}

fn breakdown(dump: &Dump) -> Result<&Breakdown> {
    let cycles = dump.compiled.as_ref().and_then(|compiled| compiled.cycles.as_ref());
    let cycles = cycles.with_context(|| {
        format!(
            "the {} program for {} ({}) has no estimate of cycles: that is what the TPU's compiler makes, with \
             --platform tpu:v6e:1x1 --stage optimized",
            dump.program, dump.platform, dump.stage
        )
    })?;
    Ok(&cycles.breakdown)
}

impl Side {
    fn of(dump: &Dump) -> Result<Side> {
        let breakdown = breakdown(dump)?;
        let (peak, seconds) =
            dump.compiled.as_ref().map_or((0, 0.0), |compiled| (compiled.memory.peak, compiled.seconds));
        Ok(Side {
            groups: breakdown.groups.clone(),
            transfers: breakdown.transfers,
            peak: peak as f64 / f64::from(1 << 30),
            seconds,
        })
    }
}

fn peer() -> Side {
    let groups = PEER.map(|(group, figures)| {
        let [estimated, roofline, matmuls] = figures.map(|millions| millions * 1e6);
        let kernels = if group == Group::Attention { PEER_KERNELS * 1e6 } else { 0.0 };
        (group, Figures { estimated, kernels, roofline, matmuls })
    });
    Side { groups: groups.into(), transfers: PEER_TRANSFERS * 1e6, peak: PEER_PEAK, seconds: PEER_SECONDS }
}

/// Instructions with their cycles, roofline, group and line.
fn listed(parts: &[Part], all: f64) -> String {
    let mut rows =
        vec![["cycles", "share", "roofline", "runs", "group", "line", ""].map(str::to_owned).to_vec()];
    for part in parts {
        let millions =
            |cycles: f64| if cycles > 0.0 { format!("{:.1}", cycles / 1e6) } else { "-".to_owned() };
        let what: String = part.what.chars().take(LETTERS).collect();
        let more = if what.len() < part.what.len() { ".." } else { "" };
        rows.push(vec![
            millions(part.cycles),
            if part.cycles > 0.0 { format!("{:.1} %", 100.0 * part.cycles / all) } else { String::new() },
            millions(part.roofline),
            part.runs.to_string(),
            part.group.name().to_owned(),
            part.at.clone().unwrap_or_else(|| "no line".to_owned()),
            what + more,
        ]);
    }
    aligned(&rows, 4..7)
}

/// Rows of cells below one another: the columns of `words` flush left, those of numbers flush right.
fn aligned(rows: &[Vec<String>], words: Range<usize>) -> String {
    let mut text = String::new();
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if words.contains(&column) {
                let _ = write!(line, "{cell:<width$}  ");
            } else {
                let _ = write!(line, "{cell:>width$}  ");
            }
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_groups_are_its_whole() {
        let sum = |figure: Figure| peer().groups.values().map(figure).sum::<f64>() / 1e6;
        // What the peer's own script adds up over the loops of its text.
        assert!((sum(|figures| figures.estimated) - 7386.645689).abs() < 0.03);
        assert!((sum(|figures| figures.matmuls) - 1955.787).abs() < 0.03);
        assert_eq!(peer().groups.len(), Group::ALL.len());
    }

    #[test]
    fn words_stand_left_and_numbers_right() {
        let rows = [["ab", "1.5", "x"], ["c", "12.5", "yz"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 0..1), "ab   1.5   x\nc   12.5  yz\n");
    }
}
