//! Several devices, and where tensors lie: reductions across replicas, sharding annotations, pins.

use super::reduce::Reduction;
use super::{Rules, ShapeError, want};
use crate::eval::{Array, Evaluator};
use crate::grad::{Cotangent, NoGradient, Vjp};
use crate::ir::Tensor;
use crate::text::{Line, Printer};
use crate::types::{DType, Type, unravel};

/// Elementwise sum, maximum or minimum over the replicas of each group.
///
/// `eval` has one host only: it takes every replica to hold the same operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AllReduce {
    /// What is done with the replicas' elements.
    pub reduction: Reduction,
    /// Replica ids, all groups of one size.
    pub groups: Vec<Vec<u32>>,
}

impl Rules for AllReduce {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        let size = self.groups.first().map_or(0, Vec::len);
        want!(
            size > 0 && self.groups.iter().all(|group| group.len() == size),
            "wants groups of one size, not empty"
        );
        want!(x[0].dtype != DType::Bool, "wants numbers");
        want!(self.reduction != Reduction::Prod, "products over replicas are not supported");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        match self.reduction {
            // Each replica's operand is in every replica's sum.
            Reduction::Sum => Ok(vec![v.builder.push(self.clone(), &[v.ct(0)])[0].into()]),
            _ => Err(NoGradient("only a sum over replicas has one")),
        }
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let groups: Vec<String> = self.groups.iter().map(|group| format!("{group:?}")).collect();
        let scalar = Type::scalar(line.types[0].dtype).mlir();
        p.line(&format!(
            "{} = \"stablehlo.all_reduce\"({}) <{{replica_groups = dense<[{}]> : tensor<{}x{}xi64>}}> ({{",
            line.result,
            line.operands[0],
            groups.join(", "),
            self.groups.len(),
            self.groups[0].len()
        ));
        p.line(&format!("^bb0(%_a: {scalar}, %_b: {scalar}):"));
        p.indented(|p| {
            p.line(&format!("%_s = {} %_a, %_b : {scalar}", self.reduction.combiner()));
            p.line(&format!("stablehlo.return %_s : {scalar}"));
        });
        p.line(&format!("}}) : {}", line.signature()));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], types: &[Type]) -> Vec<Array> {
        let copies = match self.reduction {
            Reduction::Sum => self.groups[0].len(),
            Reduction::Prod | Reduction::Max | Reduction::Min => 1,
        };
        let ty = types[0].clone();
        if ty.dtype.is_float() {
            return vec![Array::from_floats(ty, x[0].floats().iter().map(|x| x * copies as f64).collect())];
        }
        vec![Array::from_ints(ty, x[0].ints().iter().map(|x| x.wrapping_mul(copies as i64)).collect())]
    }
}

/// How a tensor is cut over devices: axis `i` into `tiles[i]` parts; devices that remain hold copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    /// Parts of each axis.
    pub tiles: Vec<usize>,
    /// Number of devices, a multiple of the product of `tiles`.
    pub devices: usize,
}

impl Sharding {
    /// A copy of the whole tensor on each device.
    pub fn replicated(rank: usize, devices: usize) -> Sharding {
        Sharding { tiles: vec![1; rank], devices }
    }

    /// GSPMD's spelling: `{devices=[4,1]<=[4]}`.
    pub fn text(&self) -> String {
        let parts: usize = self.tiles.iter().product();
        if parts == 1 {
            return "{replicated}".to_owned();
        }
        let mut tiles: Vec<String> = self.tiles.iter().map(usize::to_string).collect();
        let copies = self.devices / parts;
        if copies > 1 {
            tiles.push(copies.to_string());
        }
        let suffix = if copies > 1 { " last_tile_dim_replicate" } else { "" };
        format!("{{devices=[{}]<=[{}]{suffix}}}", tiles.join(","), self.devices)
    }

    /// The type of what one device holds.
    pub fn part(&self, ty: &Type) -> Type {
        ty.with_shape(
            ty.shape.iter().zip(&self.tiles).map(|(extent, tiles)| extent / tiles).collect::<Vec<_>>(),
        )
    }

    /// Where the part of a device starts in the whole: parts are dealt to devices in row-major order, copies of one
    /// part to neighbours.
    pub(crate) fn start(&self, ty: &Type, device: usize) -> Vec<usize> {
        let copies = self.devices / self.tiles.iter().product::<usize>();
        let place = unravel(device / copies, &self.tiles);
        place.iter().zip(&self.part(ty).shape).map(|(place, extent)| place * extent).collect()
    }

