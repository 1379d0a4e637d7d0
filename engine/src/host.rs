//! [`Host`]: bytes and their type in main memory, aligned for zero-copy transfers.

use crate::types::{DType, Type, strides, unravel};
use bytemuck::{Pod, Zeroable};
use std::fmt;

/// One cache line. XLA's CPU plugin takes over host memory without a copy only when it is aligned to 64 bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A dense row-major tensor in main memory.
#[derive(Clone)]
pub struct Host {
    ty: Type,
    lines: Vec<Line>,
}

/// A tensor that somebody else holds, to be read: dense, row-major.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// A tensor that somebody else holds, to be written: dense, row-major.
#[derive(Debug)]
pub struct ViewMut<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a mut [u8],
}

impl<'a> View<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The numbers.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_slice<E: Element>(&self) -> &'a [E] {
        assert!(self.dtype == E::DTYPE, "an operand is {}, read as {}", self.dtype, E::DTYPE);
        bytemuck::cast_slice(self.bytes)
    }

    /// One byte for each bool, 0 or 1.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_bools(&self) -> &'a [u8] {
        assert!(self.dtype == DType::Bool, "an operand is {}, read as bool", self.dtype);
        self.bytes
    }
}

impl<'a> ViewMut<'a> {
    /// The extent of each axis.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The numbers, to be written.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn into_slice<E: Element>(self) -> &'a mut [E] {
        assert!(self.dtype == E::DTYPE, "a result is {}, written as {}", self.dtype, E::DTYPE);
        bytemuck::cast_slice_mut(self.bytes)
    }
}

/// A Rust number that is the element of a [`DType`].
pub trait Element: Pod {
    /// The element type that this Rust type stores.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),* $(,)?) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
element!(f64 => F64, f32 => F32, half::bf16 => Bf16, half::f16 => F16, i32 => I32, u32 => U32, i64 => I64, u8 => U8);

impl Host {
    /// All-zero data of a type.
    pub fn zeros(ty: Type) -> Host {
        let lines = vec![Line::zeroed(); ty.bytes().div_ceil(64)];
        Host { ty, lines }
    }

    /// Copies numbers into a tensor of the given shape.
    ///
    /// # Panics
    /// If `data` does not have one number for each element of the shape.
    #[track_caller]
    pub fn new<E: Element>(shape: impl Into<Vec<usize>>, data: &[E]) -> Host {
        let ty = Type::new(E::DTYPE, shape);
        assert!(
            ty.elements() == data.len(),
            "host tensor {ty}: wants {} numbers, got {}",
            ty.elements(),
            data.len()
        );
        Host::from_bytes(ty, bytemuck::cast_slice(data))
    }

    /// A scalar.
    pub fn scalar<E: Element>(value: E) -> Host {
        Host::new([], &[value])
    }

    /// Copies raw little-endian bytes.
    ///
    /// # Panics
    /// If the number of bytes is not that of the type.
    #[track_caller]
    pub fn from_bytes(ty: Type, bytes: &[u8]) -> Host {
        assert!(
            ty.bytes() == bytes.len(),
            "host tensor {ty}: wants {} bytes, got {}",
            ty.bytes(),
            bytes.len()
        );
        let mut host = Host::zeros(ty);
        host.bytes_mut().copy_from_slice(bytes);
        host
    }

    /// Element type and shape.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The raw little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.ty.bytes()]
    }

