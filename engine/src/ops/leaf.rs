//! Values from nowhere: parameters, constants, iota.

use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::host::{Element, Host};
use crate::ir::{Builder, Tensor};
use crate::text::{Line, Printer};
use crate::types::{DType, Type};
use std::sync::Arc;

/// A parameter of the function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parameter {
    /// Position among the parameters.
    pub index: usize,
    /// Its type.
    pub ty: Type,
}

impl Rules for Parameter {
    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(vec![self.ty.clone()])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(Vec::new())
    }
    fn print(&self, _: &mut Printer, _: &Line) {
        unreachable!("parameters are named by the function that prints them")
    }
    fn eval(&self, _: &Evaluator, _: &[&Array], _: &[Type]) -> Vec<Array> {
        unreachable!("parameters are bound by the function that evaluates them")
    }
}

/// A constant: one number everywhere, or one for each element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constant {
    /// Its type.
    pub ty: Type,
    /// Its numbers.
    pub data: ConstantData,
}

/// Little-endian element bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConstantData {
    /// The bits of the one number that fills the tensor, in the low bytes.
    Splat(u64),
    /// Every element, row-major.
    Dense(Arc<[u8]>),
}

impl Constant {
    /// Floats are rounded to the type; other numbers that the type does not have are a mistake of the author, who
    /// would get another number in silence.
    #[track_caller]
    pub(crate) fn splat(ty: Type, value: f64) -> Constant {
        let one = Host::from_f64(Type::scalar(ty.dtype), &[value]);
        let exact = ty.dtype.is_float() || one.to_f64() == [value];
        assert!(exact, "constant({ty}): {} has no {value}", ty.dtype);
        Constant { ty, data: ConstantData::Splat(bits(one.bytes())) }
    }

    /// All elements equal become a splat, so that equal constants are equal nodes.
    pub(crate) fn from_host(host: &Host) -> Constant {
        let size = host.ty().dtype.size();
        let mut elements = host.bytes().chunks_exact(size);
        let first = elements.next().map_or(0, bits);
        let data = if elements.all(|element| bits(element) == first) {
            ConstantData::Splat(first)
        } else {
            ConstantData::Dense(host.bytes().into())
        };
        Constant { ty: host.ty().clone(), data }
    }

    pub(crate) fn to_host(&self) -> Host {
        match &self.data {
            ConstantData::Dense(bytes) => Host::from_bytes(self.ty.clone(), bytes),
            ConstantData::Splat(bits) => {
                let mut host = Host::zeros(self.ty.clone());
                let size = self.ty.dtype.size();
                for element in host.bytes_mut().chunks_exact_mut(size) {
                    element.copy_from_slice(&bits.to_le_bytes()[..size]);
                }
                host
            }
        }
    }

    /// Whether every element is this number.
    pub(crate) fn is(&self, value: f64) -> bool {
        let bits = Host::from_f64(Type::scalar(self.ty.dtype), &[value]);
        self.data == ConstantData::Splat(self::bits(bits.bytes()))
    }
}

fn bits(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte))
}

impl Rules for Constant {
    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, ShapeError> {
        Ok(vec![self.ty.clone()])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(Vec::new())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.line(&format!("{} = stablehlo.constant dense<{}> : {}", line.result, self.dense(), self.ty.mlir()));
    }
    fn eval(&self, _: &Evaluator, _: &[&Array], _: &[Type]) -> Vec<Array> {
        vec![Array::from_host(&self.to_host())]
    }
}

impl Constant {
    /// Its numbers in StableHLO text.
    pub(crate) fn dense(&self) -> String {
        let dtype = self.ty.dtype;
        // Floats as hex bits: exact, and `1e0` is not MLIR.
        let number = |bits: u64| match dtype {
            DType::F64 => format!("0x{bits:016X}"),
            DType::F32 => format!("0x{bits:08X}"),
            DType::Bf16 | DType::F16 => format!("0x{bits:04X}"),
            DType::I32 => (bits as u32 as i32).to_string(),
            DType::I64 => (bits as i64).to_string(),
            DType::U32 | DType::U8 => bits.to_string(),
            DType::Bool => (bits != 0).to_string(),
        };
        match &self.data {
            ConstantData::Splat(bits) => number(*bits),
            // MLIR packs raw i1 data in bits; the nested list has one meaning only.
            ConstantData::Dense(bytes) if dtype == DType::Bool => {
                nested(&self.ty.shape, &mut bytes.iter().map(|&byte| number(byte.into())))
            }
            ConstantData::Dense(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
                format!("\"0x{hex}\"")
            }
        }
    }
}

/// `[[true, false], [false, true]]`
fn nested(shape: &[usize], elements: &mut dyn Iterator<Item = String>) -> String {
    match shape.split_first() {
        None => elements.next().unwrap_or_default(),
        Some((&extent, rest)) => {
            let items: Vec<String> = (0..extent).map(|_| nested(rest, elements)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// Counts along one axis: element = its index on `axis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Iota {
    /// The result's type.
    pub ty: Type,
    /// The axis that is counted.
    pub axis: usize,
}

impl Rules for Iota {
    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(self.axis < self.ty.rank(), "axis {} of {} does not exist", self.axis, self.ty);
        want!(self.ty.dtype != DType::Bool, "a bool cannot count");
        Ok(vec![self.ty.clone()])
    }
    fn vjp<'f>(&self, _: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        Ok(Vec::new())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.line(&format!("{} = stablehlo.iota dim = {} : {}", line.result, self.axis, self.ty.mlir()));
    }
    fn eval(&self, _: &Evaluator, _: &[&Array], _: &[Type]) -> Vec<Array> {
        let inner: usize = self.ty.shape[self.axis + 1..].iter().product();
        let extent = self.ty.shape[self.axis];
        vec![Array::from_fn(self.ty.clone(), |i| (i / inner % extent) as f64)]
    }
}

impl<'f> Builder<'f> {
    /// A tensor filled with one number.
    #[track_caller]
    pub fn full(&'f self, ty: Type, value: f64) -> Tensor<'f> {
        self.push(Constant::splat(ty, value), &[])[0]
    }

    /// A tensor of zeros.
    #[track_caller]
    pub fn zeros(&'f self, ty: Type) -> Tensor<'f> {
        self.full(ty, 0.0)
    }

    /// A scalar constant of a Rust number's own type.
    #[track_caller]
    pub fn scalar<E: Element>(&'f self, value: E) -> Tensor<'f> {
        self.constant(&Host::scalar(value))
    }

    /// A constant from host memory; its bytes become part of the program.
    #[track_caller]
    pub fn constant(&'f self, host: &Host) -> Tensor<'f> {
        self.push(Constant::from_host(host), &[])[0]
    }

    /// Counts 0, 1, 2 ... along `axis`.
    #[track_caller]
    pub fn iota(&'f self, ty: Type, axis: usize) -> Tensor<'f> {
        self.push(Iota { ty, axis }, &[])[0]
    }
}

impl<'f> Tensor<'f> {
    /// A constant of this tensor's type, filled with one number.
    #[track_caller]
    pub fn full_like(self, value: f64) -> Tensor<'f> {
        self.builder().full(self.ty(), value)
    }

    /// Zeros of this tensor's type.
    #[track_caller]
    pub fn zeros_like(self) -> Tensor<'f> {
        self.full_like(0.0)
    }
}