    pub(crate) fn check(&self, ty: &Type) -> Result<(), ShapeError> {
        want!(self.tiles.len() == ty.rank(), "a sharding of {} axes does not fit {ty}", self.tiles.len());
        let parts: usize = self.tiles.iter().product();
        want!(
            parts > 0 && self.devices.is_multiple_of(parts),
            "{parts} parts do not fit {} devices",
            self.devices
        );
        want!(
            ty.shape.iter().zip(&self.tiles).all(|(extent, tiles)| extent.is_multiple_of(*tiles)),
            "{ty} cannot be cut into equal parts, {:?} of its axes",
            self.tiles
        );
        Ok(())
    }
}

/// The operand, asked to be cut in this way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardingConstraint {
    /// The wanted cut.
    pub sharding: Sharding,
}

impl Rules for ShardingConstraint {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(x.len() == 1, "wants one operand");
        self.sharding.check(&x[0])?;
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The cotangent is cut like the value.
        Ok(vec![v.builder.push(self.clone(), &[v.ct(0)])[0].into()])
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        p.line(&format!(
            "{} = stablehlo.custom_call @Sharding({}) {{mhlo.sharding = \"{}\"}} : {}",
            line.result,
            line.operands[0],
            self.sharding.text(),
            line.signature()
        ));
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        vec![x[0].clone()]
    }
}

/// Operands unchanged, each row-major in memory: without it the TPU's compiler may choose a transposed layout that slows
/// every user down. Other targets drop it ([`crate::passes::select`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayoutConstraint {
    /// The layout alone.
    RowMajor,
    /// Computed once, all at one place, in their own types, and written: fused with no user, not kept wider than they are.
    Materialized,
}

impl Rules for LayoutConstraint {
    fn infer(&self, x: &[Type]) -> Result<Vec<Type>, ShapeError> {
        want!(!x.is_empty(), "wants at least one operand");
        Ok(x.to_vec())
    }
    fn vjp<'f>(&self, v: &Vjp<'f>) -> Result<Vec<Cotangent<'f>>, NoGradient> {
        // The identity: cotangents pass.
        Ok((0..v.operands()).map(|i| v.ct_if_any(i).map_or(Cotangent::None, Cotangent::Add)).collect())
    }
    fn print(&self, p: &mut Printer, line: &Line) {
        let mut constrained = Vec::new();
        for (operand, ty) in line.operands.iter().zip(line.types) {
            let (name, mlir) = (p.fresh(), ty.mlir());
            let axes: Vec<usize> = (0..ty.rank()).rev().collect();
            let layout = format!("[dense<{axes:?}> : tensor<{}xindex>]", ty.rank());
            p.line(&format!(
                "{name} = stablehlo.custom_call @LayoutConstraint({operand}) {{operand_layouts = {layout}, result_layouts = {layout}}} : ({mlir}) -> {mlir}",
            ));
            constrained.push(name);
        }
        match self {
            LayoutConstraint::RowMajor => p.aliases(line, constrained),
            LayoutConstraint::Materialized => {
                let types: Vec<String> = line.types.iter().map(Type::mlir).collect();
                p.line(&format!(
                    "{} = stablehlo.optimization_barrier {} : {}",
                    line.result,
                    constrained.join(", "),
                    types.join(", ")
                ));
            }
        }
    }
    fn eval(&self, _: &Evaluator, x: &[&Array], _: &[Type]) -> Vec<Array> {
        x.iter().map(|&array| array.clone()).collect()
    }
}

impl<'f> Tensor<'f> {
    /// Sum, maximum or minimum over the replicas of each group.
    #[track_caller]
    pub fn all_reduce(self, reduction: Reduction, groups: Vec<Vec<u32>>) -> Tensor<'f> {
        self.builder().push(AllReduce { reduction, groups }, &[self])[0]
    }

    /// Sum over the replicas of each group.
    #[track_caller]
    pub fn all_reduce_sum(self, groups: Vec<Vec<u32>>) -> Tensor<'f> {
        self.all_reduce(Reduction::Sum, groups)
    }

    /// This tensor, asked to be cut over devices in this way.
    #[track_caller]
    pub fn with_sharding(self, sharding: Sharding) -> Tensor<'f> {
        self.builder().push(ShardingConstraint { sharding }, &[self])[0]
    }

    /// This value, row-major in memory where that matters ([`LayoutConstraint::RowMajor`]).
    #[track_caller]
    pub fn row_major(self) -> Tensor<'f> {
        self.builder().push(LayoutConstraint::RowMajor, &[self])[0]
    }

    /// The same values, row-major and computed together where that matters ([`LayoutConstraint::Materialized`]).
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn materialized<const N: usize>(tensors: [Tensor<'f>; N]) -> [Tensor<'f>; N] {
        let first = tensors.first().expect("materialized(): wants at least one operand");
        let constrained = first.builder().push(LayoutConstraint::Materialized, &tensors);
        std::array::from_fn(|i| constrained[i])
    }
}
