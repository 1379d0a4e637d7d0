//! A program as a picture (SVG): read from top to bottom, arrows from what makes a value to what uses it.
//!
//! What is folded: a loop's body and a rematerialised block are drawn once, as a frame with how often they run; a kernel
//! is one box; small operations between two larger ones share one box that says from which lines of which file they come.
//! What stands out: matrix products and kernels, with their share of all floating point operations.

use engine::Form;
use engine::work::{Work, flops, kernel_flops, result_bytes};
use engine::{Func, Op, Program, Type, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What kind of thing a box is; its colours and its place in the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Product,
    Kernel,
    Memory,
    Small,
    Frame,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Product, Kind::Kernel, Kind::Memory, Kind::Small, Kind::Frame];

    /// Fill, stroke, words.
    fn look(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Product => ("#dbeafe", "#2563eb", "matrix product"),
            Kind::Kernel => ("#ffedd5", "#ea580c", "kernel"),
            Kind::Memory => ("#dcfce7", "#16a34a", "gather, scatter, sort"),
            Kind::Small => ("#f3f4f6", "#d1d5db", "small operations, folded"),
            Kind::Frame => ("#ffffff", "#475569", "loop, call or branch"),
        }
    }
}

/// One box, placed within the frame around it.
struct Item {
    kind: Kind,
    lines: Vec<String>,
    /// Floating point operations of all its runs.
    flops: f64,
    /// Items inside, row by row.
    rows: Vec<Vec<Item>>,
    /// (from, to): places of items in order of the rows.
    edges: BTreeSet<(usize, usize)>,
    width: f64,
    height: f64,
}

const LETTER: f64 = 6.7;
const LINE: f64 = 15.0;
const MARGIN: f64 = 10.0;
const GAP: f64 = 22.0;
/// Rows are broken at this width.
const WIDEST: f64 = 1500.0;
/// Shares of the work from here on have a bar.
const SHOWN: f64 = 0.001;
/// Letters of a line.
const LONGEST: usize = 74;

/// The picture of a program before its kernels are chosen; `forms` are those chosen.
pub fn svg(program: &Program, title: &str, forms: &[(String, Form)]) -> String {
    let work = Work::of(program);
    let names: Vec<String> = program.inputs().iter().map(|port| port.name.clone()).collect();
    let drawing = Drawing { forms, all: work.flops().max(1.0) };
    let bytes: usize = program.inputs().iter().map(|port| port.ty.bytes()).sum();
    let lines = vec![
        format!(
            "{title}: {} inputs of {}, {} outputs",
            program.inputs().len(),
            size(bytes as u64),
            program.outputs().len()
        ),
        format!(
            "{} of floating point operations a run, {:.1} % of them in matrix products",
            engineering(work.flops()),
            100.0 * work.uses().get("dot_general").map_or(0.0, |uses| uses.flops) / drawing.all
        ),
    ];
    let mut frame = drawing.frame(program.main(), &names, 1.0, lines);
    frame.measure(drawing.all);
    let (width, height) = (frame.width + 2.0 * MARGIN, frame.height + 2.0 * MARGIN + 40.0);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"11\" fill=\"#1f2937\">\n\
         <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\" fill=\"#94a3b8\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut x = MARGIN;
    for kind in Kind::ALL {
        let (fill, stroke, words) = kind.look();
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.0}\" y=\"12\" width=\"14\" height=\"14\" rx=\"3\" fill=\"{fill}\" stroke=\"{stroke}\"/>\
             <text x=\"{:.0}\" y=\"23\">{words}</text>",
            x + 20.0
        );
        x += 20.0 + LETTER * words.len() as f64 + 24.0;
    }
    frame.draw(&mut svg, MARGIN, MARGIN + 40.0, drawing.all);
    svg += "</svg>\n";
    svg
}

struct Drawing<'a> {
    forms: &'a [(String, Form)],
    /// Floating point operations of the whole program.
    all: f64,
}

/// A small or a large operation: the large ones have boxes of their own.
fn is_large(op: &Op) -> bool {
    matches!(
        op,
        Op::DotGeneral(_)
            | Op::KernelCall(_)
            | Op::CustomCall(_)
            | Op::HostCall(_)
            | Op::Gather(_)
            | Op::ScatterAdd(_)
            | Op::Sort(_)
            | Op::AllReduce(_)
            | Op::Scan(_)
            | Op::While(_)
            | Op::Cond(_)
            | Op::Call(_)
    )
}

/// Operations that only change how a value is seen: they are not drawn.
fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Parameter(_)
            | Op::Constant(_)
            | Op::Iota(_)
            | Op::Reshape(_)
            | Op::BroadcastInDim(_)
            | Op::Named(_)
            | Op::StopGradient(_)
            | Op::OptimizationBarrier(_)
            | Op::LayoutConstraint(_)
            | Op::ShardingConstraint(_)
    )
}

