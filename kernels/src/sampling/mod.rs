//! Drawing a token from each row of logits.
//!
//! A token is drawn by an exponential race: token `i` with weight `w_i` arrives after `E_i / w_i`, `E_i` exponential,
//! and the first one wins; it is `i` with probability `w_i / sum(w)`. The `E` of a position depend on the row's key and
//! the position alone. So two distributions at one position are drawn from with the same numbers and tend to the same
//! token, which makes a draft exact without further randomness: the model's own draw decides, and a draft is right if
//! it is the same token. Source: Daliri, Musco, Suresh, arXiv 2408.07978.

mod cpu;

pub(crate) use cpu::Logits;

use crate::example::{Example, Values};
use engine::{Backward, DType, Form, Func, HostCall, Kernel, ShapeError, Target, Tensor, Type, threefry};

/// Arguments: logits before the cap `[b, v]` f32, and of each row the key of its random numbers, `u32[b, 2]`, its position
/// i32, temperature f32, `top_k` i32 and `top_p` f32, `[b]` each. Results: the token of each row, i32 `[b]`, and the
/// logarithm of its probability in the model, f32 `[b]`: without temperature and filter.
///
/// A token is drawn in proportion to `exp(logit / temperature)` among the `top_k` most probable ones (0 is all), and of those
/// among the most probable ones that together reach `top_p` of their sum (1 is all). So `top_k` 1 is greedy decoding. The more
/// probable of two is the one with the larger logit, of equal ones that with the lower id, whatever a temperature leaves of
/// their difference.
///
/// The most probable token is never filtered out, however small `top_p` is, and a temperature near 0 leaves it alone. A
/// row with a logit that is NaN has no distribution: its logarithm is NaN, and its token means nothing.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Columns from here on are padding: they are never drawn and count in nothing.
    pub columns: usize,
}

/// The temperatures that are told apart: those whose reciprocal is an f32 with all its bits, as they are themselves. What
/// lies beyond draws as these do: the most probable token, or any with the same probability.
const TEMPERATURES: [f32; 2] = [1.0 / TEMPERATURE_END, TEMPERATURE_END];
/// 2^126.
const TEMPERATURE_END: f32 = f32::from_bits(253 << 23);

/// The most probable token, and one that is drawn with each filter.
pub(crate) fn examples() -> Vec<Example> {
    let (b, v, columns) = (5, 50, 47);
    let args = vec![
        (Type::f32([b, v]), Values::Between(-8.0, 8.0)),
        (Type::new(DType::U32, [b, 2]), Values::Between(0.0, 1e9)),
        (Type::i32([b]), Values::Between(0.0, 1000.0)),
        (Type::f32([b]), Values::Between(0.5, 1.0)),
        (Type::i32([b]), Values::Given(vec![1.0, 9.0, 9.0, 0.0, 0.0])),
        (Type::f32([b]), Values::Given(vec![1.0, 1.0, 0.9, 0.9, 1.0])),
    ];
    vec![Example::new(Sampling { cap: 30.0, columns }, args, &[], &[Target::Cpu])]
}

