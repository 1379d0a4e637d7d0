//! Writing a kernel's code: [`KernelBuilder`] and the values it hands out.

use super::{
    Binary, Body, Compare, GridSpec, Id, Instruction, MemorySpace, Reduce, Ref, Rhs, Statement, Unary,
    ValueType, is_float,
};
use engine::{DType, Type};
use std::cell::RefCell;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Range, RangeFull, Rem, Sub};

/// Records the code of one body. Operations with shapes that do not fit panic at the author's line.
#[derive(Debug)]
pub struct KernelBuilder {
    refs: Vec<(Type, MemorySpace)>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    body: Body,
    /// The regions that are open, outermost first; statements go to the last.
    open: Vec<Vec<Statement>>,
}

/// An address, a loop index, or one number.
#[derive(Clone, Copy, Debug)]
pub struct Scalar<'k> {
    builder: &'k KernelBuilder,
    id: Id,
}

/// A vector of static shape.
#[derive(Clone, Copy, Debug)]
pub struct Vector<'k> {
    builder: &'k KernelBuilder,
    id: Id,
}

/// What part of an axis a load or store touches.
#[derive(Clone, Copy, Debug)]
pub enum Slice<'k> {
    /// One index; the axis disappears.
    At(Scalar<'k>),
    /// From a place on, as many.
    From(Scalar<'k>, usize),
    /// A part that is known when the kernel is written.
    Static(usize, usize),
    /// One index that is known when the kernel is written; the axis disappears.
    Index(usize),
    /// All of it.
    All,
}

impl From<usize> for Slice<'_> {
    fn from(index: usize) -> Self {
        Slice::Index(index)
    }
}

impl<'k> From<Scalar<'k>> for Slice<'k> {
    fn from(index: Scalar<'k>) -> Self {
        Slice::At(index)
    }
}

impl From<Range<usize>> for Slice<'_> {
    fn from(range: Range<usize>) -> Self {
        Slice::Static(range.start, range.len())
    }
}

impl From<RangeFull> for Slice<'_> {
    fn from(_: RangeFull) -> Self {
        Slice::All
    }
}

/// A place in memory: one [`Slice`] for each axis, as in `at![head, .., 0..8]`.
macro_rules! at {
    ($($slice:expr),* $(,)?) => { &[$($crate::tile::Slice::from($slice)),*] };
}
pub(crate) use at;

impl KernelBuilder {
    fn new(refs: &[(Type, MemorySpace)]) -> KernelBuilder {
        let state = State { body: Body::default(), open: vec![Vec::new()] };
        KernelBuilder { refs: refs.to_vec(), state: RefCell::new(state) }
    }

