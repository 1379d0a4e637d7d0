//! Element types and tensor types. A [`Type`] is metadata only: it never holds data.

use std::fmt;

/// The element types of the engine. `F64` serves tests and host-side oracles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    Bf16,
    F16,
    I32,
    U32,
    I64,
    U8,
    Bool,
}

impl DType {
    /// Every element type, in the order of declaration.
    pub const ALL: [DType; 9] = [
        DType::F64,
        DType::F32,
        DType::Bf16,
        DType::F16,
        DType::I32,
        DType::U32,
        DType::I64,
        DType::U8,
        DType::Bool,
    ];

    /// Bytes of one element on the host and on every device (`Bool` takes one byte).
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Floating point types carry gradients; no other type does.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::Bf16 | DType::F16)
    }

    /// Whether every number of another float type is one of this.
    pub fn holds(self, other: DType) -> bool {
        let wider = match self {
            DType::F64 => other.is_float(),
            DType::F32 => matches!(other, DType::Bf16 | DType::F16),
            _ => false,
        };
        wider || self == other
    }

    /// Integers, signed or not; `Bool` is not an integer.
    pub fn is_integer(self) -> bool {
        matches!(self, DType::I32 | DType::U32 | DType::I64 | DType::U8)
    }

    /// Integers that cannot be negative.
    pub fn is_unsigned(self) -> bool {
        matches!(self, DType::U32 | DType::U8)
    }

    /// The name in our own messages: `f32`, `bf16`, `u32`, `bool`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The name in StableHLO text: `f32`, `ui32`, `i1`.
    pub fn mlir(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U32 => "ui32",
            DType::I64 => "i64",
            DType::U8 => "ui8",
            DType::Bool => "i1",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Element type and shape of a tensor; shapes are static and row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// The element type.
    pub dtype: DType,
    /// The extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
}

impl Type {
    /// A type from an element type and a shape.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// A scalar of the given element type.
    pub fn scalar(dtype: DType) -> Type {
        Type::new(dtype, [])
    }

    /// An `f32` tensor type.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Type {
        Type::new(DType::F32, shape)
    }

    /// An `i32` tensor type.
    pub fn i32(shape: impl Into<Vec<usize>>) -> Type {
        Type::new(DType::I32, shape)
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements (1 for a scalar).
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the dense row-major array.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, shape: self.shape.clone() }
    }

    /// The same element type with another shape.
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype: self.dtype, shape: shape.into() }
    }

    /// The StableHLO spelling, `tensor<2x3xf32>`.
    pub fn mlir(&self) -> String {
        let mut text = String::from("tensor<");
        for extent in &self.shape {
            text.push_str(&extent.to_string());
            text.push('x');
        }
        text.push_str(self.dtype.mlir());
        text.push('>');
        text
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (axis, extent) in self.shape.iter().enumerate() {
            if axis > 0 {
                f.write_str(",")?;
            }
            write!(f, "{extent}")?;
        }
        f.write_str("]")
    }
}

/// Row-major strides of a shape.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The index on each axis of row-major element `i`.
pub(crate) fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        index[axis] = i % shape[axis];
        i /= shape[axis];
    }
    index
}
