//! The CPU's native form: pieces of the matrix on several threads, each read once for eight rows.

use super::{PANEL, PackedLinear};
use crate::cpu::exponential::exp2;
use crate::cpu::rows::{Columns, ROWS_AT_ONCE, multiply};
use engine::{CallFrame, HostFunction, Workers};
use pulp::{Arch, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Columns of one piece of work, at least.
const COLUMNS: usize = 48;

/// Multiplications that are worth a second thread: 5 to 20 us, of which waking it up and waiting for it takes a third.
const WORTH_SHARING: usize = 1 << 20;

impl HostFunction for PackedLinear {
    const NAME: &'static str = "packed_linear";

    fn call(CallFrame { operands, results, workers, .. }: CallFrame<'_>) {
        let [x, w] = operands[..] else { unreachable!("x and W") };
        let &[panels, m, _] = w.shape() else { unreachable!("[v/16, m, 16]") };
        let Some(y) = results.into_iter().next() else { unreachable!("one result") };
        let (rows, v) = (x.shape()[0], panels * PANEL);
        let workers = if m * v * rows.max(2) < WORTH_SHARING { Workers::caller() } else { workers };
        linear(workers, x.as_slice(), w.as_slice(), Then::Nothing, y.into_slice(), v);
    }
}

/// What is made of a product.
#[derive(Clone, Copy)]
pub(crate) enum Then<'a> {
    /// Nothing.
    Nothing,
    /// A sum with numbers of the result's shape.
    Plus(&'a [f32]),
    /// `silu(g) u` of its first half of columns g and its second half u.
    SwiGlu,
}

/// `x W` and what is made of it. x: `[n, m]`; w in panels: `[v/16, m, 16]`, or twice as many for SwiGLU; y: `[n, v]`.
pub(crate) fn linear(workers: Workers<'_>, x: &[f32], w: &[f32], then: Then<'_>, y: &mut [f32], v: usize) {
    let rows = y.len() / v;
    let m = x.len() / rows;
    // Whole groups of vectors for which there is a product.
    let unit = PANEL * if rows <= 2 { 8 } else { 3 };
    let pieces = (v / COLUMNS).clamp(1, 4 * workers.threads());
    let width = v.div_ceil(pieces).next_multiple_of(unit);
    let w = Columns::panels(w, m);
    let mut items: Vec<Piece<'_>> = (0..v)
        .step_by(width)
        .map(|first| Piece {
            x,
            w: w.from(first),
            depth: m,
            y: Vec::with_capacity(rows),
            then: match then {
                Then::Nothing => Rest::Nothing,
                Then::Plus(other) => Rest::Plus { other: &other[first..], stride: v },
                Then::SwiGlu => Rest::SwiGlu(w.from(v + first)),
            },
        })
        .collect();
    for row in y.chunks_mut(v) {
        items.iter_mut().zip(row.chunks_mut(width)).for_each(|(item, columns)| item.y.push(columns));
    }
    workers.for_each(items, |piece| Arch::new().dispatch(piece));
}

/// What is made of some columns.
enum Rest<'a> {
    Nothing,
    /// The other term's columns, in rows that are `stride` apart.
    Plus {
        other: &'a [f32],
        stride: usize,
    },
    /// The second half's columns of W.
    SwiGlu(Columns<'a>),
}

/// Some columns of the result, of all rows.
struct Piece<'a> {
    x: &'a [f32],
    w: Columns<'a>,
    depth: usize,
    y: Vec<&'a mut [f32]>,
    then: Rest<'a>,
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Piece { x, w, depth, mut y, then } = self;
        for (group, (x, y)) in x.chunks(ROWS_AT_ONCE * depth).zip(y.chunks_mut(ROWS_AT_ONCE)).enumerate() {
            multiply(simd, x, depth, w, y.iter_mut().map(|row| &mut **row).collect());
            match then {
                Rest::Nothing => {}
                Rest::Plus { other, stride } => {
                    for (row, y) in y.iter_mut().enumerate() {
                        let other = &other[(group * ROWS_AT_ONCE + row) * stride..][..y.len()];
                        for (y, &other) in S::as_mut_simd_f32s(y).0.iter_mut().zip(S::as_simd_f32s(other).0) {
                            *y = simd.add_f32s(other, *y);
                        }
                    }
                }
                Rest::SwiGlu(second) => {
                    let width = y[0].len();
                    let mut u = vec![0.0; y.len() * width];
                    multiply(simd, x, depth, second, u.chunks_mut(width).collect());
                    for (g, u) in y.iter_mut().zip(u.chunks(width)) {
                        for (g, &u) in S::as_mut_simd_f32s(g).0.iter_mut().zip(S::as_simd_f32s(u).0) {
                            // g u / (1 + 2^(-g log2 e)), whose power is kept finite.
                            let power = simd.mul_f32s(*g, simd.splat_f32s(-LOG2_E));
                            let power = exp2(simd, simd.min_f32s(power, simd.splat_f32s(126.0)));
                            let one = simd.splat_f32s(1.0);
                            *g = simd.div_f32s(simd.mul_f32s(*g, u), simd.add_f32s(one, power));
                        }
                    }
                }
            }
        }
    }
}
