//! On the host, a task for each row of logits.

use super::{LogProbs, TOP};
use crate::sampling::Logits;
use engine::{CallFrame, HostFunction};
use pulp::{Arch, Simd, WithSimd};

pub(super) fn attributes(kernel: &LogProbs) -> Vec<i64> {
    vec![kernel.cap.to_bits() as i64, kernel.columns as i64]
}

impl HostFunction for LogProbs {
    const NAME: &'static str = "log_probs";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let &[cap, columns] = attributes else { unreachable!("as the call was made") };
        let (cap, columns) = (f64::from_bits(cap as u64) as f32, columns as usize);
        let v = operands[0].shape()[1];
        let Ok([log_prob, top, top_log_probs]) = <[_; 3]>::try_from(results) else {
            unreachable!("three results")
        };
        let rows = operands[0].as_slice::<f32>().chunks(v).zip(operands[1].as_slice::<i32>());
        let tops =
            top.into_slice::<i32>().chunks_mut(TOP).zip(top_log_probs.into_slice::<f32>().chunks_mut(TOP));
        let items = rows.zip(log_prob.into_slice::<f32>().iter_mut().zip(tops)).collect();
        workers.for_each(items, |((row, &token), (log_prob, (top, top_log_probs)))| {
            let logits = Logits { row: &row[..columns], all: v, cap };
            let mut tokens = [0; TOP + 1];
            tokens[0] = token as usize;
            tokens[1..].copy_from_slice(&most_probable(logits.row));
            let of_tokens = Arch::new().dispatch(Of { logits, tokens });
            *log_prob = of_tokens[0];
            top_log_probs.copy_from_slice(&of_tokens[1..]);
            top.iter_mut().zip(&tokens[1..]).for_each(|(top, &token)| *top = token as i32);
        });
    }
}

/// The places of the greatest logits, the greatest first, of equal ones the lowest place.
fn most_probable(row: &[f32]) -> [usize; TOP] {
    let mut best = [(f32::NEG_INFINITY, 0); TOP];
    for (place, &logit) in row.iter().enumerate() {
        if logit > best[TOP - 1].0 {
            let at = best.partition_point(|&(other, _)| other >= logit);
            best[at..].rotate_right(1);
            best[at] = (logit, place);
        }
    }
    best.map(|(_, place)| place)
}

struct Of<'a> {
    logits: Logits<'a>,
    tokens: [usize; TOP + 1],
}

impl WithSimd for Of<'_> {
    type Output = [f32; TOP + 1];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; TOP + 1] {
        let summary = self.logits.summary(simd);
        self.tokens.map(|token| self.logits.drawn(simd, token, &summary).1)
    }
}
