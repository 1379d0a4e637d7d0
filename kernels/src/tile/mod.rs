//! A small language for kernels that run tile by tile on one core's own memory: what is to be computed for one step of a
//! grid, in terms of blocks that the hardware fetches and stores while it computes.
//!
//! A [`GridSpec`] names the grid, the blocks of operands and results that a step sees ([`BlockSpec`]), and scratch memory that
//! lives from step to step. [`GridSpec::build`] runs the author's code once with a [`KernelBuilder`]; what comes out is a
//! [`TileKernel`], which is printed as Mosaic text for a TPU (`mosaic.rs`) and run on the host by `interpret.rs`: the very
//! program that a TPU gets is the one whose numbers the tests check.
//!
//! Vectors are dense values of static shape; addresses and loop bounds are scalars. Nothing is implicit but one thing:
//! a scalar or a number combined with a vector is broadcast to it. Matrix products accumulate in f32.

mod build;
mod interpret;
mod mosaic;

pub(crate) use build::at;
pub use build::{KernelBuilder, Scalar, Slice, Vector};

use engine::{DType, Type};

/// A block of memory that the kernel can address: an operand, a result or scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ref(usize);

/// Where a block lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpace {
    /// Vector memory: vectors are loaded and stored.
    Vmem,
    /// Scalar memory: single numbers are loaded.
    Smem,
    /// Where it is; the kernel does not touch it.
    Any,
}

/// Whether steps along a grid axis depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DimensionSemantics {
    /// Any order; scratch memory carries nothing from step to step.
    Parallel,
    /// From first to last: scratch memory carries state.
    Arbitrary,
}

/// The block of an array that a grid step sees.
#[derive(Clone, Debug)]
pub struct BlockSpec {
    /// The whole array.
    array: Type,
    /// The extent of the block.
    block_shape: Vec<usize>,
    memory: MemorySpace,
    /// Grid indices -> index of the block along each axis, in blocks.
    index_map: Body,
}

/// What a kernel costs, for the compiler's schedule around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostEstimate {
    /// Floating point operations of matrix products.
    pub flops: u64,
    /// Exponentials and the like.
    pub transcendentals: u64,
    /// Bytes moved between the chip's memory and the core's.
    pub bytes: u64,
}

/// Grid, blocks and scratch memory of a kernel: everything but its code.
#[derive(Clone, Debug)]
pub struct GridSpec {
    name: String,
    grid: Vec<(usize, DimensionSemantics)>,
    /// Types of all blocks, by [`Ref`].
    refs: Vec<(Type, MemorySpace)>,
    /// Scalars that are there before the first step; index maps may use them.
    prefetch: Vec<Ref>,
    inputs: Vec<(Ref, BlockSpec)>,
    outputs: Vec<(Ref, BlockSpec)>,
    /// Outputs that are written over operands, and these operands, which come after all others.
    aliases: Vec<(usize, Ref)>,
    /// Inputs that the compiler leaves in the chip's memory.
    left: Vec<usize>,
    scratch: Vec<Ref>,
    cost: CostEstimate,
}

impl GridSpec {
    /// A kernel's name, and its grid: the last axis runs fastest.
    pub fn new(name: &str, grid: &[(usize, DimensionSemantics)]) -> GridSpec {
        GridSpec {
            name: name.to_owned(),
            grid: grid.to_vec(),
            refs: Vec::new(),
            prefetch: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            aliases: Vec::new(),
            left: Vec::new(),
            scratch: Vec::new(),
            cost: CostEstimate::default(),
        }
    }

    fn reference(&mut self, ty: Type, memory: MemorySpace) -> Ref {
        self.refs.push((ty, memory));
        Ref(self.refs.len() - 1)
    }