impl Kernel for Sampling {
    fn name(&self) -> String {
        format!("sampling(cap={}, columns={})", self.cap, self.columns)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let Some((logits, numbers)) = args.split_first().filter(|(logits, _)| logits.rank() == 2) else {
            return Err(ShapeError("wants logits f32[b, v]".to_owned()));
        };
        let &[b, v] = &logits.shape[..] else { unreachable!("of rank 2") };
        if *logits != Type::f32([b, v]) || self.columns == 0 || self.columns > v {
            return Err(ShapeError(format!("{} columns of {logits}, which should be f32", self.columns)));
        }
        let wanted =
            [Type::new(DType::U32, [b, 2]), Type::i32([b]), Type::f32([b]), Type::i32([b]), Type::f32([b])];
        if numbers != wanted {
            return Err(ShapeError(format!("wants {wanted:?} after the logits")));
        }
        Ok(vec![Type::i32([b]), Type::f32([b])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let b = args[0].dim(0);
        let logits = args[0].slice_axis(1, 0, self.columns);
        let capped = if self.cap > 0.0 { (logits * (1.0 / self.cap)).tanh() * self.cap } else { logits };
        let top = capped.reduce_max(&[1]);
        let below = capped - top.along(capped, &[0]);
        let token = race(below, args);
        let place = token + token.builder().iota(token.ty(), 0) * self.columns as i32;
        let log_prob = below.reshape([b * self.columns]).gather(place) - below.exp().sum(&[1]).log();
        vec![token, log_prob]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through a draw")
    }

    fn differentiable(&self) -> usize {
        2
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        if target != Target::Cpu || !Form::takes_native(wanted) {
            return None;
        }
        let results = self.infer(args).expect("checked when called");
        let call = HostCall::new::<Sampling>(cpu::attributes(self), results);
        Some((Form::Native, Func::build(args, |f, args| f.host_call(call, args))))
    }
}

/// A draw in proportion to the weights that the filters let through. below: logits less the greatest of their row,
/// `[b, columns]`; args: those of the kernel.
fn race<'f>(below: Tensor<'f>, args: &[Tensor<'f>]) -> Tensor<'f> {
    let &[logits, keys, positions, temperature, top_k, top_p] = args else { unreachable!("as inferred") };
    let [coldest, hottest] = TEMPERATURES.map(f64::from);
    let weights = (below.min(0.0) / temperature.clamp(coldest, hottest).along(below, &[0])).exp();
    // XLA computes the cap once for the greatest and once for all: a rounding's difference, divided by a temperature near 0,
    // would leave even the greatest without weight. Before the cap it is exactly itself.
    let drawn = logits.slice_axis(1, 0, below.dim(1));
    let greatest = drawn.reduce_max(&[1]).along(drawn, &[0]);
    let weights = drawn.eq(greatest).select(weights.full_like(1.0), weights);
    let race = weights / arrivals(keys, positions, logits.dim(1)).slice_axis(1, 0, below.dim(1));
    let depth = greatest - drawn;
    // Of one token there is nothing to draw: no try fails.
    let first = depth.eq(0.0).select(race.full_like(1.0), 0.0);
    let race = top_k.eq(1).along(race, &[0]).select(first, race);
    let all = top_k.full_like(below.dim(1) as f64);
    let limited = top_k.gt(0) & top_k.lt(all);
    let count = limited.select(top_k, all);
    let sum = sum_of_first(weights, depth, count, limited & top_p.lt(1.0)) * top_p;
    let sum = top_p.lt(1.0).select(sum, f64::INFINITY);
    first_allowed(weights, race, depth, count, sum)
}

/// The token that wins the race `[b, v]` among those that the filters allow. A token is allowed if fewer than `count` `[b]`
/// tokens stand before it, with weights that sum up to less than `sum` `[b]`. depth `[b, v]`: how far each logit is
/// below the greatest. So nothing needs to be sorted: if the winner of all is not allowed, neither is any token after it,
/// and the next try is among those before it. The first try succeeds as often as the allowed tokens are probable. What
/// nothing stands before is always allowed, and each try is among fewer tokens than the last: so there are no more tries
/// than tokens, and one where logits are NaN.
fn first_allowed<'f>(
    weights: Tensor<'f>,
    race: Tensor<'f>,
    depth: Tensor<'f>,
    count: Tensor<'f>,
    sum: Tensor<'f>,
) -> Tensor<'f> {
    let [b, v] = [0, 1].map(|axis| weights.dim(axis));
    let f = weights.builder();
    let (depths, tokens) = (Type::f32([b]), Type::i32([b]));
    let start = [
        f.full(depths.clone(), f64::INFINITY),
        f.full(tokens.clone(), v as f64),
        f.full(depths.with_dtype(DType::Bool), 1.0),
    ];
    let results = f.while_loop(
        &start,
        |_, carry| carry[2].convert(DType::I32).reduce_max(&[0]).gt(0),
        |g, carry| {
            let [weights, race, depth, count, sum] = [weights, race, depth, count, sum].map(|x| g.capture(x));
            let (last, refused) = (carry[1], carry[2]);
            let winner = before(depth, carry[0], last).select(race, -1.0).argmax(1);
            let token = refused.select(winner, last);
            let place = token + g.iota(token.ty(), 0) * v as i32;
            let its_depth = depth.reshape([b * v]).gather(place);
            let before = before(depth, its_depth, token);
            let many = before.convert(DType::I32).sum(&[1]).ge(count);
            let heavy = before.select(weights, 0.0).sum(&[1]);
            vec![its_depth, token, many | (heavy.ge(sum) & heavy.gt(0.0))]
        },
    );
    results[1]
}

/// Exponential numbers of each row and token, `[b, count]`, for `positions` `[b]`. Never 0 nor infinite. Both words of a
/// counter are used: the first half of the tokens takes the first ones.
fn arrivals<'f>(keys: Tensor<'f>, positions: Tensor<'f>, count: usize) -> Tensor<'f> {
    let f = keys.builder();
    let b = positions.dim(0);
    let half = Type::new(DType::U32, [b, count.div_ceil(2)]);
    let spread = |x: Tensor<'f>| x.broadcast_in_dim(half.shape.clone(), &[0]);
    let key = [0, 1].map(|word| spread(keys.slice_axis(1, word, word + 1).reshape([b])));
    let counter = [spread(positions.convert(DType::U32)), f.iota(half.clone(), 1)];
    let words = Tensor::concatenate(&threefry(key, counter), 1).slice_axis(1, 0, count);
    // In (0, 1), with all the precision that f32 has near 0, where the first arrivals are.
    let uniform = (words.convert(DType::F32) * 2f64.powi(-32)).clamp(2f64.powi(-33), 1.0 - 2f64.powi(-24));
    -(-uniform).log1p()
}

/// Where tokens stand before one of their row, with its depth and id, each `[b]`. depth, result: `[b, v]`.
fn before<'f>(depth: Tensor<'f>, than: Tensor<'f>, token: Tensor<'f>) -> Tensor<'f> {
    let along = |x: Tensor<'f>| x.along(depth, &[0]);
    let id = depth.builder().iota(depth.ty().with_dtype(DType::I32), 1);
    depth.lt(along(than)) | (depth.eq(along(than)) & id.lt(along(token)))
}

