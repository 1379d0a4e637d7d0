//! The gradient on the host, in f32. A chunk of rows at a time: tasks of hidden columns multiply, activate and
//! differentiate, and add to their own columns' weight gradients; then tasks of rows sum dx over all columns. Every sum is
//! one task's, in the order of the chunks, so no result depends on the threads.
//!
//! Arrays of the hidden layer are transposed, `[columns, rows]`: what belongs to a row is one lane of a vector, and the
//! matrices enter the products as they lie in memory. g and u are computed again from x, which costs two products of eight
//! and spares whoever saves them.

use super::backward::SwiGluBackward;
use crate::cpu::exponential::exp2;
use crate::cpu::matrix::{Left, Onto, multiply};
use crate::cpu::scratch::{AlignedVec, LINE, ScratchPool, aligned, turn};
use crate::dropout::column_mask;
use engine::{CallFrame, DType, Func, HostCall, HostFunction, Type, Workers};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Rows of a panel: what products are wide.
const PANEL_ROWS: usize = 64;
/// Panels of a chunk.
const PANELS: usize = 4;
/// Hidden columns of a task.
const COLUMNS: usize = 64;
/// Terms of a sum that are multiplied at once: as many rows of a panel as fit the first cache with what meets them.
const DEPTH: usize = 128;

/// The kernel on the CPU; None if the native form does not cover it.
pub(super) fn func(kernel: &SwiGluBackward, args: &[Type]) -> Option<Func> {
    let &[m, i] = &args[2].shape[..] else { unreachable!("checked when called") };
    if args[0].dtype != DType::F32 || m % LINE != 0 || i % LINE != 0 {
        return None;
    }
    let (m_i, i_m) = (args[2].clone(), args[4].clone());
    let results = vec![args[0].clone(), m_i.clone(), m_i, i_m, Type::f32([scratch(m, i)])];
    let call = HostCall::new::<SwiGluBackward>(vec![kernel.forward.rate.to_bits() as i64], results);
    Some(Func::build(args, |f, args| {
        let [forward @ .., _, _, dy] = args else { unreachable!("checked when called") };
        f.host_call(call, &[forward, &[*dy]].concat())[..4].to_vec()
    }))
}

/// Floats that a call needs for a while: x and dy of a chunk, dg and du of a chunk, and the sums of dWg and dWu.
fn scratch(m: usize, i: usize) -> usize {
    2 * PANELS * PANEL_ROWS * (m + i) + 2 * m * i + LINE
}

/// The arguments.
#[derive(Clone, Copy)]
struct Arguments<'a> {
    /// `[n, m]`
    x: &'a [f32],
    /// `[n]`
    scale: &'a [f32],
    /// `[m, i]`
    gate: &'a [f32],
    /// `[m, i]`
    up: &'a [f32],
    /// `[i, m]`
    down: &'a [f32],
    /// The random words of rows and columns.
    words: Option<[&'a [u32]; 2]>,
    /// Probability to drop.
    rate: f64,
    /// `[n, m]`
    dy: &'a [f32],
    /// Model width m.
    width: usize,
    /// Hidden width i.
    hidden: usize,
}

impl HostFunction for SwiGluBackward {
    const NAME: &'static str = "swiglu_backward";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let [x, scale, gate, up, down, words @ .., dy] = &operands[..] else {
            unreachable!("as the kernel has them")
        };
        let (&[width, hidden], &[rate]) = (gate.shape(), attributes) else {
            unreachable!("as it was called")
        };
        let words = match words {
            [rows, columns] => Some([rows.as_slice(), columns.as_slice()]),
            _ => None,
        };
        let [x, scale, gate, up, down, dy] = [x, scale, gate, up, down, dy].map(|x| x.as_slice());
        let rate = f64::from_bits(rate as u64);
        let of = Arguments { x, scale, gate, up, down, words, rate, dy, width, hidden };
        let Ok(results) = <[_; 5]>::try_from(results) else { unreachable!("five results") };
        backward(&of, workers, results.map(|x| x.into_slice()));
    }
}

