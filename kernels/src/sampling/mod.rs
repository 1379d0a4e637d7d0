//! Drawing a token from each row of logits.
//!
//! A token is drawn by an exponential race: token `i` with weight `w_i` arrives after `E_i / w_i`, `E_i` exponential,
//! and the first one wins; it is `i` with probability `w_i / sum(w)`. The `E` of a position depend on the row's key and
//! the position alone. So two distributions at one position are drawn from with the same numbers and tend to the same
//! token, which makes a draft exact without further randomness: the model's own draw decides, and a draft is right if
//! it is the same token. Source: Daliri, Musco, Suresh, arXiv 2408.07978.

mod cpu;

use crate::example::{Example, Values};
use engine::{
    Backward, DType, Form, Func, Host, HostCall, Kernel, ScanOptions, ShapeError, Target, Tensor, Type,
    threefry,
};

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// The most probable token, the lowest id among equals.
    Greedy,
    /// In proportion to `exp(logit / temperature)`, after the filter.
    Random(Filter),
}

/// Which tokens can be drawn. The more probable of two is the one with the larger logit, of equal ones that with the lower
/// id, as in greedy decoding, whatever a temperature leaves of their difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// All.
    Off,
    /// The `top_k` most probable ones.
    TopK,
    /// The most probable ones that together reach `top_p`.
    TopP,
    /// The `top_k` most probable ones, and of those the ones that reach `top_p` of their sum.
    TopKThenP,
}

/// Arguments: logits before the cap `[b, v]` f32; for a random draw also the key of each row's random numbers
/// `u32[b, 2]`, the rows' positions `i32[b]`, the temperature f32, `top_k` i32 and `top_p` f32 in (0, 1]. Numbers that
/// the filter does not use are there all the same. Results: the token of each row, i32 `[b]`, and the logarithm of its
/// probability in the model, f32 `[b]`: without temperature and filter.
///
/// The most probable token is never filtered out, however small `top_k` and `top_p` are, and a temperature near 0 leaves
/// it alone. A row with a logit that is NaN has no distribution: its logarithm is NaN, and its token means nothing.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// How.
    pub sampler: Sampler,
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

/// The most probable token, and one that is drawn.
pub(crate) fn examples() -> Vec<Example> {
    let (b, v, columns) = (3, 50, 47);
    let logits = (Type::f32([b, v]), Values::Between(-8.0, 8.0));
    let numbers = vec![
        logits.clone(),
        (Type::new(DType::U32, [b, 2]), Values::Between(0.0, 1e9)),
        (Type::i32([b]), Values::Between(0.0, 1000.0)),
        (Type::f32([]), Values::Given(vec![0.8])),
        (Type::i32([]), Values::Given(vec![9.0])),
        (Type::f32([]), Values::Given(vec![0.9])),
    ];
    let example = |sampler: Sampler, args: Vec<(Type, Values)>| {
        Example::new(Sampling { sampler, cap: 30.0, columns }, args, &[], &[Target::Cpu])
    };
    vec![example(Sampler::Greedy, vec![logits]), example(Sampler::Random(Filter::TopKThenP), numbers)]
}

