//! Differential attention of a few new tokens against a cache of keys and values: the form that decoding needs. Source:
//! arXiv 2410.05258 eq. 1-3 with a cache; the maths is that of [`DiffAttention`](crate::DiffAttention) after the rotation.
//!
//! A token reads the whole cache for a handful of products, so the time is that of the cache's bytes: 4 KiB a slot for
//! each row and layer of `1b`.

pub(crate) mod cpu;
mod portable;
mod tpu;

use crate::example::{ACTIVATIONS, Example, Values};
use crate::{HeadNorm, wide};
use engine::{Backward, Form, Func, Kernel, ShapeError, Target, Tensor, Type};

/// Arguments: queries `[b, n, h, 2, d]` of n new tokens, rotated; keys `[b*g*2, d, slots]`, rotated and with those of the
/// new tokens, or `[b*g, d, slots]` where the two maps share them; values `[b*g*2, slots, e/2]`, in two halves of their
/// width; slot `[b]` i32, that of each row's first new token, at most `slots - n`; and lambda, `[]` or `[b, n, h]` f32.
/// Token i of row b sees the slots up to `slot[b] + i`: each row has a length of its own.
///
/// Result: `[b, n, h, e]` f32, which is small and which the norm's weight multiplies.
#[derive(Clone, Debug)]
pub struct CachedAttention {
    /// The norm of the heads' outputs.
    pub norm: HeadNorm,
    /// Soft cap of the logits, `cap tanh(x / cap)`; 0 is off.
    pub cap: f64,
    /// Slots of one block of the native form; None leaves the choice to the table.
    pub block: Option<usize>,
}

/// Extents, by the crate's axis letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) b: usize,
    pub(crate) n: usize,
    pub(crate) g: usize,
    /// Heads of a group.
    pub(crate) r: usize,
    pub(crate) d: usize,
    pub(crate) e: usize,
    pub(crate) slots: usize,
    /// Maps with keys of their own: 2, or 1 where they share them.
    pub(crate) key_maps: usize,
}

impl CachedAttention {
    fn sizes(args: &[Type]) -> Result<Sizes, ShapeError> {
        let complain = |wanted: String| Err(ShapeError(format!("wants {wanted}")));
        let [q, keys, values, slot, lambda] = args else {
            return complain("queries, keys, values, slot and lambda".to_owned());
        };
        let (&[b, n, h, 2, d], &[key_rows, key_width, slots], &[value_rows, value_slots, half]) =
            (&q.shape[..], &keys.shape[..], &values.shape[..])
        else {
            return complain(
                "queries [b, n, h, 2, d], keys [b*g*2, d, slots], values [b*g*2, slots, e/2]".to_owned(),
            );
        };
        let g = value_rows / (2 * b).max(1);
        if g == 0 || value_rows != 2 * b * g || h % g != 0 {
            return Err(ShapeError(format!("values {values} are not of groups of {b} rows and {h} heads")));
        }
        let key_maps = key_rows / (b * g);
        if !(1..=2).contains(&key_maps) || *keys != q.with_shape([b * g * key_maps, d, slots]) {
            return complain(format!("keys {} or one for both maps", q.with_shape([b * g * 2, d, slots])));
        }
        if key_width != d || value_slots != slots || values.dtype != q.dtype || !q.dtype.is_float() {
            return complain(format!("values {}", q.with_shape([b * g * 2, slots, half])));
        }
        if *slot != Type::i32([b]) {
            return complain(format!("a slot of each row, i32[{b}]"));
        }
        let wide = wide(q.dtype);
        if lambda.dtype != wide || !(lambda.rank() == 0 || lambda.shape == [b, n, h]) {
            return complain(format!("lambda {wide}[] or {wide}[{b},{n},{h}]"));
        }
        Ok(Sizes { b, n, g, r: h / g, d, e: 2 * half, slots, key_maps })
    }
}

/// Both architectures, one and two new tokens.
pub(crate) fn examples() -> Vec<Example> {
    let example = |norm: HeadNorm, key_maps: usize, tokens: usize, native: &[Target]| {
        let (b, h, g, d, slots) = (2, 4, 2, 128, 128);
        let e = key_maps * d;
        let lambda = if key_maps == 1 { vec![b, tokens, h] } else { vec![] };
        let args = vec![
            (Type::f32([b, tokens, h, 2, d]), ACTIVATIONS),
            (Type::f32([b * g * key_maps, d, slots]), ACTIVATIONS),
            (Type::f32([b * g * 2, slots, e / 2]), ACTIVATIONS),
            (Type::i32([b]), Values::Given(vec![90.0, 0.0])),
            (Type::f32(lambda), Values::Between(0.1, 0.9)),
        ];
        Example::new(CachedAttention { norm, cap: 0.0, block: None }, args, &[], native)
    };
    let native = [Target::Cpu, Target::TpuV6e];
    vec![example(HeadNorm::Rms { eps: 1e-5 }, 2, 1, &native), example(HeadNorm::None, 1, 2, &native)]
}

impl Kernel for CachedAttention {
    fn name(&self) -> String {
        let CachedAttention { norm, cap, block } = self;
        format!("cached_attention(norm={norm:?}, cap={cap}, block={block:?})")
    }

    fn infer(&self, args: &[Type]) -> Result<Vec<Type>, ShapeError> {
        let Sizes { b, n, g, r, e, .. } = CachedAttention::sizes(args)?;
        Ok(vec![Type::new(wide(args[0].dtype), [b, n, g * r, e])])
    }

    fn reference<'f>(&self, args: &[Tensor<'f>]) -> Vec<Tensor<'f>> {
        vec![portable::attention(self, args, portable::product)]
    }

    fn vjp<'f>(&self, _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[Tensor<'f>], _: &[bool]) -> Backward<'f> {
        Backward::OfReference("nothing is trained through a cache")
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn recompute<'f>(&self, _: &[Tensor<'f>], _: &[Option<Tensor<'f>>]) -> Option<Vec<Tensor<'f>>> {
        None
    }

    fn lower(&self, args: &[Type], target: Target, wanted: Option<Form>) -> Option<(Form, Func)> {
        let native = match target {
            Target::TpuV6e if Form::takes_native(wanted) => tpu::func(self, args),
            Target::Cpu if Form::takes_native(wanted) => cpu::func(self, args),
            _ => None,
        };
        let portable = || match target {
            Target::Cpu => {
                let by_rows = portable::product_by_rows;
                Some((
                    Form::Portable,
                    Func::build(args, |_, args| vec![portable::attention(self, args, by_rows)]),
                ))
            }
            // Row by row a TPU takes six times the cycles: 99,102 instead of 16,788 for one token and 2048 slots.
            Target::Cuda | Target::TpuV6e | Target::OtherTpu => None,
        };
        native.map(|func| (Form::Native, func)).or_else(portable)
    }
}