/// results: dx, dWg, dWu, dWd, and at least `scratch` floats.
fn backward(of: &Arguments<'_>, workers: Workers<'_>, results: [&mut [f32]; 5]) {
    let [dx, d_gate, d_up, d_down, scratch] = results;
    let (m, i) = (of.width, of.hidden);
    let chunk = PANELS * PANEL_ROWS;
    let (turned, rest) = aligned(scratch).split_at_mut(2 * chunk * m);
    let (d_hidden, rest) = rest.split_at_mut(2 * chunk * i);
    let (sums_gate, sums_up) = rest[..2 * m * i].split_at_mut(m * i);
    let spare = ScratchPool::new();
    for (dx, first) in dx.chunks_mut(chunk * m).zip((0..).step_by(chunk)) {
        let rows = dx.len() / m;
        let panels = rows.div_ceil(PANEL_ROWS);
        let turned = &mut turned[..2 * panels * PANEL_ROWS * m];
        let panel =
            |panel: usize| (first + panel * PANEL_ROWS)..(first + rows).min(first + (panel + 1) * PANEL_ROWS);
        let items = turned.chunks_exact_mut(2 * PANEL_ROWS * m).enumerate().collect();
        workers.for_each(items, |(i, turned): (usize, &mut [f32])| {
            let rows = panel(i).start * m..panel(i).end * m;
            let (x, dy) = turned.split_at_mut(PANEL_ROWS * m);
            turn_panel(&of.x[rows.clone()], m, x);
            turn_panel(&of.dy[rows], m, dy);
        });

        let tile_len = 2 * panels * COLUMNS * PANEL_ROWS;
        let d_hidden = &mut d_hidden[..2 * panels * PANEL_ROWS * i];
        let tiles = d_hidden.chunks_mut(tile_len).enumerate();
        let sums = sums_gate.chunks_mut(COLUMNS * m).zip(sums_up.chunks_mut(COLUMNS * m));
        let items = tiles.zip(sums.zip(d_down.chunks_mut(COLUMNS * m))).collect();
        workers.for_each(items, |((tile, d_hidden), ((sums_gate, sums_up), d_down))| {
            let columns = d_down.len() / m;
            spare.with(Local::new, |local| {
                let panels = turned
                    .chunks_exact(2 * PANEL_ROWS * m)
                    .zip(d_hidden.chunks_exact_mut(2 * columns * PANEL_ROWS));
                for (i, (turned, d_hidden)) in panels.enumerate() {
                    let sums = [&mut *sums_gate, &mut *sums_up, &mut *d_down];
                    let onto = if panel(i).start == 0 { Onto::Zero } else { Onto::Sum };
                    let rows = panel(i);
                    Arch::new().dispatch(Hidden { of, tile, rows, turned, local, d_hidden, sums, onto });
                }
            });
        });

        let items = dx.chunks_mut(PANEL_ROWS * m).enumerate().collect();
        workers.for_each(items, |(panel, dx): (usize, &mut [f32])| {
            Arch::new().dispatch(Rows { of, panel, panels, d_hidden, dx });
        });
    }
    let items = d_gate.chunks_mut(COLUMNS * i).zip(d_up.chunks_mut(COLUMNS * i)).enumerate().collect();
    workers.for_each(items, |(tile, (d_gate, d_up)): (usize, (&mut [f32], &mut [f32]))| {
        for (sums, result) in [(&*sums_gate, d_gate), (&*sums_up, d_up)] {
            turn_columns(sums, m, tile * COLUMNS, result);
        }
    });
}

/// Turns rows `[rows, m]` into `[m, 64]`, with zeros after the last row.
fn turn_panel(x: &[f32], m: usize, result: &mut [f32]) {
    if x.len() == PANEL_ROWS * m {
        return turn(x, m, result);
    }
    for (column, result) in result.chunks_exact_mut(PANEL_ROWS).enumerate() {
        result.fill(0.0);
        for (result, row) in result.iter_mut().zip(x.chunks_exact(m)) {
            *result = row[column];
        }
    }
}

/// Turns columns of `[i, m]`, from the given one on, into `[columns, i]`.
fn turn_columns(x: &[f32], m: usize, first: usize, result: &mut [f32]) {
    let i = x.len() / m;
    let columns = result.len() / i;
    for (row, x) in x.chunks_exact(m).enumerate() {
        for (x, result) in x[first..][..columns].iter().zip(result.chunks_exact_mut(i)) {
            result[row] = *x;
        }
    }
}

/// The tiles `[columns, 64]` that a task works in.
struct Local {
    gate: AlignedVec,
    up: AlignedVec,
    /// dh, then h.
    hidden: AlignedVec,
}

impl Local {
    fn new() -> Local {
        let tile = || AlignedVec::new(COLUMNS * PANEL_ROWS);
        Local { gate: tile(), up: tile(), hidden: tile() }
    }
}

/// Some hidden columns of a panel: writes dg and du, adds to the gradients of the weights.
struct Hidden<'a> {
    of: &'a Arguments<'a>,
    /// Which columns: from `tile` times 64 on.
    tile: usize,
    rows: std::ops::Range<usize>,
    /// x and dy of the panel, `[m, 64]` each.
    turned: &'a [f32],
    local: &'a mut Local,
    /// dg and du, `[columns, 64]` each.
    d_hidden: &'a mut [f32],
    /// Of dWg, dWu and dWd, `[columns, m]` each.
    sums: [&'a mut [f32]; 3],
    onto: Onto,
}