    /// The raw little-endian bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.ty.bytes();
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..bytes]
    }

    /// As an operand of a function of this process.
    pub fn view(&self) -> View<'_> {
        View { dtype: self.ty.dtype, shape: &self.ty.shape, bytes: self.bytes() }
    }

    /// As a result of a function of this process.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let bytes = self.ty.bytes();
        let bytes = &mut bytemuck::cast_slice_mut(&mut self.lines)[..bytes];
        ViewMut { dtype: self.ty.dtype, shape: &self.ty.shape, bytes }
    }

    /// The block of `shape` that starts at an index.
    pub(crate) fn block(&self, start: &[usize], shape: &[usize]) -> Host {
        let mut block = Host::zeros(self.ty.with_shape(shape));
        for (inside, outside, bytes) in rows(&self.ty, start, shape) {
            block.bytes_mut()[inside..inside + bytes]
                .copy_from_slice(&self.bytes()[outside..outside + bytes]);
        }
        block
    }

    /// Overwrites the block that starts at an index.
    pub(crate) fn set_block(&mut self, start: &[usize], block: &Host) {
        for (inside, outside, bytes) in rows(&self.ty, start, &block.ty.shape) {
            self.bytes_mut()[outside..outside + bytes]
                .copy_from_slice(&block.bytes()[inside..inside + bytes]);
        }
    }

    /// The numbers, without a conversion.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_slice<E: Element>(&self) -> &[E] {
        assert!(self.ty.dtype == E::DTYPE, "host tensor {}: read as {}", self.ty, E::DTYPE);
        bytemuck::cast_slice(self.bytes())
    }

    /// The numbers, writable.
    ///
    /// # Panics
    /// If the element type is another one.
    #[track_caller]
    pub fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        assert!(self.ty.dtype == E::DTYPE, "host tensor {}: read as {}", self.ty, E::DTYPE);
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Every element converted to `f64`; `Bool` gives 0 or 1. Exact for all types but large `I64`.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.ty.dtype {
            DType::F64 => self.as_slice::<f64>().to_vec(),
            DType::F32 => self.as_slice::<f32>().iter().map(|&x| x.into()).collect(),
            DType::Bf16 => self.as_slice::<half::bf16>().iter().map(|x| x.to_f64()).collect(),
            DType::F16 => self.as_slice::<half::f16>().iter().map(|x| x.to_f64()).collect(),
            DType::I32 => self.as_slice::<i32>().iter().map(|&x| x.into()).collect(),
            DType::U32 => self.as_slice::<u32>().iter().map(|&x| x.into()).collect(),
            DType::I64 => self.as_slice::<i64>().iter().map(|&x| x as f64).collect(),
            DType::U8 => self.as_slice::<u8>().iter().map(|&x| x.into()).collect(),
            DType::Bool => self.bytes().iter().map(|&x| if x == 0 { 0.0 } else { 1.0 }).collect(),
        }
    }

    /// Rounds `f64` numbers to the element type of `ty` (nearest; integers saturate; `Bool` is "not zero").
    ///
    /// # Panics
    /// If `data` does not have one number for each element.
    #[track_caller]
    pub fn from_f64(ty: Type, data: &[f64]) -> Host {
        assert!(
            ty.elements() == data.len(),
            "host tensor {ty}: wants {} numbers, got {}",
            ty.elements(),
            data.len()
        );
        let mut host = Host::zeros(ty);
        macro_rules! fill {
            ($rust:ty, $from:expr) => {
                for (slot, &x) in host.as_mut_slice::<$rust>().iter_mut().zip(data) {
                    *slot = $from(x);
                }
            };
        }
        match host.ty.dtype {
            DType::F64 => fill!(f64, |x| x),
            DType::F32 => fill!(f32, |x| x as f32),
            DType::Bf16 => fill!(half::bf16, |x| half::bf16::from_f32(odd(x))),
            DType::F16 => fill!(half::f16, |x| half::f16::from_f32(odd(x))),
            DType::I32 => fill!(i32, |x| x as i32),
            DType::U32 => fill!(u32, |x| x as u32),
            DType::I64 => fill!(i64, |x| x as i64),
            DType::U8 => fill!(u8, |x| x as u8),
            DType::Bool => {
                host.bytes_mut().iter_mut().zip(data).for_each(|(slot, &x)| *slot = u8::from(x != 0.0))
            }
        }
        host
    }
}

/// Rounds to odd: a number that `f32` does not have becomes a neighbour whose last bit is 1, so that rounding once more
/// to 16 bits gives what rounding once would. (`half` drops the low half of an `f64` before it rounds.)
fn odd(x: f64) -> f32 {
    let near = x as f32;
    if !near.is_finite() || f64::from(near) == x {
        return near;
    }
    let beyond = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
}

impl PartialEq for Host {
    /// Bit-for-bit equality of type and data.
    fn eq(&self, other: &Host) -> bool {
        self.ty == other.ty && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.to_f64();
        write!(
            f,
            "{} {:?}{}",
            self.ty,
            &values[..values.len().min(16)],
            if values.len() > 16 { " ..." } else { "" }
        )
    }
}

/// The rows of a block in a tensor: (offset in the block, offset in the tensor, length), in bytes.
fn rows(
    whole: &Type,
    start: &[usize],
    shape: &[usize],
) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let steps = strides(&whole.shape);
    let size = whole.dtype.size();
    // Only the last axis is contiguous for certain.
    let outer = shape.len().saturating_sub(1);
    let length = shape.get(outer).copied().unwrap_or(1) * size;
    let count = if length == 0 { 0 } else { shape[..outer].iter().product() };
    let (start, shape) = (start.to_vec(), shape[..outer].to_vec());
    (0..count).map(move |row| {
        let index = unravel(row, &shape).into_iter().chain([0]);
        let place: usize =
            index.zip(&start).zip(&steps).map(|((index, start), step)| (index + start) * step).sum();
        (row * length, place * size, length)
    })
}
