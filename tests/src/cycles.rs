//! The compiler's own estimate of a TPU program: `estimated_cycles` of its optimised HLO text, times the trips of the
//! loops around. Calls of hand-written kernels carry no estimate.

use std::collections::HashMap;

/// One instruction with an estimate, all its trips together.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The computation that holds it: a loop's body, for instance.
    pub computation: String,
    /// Cycles of one trip times trips.
    pub cycles: u64,
    /// How often it runs.
    pub trips: u64,
    /// The instruction as the compiler prints it.
    pub text: String,
}

/// Every instruction that is reached from the entry and has an estimate.
///
/// # Panics
/// If a loop's number of trips is not in the text: a sum without it would be too small.
pub fn costs(hlo: &str) -> Vec<Cost> {
    let mut computations: HashMap<&str, Vec<&str>> = HashMap::new();
    let (mut entry, mut current) = ("", None);
    for line in hlo.lines() {
        if !line.starts_with(' ') && line.ends_with('{') && line.contains("->") {
            let name = name_at_start(line.strip_prefix("ENTRY ").unwrap_or(line));
            if line.starts_with("ENTRY ") {
                entry = name;
            }
            current = Some(name);
        } else if line.starts_with('}') && !line.starts_with("}}") {
            current = None;
        } else if let Some(name) = current {
            computations.entry(name).or_default().push(line);
        }
    }
    let trips = |line: &str, condition: &str| {
        let known = between(line, "\"known_trip_count\":{\"n\":\"", "\"").and_then(|n| n.parse().ok());
        known.unwrap_or_else(|| {
            // counted from 0 by 1 while below the one constant of the condition
            let mut constants =
                computations[condition].iter().filter_map(|line| between(line, "constant(", ")"));
            let bound = constants.next().and_then(|n| n.parse().ok());
            bound.filter(|_| constants.next().is_none()).unwrap_or_else(|| panic!("unknown trips: {line}"))
        })
    };
    let read = |line: &str| -> (u64, Vec<(String, u64)>) {
        let cycles = between(line, "\"estimated_cycles\":\"", "\"").and_then(|n| n.parse::<i64>().ok());
        // Values near the largest number mean "unknown".
        let cycles = cycles.filter(|n| (1..1 << 62).contains(n)).unwrap_or(0) as u64;
        if line.contains(" while(") {
            let part = |key| between(line, key, ",").map(name_at_start).expect("a loop has both");
            return (0, vec![(part("body=").to_owned(), trips(line, part("condition=")))]);
        }
        let calls = line.contains(" call(") || line.contains(" conditional(");
        let keys = ["to_apply=", "true_computation=", "false_computation="];
        let callees = keys.iter().filter(|_| calls).filter_map(|key| between(line, key, ","));
        (cycles, callees.map(|name| (name_at_start(name).to_owned(), 1)).collect())
    };
    let mut costs = Vec::new();
    let mut open = vec![(entry.to_owned(), 1u64)];
    while let Some((name, times)) = open.pop() {
        for line in computations.get(&name[..]).into_iter().flatten() {
            let (cycles, callees) = read(line);
            open.extend(callees.into_iter().map(|(callee, trips)| (callee, times * trips)));
            if cycles > 0 {
                let (computation, text) = (name.clone(), line.trim().to_owned());
                costs.push(Cost { computation, cycles: cycles * times, trips: times, text });
            }
        }
    }
    costs
}

fn name_at_start(text: &str) -> &str {
    let text = text.trim_start_matches('%');
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).unwrap_or(text.len());
    &text[..end]
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after).unwrap_or(rest.len())])
}