impl WithSimd for Hidden<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Hidden { of, tile, rows, turned, local, d_hidden, sums, onto } = self;
        let (m, i, first) = (of.width, of.hidden, tile * COLUMNS);
        let len = d_hidden.len() / 2;
        let (x, dy) = turned.split_at(PANEL_ROWS * m);
        let [gate, up, hidden] = [&mut local.gate, &mut local.up, &mut local.hidden].map(|x| &mut x[..len]);
        for (k, onto) in
            (0..m).step_by(DEPTH).zip([Onto::Zero].into_iter().chain(std::iter::repeat(Onto::Sum)))
        {
            let terms = k * PANEL_ROWS..(k + DEPTH).min(m) * PANEL_ROWS;
            for (weight, products) in [(of.gate, &mut *gate), (of.up, &mut *up)] {
                let weight = Left::by_columns(&weight[k * i + first..], i);
                multiply(simd, weight, &x[terms.clone()], products, PANEL_ROWS, onto);
            }
            let down = Left::by_rows(&of.down[first * m + k..], m);
            multiply(simd, down, &dy[terms], hidden, PANEL_ROWS, onto);
        }

        let mut scale = [0.0; PANEL_ROWS];
        scale[..rows.len()].copy_from_slice(&of.scale[rows.clone()]);
        let (d_gate, d_up) = d_hidden.split_at_mut(len);
        let scale = S::as_simd_f32s(&scale).0;
        let mut mask = [1.0; PANEL_ROWS];
        let one = simd.splat_f32s(1.0);
        let columns = gate
            .chunks_exact(PANEL_ROWS)
            .zip(up.chunks_exact(PANEL_ROWS))
            .zip(hidden.chunks_exact_mut(PANEL_ROWS));
        let cotangents = d_gate.chunks_exact_mut(PANEL_ROWS).zip(d_up.chunks_exact_mut(PANEL_ROWS));
        for (column, (((g, u), h), (dg, du))) in columns.zip(cotangents).enumerate() {
            if let Some([row_words, column_words]) = of.words {
                column_mask(&row_words[rows.clone()], column_words[first + column], of.rate, &mut mask);
            }
            let [g, u, mask] = [g, u, &mask].map(|x| S::as_simd_f32s(x).0);
            let [h, dg, du] = [h, dg, du].map(|x| S::as_mut_simd_f32s(x).0);
            for lane in 0..scale.len() {
                let (g, u) = (simd.mul_f32s(g[lane], scale[lane]), simd.mul_f32s(u[lane], scale[lane]));
                // s = 1 / (1 + e) with e = 2^(-g log2 e), whose power is kept finite; 1 - s = e s.
                let power = simd.min_f32s(simd.mul_f32s(g, simd.splat_f32s(-LOG2_E)), simd.splat_f32s(126.0));
                let e = exp2(simd, power);
                let s = simd.div_f32s(one, simd.add_f32s(one, e));
                let a = simd.mul_f32s(g, s);
                let dh = simd.mul_f32s(simd.mul_f32s(h[lane], mask[lane]), scale[lane]);
                h[lane] = simd.mul_f32s(simd.mul_f32s(a, u), mask[lane]);
                du[lane] = simd.mul_f32s(dh, a);
                let slope = simd.mul_f32s(s, simd.mul_add_f32s(a, e, one));
                dg[lane] = simd.mul_f32s(simd.mul_f32s(dh, u), slope);
            }
        }

        let [sums_gate, sums_up, sums_down] = sums;
        let [x, dy] = [of.x, of.dy].map(|x| &x[rows.start * m..rows.end * m]);
        multiply(simd, Left::by_rows(d_gate, PANEL_ROWS), x, sums_gate, m, onto);
        multiply(simd, Left::by_rows(d_up, PANEL_ROWS), x, sums_up, m, onto);
        multiply(simd, Left::by_rows(hidden, PANEL_ROWS), dy, sums_down, m, onto);
    }
}

/// dx of a panel.
struct Rows<'a> {
    of: &'a Arguments<'a>,
    panel: usize,
    /// Panels of the chunk.
    panels: usize,
    /// dg and du of the chunk, `[tile, panel, 2, columns, 64]`.
    d_hidden: &'a [f32],
    /// `[rows, m]`
    dx: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rows { of, panel, panels, d_hidden, dx } = self;
        let (m, i) = (of.width, of.hidden);
        let mut turned = AlignedVec::new(m * PANEL_ROWS);
        for (tile, d_hidden) in d_hidden.chunks(2 * panels * COLUMNS * PANEL_ROWS).enumerate() {
            let panel_len = d_hidden.len() / panels;
            let (d_gate, d_up) = d_hidden[panel * panel_len..][..panel_len].split_at(panel_len / 2);
            let [gate, up] = [of.gate, of.up].map(|weight| Left::by_rows(&weight[tile * COLUMNS..], i));
            let onto = if tile == 0 { Onto::Zero } else { Onto::Sum };
            multiply(simd, gate, d_gate, &mut turned, PANEL_ROWS, onto);
            multiply(simd, up, d_up, &mut turned, PANEL_ROWS, Onto::Sum);
        }
        for (row, dx) in dx.chunks_exact_mut(m).enumerate() {
            for (dx, turned) in dx.iter_mut().zip(turned.chunks_exact(PANEL_ROWS)) {
                *dx = turned[row];
            }
        }
    }
}
