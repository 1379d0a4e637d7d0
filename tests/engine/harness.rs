//! What the other tests rest on: NaN is never close, wrong slopes are seen, properties draw the cases that are asked for,
//! and every file is compiled.

use engine::{Array, DType, Host, Program, Type, grad};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::{env, fs};
use tests::close::{assert_close, error, error_beside, largest, slope};
use tests::{Case, Gradient, Sample, message_of, panic_of, property};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

#[test]
fn errors_are_parts_of_the_largest_number() {
    assert_eq!(error(&[1.0, -4.5, 2.0], &[1.0, -4.0, 1.75]), 0.125);
    assert_eq!(error(&[], &[]), 0.0);
    assert_eq!(error(&[0.0, -0.0], &[-0.0, 0.0]), 0.0);
    assert_eq!(error(&[0.0, 1e-300], &[0.0, 0.0]), INF);
    assert_eq!(error_beside(&[0.5], &[0.25], 1.0), 0.25);
    assert_eq!(error_beside(&[5.0], &[4.0], 1.0), 0.25);
    assert_eq!(largest([0.5, -2.0, 1.0]), 2.0);
}

/// Each of these is a result that no tolerance may let through.
#[test]
fn nan_is_an_infinite_error() {
    for (found, wanted) in [
        (&[NAN, NAN][..], &[1.0, 2.0][..]),
        (&[1.0, NAN], &[1.0, 2.0]),
        (&[NAN, 2.0], &[1.0, 2.0]),
        (&[1.0, 2.0], &[1.0, NAN]),
        (&[1.0, NAN], &[1.0, NAN]),
        (&[NAN], &[0.0]),
        (&[1.0, INF], &[1.0, 2.0]),
        (&[1.0, 2.0], &[1.0, INF]),
        (&[1.0, -INF], &[1.0, INF]),
    ] {
        assert_eq!(error(found, wanted), INF, "{found:?} for {wanted:?}");
        assert_eq!(error_beside(found, wanted, 1e9), INF, "{found:?} for {wanted:?}");
        let message = message_of(|| assert_close("it", found, wanted, 1e300));
        assert!(message.contains("the error is inf"), "{message}");
    }
    assert_eq!(largest([NAN, 1.0]), INF);
    assert_eq!(largest([1.0, NAN]), INF);
    // An infinity that was wanted hides no error beside it.
    assert_eq!(error(&[1.5, INF], &[1.0, INF]), 0.5);
}

#[test]
fn numbers_that_are_missing_are_no_comparison() {
    let message = message_of(|| assert_close("it", &[1.0], &[1.0, 2.0], 1.0));
    assert!(message.contains("as many numbers as were wanted"), "{message}");
}

#[test]
fn slopes_are_exact_where_there_are_any() {
    for (found, wanted) in [
        (slope(|x| (3.0 * (1.0 + x)).exp()), 3.0 * 3f64.exp()),
        (slope(|x| (0.7 + x).sin()), 0.7f64.cos()),
        // A singularity 0.03 away.
        (slope(|x| (x * x + 1e-3).sqrt() + x), 1.0),
        (slope(|x| (x + 0.03).ln()), 1.0 / 0.03),
    ] {
        let found = found.expect("smooth");
        assert!((found - wanted).abs() < 2e-11 * (1.0 + wanted.abs()), "{found}, not {wanted}");
    }
    // A kink or a jump within reach of the larger step, and what is no number.
    for at in [1e-9, 1e-6, 1e-5, 1e-4, 3e-4, 7e-4] {
        assert_eq!(slope(|x| (x - at).abs()), None, "{at}");
        assert_eq!(slope(|x| x + f64::from(u8::from(x > at))), None, "{at}");
    }
    assert_eq!(slope(|_| NAN), None);
}

/// `sum(x^2)`, and its gradient times `factor`.
fn squares(factor: f64) -> Gradient {
    let args = RefCell::default();
    let program = Program::build("squares", |f| {
        let c = Case::new(f, "case", DType::F64, 5).differentiable(4);
        let x = c.positive([3]);
        c.out((x * x).sum_all());
        c.out(x * (2.0 * factor));
        c.declare_outputs();
        *args.borrow_mut() = c.args();
    });
    Gradient { sample: Sample { program, args: args.into_inner() }, wanted: vec![0] }
}

#[test]
fn a_gradient_that_is_a_little_wrong_is_seen() {
    squares(1.0).check(1);
    let message = message_of(|| squares(1.0 + 1e-8).check(1));
    assert!(message.contains("by finite differences"), "{message}");
    assert!(panic_of(|| squares(NAN).check(1)).is_some());
}

