//! The logarithms of probabilities at some places: of given tokens, and of the most probable ones.

mod cpu;

use crate::example::{Example, Values};
use engine::{Backward, DType, Form, Func, HostCall, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: logits before the cap `[n, v]` f32 and tokens `[n]` i32, below `columns`. Results: the logarithm of each token's
/// probability, f32 `[n]`; the [`TOP`] most probable tokens, the first one first, i32 `[n, TOP]`; and the logarithms of theirs,
/// f32 of that shape. The same token has the same bits in both.
///
/// Of equal logits that with the lower id is the more probable one, as in [`Sampling`](crate::Sampling). A row with a logit that
/// is NaN has logarithms that are NaN, and its tokens mean nothing.
#[derive(Clone, Copy, Debug)]
pub struct LogProbs {
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Columns from here on are padding; at least [`TOP`].
    pub columns: usize,
}

/// How many of the most probable tokens.
pub const TOP: usize = 5;

/// With a cap and without; the last row's token is the most probable one, and one logit stands twice.
pub(crate) fn examples() -> Vec<Example> {
    let (n, v, columns) = (3, 50, 47);
    let mut logits: Vec<f64> = (0..n * v).map(|i| (i * 37 % 101) as f64 / 10.0 - 5.0).collect();
    (logits[3], logits[7]) = (6.0, 6.0);
    logits[2 * v + 40] = 9.0;
    let args = vec![
        (Type::f32([n, v]), Values::Given(logits)),
        (Type::i32([n]), Values::Given(vec![7.0, 46.0, 40.0])),
    ];
    let example = |cap: f64| Example::new(LogProbs { cap, columns }, args.clone(), &[], &[Target::Cpu]);
    vec![example(0.0), example(30.0)]
}

impl Kernel for LogProbs {
    fn name(&self) -> String {
        format!("log_probs(cap={}, columns={})", self.cap, self.columns)
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let [logits, tokens] = args else {
            return Err(ShapeError("wants logits and tokens".to_owned()));
        };
        let n = tokens.shape.first().copied().unwrap_or_default();
        let v = logits.shape.last().copied().unwrap_or_default();
        if *logits != Type::f32([n, v]) || *tokens != Type::i32([n]) || !(TOP..=v).contains(&self.columns) {
            return Err(ShapeError(format!(
                "wants {} columns, at least {TOP}, of logits f32[n, v], and tokens i32[n]; it has {logits} and {tokens}",
                self.columns
            )));
        }
        Ok(vec![Type::f32([n]), Type::i32([n, TOP]), Type::f32([n, TOP])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        let (logits, tokens) = (args[0].slice_axis(1, 0, self.columns), args[1]);
        let n = tokens.dim(0);
        let capped = if self.cap > 0.0 { (logits * (1.0 / self.cap)).tanh() * self.cap } else { logits };
        let below = capped - capped.reduce_max(&[1]).along(capped, &[0]);
        let log_probs = (below - below.exp().sum(&[1]).log().along(below, &[0])).reshape([n * self.columns]);
        let row = tokens.builder().iota(tokens.ty(), 0) * self.columns as i32;
        let of = |tokens: Tensor<'f>| log_probs.gather(tokens + row);
        let mut left = logits;
        let top: Vec<Tensor<'f>> = (0..TOP)
            .map(|_| {
                let first = left.argmax(1);
                let column = left.builder().iota(left.ty().with_dtype(DType::I32), 1);
                let taken = column.eq(first.along(column, &[0]));
                left = taken.select(left.full_like(f64::NEG_INFINITY), left);
                first
            })
            .collect();
        let side_by_side = |columns: Vec<Tensor<'f>>| {
            Tensor::concatenate(&columns.iter().map(|x| x.reshape([n, 1])).collect::<Vec<_>>(), 1)
        };
        let top_log_probs = top.iter().map(|&tokens| of(tokens)).collect();
        vec![of(tokens), side_by_side(top), side_by_side(top_log_probs)]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through it")
    }

    fn differentiable(&self) -> usize {
        3
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        if target != Target::Cpu || !Form::takes_native(wanted) {
            return None;
        }
        let results = self.infer(args).expect("checked when called");
        let call = HostCall::new::<LogProbs>(cpu::attributes(self), results);
        Some((Form::Native, Func::build(args, |f, args| f.host_call(call, args))))
    }
}
