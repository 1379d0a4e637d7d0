//! pass@k: the probability that at least one of k completions passes, estimated without bias from n of them.

use serde::{Deserialize, Serialize};

/// Completions of one problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub samples: u64,
    /// Those that passed.
    pub passed: u64,
}

/// An estimate over the problems of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// k.
    pub k: u64,
    /// Mean over the problems, in [0, 1].
    pub pass_at_k: f64,
    /// Standard error of that mean, if the problems are a random sample: their standard deviation over the square root of their
    /// number. None for a single problem.
    pub standard_error: Option<f64>,
}

/// The k that are usual, of those that `fewest` completions of every problem suffice for.
pub fn usual(fewest: u64) -> Vec<u64> {
    [1, 10, 100].into_iter().filter(|k| *k <= fewest).collect()
}

/// Estimate of pass@k of one problem: 1 - C(n-c, k) / C(n, k), as a product that does not overflow. None if there are
/// fewer than k samples, where it is not defined.
pub fn pass_at_k(tally: Tally, k: u64) -> Option<f64> {
    let Tally { samples: n, passed: c } = tally;
    if n < k {
        return None;
    }
    if n - c < k {
        return Some(1.0);
    }
    let all_fail: f64 = (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - all_fail)
}

/// The estimate over all problems. None if one of them has fewer than k samples, or there is none.
pub fn estimate(tallies: &[Tally], k: u64) -> Option<Estimate> {
    let values: Vec<f64> = tallies.iter().map(|tally| pass_at_k(*tally, k)).collect::<Option<_>>()?;
    if values.is_empty() {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let standard_error = (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
    Some(Estimate { k, pass_at_k: mean, standard_error })
}
