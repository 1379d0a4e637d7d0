//! Properties that are checked on random values.

use crate::panic_of;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRng, TestRunner};
use std::env;
use std::hash::{BuildHasher, RandomState};

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

/// A seed and the largest extent of an axis: what random cases are drawn from.
pub fn seeds() -> impl Strategy<Value = (u64, usize)> {
    (0..u64::MAX, 1usize..=4)
}