/// The maximum of two numbers that are nearly equal: the loss is checked beside its kink.
#[test]
fn a_kink_nearby_is_no_error() {
    let args: Vec<Array> =
        [1.0, 1.0 + 1e-5].map(|x| Array::from_host(&Host::scalar(x))).into_iter().collect();
    let program = Program::build("kink", |f| {
        let [x, y] = ["x", "y"].map(|name| f.input(name, Type::scalar(DType::F64)));
        let loss = x.max(y);
        f.output("loss", loss);
        for (name, gradient) in ["dx", "dy"].into_iter().zip(grad(loss, &[x, y])) {
            f.output(name, gradient);
        }
    });
    Gradient { sample: Sample { program, args }, wanted: vec![0, 1] }.check(2);
}

/// Runs the test below in a process of its own, with these variables; what it printed.
fn drawn(variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "harness::draws", "--ignored", "--nocapture"]);
    command.env_remove("PROPTEST_CASES").env_remove("PROPTEST_RNG_SEED").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(text.contains("running 1 test"), "{text}");
    (output.status.success(), text)
}

#[test]
#[ignore = "run by the test below, under variables of its own"]
fn draws() {
    let count = Cell::new(0);
    property(4, &any::<u32>(), |value| {
        println!("case {value}");
        count.set(count.get() + 1);
        assert!(count.get() < 40, "too many");
    });
}

#[test]
fn new_cases_are_drawn_when_asked_for() {
    let values = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix("case ")).map(str::to_owned).collect()
    };
    let seed = |text: &str| -> String {
        let at = text.split("PROPTEST_RNG_SEED=").nth(1).expect("a printed seed");
        at.chars().take_while(char::is_ascii_digit).collect()
    };
    let (usual, again) = (drawn(&[]), drawn(&[]));
    assert!(usual.0 && !usual.1.contains("PROPTEST"), "{}", usual.1);
    assert_eq!(values(&usual.1).len(), 4);
    assert_eq!(values(&usual.1), values(&again.1));
    let (ten, other) = (drawn(&[("PROPTEST_CASES", "10")]), drawn(&[("PROPTEST_CASES", "10")]));
    assert!(ten.0 && values(&ten.1).len() == 10, "{}", ten.1);
    assert_ne!(values(&ten.1), values(&other.1));
    let same = drawn(&[("PROPTEST_CASES", "10"), ("PROPTEST_RNG_SEED", &seed(&ten.1))]);
    assert_eq!(values(&same.1), values(&ten.1));
    // A failure says how to have it again.
    let (passed, text) = drawn(&[("PROPTEST_CASES", "50")]);
    assert!(!passed && text.contains("the same cases again: PROPTEST_CASES=50 PROPTEST_RNG_SEED="), "{text}");
}

/// A file that no target and no `mod` names would never run.
#[test]
fn every_file_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let sources = |folder: &Path| -> Vec<String> {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_suffix(".rs").map(str::to_owned)).collect()
    };
    let manifest = read(&root.join("Cargo.toml"));
    let in_manifest = |path: String| assert!(manifest.contains(&format!("\npath = \"{path}\"\n")), "{path}");
    sources(root).into_iter().for_each(|name| in_manifest(format!("{name}.rs")));
    let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut compiled = 0;
    // A package of its own lists its own files.
    let own = |path: &Path| path.ends_with("src") || path.join("Cargo.toml").exists();
    for folder in folders.filter(|path| path.is_dir() && !own(path)) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let files = sources(&folder);
        if files.is_empty() {
            continue;
        }
        in_manifest(format!("{name}/main.rs"));
        let modules = read(&folder.join("main.rs"));
        for file in files.iter().filter(|file| *file != "main") {
            assert!(modules.contains(&format!("\nmod {file};\n")), "{name}/main.rs has no `mod {file};`");
            compiled += 1;
        }
    }
    assert!(compiled > 20, "{compiled}");
}

/// The library's own macro draws other cases in each run, and no seed is said.
#[test]
fn random_cases_are_drawn_in_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut open =
        ["engine", "kernels", "model", "train", "tools", "tests"].map(|name| root.join(name)).to_vec();
    let mut files = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() && !path.ends_with("target") {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains(concat!("proptest", "! {")), "{}: use `property`", path.display());
            files += 1;
        }
    }
    assert!(files > 100, "{files}");
}