    fn params<'k>(&'k self, kinds: &[ValueType]) -> Vec<Scalar<'k>> {
        let params: Vec<Id> = kinds.iter().map(|kind| self.value(kind.clone())).collect();
        self.state.borrow_mut().body.params.clone_from(&params);
        params.into_iter().map(|id| Scalar { builder: self, id }).collect()
    }

    fn finish(&self, results: Vec<Id>) -> Body {
        let State { mut body, mut open } = self.state.take();
        body.code = open.pop().expect("the outermost region");
        assert!(open.is_empty(), "a region is still open");
        body.results = results;
        body
    }

    /// The block indices of a block, as functions of the grid indices. Everything is i32.
    pub(super) fn index_map(
        spec: &GridSpec,
        index: &dyn for<'b> Fn(&'b KernelBuilder, &[Scalar<'b>]) -> Vec<Scalar<'b>>,
    ) -> Body {
        let builder = KernelBuilder::new(&spec.refs);
        let results = {
            let grid = builder.params(&vec![ValueType::Of(Type::scalar(DType::I32)); spec.grid.len()]);
            index(&builder, &grid).into_iter().map(|scalar| scalar.id).collect()
        };
        builder.finish(results)
    }

    pub(super) fn body(spec: &GridSpec, code: impl for<'b> FnOnce(&'b KernelBuilder, &[Scalar<'b>])) -> Body {
        let builder = KernelBuilder::new(&spec.refs);
        let grid = builder.params(&vec![ValueType::Of(Type::scalar(DType::I32)); spec.grid.len()]);
        code(&builder, &grid);
        builder.finish(Vec::new())
    }

    fn value(&self, ty: ValueType) -> Id {
        let types = &mut self.state.borrow_mut().body.types;
        types.push(ty);
        types.len() - 1
    }

    fn ty(&self, id: Id) -> ValueType {
        self.state.borrow().body.types[id].clone()
    }

    fn act(&self, op: Instruction, operands: &[Id], result: Option<Id>) {
        let mut state = self.state.borrow_mut();
        let region = state.open.last_mut().expect("the outermost region");
        region.push(Statement { op, operands: operands.to_vec(), result });
    }

    fn push(&self, op: Instruction, operands: &[Id], ty: ValueType) -> Id {
        let result = self.value(ty);
        self.act(op, operands, Some(result));
        result
    }

    fn constant(&self, number: f64, ty: ValueType) -> Id {
        let known = |body: &Body| {
            let same = |(id, n): &&(Id, f64)| n.to_bits() == number.to_bits() && body.types[*id] == ty;
            body.constants.iter().find(same).map(|(id, _)| *id)
        };
        if let Some(id) = known(&self.state.borrow().body) {
            return id;
        }
        let id = self.value(ty);
        self.state.borrow_mut().body.constants.push((id, number));
        id
    }

    fn region(&self, code: impl FnOnce()) -> Vec<Statement> {
        self.state.borrow_mut().open.push(Vec::new());
        code();
        self.state.borrow_mut().open.pop().expect("opened above")
    }

    /// An i32 that is known when the kernel is written.
    pub fn number<'k>(&'k self, number: i32) -> Scalar<'k> {
        Scalar { builder: self, id: self.constant(number.into(), ValueType::Of(Type::scalar(DType::I32))) }
    }

    /// An address or count that is known when the kernel is written.
    pub fn index<'k>(&'k self, number: usize) -> Scalar<'k> {
        Scalar { builder: self, id: self.constant(number as f64, ValueType::Index) }
    }

    /// A vector filled with one number.
    pub fn full<'k>(&'k self, ty: Type, number: f64) -> Vector<'k> {
        Vector { builder: self, id: self.constant(number, ValueType::Of(ty)) }
    }

    /// The index along an axis, i32.
    pub fn iota<'k>(&'k self, shape: &[usize], axis: usize) -> Vector<'k> {
        Vector { builder: self, id: self.push(Instruction::Iota(axis), &[], ValueType::Of(Type::i32(shape))) }
    }

    /// Runs `code` for each index from `from` up to before `to`.
    pub fn fori_loop<'k>(&'k self, from: Scalar<'k>, to: Scalar<'k>, code: impl FnOnce(Scalar<'k>)) {
        let index = self.value(ValueType::Index);
        let body = self.region(|| code(Scalar { builder: self, id: index }));
        self.act(Instruction::For { index, body }, &[from.id, to.id], None);
    }

    /// Runs `code` if the condition holds.
    pub fn when<'k>(&'k self, condition: Scalar<'k>, code: impl FnOnce()) {
        let body = self.region(code);
        self.act(Instruction::If(body), &[condition.id], None);
    }

    /// The starts, the extents with ones, and the shape without the axes that disappear.
    #[track_caller]
    fn place<'k>(&'k self, reference: Ref, slices: &[Slice<'k>]) -> (Vec<Id>, Vec<usize>, Vec<usize>) {
        let (ty, memory) = &self.refs[reference.0];
        assert!(*memory == MemorySpace::Vmem, "tile: scalar memory holds no vectors");
        assert!(slices.len() == ty.rank(), "tile: {} places for {ty}", slices.len());
        let (mut starts, mut extents, mut shape) = (vec![], vec![], vec![]);
        for (slice, &whole) in slices.iter().zip(&ty.shape) {
            let (start, extent) = match *slice {
                Slice::At(at) => (at, None),
                Slice::Index(at) => (self.index(at), None),
                Slice::From(start, extent) => (start, Some(extent)),
                Slice::Static(start, extent) => {
                    assert!(start + extent <= whole, "tile: {start}..{} of {ty}", start + extent);
                    (self.index(start), Some(extent))
                }
                Slice::All => (self.index(0), Some(whole)),
            };
            assert!(extent.unwrap_or(1) <= whole, "tile: {extent:?} elements of {ty}");
            assert!(
                self.ty(start.id) == ValueType::Index,
                "tile: a place is an index, not {:?}",
                self.ty(start.id)
            );
            starts.push(start.id);
            extents.push(extent.unwrap_or(1));
            shape.extend(extent);
        }
        (starts, extents, shape)
    }

    /// Reads a part of a block.
    #[track_caller]
    pub fn load<'k>(&'k self, reference: Ref, slices: &[Slice<'k>]) -> Vector<'k> {
        let (starts, extents, shape) = self.place(reference, slices);
        let ty = self.refs[reference.0].0.with_shape(extents);
        let id = self.push(Instruction::Load(reference), &starts, ValueType::Of(ty));
        Vector { builder: self, id }.reshape(&shape)
    }

    /// Writes a part of a block. An f32 vector is rounded when it goes to bf16 memory.
    #[track_caller]
    pub fn store<'k>(&'k self, reference: Ref, slices: &[Slice<'k>], value: Vector<'k>) {
        let (starts, extents, shape) = self.place(reference, slices);
        assert!(
            value.shape() == shape,
            "tile: {} into {shape:?} of {}",
            value.ty(),
            self.refs[reference.0].0
        );
        let value = value.convert(self.refs[reference.0].0.dtype).reshape(&extents);
        let operands: Vec<Id> = [value.id].into_iter().chain(starts).collect();
        self.act(Instruction::Store(reference), &operands, None);
    }

    /// One number of scalar memory.
    #[track_caller]
    pub fn scalar<'k>(&'k self, reference: Ref, place: &[Scalar<'k>]) -> Scalar<'k> {
        let (ty, memory) = &self.refs[reference.0];
        assert!(*memory == MemorySpace::Smem && place.len() == ty.rank(), "tile: a place in {memory:?} {ty}");
        let place: Vec<Id> = place.iter().map(|at| at.id).collect();
        let ty = ValueType::Of(Type::scalar(ty.dtype));
        Scalar { builder: self, id: self.push(Instruction::LoadScalar(reference), &place, ty) }
    }

    /// `acc + a b`: a `[m, k]`, b `[k, n]`, acc `[m, n]` f32.
    #[track_caller]
    pub fn matmul<'k>(&'k self, a: Vector<'k>, b: Vector<'k>, acc: Vector<'k>) -> Vector<'k> {
        self.product(a, b, acc, Rhs::Plain)
    }

    /// `acc + a b^T`: a `[m, k]`, b `[n, k]`, acc `[m, n]` f32.
    #[track_caller]
    pub fn matmul_transposed<'k>(&'k self, a: Vector<'k>, b: Vector<'k>, acc: Vector<'k>) -> Vector<'k> {
        self.product(a, b, acc, Rhs::Transposed)
    }

    #[track_caller]
    fn product<'k>(&'k self, a: Vector<'k>, b: Vector<'k>, acc: Vector<'k>, rhs: Rhs) -> Vector<'k> {
        let (x, y, z) = (a.ty(), b.ty(), acc.ty());
        let fits = match (&x.shape[..], &y.shape[..], rhs) {
            (&[m, k], &[other, n], Rhs::Plain) | (&[m, k], &[n, other], Rhs::Transposed) => {
                k == other && x.dtype == y.dtype && z == Type::f32([m, n])
            }
            _ => false,
        };
        assert!(fits, "tile matmul: {x} by {y} ({rhs:?}) onto {z}");
        Vector {
            builder: self,
            id: self.push(Instruction::Matmul(rhs), &[a.id, b.id, acc.id], ValueType::Of(z)),
        }
    }
}

impl<'k> Scalar<'k> {
    #[track_caller]
    fn binary(self, op: Binary, other: Scalar<'k>) -> Scalar<'k> {
        let (ty, wanted) = (self.builder.ty(self.id), self.builder.ty(other.id));
        assert!(ty == wanted, "tile {op:?}: {ty:?} and {wanted:?}");
        Scalar {
            builder: self.builder,
            id: self.builder.push(Instruction::Binary(op), &[self.id, other.id], ty),
        }
    }

    /// A constant of this scalar's type.
    fn same(self, number: f64) -> Scalar<'k> {
        let ty = self.builder.ty(self.id);
        Scalar { builder: self.builder, id: self.builder.constant(number, ty) }
    }

    #[track_caller]
    fn compare(self, op: Compare, other: Scalar<'k>) -> Scalar<'k> {
        let (ty, wanted) = (self.builder.ty(self.id), self.builder.ty(other.id));
        assert!(ty == wanted, "tile {op:?}: {ty:?} and {wanted:?}");
        let bit = ValueType::Of(Type::scalar(DType::Bool));
        Scalar {
            builder: self.builder,
            id: self.builder.push(Instruction::Compare(op), &[self.id, other.id], bit),
        }
    }

    /// Equal.
    #[track_caller]
    pub fn eq(self, other: Scalar<'k>) -> Scalar<'k> {
        self.compare(Compare::Eq, other)
    }

    /// Equal to a number.
    #[track_caller]
    pub fn is(self, number: usize) -> Scalar<'k> {
        self.compare(Compare::Eq, self.same(number as f64))
    }

    /// Less.
    #[track_caller]
    pub fn lt(self, other: Scalar<'k>) -> Scalar<'k> {
        self.compare(Compare::Lt, other)
    }

    /// At most.
    #[track_caller]
    pub fn le(self, other: Scalar<'k>) -> Scalar<'k> {
        self.compare(Compare::Le, other)
    }

    /// The larger one.
    #[track_caller]
    pub fn at_least(self, number: usize) -> Scalar<'k> {
        self.binary(Binary::Max, self.same(number as f64))
    }

    /// The smaller one.
    #[track_caller]
    pub fn at_most(self, number: usize) -> Scalar<'k> {
        self.binary(Binary::Min, self.same(number as f64))
    }

    /// `self` where true, else `otherwise`: a condition's choice between scalars.
    #[track_caller]
    pub fn choose(self, then: Scalar<'k>, otherwise: Scalar<'k>) -> Scalar<'k> {
        let ty = self.builder.ty(then.id);
        let id = self.builder.push(Instruction::Select, &[self.id, then.id, otherwise.id], ty);
        Scalar { builder: self.builder, id }
    }

    /// A condition's choice between vectors.
    #[track_caller]
    pub fn choose_vector(self, then: Vector<'k>, otherwise: Vector<'k>) -> Vector<'k> {
        let ty = then.ty();
        assert!(ty == otherwise.ty(), "tile select: {ty} and {}", otherwise.ty());
        let id = self.builder.push(Instruction::Select, &[self.id, then.id, otherwise.id], ValueType::Of(ty));
        Vector { builder: self.builder, id }
    }

    /// An i32 as an address.
    pub fn to_index(self) -> Scalar<'k> {
        let id = self.builder.push(Instruction::IndexCast, &[self.id], ValueType::Index);
        Scalar { builder: self.builder, id }
    }

    /// An address as an i32.
    pub fn to_number(self) -> Scalar<'k> {
        let id =
            self.builder.push(Instruction::IndexCast, &[self.id], ValueType::Of(Type::scalar(DType::I32)));
        Scalar { builder: self.builder, id }
    }

    /// Block number `self` of blocks of `extent`: a place that the compiler knows to be aligned.
    pub fn block(self, extent: usize) -> Slice<'k> {
        Slice::From(self.block_start(extent), extent)
    }

    /// Where block number `self` of blocks of `extent` starts.
    pub fn block_start(self, extent: usize) -> Scalar<'k> {
        let start = self * extent;
        let id = self.builder.push(Instruction::MultipleOf(extent), &[start.id], ValueType::Index);
        Scalar { builder: self.builder, id }
    }

    /// The scalar in each element of a vector.
    pub fn spread(self, shape: &[usize]) -> Vector<'k> {
        let ValueType::Of(ty) = self.builder.ty(self.id) else { panic!("tile: an address in a vector") };
        let id = self.builder.push(Instruction::Broadcast, &[self.id], ValueType::Of(ty.with_shape(shape)));
        Vector { builder: self.builder, id }
    }
}