    /// An operand of i32 scalars, `[n]`, whole in scalar memory before the first step. All of these come before other
    /// operands.
    #[track_caller]
    pub fn scalar_prefetch(&mut self, count: usize) -> Ref {
        assert!(self.inputs.is_empty(), "prefetched operands come first");
        let reference = self.reference(Type::i32([count]), MemorySpace::Smem);
        self.prefetch.push(reference);
        reference
    }

    #[track_caller]
    fn block_spec(
        &mut self,
        array: Type,
        block: &[usize],
        memory: MemorySpace,
        index: impl for<'k> Fn(&'k KernelBuilder, &[Scalar<'k>]) -> Vec<Scalar<'k>>,
    ) -> (Ref, BlockSpec) {
        let fits = block.len() == array.rank() && array.shape.iter().zip(block).all(|(n, part)| part <= n);
        assert!(fits, "kernel {}: blocks {block:?} of {array}", self.name);
        let reference = self.reference(array.with_shape(block), memory);
        let index_map = KernelBuilder::index_map(self, &index);
        assert_eq!(
            index_map.results.len(),
            array.rank(),
            "kernel {}: one block index for each axis",
            self.name
        );
        (reference, BlockSpec { array, block_shape: block.to_vec(), memory, index_map })
    }

    /// An operand, of which each step sees one block. `index`: grid indices -> block index along each axis.
    #[track_caller]
    pub fn input(
        &mut self,
        array: Type,
        block: &[usize],
        index: impl for<'k> Fn(&'k KernelBuilder, &[Scalar<'k>]) -> Vec<Scalar<'k>>,
    ) -> Ref {
        let input = self.block_spec(array, block, MemorySpace::Vmem, index);
        self.inputs.push(input.clone());
        input.0
    }

    /// An operand of which every step sees the whole.
    #[track_caller]
    pub fn whole(&mut self, array: Type, memory: MemorySpace) -> Ref {
        let (block, rank) = (array.shape.clone(), array.rank());
        let input = self.block_spec(array, &block, memory, |k, _| vec![k.number(0); rank]);
        self.inputs.push(input.clone());
        input.0
    }

    /// A result, of which each step writes one block.
    #[track_caller]
    pub fn output(
        &mut self,
        array: Type,
        block: &[usize],
        index: impl for<'k> Fn(&'k KernelBuilder, &[Scalar<'k>]) -> Vec<Scalar<'k>>,
    ) -> Ref {
        let output = self.block_spec(array, block, MemorySpace::Vmem, index);
        self.outputs.push(output.clone());
        output.0
    }

    /// Says that the newest output is written over an operand of its type: what no step writes keeps its value.
    pub fn alias(&mut self) {
        let output = self.outputs.len() - 1;
        let operand = self.reference(self.outputs[output].1.array.clone(), MemorySpace::Any);
        self.aliases.push((output, operand));
    }

    /// Says that the newest input stays in the chip's memory. Otherwise the compiler may move it whole into vector memory
    /// ahead of the call, and if it changes it there, back: for an array of which little is read or written, too much.
    pub fn left_in_place(&mut self) {
        self.left.push(self.inputs.len() - 1);
    }

    /// Vector memory that keeps its contents from step to step. It starts as garbage.
    pub fn scratch(&mut self, ty: Type) -> Ref {
        let reference = self.reference(ty, MemorySpace::Vmem);
        self.scratch.push(reference);
        reference
    }

    /// States the cost.
    pub fn cost(&mut self, cost: CostEstimate) {
        self.cost = cost;
    }

    /// Bytes of vector memory: blocks twice, because the next step's are fetched during this one, and scratch.
    pub fn vector_memory(&self) -> usize {
        let bytes = |(_, block): &(Ref, BlockSpec)| match block.memory {
            MemorySpace::Vmem => 2 * block.array.with_shape(&block.block_shape[..]).bytes(),
            MemorySpace::Smem | MemorySpace::Any => 0,
        };
        let blocks: usize = self.inputs.iter().chain(&self.outputs).map(bytes).sum();
        blocks + self.scratch.iter().map(|scratch| self.refs[scratch.0].0.bytes()).sum::<usize>()
    }

    /// The kernel with its code: `body` is called once, with the indices of the grid step.
    pub fn build(self, body: impl for<'k> FnOnce(&'k KernelBuilder, &[Scalar<'k>])) -> TileKernel {
        let body = KernelBuilder::body(&self, body);
        TileKernel { spec: self, body }
    }
}

/// A kernel: [`GridSpec`] and code.
#[derive(Clone, Debug)]
pub struct TileKernel {
    spec: GridSpec,
    body: Body,
}

impl TileKernel {
    /// Types of the operands, prefetched ones first.
    pub fn operand_types(&self) -> Vec<Type> {
        let spec = &self.spec;
        let prefetched = spec.prefetch.iter().map(|reference| spec.refs[reference.0].0.clone());
        let aliased = spec.aliases.iter().map(|(_, operand)| spec.refs[operand.0].0.clone());
        prefetched.chain(spec.inputs.iter().map(|(_, block)| block.array.clone())).chain(aliased).collect()
    }

    /// Types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.spec.outputs.iter().map(|(_, block)| block.array.clone()).collect()
    }

    /// Bytes of vector memory that it needs at least: [`GridSpec::vector_memory`].
    pub fn vector_memory(&self) -> usize {
        self.spec.vector_memory()
    }
}

/// The type of a value: an address, or a scalar (rank 0) or vector of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ValueType {
    Index,
    Of(Type),
}

/// A value, by number, in its [`Body`].
type Id = usize;

/// Straight code with nested regions.
#[derive(Clone, Debug, Default)]
struct Body {
    types: Vec<ValueType>,
    /// Values that never change: (value, number). Vectors are filled with it.
    constants: Vec<(Id, f64)>,
    params: Vec<Id>,
    code: Vec<Statement>,
    results: Vec<Id>,
}

#[derive(Clone, Debug)]
struct Statement {
    op: Instruction,
    operands: Vec<Id>,
    /// None for those that only act on memory.
    result: Option<Id>,
}

/// What a statement does. Names are Mosaic's.
#[derive(Clone, Debug)]
enum Instruction {
    /// Operands: a start along each axis.
    Load(Ref),
    /// Operands: the vector, and a start along each axis.
    Store(Ref),
    /// One number of scalar memory; operands: its place.
    LoadScalar(Ref),
    Binary(Binary),
    Unary(Unary),
    /// Operands: a `[m, k]`, b `[k, n]` or `[n, k]`, and what is added to the product.
    Matmul(Rhs),
    /// Over the axis, which disappears.
    Reduce(Reduce, usize),
    /// To the result's shape: a scalar, or a vector with extents of 1.
    Broadcast,
    /// The same elements in another shape.
    ShapeCast,
    /// Of two axes.
    Transpose,
    /// Some of the rows, from the number on.
    Rows(usize),
    /// Columns moved right by the number; those that leave enter again at the left.
    Rotate(usize),
    /// The index along an axis.
    Iota(usize),
    /// Between f32, bf16 and i32.
    Convert,
    /// Between an address and an i32.
    IndexCast,
    Compare(Compare),
    /// Operands: condition (of the others' shape or a scalar), then, else.
    Select,
    /// A promise about an address.
    MultipleOf(usize),
    /// Operands: from, to. The index counts up by one.
    For {
        index: Id,
        body: Vec<Statement>,
    },
    /// Operand: the condition.
    If(Vec<Statement>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Max,
    Min,
    And,
    Or,
    Xor,
    /// Logical.
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unary {
    Exp2,
    Log2,
    Tanh,
    Rsqrt,
}

/// How the second factor of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rhs {
    /// `[k, n]`
    Plain,
    /// `[n, k]`
    Transposed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reduce {
    Sum,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Eq,
    Lt,
    Le,
    Ge,
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::Bf16)
}
