//! The kernel's numbers without its hardware: every grid step in order, blocks cut out of the arrays, scratch and results
//! filled with NaN before the first step, f32 arithmetic, bf16 rounded where the TPU rounds.

use super::{
    Binary, BlockSpec, Body, Compare, Id, Instruction, Reduce, Ref, Rhs, Statement, TileKernel, Unary,
    ValueType,
};
use engine::{DType, Host, Type};
use half::bf16;
use std::rc::Rc;

/// Elements of a block or a value; bf16 is kept as rounded f32, a boolean as 0 or 1.
#[derive(Clone, Debug)]
enum Elements {
    Floats(Vec<f32>),
    Ints(Vec<i32>),
}

#[derive(Clone, Debug)]
struct Buffer {
    ty: Type,
    elements: Elements,
}

impl Buffer {
    /// What nobody has written yet.
    fn garbage(ty: Type) -> Buffer {
        let n = ty.elements();
        let elements = match ty.dtype {
            DType::F32 | DType::Bf16 => Elements::Floats(vec![f32::NAN; n]),
            _ => Elements::Ints(vec![i32::MIN / 3; n]),
        };
        Buffer { ty, elements }
    }

    fn from_host(host: &Host) -> Buffer {
        let numbers = host.to_f64();
        let elements = match host.ty().dtype {
            DType::F32 | DType::Bf16 => Elements::Floats(numbers.iter().map(|&x| x as f32).collect()),
            // The bits of a u32.
            _ => Elements::Ints(numbers.iter().map(|&x| x as i64 as i32).collect()),
        };
        Buffer { ty: host.ty().clone(), elements }
    }

    fn to_host(&self) -> Host {
        let numbers: Vec<f64> = match &self.elements {
            Elements::Floats(floats) => floats.iter().map(|&x| x.into()).collect(),
            Elements::Ints(ints) => ints.iter().map(|&x| x.into()).collect(),
        };
        Host::from_f64(self.ty.clone(), &numbers)
    }

    fn floats(&self) -> &[f32] {
        match &self.elements {
            Elements::Floats(floats) => floats,
            Elements::Ints(_) => panic!("tile: {} are no floats", self.ty),
        }
    }

    fn ints(&self) -> &[i32] {
        match &self.elements {
            Elements::Ints(ints) => ints,
            Elements::Floats(_) => panic!("tile: {} are no integers", self.ty),
        }
    }

    fn from_floats(ty: Type, floats: Vec<f32>) -> Buffer {
        Buffer { ty, elements: Elements::Floats(floats) }
    }

    fn from_ints(ty: Type, ints: Vec<i32>) -> Buffer {
        Buffer { ty, elements: Elements::Ints(ints) }
    }

    /// Element `i` of the result is element `source(i)` of this one.
    fn picked(&self, ty: Type, source: impl Fn(usize) -> usize) -> Buffer {
        let n = ty.elements();
        match &self.elements {
            Elements::Floats(x) => Buffer::from_floats(ty, (0..n).map(|i| x[source(i)]).collect()),
            Elements::Ints(x) => Buffer::from_ints(ty, (0..n).map(|i| x[source(i)]).collect()),
        }
    }

    /// Calls `act` with (place here, place in the part) for each run of a part's last axis.
    fn runs(&self, part: &[usize], starts: &[usize], mut act: impl FnMut(usize, usize, usize)) {
        let Some((&run, outer)) = part.split_last() else { return act(0, 0, 1) };
        for (start, (&extent, &whole)) in starts.iter().zip(part.iter().zip(&self.ty.shape)) {
            assert!(start + extent <= whole, "tile: a part {part:?} at {starts:?} of {}", self.ty);
        }
        for i in 0..outer.iter().product() {
            let (mut rest, mut here, mut stride) = (i, starts[outer.len()], self.ty.shape[outer.len()]);
            for axis in (0..outer.len()).rev() {
                here += (starts[axis] + rest % outer[axis]) * stride;
                rest /= outer[axis];
                stride *= self.ty.shape[axis];
            }
            act(here, i * run, run);
        }
    }

    fn part(&self, shape: &[usize], starts: &[usize]) -> Buffer {
        let mut part = Buffer::garbage(self.ty.with_shape(shape));
        self.runs(shape, starts, |here, there, run| match (&self.elements, &mut part.elements) {
            (Elements::Floats(x), Elements::Floats(y)) => {
                y[there..there + run].copy_from_slice(&x[here..here + run])
            }
            (Elements::Ints(x), Elements::Ints(y)) => {
                y[there..there + run].copy_from_slice(&x[here..here + run])
            }
            _ => unreachable!("made of the same elements"),
        });
        part
    }

