//! What holds of every kernel, tried on each example of `kernels::all()`.

use engine::{Array, DType, Form, Program, Rounding, Target, Type, evaluate, passes};
use kernels::{Example, all};
use std::collections::BTreeSet;
use tests::close::{assert_small, error_beside};
use tests::examples::{Of, arguments, backward, forward};
use tests::run_on_cpu;

/// Forms of f32 numbers differ by the rounding and the order of sums of at most 512 terms of products like theirs, twice
/// after one another: `2 sqrt(512) 2^-24` beside the largest element is 3e-6. The exponentials and the reciprocal roots of
/// the native forms are good to two more units.
const F32: f64 = 1e-5;

/// Autodiff of the reference and the kernel's own rule, both in f64: `sqrt(512) 2^-53` by the same count, with a factor of
/// a thousand for sums that cancel.
const F64: f64 = 1e-11;

const TARGETS: [Target; 4] = [Target::Cpu, Target::TpuV6e, Target::Cuda, Target::OtherTpu];

/// The example with its floats, and with them the constants of its programs, in f64.
fn in_f64(example: &Example) -> Example {
    let wide = |ty: &Type| if ty.dtype == DType::F32 { ty.with_dtype(DType::F64) } else { ty.clone() };
    let args = example.args.iter().map(|(ty, values)| (wide(ty), values.clone())).collect();
    Example { args, ..example.clone() }
}

#[track_caller]
fn assert_all_close(what: &str, found: &[Array], wanted: &[Array], tolerance: f64) {
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let what = format!("{what}, result {i}");
        if wanted.ty.dtype.is_float() {
            assert_small(&what, error_beside(found.floats(), wanted.floats(), 1.0), tolerance);
        } else {
            assert_eq!(found.ints(), wanted.ints(), "{what}");
        }
    }
}

/// Every form on every target that there is something to run it with: the CPU's on the CPU, the v6e's by interpretation.
fn assert_forms_agree(name: &str, program: &Program, args: &[Array]) {
    let lowered = |target, form| passes::lower(program, target, form).0;
    let wanted = evaluate(&lowered(Target::Cpu, Some(Form::Reference)), args, Rounding::None);
    for form in [Some(Form::Reference), Some(Form::Portable), Some(Form::Native), None] {
        let found = run_on_cpu(&lowered(Target::Cpu, form), args);
        assert_all_close(&format!("{name} on the CPU, {form:?}"), &found, &wanted, F32);
        let found = evaluate(&lowered(Target::TpuV6e, form), args, Rounding::EachOp);
        assert_all_close(&format!("{name} for a v6e, {form:?}"), &found, &wanted, F32);
    }
}

#[test]
fn forms_agree() {
    for example in all() {
        assert_forms_agree(&example.name(), &forward(&example), &arguments(&example));
    }
}

#[test]
fn gradients_are_those_of_the_reference_in_every_form() {
    for example in all().iter().filter(|example| !example.wrt.is_empty()) {
        let (name, args) = (example.name(), arguments(example));
        let wide = in_f64(example);
        let exact = |of| evaluate(&backward(&wide, of), &arguments(&wide), Rounding::None);
        let what = format!("the rule of {name}");
        assert_all_close(&what, &exact(Of::Kernel), &exact(Of::Reference), F64);
        assert_forms_agree(&format!("the gradient of {name}"), &backward(example, Of::Kernel), &args);
    }
}

/// A native form that an example is there for is taken, and no other one.
#[test]
fn native_forms_are_where_they_are_said_to_be() {
    for example in all() {
        let types: Vec<Type> = example.args.iter().map(|(ty, _)| ty.clone()).collect();
        for target in TARGETS {
            let form = example.kernel.lower(&types, target, Some(Form::Native)).map(|(form, _)| form);
            let wanted = example.native.contains(&target);
            assert_eq!(form == Some(Form::Native), wanted, "{} on {target}", example.kernel.name());
        }
    }
}

/// Operands that a kernel is not made for are refused in words: none is missing, added or changed unnoticed.
#[test]
fn wrong_arguments_are_refused() {
    for example in all() {
        let name = example.name();
        let types: Vec<Type> = example.args.iter().map(|(ty, _)| ty.clone()).collect();
        let infer = |types: &[Type]| example.kernel.infer(types);
        assert!(infer(&types).is_ok(), "{name}");
        assert!(infer(&types[1..]).is_err(), "{name} without its first argument");
        assert!(infer(&[]).is_err(), "{name} without arguments");
        let more = [&types[..], &[Type::f32([1])]].concat();
        assert!(infer(&more).is_err(), "{name} with an argument too many");
        for i in 0..types.len() {
            let mut integers = types.clone();
            integers[i] =
                types[i].with_dtype(if types[i].dtype == DType::U8 { DType::I64 } else { DType::U8 });
            assert!(infer(&integers).is_err(), "{name}: argument {i} as {}", integers[i]);
            let mut deeper = types.clone();
            deeper[i] = types[i].with_shape([&[1], &types[i].shape[..]].concat());
            assert!(infer(&deeper).is_err(), "{name}: argument {i} as {}", deeper[i]);
            // An empty argument may be one that fits; it must not be a panic.
            let mut empty = types.clone();
            empty[i] = types[i].with_shape(vec![0; types[i].rank()]);
            let _ = infer(&empty);
        }
    }
}

/// The table on the crate's front page has a row for each kernel, and says of none that it has no native form where an
/// example has one.
#[test]
fn the_table_of_kernels_is_complete() {
    let page = include_str!("../../kernels/src/lib.rs");
    let mut names = BTreeSet::new();
    for example in all() {
        let debug = format!("{:?}", example.kernel);
        let name = debug.split([' ', '{']).next().unwrap_or_default().to_owned();
        let shown = if name == "RowDot" { "`row_dot`" } else { &format!("[`{name}`]") };
        let row = page.lines().find(|line| line.starts_with(&format!("//! | {shown}")));
        let row = row.unwrap_or_else(|| panic!("kernels/src/lib.rs has no row for {name}"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (target, cell) in [(Target::TpuV6e, cells[4]), (Target::Cpu, cells[5])] {
            let native = example.native.contains(&target);
            assert!(
                !native || cell != "none",
                "{name} has a native form on {target}; the table says `{cell}`"
            );
        }
        names.insert(name);
    }
    let rows =
        page.lines().filter(|line| line.starts_with("//! | [`") || line.starts_with("//! | `row_dot`"));
    assert_eq!(rows.count(), names.len(), "{names:?}");
}