impl Drawing<'_> {
    /// A function as a frame; `names` are those of its parameters, `runs` how often it runs.
    fn frame(&self, func: &Func, names: &[String], runs: f64, lines: Vec<String>) -> Item {
        let nodes = func.nodes();
        // Rank: how many large operations come before a value, at most.
        let mut ranks = vec![0usize; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            let before = |value: &Value| {
                let from = value.node as usize;
                ranks[from] + usize::from(is_large(&nodes[from].op))
            };
            ranks[index] = node.operands.iter().map(before).max().unwrap_or(0);
        }
        let last = ranks.iter().max().copied().unwrap_or(0);
        let mut frame = Item {
            kind: Kind::Frame,
            lines,
            flops: 0.0,
            rows: Vec::new(),
            edges: BTreeSet::new(),
            width: 0.0,
            height: 0.0,
        };
        // The item that each node is drawn in.
        let mut places: Vec<Option<usize>> = vec![None; nodes.len()];
        let mut items = 0;
        for rank in 0..=last {
            let here = |large: bool| {
                let same_size = move |index: &usize| is_large(&nodes[*index].op) == large;
                (0..nodes.len()).filter(|&index| ranks[index] == rank).filter(same_size).collect::<Vec<_>>()
            };
            let small: Vec<usize> =
                here(false).into_iter().filter(|&index| !is_view(&nodes[index].op)).collect();
            if !small.is_empty() {
                for &index in &small {
                    places[index] = Some(items);
                }
                items += 1;
                frame.rows.push(vec![self.folded(func, &small, runs)]);
            }
            let mut row: Vec<Item> = Vec::new();
            for index in here(true) {
                let item = self.large(func, index, names, runs);
                // Equal neighbours are one box: the same product for each of several weights.
                let equal = row.iter().position(|other| other.rows.is_empty() && other.lines == item.lines);
                let at = equal.unwrap_or_else(|| {
                    row.push(item);
                    row.len() - 1
                });
                if equal.is_some() {
                    row[at].flops += row[at].flops;
                }
                places[index] = Some(items + at);
            }
            items += row.len();
            if !row.is_empty() {
                frame.rows.push(row);
            }
        }
        for (index, node) in nodes.iter().enumerate() {
            let Some(to) = places[index] else { continue };
            for value in &node.operands {
                for from in makers(func, value.node as usize, &places) {
                    if from != to {
                        frame.edges.insert((from, to));
                    }
                }
            }
        }
        frame.flops = frame.rows.iter().flatten().map(|item| item.flops).sum();
        frame
    }

    /// Small operations of one rank: for each file, the lines and the operations.
    fn folded(&self, func: &Func, nodes: &[usize], runs: f64) -> Item {
        let mut files: BTreeMap<&str, (u32, u32, BTreeMap<String, usize>)> = BTreeMap::new();
        let mut work = 0.0;
        for &index in nodes {
            let node = &func.nodes()[index];
            let line = node.at.line();
            let entry = files.entry(node.at.file()).or_insert((line, line, BTreeMap::new()));
            (entry.0, entry.1) = (entry.0.min(line), entry.1.max(line));
            *entry.2.entry(node.op.name()).or_default() += 1;
            let operands: Vec<&Type> = node.operands.iter().map(|&value| func.ty(value)).collect();
            work += runs * flops(&node.op, &operands, &node.types);
        }
        let mut lines = Vec::new();
        for (file, (first, last, ops)) in files {
            let short = file.rsplit('/').next().unwrap_or(file);
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let mut ops: Vec<(String, usize)> = ops.into_iter().collect();
            ops.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let shown: Vec<String> = ops.iter().take(4).map(|(op, count)| format!("{count} {op}")).collect();
            let more = if ops.len() > 4 { format!(", {} more kinds", ops.len() - 4) } else { String::new() };
            lines.push(format!("{short}:{range}  {}{more}", shown.join(", ")));
        }
        Item::leaf(Kind::Small, lines, work)
    }

    /// One large operation.
    fn large(&self, func: &Func, index: usize, names: &[String], runs: f64) -> Item {
        let node = &func.nodes()[index];
        let name = |value: &Value| label(func, *value, names, 0);
        let operands: Vec<&Type> = node.operands.iter().map(|&value| func.ty(value)).collect();
        let at = format!("{}:{}", node.at.file().rsplit('/').next().unwrap_or_default(), node.at.line());
        let operand_names = |from: usize| node.operands[from..].iter().map(name).collect::<Vec<_>>();
        let inside = |body: &Func, from: usize, runs: f64, title: String| {
            let mut lines = vec![title];
            lines.push(format!(
                "{} values in, {} out ({})",
                node.operands.len() - from,
                node.types.len(),
                size(result_bytes(&node.types))
            ));
            self.frame(body, &operand_names(from), runs, lines)
        };
        match &node.op {
            Op::DotGeneral(_) => {
                let product = node.operands.iter().map(name).collect::<Vec<_>>().join(" · ");
                let lines = vec![product, format!("-> {}  {at}", node.types[0])];
                Item::leaf(Kind::Product, lines, runs * flops(&node.op, &operands, &node.types))
            }
            Op::KernelCall(kernel) => {
                let full = kernel.0.name();
                let form = self.forms.iter().find(|(name, _)| *name == full);
                let form = form.map_or(String::new(), |(_, form)| format!(" ({form:?})").to_lowercase());
                let base = full.split('(').next().unwrap_or_default().to_owned();
                let from = operand_names(0).into_iter().take(3).collect::<Vec<_>>().join(", ");
                let lines = vec![
                    format!("{base}{form}"),
                    format!("of {from}, .."),
                    format!("-> {}  {at}", node.types[0]),
                ];
                let types: Vec<Type> = operands.into_iter().cloned().collect();
                Item::leaf(Kind::Kernel, lines, runs * kernel_flops(&kernel.0, &types))
            }
            Op::Scan(scan) => {
                let direction = format!("{:?}", scan.direction).to_lowercase();
                let title = format!("scan, {} turns {direction}  {at}", scan.length);
                inside(&scan.body, 0, runs * scan.length as f64, title)
            }
            Op::While(looped) => {
                inside(&looped.body, 0, runs, format!("while, turns known at run time  {at}"))
            }
            Op::Call(call) => inside(&call.body, 0, runs, format!("{}  {at}", call.label)),
            Op::Cond(cond) => {
                let mut item =
                    inside(&cond.on_true, 1, runs, format!("if {}  {at}", name(&node.operands[0])));
                let other = inside(&cond.on_false, 1, runs, "else".to_owned());
                item.flops += other.flops;
                item.rows.push(vec![other]);
                item
            }
            Op::Gather(_) | Op::ScatterAdd(_) | Op::Sort(_) => {
                let from = operand_names(0).join(", ");
                let lines =
                    vec![format!("{} of {from}", node.op.name()), format!("-> {}  {at}", node.types[0])];
                Item::leaf(Kind::Memory, lines, runs * flops(&node.op, &operands, &node.types))
            }
            other => {
                Item::leaf(Kind::Kernel, vec![other.name(), at], runs * flops(other, &operands, &node.types))
            }
        }
    }
}