    fn write(&mut self, part: &Buffer, starts: &[usize]) {
        let mut elements = std::mem::replace(&mut self.elements, Elements::Ints(Vec::new()));
        self.runs(&part.ty.shape, starts, |here, there, run| match (&mut elements, &part.elements) {
            (Elements::Floats(x), Elements::Floats(y)) => {
                x[here..here + run].copy_from_slice(&y[there..there + run])
            }
            (Elements::Ints(x), Elements::Ints(y)) => {
                x[here..here + run].copy_from_slice(&y[there..there + run])
            }
            _ => panic!("tile: {} into {}", part.ty, self.ty),
        });
        self.elements = elements;
    }
}

impl TileKernel {
    /// Runs the kernel. `operands` as in [`TileKernel::operand_types`]; returns the results.
    ///
    /// # Panics
    /// If the operands have other types, or the kernel reaches outside a block.
    pub fn interpret(&self, operands: &[Host]) -> Vec<Host> {
        let types: Vec<Type> = operands.iter().map(|host| host.ty().clone()).collect();
        assert_eq!(types, self.operand_types(), "operands of {}", self.spec.name);
        let spec = &self.spec;
        let arrays: Vec<Buffer> = operands.iter().map(Buffer::from_host).collect();
        let garbage = |(_, block): &(Ref, BlockSpec)| Buffer::garbage(block.array.clone());
        let mut results: Vec<Buffer> = spec.outputs.iter().map(garbage).collect();
        let written_over = &arrays[arrays.len() - spec.aliases.len()..];
        for ((output, _), array) in spec.aliases.iter().zip(written_over) {
            results[*output] = array.clone();
        }
        let mut memory: Vec<Buffer> = spec.refs.iter().map(|(ty, _)| Buffer::garbage(ty.clone())).collect();
        let (prefetched, arrays) = arrays.split_at(spec.prefetch.len());
        for (reference, tile) in spec.prefetch.iter().zip(prefetched) {
            memory[reference.0] = tile.clone();
        }
        let steps: usize = spec.grid.iter().map(|&(extent, _)| extent).product();
        let mut written: Vec<Option<Vec<usize>>> = vec![None; results.len()];
        for step in 0..steps {
            let mut rest = step;
            let mut grid: Vec<i32> = spec
                .grid
                .iter()
                .rev()
                .map(|&(extent, _)| {
                    let index = rest % extent;
                    rest /= extent;
                    index as i32
                })
                .collect();
            grid.reverse();
            for ((reference, block), array) in spec.inputs.iter().zip(arrays) {
                let starts = block.starts(&grid, &mut memory);
                memory[reference.0] = array.part(&block.block_shape, &starts);
            }
            let starts: Vec<Vec<usize>> =
                spec.outputs.iter().map(|(_, block)| block.starts(&grid, &mut memory)).collect();
            for (i, starts) in starts.iter().enumerate() {
                // A block that stays in place keeps what earlier steps wrote; another one is garbage at first.
                if written[i].as_ref() != Some(starts) {
                    let (reference, block) = &spec.outputs[i];
                    memory[reference.0] = Buffer::garbage(block.array.with_shape(&block.block_shape[..]));
                    written[i] = Some(starts.clone());
                }
            }
            Run::new(&self.body, &grid, &mut memory).region(&self.body.code);
            for (i, starts) in starts.iter().enumerate() {
                results[i].write(&memory[spec.outputs[i].0.0], starts);
            }
        }
        results.iter().map(Buffer::to_host).collect()
    }
}

impl BlockSpec {
    /// Where the block of a grid step starts.
    fn starts(&self, grid: &[i32], memory: &mut [Buffer]) -> Vec<usize> {
        let mut run = Run::new(&self.index_map, grid, memory);
        run.region(&self.index_map.code);
        let blocks = self.index_map.results.iter().map(|&id| run.number(id));
        blocks.zip(&self.block_shape).map(|(block, extent)| block as usize * extent).collect()
    }
}

/// One execution of a body.
struct Run<'r> {
    body: &'r Body,
    values: Vec<Option<Rc<Buffer>>>,
    memory: &'r mut [Buffer],
}

/// The type of an address while it is interpreted.
fn tile_type(ty: &ValueType) -> Type {
    match ty {
        ValueType::Index => Type::scalar(DType::I32),
        ValueType::Of(ty) => ty.clone(),
    }
}

