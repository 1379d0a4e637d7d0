//! The calls that programs make: the kernels' attributes and operands to the functions here and back.

use super::backward::{Cotangents, Saved, backward, backward_scratch};
use super::forward::{Results, forward, forward_scratch};
use super::{Arguments, Attention, HeadNorm, Keys, LINE, Lambda};
use crate::diff_attention::{DiffAttention, DiffAttentionBackward};
use engine::{CallFrame, DType, Func, HostCall, HostFunction, Type, View};

/// The forward pass on the CPU; None if the native form does not cover the kernel.
pub(in crate::diff_attention) fn forward_func(kernel: &DiffAttention, args: &[Type]) -> Option<Func> {
    let attributes = covered(kernel, args)?;
    let mut results = kernel.results(args).expect("checked when called");
    // What the call works in.
    results.push(Type::f32([forward_scratch(&Attention::new(&attributes, &args[0].shape))]));
    let call = HostCall::new::<DiffAttention>(attributes, results);
    Some(Func::build(args, |f, args| f.host_call(call, args)[..3].to_vec()))
}

/// The backward pass on the CPU, of the arguments and results of the forward pass, and dy.
pub(in crate::diff_attention) fn backward_func(kernel: &DiffAttention, args: &[Type]) -> Option<Func> {
    let attributes = covered(kernel, args)?;
    let scratch = Type::f32([backward_scratch(&Attention::new(&attributes, &args[0].shape))]);
    let call =
        HostCall::new::<DiffAttentionBackward>(attributes, vec![args[0].clone(), args[3].clone(), scratch]);
    Some(Func::build(args, |f, args| f.host_call(call, args)[..2].to_vec()))
}

/// The call's attributes, if the native form covers the kernel.
fn covered(kernel: &DiffAttention, args: &[Type]) -> Option<Vec<i64>> {
    let whole_lines = kernel.head_dim.is_multiple_of(LINE) && kernel.value_dim.is_multiple_of(LINE);
    (args[0].dtype == DType::F32 && whole_lines).then(|| attributes(kernel))
}

fn attributes(kernel: &DiffAttention) -> Vec<i64> {
    let mut attributes: Vec<i64> =
        [kernel.heads, kernel.groups, kernel.head_dim, kernel.value_dim, kernel.key_maps()]
            .map(|size| size as i64)
            .to_vec();
    attributes.push(kernel.cap.to_bits() as i64);
    if let HeadNorm::Rms { eps } = kernel.norm {
        attributes.push(eps.to_bits() as i64);
    }
    attributes
}

impl Attention {
    /// qkv: its shape.
    fn new(attributes: &[i64], qkv: &[usize]) -> Attention {
        let (&[heads, groups, head_dim, value_dim, key_maps, cap, ref eps @ ..], &[batch, seq, _]) =
            (attributes, qkv)
        else {
            unreachable!("as `attributes` makes them, and [b, s, w]")
        };
        let [heads, groups, head_dim, value_dim] =
            [heads, groups, head_dim, value_dim].map(|size| size as usize);
        let keys = if key_maps == 1 { Keys::Shared } else { Keys::PerMap };
        let norm = match eps {
            [eps] => HeadNorm::Rms { eps: f64::from_bits(*eps as u64) },
            _ => HeadNorm::None,
        };
        let cap = f64::from_bits(cap as u64) as f32;
        Attention { batch, seq, heads, groups, head_dim, value_dim, keys, norm, cap }
    }
}

impl<'a> Arguments<'a> {
    fn new(operands: &[View<'a>]) -> Arguments<'a> {
        let &[qkv, cos, sin, lambda, starts, ..] = operands else { unreachable!("as the kernel has them") };
        let lambda = match lambda.shape() {
            [] => Lambda::Scalar(lambda.as_slice()[0]),
            _ => Lambda::PerRow(lambda.as_slice()),
        };
        let [qkv, cos, sin] = [qkv, cos, sin].map(|x| x.as_slice());
        Arguments { qkv, cos, sin, lambda, starts: starts.as_slice() }
    }
}

impl HostFunction for DiffAttention {
    const NAME: &'static str = "diff_attention";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let p = Attention::new(attributes, operands[0].shape());
        let Ok(results) = <[_; 4]>::try_from(results) else { unreachable!("four results") };
        let [y, o2, stats, scratch] = results.map(|x| x.into_slice());
        forward(&p, workers, Arguments::new(&operands), Results { y, o2, stats }, scratch);
    }
}

impl HostFunction for DiffAttentionBackward {
    const NAME: &'static str = "diff_attention_backward";

    fn call(CallFrame { attributes, operands, results, workers }: CallFrame<'_>) {
        let p = Attention::new(attributes, operands[0].shape());
        let Ok(results) = <[_; 3]>::try_from(results) else { unreachable!("three results") };
        let [qkv, lambda, scratch] = results.map(|x| x.into_slice());
        let &[.., y, o2, stats, dy] = &operands[..] else { unreachable!("as the kernel has them") };
        let [y, o2, stats, dy] = [y, o2, stats, dy].map(|x| x.as_slice());
        let (x, saved) = (Arguments::new(&operands), Saved { y, o2, stats });
        backward(&p, workers, x, saved, dy, Cotangents { qkv, lambda }, scratch);
    }
}