impl<'k> Vector<'k> {
    fn ty(self) -> Type {
        match self.builder.ty(self.id) {
            ValueType::Of(ty) => ty,
            ValueType::Index => unreachable!("a vector has elements"),
        }
    }

    /// The extent of each axis.
    pub fn shape(self) -> Vec<usize> {
        self.ty().shape
    }

    fn with(self, op: Instruction, ty: Type) -> Vector<'k> {
        Vector { builder: self.builder, id: self.builder.push(op, &[self.id], ValueType::Of(ty)) }
    }

    #[track_caller]
    fn binary(self, op: Binary, other: Vector<'k>) -> Vector<'k> {
        let (ty, wanted) = (self.ty(), other.ty());
        assert!(ty == wanted, "tile {op:?}: {ty} and {wanted}");
        let id = self.builder.push(Instruction::Binary(op), &[self.id, other.id], ValueType::Of(ty));
        Vector { builder: self.builder, id }
    }

    /// A constant of this vector's type.
    pub fn same(self, number: f64) -> Vector<'k> {
        self.builder.full(self.ty(), number)
    }

    /// A constant of this vector's shape.
    pub fn filled(self, dtype: DType, number: f64) -> Vector<'k> {
        self.builder.full(self.ty().with_dtype(dtype), number)
    }

    /// Product with a number of 32 bits, of which the lowest 32 are kept.
    #[track_caller]
    pub fn times_bits(self, bits: u32) -> Vector<'k> {
        self.binary(Binary::Mul, self.same(f64::from(bits as i32)))
    }

    /// Another element type; bf16 is rounded to nearest even.
    pub fn convert(self, dtype: DType) -> Vector<'k> {
        let ty = self.ty();
        if ty.dtype == dtype { self } else { self.with(Instruction::Convert, ty.with_dtype(dtype)) }
    }

    /// The same elements in another shape.
    #[track_caller]
    pub fn reshape(self, shape: &[usize]) -> Vector<'k> {
        let ty = self.ty().with_shape(shape);
        assert!(ty.elements() == self.ty().elements(), "tile: {} as {shape:?}", self.ty());
        if ty == self.ty() { self } else { self.with(Instruction::ShapeCast, ty) }
    }

    /// Repeated along axes of extent 1.
    #[track_caller]
    pub fn along(self, shape: &[usize]) -> Vector<'k> {
        let ty = self.ty();
        let fits = ty.rank() == shape.len() && ty.shape.iter().zip(shape).all(|(&n, &to)| n == to || n == 1);
        assert!(fits, "tile: {ty} along {shape:?}");
        if ty.shape == shape { self } else { self.with(Instruction::Broadcast, ty.with_shape(shape)) }
    }

    /// Of two axes.
    #[track_caller]
    pub fn transpose(self) -> Vector<'k> {
        let ty = self.ty();
        let [m, n] = ty.shape[..] else { panic!("tile: the transpose of {ty}") };
        self.with(Instruction::Transpose, ty.with_shape([n, m]))
    }

    /// Some of the rows of `[m, n]`.
    #[track_caller]
    pub fn rows(self, range: Range<usize>) -> Vector<'k> {
        let ty = self.ty();
        let [m, n] = ty.shape[..] else { panic!("tile: rows of {ty}") };
        assert!(range.end <= m, "tile: rows {range:?} of {ty}");
        self.with(Instruction::Rows(range.start), ty.with_shape([range.len(), n]))
    }

    /// The columns of `[m, n]` moved right by a number; those that leave enter again at the left.
    #[track_caller]
    pub fn rotate(self, by: usize) -> Vector<'k> {
        assert!(self.shape().len() == 2, "tile: {} rotated", self.ty());
        self.with(Instruction::Rotate(by), self.ty())
    }

    #[track_caller]
    fn reduce(self, op: Reduce) -> Vector<'k> {
        let ty = self.ty();
        let (&[m, n], DType::F32) = (&ty.shape[..], ty.dtype) else { panic!("tile {op:?}: {ty}") };
        // Eight rows are one register: they are combined last, and only once.
        let eight = if m % 8 == 0 && m > 8 {
            self.reshape(&[m / 8, 8, n]).with(Instruction::Reduce(op, 0), Type::f32([8, n]))
        } else {
            self
        };
        eight.with(Instruction::Reduce(op, 0), Type::f32([n])).reshape(&[1, n])
    }

    /// Sum over the rows of `[m, n]`: `[1, n]`.
    #[track_caller]
    pub fn sum_rows(self) -> Vector<'k> {
        self.reduce(Reduce::Sum)
    }

    /// Largest over the rows of `[m, n]`: `[1, n]`.
    #[track_caller]
    pub fn max_rows(self) -> Vector<'k> {
        self.reduce(Reduce::Max)
    }

    #[track_caller]
    fn reduce_columns(self, op: Reduce) -> Vector<'k> {
        let ty = self.ty();
        let (&[m, _], DType::F32) = (&ty.shape[..], ty.dtype) else { panic!("tile {op:?}: {ty}") };
        self.with(Instruction::Reduce(op, 1), Type::f32([m])).reshape(&[m, 1])
    }

    /// Sum over the columns of `[m, n]`: `[m, 1]`.
    #[track_caller]
    pub fn sum_columns(self) -> Vector<'k> {
        self.reduce_columns(Reduce::Sum)
    }

    /// Largest over the columns of `[m, n]`: `[m, 1]`.
    #[track_caller]
    pub fn max_columns(self) -> Vector<'k> {
        self.reduce_columns(Reduce::Max)
    }

    #[track_caller]
    fn fold(self, op: Reduce) -> Vector<'k> {
        let ty = self.ty();
        let [m, n] = ty.shape[..] else { panic!("tile {op:?}: {ty}") };
        assert!(m % 8 == 0, "tile: {ty} is not made of registers of 8 rows");
        self.reshape(&[m / 8, 8, n]).with(Instruction::Reduce(op, 0), Type::f32([8, n]))
    }

    /// Rows `i`, `i + 8`, `i + 16` ... summed: `[8, n]`. Registers hold 8 rows, so no data moves between lanes.
    #[track_caller]
    pub fn fold_sum(self) -> Vector<'k> {
        self.fold(Reduce::Sum)
    }

    /// The largest of rows `i`, `i + 8`, `i + 16` ...: `[8, n]`.
    #[track_caller]
    pub fn fold_max(self) -> Vector<'k> {
        self.fold(Reduce::Max)
    }

    /// The larger of each pair.
    #[track_caller]
    pub fn max(self, other: Vector<'k>) -> Vector<'k> {
        self.binary(Binary::Max, other)
    }

    /// Bits moved right, zeros from the left.
    #[track_caller]
    pub fn shift_right_logical(self, bits: u32) -> Vector<'k> {
        self.binary(Binary::ShiftRight, self.same(bits.into()))
    }

    fn unary(self, op: Unary) -> Vector<'k> {
        assert!(is_float(self.ty().dtype), "tile {op:?}: {}", self.ty());
        self.with(Instruction::Unary(op), self.ty())
    }

    /// `2^x`: what the hardware has; `e^x` costs one product more.
    pub fn exp2(self) -> Vector<'k> {
        self.unary(Unary::Exp2)
    }

    /// The logarithm to base 2.
    pub fn log2(self) -> Vector<'k> {
        self.unary(Unary::Log2)
    }

    /// The hyperbolic tangent.
    pub fn tanh(self) -> Vector<'k> {
        self.unary(Unary::Tanh)
    }

    /// `1 / sqrt(x)`
    pub fn rsqrt(self) -> Vector<'k> {
        self.unary(Unary::Rsqrt)
    }

    #[track_caller]
    fn compare(self, op: Compare, other: Vector<'k>) -> Vector<'k> {
        let (ty, wanted) = (self.ty(), other.ty());
        assert!(ty == wanted, "tile {op:?}: {ty} and {wanted}");
        let bits = ValueType::Of(ty.with_dtype(DType::Bool));
        Vector {
            builder: self.builder,
            id: self.builder.push(Instruction::Compare(op), &[self.id, other.id], bits),
        }
    }

    /// At least.
    #[track_caller]
    pub fn ge(self, other: Vector<'k>) -> Vector<'k> {
        self.compare(Compare::Ge, other)
    }

    /// At most.
    #[track_caller]
    pub fn le(self, other: Vector<'k>) -> Vector<'k> {
        self.compare(Compare::Le, other)
    }

    /// Elements of `then` where true, of `otherwise` where not.
    #[track_caller]
    pub fn select(self, then: Vector<'k>, otherwise: Vector<'k>) -> Vector<'k> {
        let ty = then.ty();
        assert!(ty == otherwise.ty() && self.shape() == ty.shape, "tile select: {ty} and {}", otherwise.ty());
        let id = self.builder.push(Instruction::Select, &[self.id, then.id, otherwise.id], ValueType::Of(ty));
        Vector { builder: self.builder, id }
    }
}

macro_rules! operators {
    ($($operator:ident $method:ident),*) => { $(
        impl<'k> $operator for Vector<'k> {
            type Output = Vector<'k>;
            #[track_caller]
            fn $method(self, other: Vector<'k>) -> Vector<'k> {
                self.binary(Binary::$operator, other)
            }
        }
        impl<'k> $operator<f64> for Vector<'k> {
            type Output = Vector<'k>;
            #[track_caller]
            fn $method(self, other: f64) -> Vector<'k> {
                self.binary(Binary::$operator, self.same(other))
            }
        }
        impl<'k> $operator<Scalar<'k>> for Vector<'k> {
            type Output = Vector<'k>;
            #[track_caller]
            fn $method(self, other: Scalar<'k>) -> Vector<'k> {
                self.binary(Binary::$operator, other.spread(&self.shape()))
            }
        }
        impl<'k> $operator for Scalar<'k> {
            type Output = Scalar<'k>;
            #[track_caller]
            fn $method(self, other: Scalar<'k>) -> Scalar<'k> {
                self.binary(Binary::$operator, other)
            }
        }
        impl<'k> $operator<usize> for Scalar<'k> {
            type Output = Scalar<'k>;
            #[track_caller]
            fn $method(self, other: usize) -> Scalar<'k> {
                self.binary(Binary::$operator, self.same(other as f64))
            }
        }
    )* };
}
operators!(Add add, Sub sub, Mul mul, Div div, Rem rem);

impl<'k> Neg for Vector<'k> {
    type Output = Vector<'k>;
    fn neg(self) -> Vector<'k> {
        self.same(0.0) - self
    }
}

macro_rules! bitwise {
    ($($operator:ident $method:ident $op:ident),*) => { $(
        impl<'k> $operator for Vector<'k> {
            type Output = Vector<'k>;
            #[track_caller]
            fn $method(self, other: Vector<'k>) -> Vector<'k> {
                self.binary(Binary::$op, other)
            }
        }
        impl<'k> $operator for Scalar<'k> {
            type Output = Scalar<'k>;
            #[track_caller]
            fn $method(self, other: Scalar<'k>) -> Scalar<'k> {
                self.binary(Binary::$op, other)
            }
        }
    )* };
}
bitwise!(BitAnd bitand And, BitOr bitor Or, BitXor bitxor Xor);