impl<'r> Run<'r> {
    fn new(body: &'r Body, grid: &[i32], memory: &'r mut [Buffer]) -> Run<'r> {
        let mut run = Run { body, values: vec![None; body.types.len()], memory };
        for (&id, &index) in body.params.iter().zip(grid) {
            run.set(id, Buffer::from_ints(Type::scalar(DType::I32), vec![index]));
        }
        for &(id, number) in &body.constants {
            let ty = tile_type(&body.types[id]);
            let n = ty.elements();
            let tile = match ty.dtype {
                DType::F32 => Buffer::from_floats(ty, vec![number as f32; n]),
                DType::Bf16 => Buffer::from_floats(ty, vec![bf16::from_f64(number).to_f32(); n]),
                _ => Buffer::from_ints(ty, vec![number as i32; n]),
            };
            run.set(id, tile);
        }
        run
    }

    fn set(&mut self, id: Id, tile: Buffer) {
        self.values[id] = Some(Rc::new(tile));
    }

    fn get(&self, id: Id) -> Rc<Buffer> {
        self.values[id].clone().expect("operands precede their users")
    }

    fn number(&self, id: Id) -> i32 {
        self.get(id).ints()[0]
    }

    fn places(&self, ids: &[Id]) -> Vec<usize> {
        ids.iter().map(|&id| usize::try_from(self.number(id)).expect("a place is not negative")).collect()
    }

    fn region(&mut self, code: &'r [Statement]) {
        for statement in code {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &'r Statement) {
        let operands = &statement.operands;
        match &statement.op {
            Instruction::Store(reference) => {
                let (value, starts) = (self.get(operands[0]), self.places(&operands[1..]));
                self.memory[reference.0].write(&value, &starts);
            }
            Instruction::For { index, body } => {
                for i in self.number(operands[0])..self.number(operands[1]) {
                    self.set(*index, Buffer::from_ints(Type::scalar(DType::I32), vec![i]));
                    self.region(body);
                }
            }
            Instruction::If(body) => {
                if self.number(operands[0]) != 0 {
                    self.region(body);
                }
            }
            op => {
                let id = statement.result.expect("all others have a result");
                let tile = self.compute(op, operands, tile_type(&self.body.types[id]));
                self.set(id, tile);
            }
        }
    }

    fn compute(&self, op: &Instruction, operands: &[Id], ty: Type) -> Buffer {
        let n = ty.elements();
        let first = operands.first().map(|&id| self.get(id));
        let first = || first.clone().expect("an operand");
        match op {
            Instruction::Store(_) | Instruction::For { .. } | Instruction::If(_) => {
                unreachable!("they have no value")
            }
            Instruction::Load(reference) => self.memory[reference.0].part(&ty.shape, &self.places(operands)),
            Instruction::LoadScalar(reference) => {
                let memory = &self.memory[reference.0];
                let starts = self.places(operands);
                let one = memory.part(&vec![1; starts.len()], &starts);
                one.picked(ty, |i| i)
            }
            Instruction::Binary(binary) => {
                let (a, b) = (first(), self.get(operands[1]));
                match (&a.elements, &b.elements) {
                    (Elements::Floats(a), Elements::Floats(b)) => {
                        let f = |(&x, &y): (&f32, &f32)| match binary {
                            Binary::Add => x + y,
                            Binary::Sub => x - y,
                            Binary::Mul => x * y,
                            Binary::Div => x / y,
                            Binary::Max if x.is_nan() || y.is_nan() => f32::NAN,
                            Binary::Max => x.max(y),
                            other => panic!("tile: no {other:?} of floats"),
                        };
                        Buffer::from_floats(ty.clone(), a.iter().zip(b).map(f).collect()).rounded()
                    }
                    (Elements::Ints(a), Elements::Ints(b)) => {
                        let f = |(&x, &y): (&i32, &i32)| match binary {
                            Binary::Add => x.wrapping_add(y),
                            Binary::Sub => x.wrapping_sub(y),
                            Binary::Mul => x.wrapping_mul(y),
                            Binary::Div => x / y,
                            Binary::Rem => x % y,
                            Binary::Max => x.max(y),
                            Binary::Min => x.min(y),
                            Binary::And => x & y,
                            Binary::Or => x | y,
                            Binary::Xor => x ^ y,
                            Binary::ShiftRight => ((x as u32) >> y) as i32,
                        };
                        Buffer::from_ints(ty, a.iter().zip(b).map(f).collect())
                    }
                    _ => unreachable!("checked when built"),
                }
            }
            Instruction::Unary(unary) => {
                let f = |&x: &f32| match unary {
                    Unary::Exp2 => x.exp2(),
                    Unary::Log2 => x.log2(),
                    Unary::Tanh => x.tanh(),
                    Unary::Rsqrt => 1.0 / x.sqrt(),
                };
                Buffer::from_floats(ty, first().floats().iter().map(f).collect()).rounded()
            }
            Instruction::Matmul(rhs) => {
                let (a, b) = (first(), self.get(operands[1]));
                let mut sum = self.get(operands[2]).floats().to_vec();
                let (width, k) = (ty.shape[1], a.ty.shape[1]);
                let b = match rhs {
                    Rhs::Plain => b.floats().to_vec(),
                    Rhs::Transposed => {
                        let b = b.floats();
                        (0..k * width).map(|i| b[i % width * k + i / width]).collect()
                    }
                };
                for (row, a) in sum.chunks_exact_mut(width).zip(a.floats().chunks_exact(k)) {
                    for (&a, b) in a.iter().zip(b.chunks_exact(width)) {
                        row.iter_mut().zip(b).for_each(|(sum, &b)| *sum += a * b);
                    }
                }
                Buffer::from_floats(ty, sum)
            }
            Instruction::Reduce(reduce, axis) => {
                let x = first();
                let (extent, inner) = (x.ty.shape[*axis], x.ty.shape[axis + 1..].iter().product());
                let mut result = Vec::with_capacity(n);
                for outer in x.floats().chunks_exact(extent * inner) {
                    let mut slices = outer.chunks_exact(inner);
                    let mut sums = slices.next().expect("at least one").to_vec();
                    for slice in slices {
                        for (sum, &x) in sums.iter_mut().zip(slice) {
                            *sum = match reduce {
                                Reduce::Sum => *sum + x,
                                Reduce::Max if x.is_nan() => x,
                                Reduce::Max => sum.max(x),
                            };
                        }
                    }
                    result.extend(sums);
                }
                Buffer::from_floats(ty, result)
            }
            Instruction::Broadcast => {
                let x = first();
                let shape = x.ty.shape.clone();
                x.picked(ty.clone(), |mut i| {
                    let (mut at, mut stride) = (0, 1);
                    for (axis, &extent) in ty.shape.iter().enumerate().rev() {
                        if let Some(&own) = shape.get(axis) {
                            at += if own == 1 { 0 } else { i % extent * stride };
                            stride *= own;
                        }
                        i /= extent;
                    }
                    at
                })
            }
            Instruction::ShapeCast | Instruction::MultipleOf(_) | Instruction::IndexCast => {
                if let Instruction::MultipleOf(number) = op {
                    assert_eq!(first().ints()[0] as usize % number, 0, "tile: a promise about an address");
                }
                first().picked(ty, |i| i)
            }
            Instruction::Transpose => {
                let [m, columns] = ty.shape[..] else { unreachable!("two axes") };
                first().picked(ty.clone(), |i| i % columns * m + i / columns)
            }
            Instruction::Rows(start) => first().picked(ty.clone(), |i| start * ty.shape[1] + i),
            Instruction::Rotate(by) => {
                let columns = ty.shape[1];
                first().picked(ty, |i| i / columns * columns + (i % columns + columns - by) % columns)
            }
            Instruction::Iota(axis) => {
                let below: usize = ty.shape[axis + 1..].iter().product();
                let extent = ty.shape[*axis];
                Buffer::from_ints(ty, (0..n).map(|i| (i / below % extent) as i32).collect())
            }
            Instruction::Convert => {
                let mut x = Buffer::clone(&first());
                x.ty = ty;
                x.rounded()
            }
            Instruction::Compare(compare) => {
                let f = |(&x, &y): (&i32, &i32)| {
                    i32::from(match compare {
                        Compare::Eq => x == y,
                        Compare::Lt => x < y,
                        Compare::Le => x <= y,
                        Compare::Ge => x >= y,
                    })
                };
                Buffer::from_ints(
                    ty,
                    first().ints().iter().zip(self.get(operands[1]).ints()).map(f).collect(),
                )
            }
            Instruction::Select => {
                let (condition, then, otherwise) = (first(), self.get(operands[1]), self.get(operands[2]));
                let condition = condition.ints();
                if let &[one] = condition {
                    return Buffer::clone(if one != 0 { &then } else { &otherwise });
                }
                match (&then.elements, &otherwise.elements) {
                    (Elements::Floats(x), Elements::Floats(y)) => Buffer::from_floats(
                        ty,
                        (0..n).map(|i| if condition[i] != 0 { x[i] } else { y[i] }).collect(),
                    ),
                    (Elements::Ints(x), Elements::Ints(y)) => Buffer::from_ints(
                        ty,
                        (0..n).map(|i| if condition[i] != 0 { x[i] } else { y[i] }).collect(),
                    ),
                    _ => unreachable!("checked when built"),
                }
            }
        }
    }
}

impl Buffer {
    /// To the nearest number of its element type.
    fn rounded(mut self) -> Buffer {
        if let (DType::Bf16, Elements::Floats(floats)) = (self.ty.dtype, &mut self.elements) {
            floats.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        self
    }
}