/// The drawn items that make a value, found through operations that are not drawn.
fn makers(func: &Func, node: usize, places: &[Option<usize>]) -> Vec<usize> {
    match places[node] {
        Some(place) => vec![place],
        None => {
            let operands = &func.nodes()[node].operands;
            operands.iter().flat_map(|value| makers(func, value.node as usize, places)).collect()
        }
    }
}

/// What a person would call a value: the name of a parameter or a named value, seen through operations that change its
/// form only; else the operation that made it.
fn label(func: &Func, value: Value, names: &[String], depth: usize) -> String {
    let node = &func.nodes()[value.node as usize];
    let of = |operand: usize| label(func, node.operands[operand], names, depth + 1);
    match &node.op {
        Op::Parameter(parameter) => names.get(parameter.index).cloned().unwrap_or_default(),
        Op::Named(named) => named.name.clone(),
        // Constants have no operands.
        _ if depth > 12 || node.operands.is_empty() => node.op.name(),
        Op::Convert(_)
        | Op::Reshape(_)
        | Op::BroadcastInDim(_)
        | Op::Slice(_)
        | Op::LayoutConstraint(_)
        | Op::StopGradient(_)
        | Op::DynamicSlice(_) => of(0),
        Op::OptimizationBarrier(_) => of(value.result as usize),
        Op::Transpose(_) => format!("{}ᵀ", of(0).trim_end_matches('ᵀ')),
        Op::Concatenate(_) => {
            let parts: BTreeSet<String> = (0..node.operands.len()).map(of).collect();
            parts.into_iter().collect::<Vec<_>>().join("|")
        }
        Op::KernelCall(kernel) => kernel.0.name().split('(').next().unwrap_or_default().to_owned(),
        Op::Call(call) => call.label.clone(),
        other => other.name(),
    }
}

impl Item {
    fn leaf(kind: Kind, lines: Vec<String>, flops: f64) -> Item {
        let lines = lines.iter().map(|line| shortened(line)).collect();
        Item { kind, lines, flops, rows: Vec::new(), edges: BTreeSet::new(), width: 0.0, height: 0.0 }
    }

