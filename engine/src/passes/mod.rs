//! Passes over finished programs. [`lower`] runs them all; each has a file. Dead nodes are dropped whenever a
//! function is finished and equal nodes are merged when they are added; XLA does the rest below us.

mod scan_in_place;
mod select;
mod simplify;
mod verify;

pub use select::{require_native, select};
pub use simplify::simplify;
pub use verify::verify;

use crate::ops::kernel::{Form, Target};
use crate::program::Program;
use scan_in_place::scan_in_place;

/// All that happens to a program between building and printing: [`select`], on a TPU kernels in loops that read and write scanned
/// arrays in place, [`simplify`], and [`verify`]. `wanted`: the form that kernels shall take; None is the fastest for the
/// target. Returns the lowered program, and the form that each kernel took.
///
/// # Panics
/// If the result is not sound: a bug in a pass or in a kernel's lowering.
pub fn lower(program: &Program, target: Target, wanted: Option<Form>) -> (Program, Vec<(String, Form)>) {
    let (selected, forms) = select(program, target, wanted);
    let in_place = match target {
        Target::TpuV6e => selected.with_main(scan_in_place(selected.main())),
        Target::Cpu | Target::Cuda | Target::OtherTpu => selected,
    };
    let lowered = simplify(&in_place);
    if let Err(fault) = verify(&lowered) {
        panic!("lowering for {target:?}: {fault}");
    }
    (lowered, forms)
}
