//! Properties that are checked on random values, and panics that are expected: what the tests of all crates share.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::{Cell, RefCell};
use std::env;
use std::hash::{BuildHasher, RandomState};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Checks a property on `cases` random values; every run draws the same ones. With `PROPTEST_CASES=N` it draws N others,
/// from a seed that is printed; `PROPTEST_RNG_SEED` draws those of a seed again. A failure reports the simplest value that
/// fails.
///
/// # Panics
/// If the property does not hold.
#[track_caller]
pub fn property<S: Strategy>(cases: u32, values: &S, check: impl Fn(S::Value)) {
    let others = env::var_os("PROPTEST_CASES").is_some();
    // The variables' values are in here.
    let mut config = Config { failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    if !others {
        config.cases = cases;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => Some(seed),
        RngSeed::Random => others.then(|| RandomState::new().hash_one("a seed")),
    };
    let (mut runner, again) = match seed {
        None => {
            let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            (TestRunner::new_with_rng(config, random), String::new())
        }
        Some(seed) => {
            let again = format!("PROPTEST_CASES={} PROPTEST_RNG_SEED={seed}", config.cases);
            println!("{again}");
            config.rng_seed = RngSeed::Fixed(seed);
            (TestRunner::new(config), format!("\nthe same cases again: {again}"))
        }
    };
    let verdict = runner.run(values, |value| {
        let panic = panic_of(|| check(value));
        panic.map_or(Ok(()), |panic| Err(TestCaseError::fail(format!("{} ({})", panic.message, panic.at))))
    });
    match verdict {
        Ok(()) => {}
        Err(TestError::Fail(reason, value)) => {
            panic!("{reason}\nsimplest value that fails: {value:?}{again}")
        }
        Err(TestError::Abort(reason)) => panic!("no more values: {reason}{again}"),
    }
}

/// What a panic said, and where it said it happened.
#[derive(Clone, Debug)]
pub struct Panic {
    /// The message.
    pub message: String,
    /// `file:line` of the location that the panic reports.
    pub at: String,
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// The panic of `f`, if it panics; nothing is written to the terminal.
pub fn panic_of(f: impl FnOnce()) -> Option<Panic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                return usual(info);
            }
            let text = info.payload().downcast_ref::<String>().cloned();
            let text = text.or_else(|| info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let at = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
            let panic = Panic { message: text.unwrap_or_default(), at: at.unwrap_or_default() };
            CAUGHT.with_borrow_mut(|caught| *caught = Some(panic));
        }));
    });
    let before = EXPECTED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(f));
    EXPECTED.set(before);
    outcome.err().and_then(|_| CAUGHT.take())
}

/// What `f` panics with; it must panic.
#[track_caller]
pub fn message_of(f: impl FnOnce()) -> String {
    panic_of(f).expect("it should have panicked").message
}