/// The sum `[b]` of the weights of the first `k` `[b]` tokens of the rows that are `limited` `[b]`, and of all tokens of the
/// others. The bits of floats that are not negative are ordered as the floats are, so the depth of the k-th one is found bit by
/// bit: thirty passes without a sort, which over a large vocabulary takes longer than the model; none if no row needs them.
fn sum_of_first<'f>(
    weights: Tensor<'f>,
    depth: Tensor<'f>,
    k: Tensor<'f>,
    limited: Tensor<'f>,
) -> Tensor<'f> {
    let others = k.full_like(weights.dim(1) as f64) - k;
    let first_bit = limited.convert(DType::I32).reduce_max(&[0]) * (1 << 30);
    let results = weights.builder().while_loop(
        &[first_bit, k.zeros_like()],
        |_, carry| carry[0].gt(0),
        |g, carry| {
            let [depth, others] = [depth, others].map(|x| g.capture(x));
            let deeper = carry[1] + carry[0].along(carry[1], &[]);
            // Bits that are no number are deeper than all.
            let reach = depth.ge(deeper.bitcast_convert(DType::F32).along(depth, &[0]));
            let not_yet = reach.convert(DType::I32).sum(&[1]).gt(others);
            vec![carry[0].shift_right_logical(1), not_yet.select(deeper, carry[1])]
        },
    );
    let last = results[1].bitcast_convert(DType::F32).along(depth, &[0]);
    let nearer = depth.lt(last);
    let weight_of_last = depth.eq(last).select(weights, 0.0).reduce_max(&[1]);
    let missing = k - nearer.convert(DType::I32).sum(&[1]);
    let sum = nearer.select(weights, 0.0).sum(&[1]) + missing.convert(DType::F32) * weight_of_last;
    limited.select(sum, weights.sum(&[1]))
}