    /// Sizes from the inside out.
    fn measure(&mut self, all: f64) {
        for item in self.rows.iter_mut().flatten() {
            item.measure(all);
        }
        let letters = self.lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) as f64;
        self.width = letters * LETTER + 2.0 * MARGIN;
        let bar = if self.flops / all >= SHOWN { 1.0 } else { 0.0 };
        self.height = (self.lines.len() as f64 + bar) * LINE + MARGIN;
        for row in self.lines_of_items() {
            let width: f64 = row.iter().map(|&(r, i)| self.rows[r][i].width + MARGIN).sum();
            let height = row.iter().map(|&(r, i)| self.rows[r][i].height).fold(0.0, f64::max);
            self.width = self.width.max(width + 3.0 * MARGIN);
            self.height += height + GAP;
        }
    }

    /// The rows as they are drawn: those that are too wide are broken. Entries are (row, item).
    fn lines_of_items(&self) -> Vec<Vec<(usize, usize)>> {
        let mut lines = Vec::new();
        for (r, row) in self.rows.iter().enumerate() {
            let (mut line, mut width) = (Vec::new(), 0.0);
            for (i, item) in row.iter().enumerate() {
                if !line.is_empty() && width + item.width > WIDEST {
                    lines.push(std::mem::take(&mut line));
                    width = 0.0;
                }
                width += item.width + MARGIN;
                line.push((r, i));
            }
            lines.push(line);
        }
        lines
    }

    fn draw(&self, svg: &mut String, x: f64, y: f64, all: f64) {
        let (fill, stroke, _) = self.kind.look();
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"5\" fill=\"{fill}\" stroke=\"{stroke}\"/>",
            self.width, self.height
        );
        let weight = if self.rows.is_empty() { "normal" } else { "bold" };
        let mut line_y = y + LINE;
        for line in &self.lines {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{line_y:.1}\" font-weight=\"{weight}\">{}</text>",
                x + MARGIN,
                escaped(line)
            );
            line_y += LINE;
        }
        let share = self.flops / all;
        if share >= SHOWN {
            let room = (self.width - 2.0 * MARGIN - 56.0).clamp(10.0, 300.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"6\" fill=\"{stroke}\"/><text x=\"{:.1}\" y=\"{:.1}\">{:.1} %</text>",
                x + MARGIN,
                line_y - 7.0,
                (room * share).max(1.0),
                x + MARGIN + (room * share).max(1.0) + 6.0,
                line_y,
                100.0 * share
            );
        }
        // Middle of top and bottom of each item, in order of the rows.
        let mut spots = BTreeMap::new();
        let mut placed = Vec::new();
        let mut top = line_y + GAP - if share >= SHOWN { LINE / 2.0 } else { LINE };
        for line in self.lines_of_items() {
            let width: f64 = line.iter().map(|&(r, i)| self.rows[r][i].width + MARGIN).sum::<f64>() - MARGIN;
            let mut left = x + (self.width - width) / 2.0;
            let mut lowest: f64 = 0.0;
            for (r, i) in line {
                let item = &self.rows[r][i];
                let number = self.rows[..r].iter().map(Vec::len).sum::<usize>() + i;
                spots.insert(number, (left + item.width / 2.0, top, top + item.height));
                placed.push((r, i, left, top));
                left += item.width + MARGIN;
                lowest = lowest.max(item.height);
            }
            top += lowest + GAP;
        }
        for (from, to) in &self.edges {
            let (Some(&(x1, _, y1)), Some(&(x2, y2, _))) = (spots.get(from), spots.get(to)) else { continue };
            let bend = ((y2 - y1) / 2.0).clamp(8.0, 60.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{x1:.1} {y1:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {:.1}\" fill=\"none\" stroke=\"#94a3b8\" marker-end=\"url(#arrow)\"/>",
                y1 + bend,
                y2 - bend,
                y2 - 1.0
            );
        }
        for (r, i, left, top) in placed {
            self.rows[r][i].draw(svg, left, top, all);
        }
    }
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST - 2).chain("..".chars()).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// `1.4 GiB`
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    let (unit, name) = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .map(|(bits, name)| (f64::from(1u32 << bits), name))
        .find(|(unit, _)| bytes >= *unit)
        .unwrap_or((1.0, "bytes"));
    format!("{:.1} {name}", bytes / unit)
}

/// `1.1 P`
fn engineering(number: f64) -> String {
    let (unit, name) = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")]
        .into_iter()
        .find(|(unit, _)| number >= *unit)
        .unwrap_or((1.0, ""));
    format!("{:.1} {name}", number / unit)
}