impl Kernel for Sampling {
    fn name(&self) -> String {
        format!("sampling({:?}, cap={}, columns={})", self.sampler, self.cap, self.columns)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let Some((logits, numbers)) = args.split_first().filter(|(logits, _)| logits.rank() == 2) else {
            return Err(ShapeError("wants logits f32[b, v]".to_owned()));
        };
        let &[b, v] = &logits.shape[..] else { unreachable!("of rank 2") };
        if *logits != Type::f32([b, v]) || self.columns == 0 || self.columns > v {
            return Err(ShapeError(format!("{} columns of {logits}, which should be f32", self.columns)));
        }
        let wanted = match self.sampler {
            Sampler::Greedy => vec![],
            Sampler::Random(_) => vec![
                Type::new(DType::U32, [b, 2]),
                Type::i32([b]),
                Type::scalar(DType::F32),
                Type::scalar(DType::I32),
                Type::scalar(DType::F32),
            ],
        };
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
        let token = match self.sampler {
            Sampler::Greedy => logits.argmax(1),
            Sampler::Random(filter) => race(filter, below, args),
        };
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

/// A draw in proportion to the weights that the filter lets through. below: logits less the greatest of their row,
/// `[b, columns]`; args: those of the kernel.
fn race<'f>(filter: Filter, below: Tensor<'f>, args: &[Tensor<'f>]) -> Tensor<'f> {
    let &[logits, keys, positions, temperature, top_k, top_p] = args else { unreachable!("as inferred") };
    let [coldest, hottest] = TEMPERATURES.map(f64::from);
    let weights = (below.min(0.0) / temperature.clamp(coldest, hottest)).exp();
    // XLA computes the cap once for the greatest and once for all: a rounding's difference, divided by a temperature near 0,
    // would leave even the greatest without weight. Before the cap it is exactly itself.
    let drawn = logits.slice_axis(1, 0, below.dim(1));
    let greatest = drawn.reduce_max(&[1]).along(drawn, &[0]);
    let weights = drawn.eq(greatest).select(weights.full_like(1.0), weights);
    let race = weights / arrivals(keys, positions, logits.dim(1)).slice_axis(1, 0, below.dim(1));
    let depth = greatest - drawn;
    let all = top_k.full_like(below.dim(1) as f64);
    let top_k = top_k.max(1).min(all);
    let (count, sum) = match filter {
        Filter::Off => return race.argmax(1),
        Filter::TopK => (top_k, weights.sum(&[1]).full_like(f64::INFINITY)),
        Filter::TopP => (all, weights.sum(&[1]) * top_p),
        Filter::TopKThenP => (top_k, sum_of_first(weights, depth, top_k) * top_p),
    };
    first_allowed(weights, race, depth, count, sum)
}

/// The token that wins the race `[b, v]` among those that the filter allows. A token is allowed if fewer than `count`
/// (scalar) tokens stand before it, with weights that sum up to less than `sum` `[b]`. depth `[b, v]`: how far each logit is
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
            let [weights, race, depth, sum] = [weights, race, depth, sum].map(|x| g.capture(x));
            let (last, refused) = (carry[1], carry[2]);
            let winner = before(depth, carry[0], last).select(race, -1.0).argmax(1);
            let token = refused.select(winner, last);
            let place = token + g.iota(token.ty(), 0) * v as i32;
            let its_depth = depth.reshape([b * v]).gather(place);
            let before = before(depth, its_depth, token);
            let many = before.convert(DType::I32).sum(&[1]).ge(g.capture(count).along(token, &[]));
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

/// The sum `[b]` of the weights of the first `k` (scalar) tokens of each row. The bits of floats that are not negative are
/// ordered as the floats are, so the depth of the k-th one is found bit by bit: thirty passes without a sort, which over a
/// large vocabulary takes longer than the model.
fn sum_of_first<'f>(weights: Tensor<'f>, depth: Tensor<'f>, k: Tensor<'f>) -> Tensor<'f> {
    let f = weights.builder();
    let bits: Vec<i32> = (0..31).rev().map(|bit| 1 << bit).collect();
    let start = f.zeros(Type::i32([weights.dim(0)]));
    let others = k.full_like(weights.dim(1) as f64) - k;
    let bits = f.constant(&Host::new([bits.len()], &bits));
    let (depth_of_last, _) = f.scan(ScanOptions::over(bits.dim(0)), &[start], &[bits], |g, carry, slices| {
        let depth = g.capture(depth);
        let deeper = carry[0] + slices[0];
        // Bits that are no number are deeper than all.
        let reach = depth.ge(deeper.bitcast_convert(DType::F32).along(depth, &[0]));
        let not_yet = reach.convert(DType::I32).sum(&[1]).gt(g.capture(others).along(deeper, &[]));
        (vec![not_yet.select(deeper, carry[0])], vec![])
    });
    let last = depth_of_last[0].bitcast_convert(DType::F32).along(depth, &[0]);
    let nearer = depth.lt(last);
    let weight_of_last = depth.eq(last).select(weights, 0.0).reduce_max(&[1]);
    let sum = nearer.select(weights, 0.0).sum(&[1]);
    let missing = k.along(depth_of_last[0], &[]) - nearer.convert(DType::I32).sum(&[1]);
    sum + missing.convert(DType::F32) * weight_of_last
}
