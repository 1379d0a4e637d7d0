//! The work of a program, counted from the program itself: its operations, how often each runs, and their floating point
//! operations. A loop's body counts as often as the loop turns.

use crate::{DType, Form, Func, Kernel, Op, Program, Target, Type};
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

/// All uses of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Uses {
    /// Places in the program.
    pub count: u64,
    /// Times that these run.
    pub runs: f64,
    /// Floating point operations of all runs; a multiply-add counts 2, a comparison or a copy nothing.
    pub flops: f64,
}

/// One place in the program where an operation stands.
#[derive(Clone, Debug)]
pub struct Site {
    /// The operation's name.
    pub op: String,
    /// The types of its results.
    pub types: Vec<Type>,
    /// The author's line.
    pub at: &'static Location<'static>,
    /// The loops and calls around it, outermost first: `scan x 24`, `block`.
    pub path: String,
    /// How often it runs.
    pub runs: f64,
    /// Floating point operations of one run.
    pub flops: f64,
}

/// All work of a program.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Every operation, in order of the text, bodies of loops and calls included.
    pub sites: Vec<Site>,
    /// Loops whose turns are known only at run time; their bodies count once.
    pub open_loops: u64,
}

impl Work {
    /// Counts a program. A kernel that is not lowered yet counts as its portable form does, which leaves out what a
    /// causal mask hides.
    pub fn of(program: &Program) -> Work {
        let mut work = Work::default();
        work.add(program.main(), 1.0, "");
        work
    }

    /// Uses by operation.
    pub fn uses(&self) -> BTreeMap<String, Uses> {
        let mut uses: BTreeMap<String, Uses> = BTreeMap::new();
        for site in &self.sites {
            let entry = uses.entry(site.op.clone()).or_default();
            entry.count += 1;
            entry.runs += site.runs;
            entry.flops += site.runs * site.flops;
        }
        uses
    }

    /// All floating point operations.
    pub fn flops(&self) -> f64 {
        self.sites.iter().map(|site| site.runs * site.flops).sum()
    }

    fn add(&mut self, func: &Func, runs: f64, path: &str) {
        for node in func.nodes() {
            let below = |label: String| if path.is_empty() { label } else { format!("{path} > {label}") };
            match &node.op {
                Op::Parameter(_) | Op::Named(_) => {}
                Op::Call(call) => self.add(&call.body, runs, &below(call.label.clone())),
                Op::KernelCall(kernel) => {
                    let operands: Vec<Type> =
                        node.operands.iter().map(|&value| func.ty(value).clone()).collect();
                    let form = portable(&kernel.0, &operands);
                    self.add(&form, runs, &below(kernel.0.name()));
                }
                op => {
                    let operands: Vec<&Type> = node.operands.iter().map(|&value| func.ty(value)).collect();
                    self.sites.push(Site {
                        op: op.name(),
                        types: node.types.clone(),
                        at: node.at,
                        path: path.to_owned(),
                        runs,
                        flops: flops(op, &operands, &node.types),
                    });
                    self.add_bodies(op, runs, &below);
                }
            }
        }
    }

    fn add_bodies(&mut self, op: &Op, runs: f64, below: &dyn Fn(String) -> String) {
        let turns = match op {
            Op::Scan(scan) => scan.length as f64,
            Op::While(_) => {
                self.open_loops += 1;
                1.0
            }
            _ => 1.0,
        };
        let label = match op {
            Op::Scan(scan) => format!("scan x {}", scan.length),
            other => other.name(),
        };
        // Both branches are counted: which one runs is not known.
        for body in op.bodies() {
            self.add(body, runs * turns, &below(label.clone()));
        }
    }
}

/// A kernel in plain operations.
fn portable(kernel: &Arc<dyn Kernel>, operands: &[Type]) -> Func {
    let portable = kernel.lower(operands, Target::Cpu, Some(Form::Portable));
    portable.map_or_else(|| Func::build(operands, |_, params| kernel.reference(params)), |(_, func)| func)
}

/// Floating point operations of one run of a kernel, in its portable form.
pub fn kernel_flops(kernel: &Arc<dyn Kernel>, operands: &[Type]) -> f64 {
    let mut work = Work::default();
    work.add(&portable(kernel, operands), 1.0, "");
    work.flops()
}

/// Floating point operations of one run of an operation without bodies.
pub fn flops(op: &Op, operands: &[&Type], results: &[Type]) -> f64 {
    let out = results.first().map_or(0, Type::elements) as f64;
    let of = |ty: &Type, work: f64| if ty.dtype.is_float() { work } else { 0.0 };
    match op {
        Op::DotGeneral(dot) => {
            let contracted: usize = dot.contract.0.iter().map(|&axis| operands[0].shape[axis]).product();
            2.0 * out * contracted as f64
        }
        Op::Unary(_) | Op::Binary(_) => of(&results[0], out),
        Op::Reduce(_) | Op::CumulativeSum(_) => of(operands[0], operands[0].elements() as f64),
        Op::ScatterAdd(_) => operands.last().map_or(0.0, |updates| of(updates, updates.elements() as f64)),
        Op::AllReduce(_) => of(&results[0], out),
        _ => 0.0,
    }
}

/// Bytes that an operation's results take.
pub fn result_bytes(types: &[Type]) -> u64 {
    types.iter().map(|ty| (ty.elements() * DType::size(ty.dtype)) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScanOptions;

    #[test]
    fn loops_count_as_often_as_they_turn() {
        let program = Program::build("p", |g| {
            let x = g.input("x", Type::f32([4, 8]));
            let w = g.input("w", Type::f32([3, 8, 8]));
            let (x, _) = g.scan(ScanOptions::over(3), &[x], &[w], |_, carry, slices| {
                (vec![carry[0].matmul(slices[0]).tanh()], vec![])
            });
            g.output("y", x[0].sum_all());
        });
        let work = Work::of(&program);
        let uses = work.uses();
        assert_eq!(uses["dot_general"], Uses { count: 1, runs: 3.0, flops: 3.0 * 2.0 * 4.0 * 8.0 * 8.0 });
        assert_eq!(uses["tanh"], Uses { count: 1, runs: 3.0, flops: 3.0 * 32.0 });
        assert_eq!(uses["scan"].count, 1);
        assert_eq!(work.open_loops, 0);
        assert_eq!(work.flops(), 1536.0 + 96.0 + 32.0);
        let dot = work.sites.iter().find(|site| site.op == "dot_general").unwrap();
        assert_eq!(dot.path, "scan x 3");
        assert!(dot.at.file().ends_with("work.rs"));
    }
}
