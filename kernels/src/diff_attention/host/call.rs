//! The calls that programs make: the kernels' attributes and operands to the functions here and back.

use super::backward::{Cotangents, Saved, backward, backward_scratch};
use super::forward::{Results, forward, forward_scratch};
use super::{Arguments, Attention, HeadNorm, Keys, LINE, Lambda};
use crate::diff_attention::{DiffAttention, DiffAttentionBackward};
use engine::{DType, Frame, HostCall, HostFunction, Type, View};

/// Whether this form computes a kernel of such operands.
pub(in crate::diff_attention) fn fits(kernel: &DiffAttention, qkv: &Type) -> bool {
    qkv.dtype == DType::F32 && kernel.head_dim.is_multiple_of(LINE) && kernel.value_dim.is_multiple_of(LINE)
}

/// The forward call. Its results are the kernel's, and what it works in.
pub(in crate::diff_attention) fn forward_call(
    kernel: &DiffAttention,
    args: &[Type],
    mut results: Vec<Type>,
) -> HostCall {
    let attributes = attributes(kernel);
    let scratch = forward_scratch(&Attention::new(&attributes, &args[0].shape));
    results.push(Type::f32([scratch]));
    HostCall::new::<DiffAttention>(attributes, results)
}

/// The backward call. Its results are the kernel's, and what it works in.
pub(in crate::diff_attention) fn backward_call(kernel: &DiffAttention, args: &[Type]) -> HostCall {
    let attributes = attributes(kernel);
    let scratch = backward_scratch(&Attention::new(&attributes, &args[0].shape));
    let results = vec![args[0].clone(), args[3].clone(), Type::f32([scratch])];
    HostCall::new::<DiffAttentionBackward>(attributes, results)
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

    fn call(Frame { attributes, operands, results, workers }: Frame<'_>) {
        let p = Attention::new(attributes, operands[0].shape());
        let Ok(results) = <[_; 4]>::try_from(results) else { unreachable!("four results") };
        let [y, o2, stats, scratch] = results.map(|x| x.into_slice());
        forward(&p, workers, Arguments::new(&operands), Results { y, o2, stats }, scratch);
    }
}

impl HostFunction for DiffAttentionBackward {
    const NAME: &'static str = "diff_attention_backward";

    fn call(Frame { attributes, operands, results, workers }: Frame<'_>) {
        let p = Attention::new(attributes, operands[0].shape());
        let Ok(results) = <[_; 3]>::try_from(results) else { unreachable!("three results") };
        let [qkv, lambda, scratch] = results.map(|x| x.into_slice());
        let &[.., y, o2, stats, dy] = &operands[..] else { unreachable!("as the kernel has them") };
        let [y, o2, stats, dy] = [y, o2, stats, dy].map(|x| x.as_slice());
        let (x, saved) = (Arguments::new(&operands), Saved { y, o2, stats });
        backward(&p, workers, x, saved, dy, Cotangents { qkv, lambda }, scratch);
    }
}
