//! A solution in one interpreter, its tests in another one that runs nothing of it.
//!
//! What the tests call as a function is a message to the solution's interpreter, passed on here; arguments and results
//! cross as plain data, of which the tests' interpreter makes values of exact types. The verdict comes from there alone.
//! Whatever the solution does, it can only answer calls.

use super::process::{Process, exchange};
use super::{Judge, Outcome, TICK, Watch, Words};
use crate::problem::Problem;
use std::io;

/// What the interpreter of a solution runs.
pub(super) const SOLVER: &str = concat!(
    include_str!("../harness/start.py"),
    include_str!("../harness/data.py"),
    include_str!("../harness/solver.py")
);
/// What the interpreter of tests runs, for one solution after the other.
pub(super) const TESTER: &str = concat!(
    include_str!("../harness/start.py"),
    include_str!("../harness/data.py"),
    include_str!("../harness/tester.py")
);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The solution runs and defines its functions. The tester knows nothing of it yet.
    Loading,
    /// The tests run.
    Testing,
    /// They wait for the answer to a call.
    Answering,
    /// They have a verdict.
    Tested,
}

/// One solution that is being judged.
pub(super) struct Trial<'t> {
    judge: &'t Judge,
    problem: &'t Problem,
    solution: &'t str,
    solver: Process,
    tester: &'t mut Process,
    stage: Stage,
}

impl<'t> Trial<'t> {
    pub(super) fn new(
        judge: &'t Judge,
        problem: &'t Problem,
        solution: &'t str,
        solver: Process,
        tester: &'t mut Process,
    ) -> Trial<'t> {
        Trial { judge, problem, solution, solver, tester, stage: Stage::Loading }
    }

    /// Whether the tester can go on with another solution.
    pub(super) fn is_tester_idle(&self) -> bool {
        matches!(self.stage, Stage::Loading | Stage::Tested)
    }

    /// Watches both until there is an outcome.
    pub(super) fn watch(&mut self) -> io::Result<Outcome> {
        self.solver.send(b'P', self.solution.as_bytes());
        let mut watch = Watch::new(&[&self.solver, self.tester]);
        loop {
            exchange(&mut [&mut self.solver, self.tester], TICK)?;
            if let Some(outcome) = self.heard()? {
                return Ok(outcome);
            }
            // While no call is open, the tests may end without the solution.
            if self.stage != Stage::Testing && self.solver.has_ended()? {
                self.solver.drain()?;
                if let Some(outcome) = self.heard()? {
                    return Ok(outcome);
                }
                if self.stage != Stage::Testing {
                    return self.judge.ended(&mut self.solver);
                }
            }
            if self.tester.has_ended()? {
                self.tester.drain()?;
                return match self.heard()? {
                    Some(outcome) => Ok(outcome),
                    None => self.tester_ended(),
                };
            }
            if let Some(outcome) = watch.look(self.judge, &self.solver, &[self.tester]) {
                return Ok(outcome);
            }
        }
    }

    /// Takes the messages of both, and passes on calls and answers.
    fn heard(&mut self) -> io::Result<Option<Outcome>> {
        loop {
            let message = match self.solver.message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(reason) => return Ok(Some(Outcome::failed(reason))),
            };
            match (self.stage, message.letter) {
                (Stage::Loading, b'R') => {}
                (Stage::Loading, b'L') => {
                    self.tester.send(b'J', &self.job());
                    self.stage = Stage::Testing;
                }
                (Stage::Answering, b'V') => {
                    self.tester.send(b'V', &message.content);
                    self.stage = Stage::Testing;
                }
                (Stage::Loading | Stage::Answering, b'F') => {
                    return Ok(Some(Outcome::failed(
                        Words::from_program(&message.content).reason(&self.text()),
                    )));
                }
                _ => return Ok(Some(Outcome::failed("wrote to the pipe of its own answers"))),
            }
        }
        loop {
            let message = match self.tester.message() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(None),
                Err(_) => {
                    let reason = "it is given too much data".to_owned();
                    return Ok(Some(Outcome::Failed { doubt: Some(reason.clone()), reason }));
                }
            };
            match (self.stage, message.letter) {
                (_, b'R') => {}
                (Stage::Testing, b'C') => {
                    self.solver.send(b'C', &message.content);
                    self.stage = Stage::Answering;
                }
                (Stage::Testing, b'E') => {
                    self.stage = Stage::Tested;
                    return Ok(Some(Outcome::Passed));
                }
                (Stage::Testing, b'F') => {
                    self.stage = Stage::Tested;
                    let words = Words::from_tests(&message.content);
                    let reason = words.reason(&self.text());
                    return Ok(Some(Outcome::Failed { reason, doubt: words.doubt }));
                }
                (Stage::Testing, b'M') => {
                    self.stage = Stage::Tested;
                    return Ok(Some(Outcome::Impossible(format!(
                        "running the tests of {}: {}; give a Python whose environment has what they import, like --python VENV/bin/python",
                        self.problem.id,
                        super::text_of(&String::from_utf8_lossy(&message.content))
                    ))));
                }
                _ => return Err(io::Error::other("the interpreter of the tests is out of step")),
            }
        }
    }

    /// The whole program, to which line numbers refer.
    fn text(&self) -> String {
        self.problem.program(self.solution)
    }

    /// What the tester needs, in the form of `data.py`.
    fn job(&self) -> Vec<u8> {
        let text = |text: &str| format!("s{}:{text}", text.len());
        let Problem { prompt, tests, functions, .. } = self.problem;
        let names: String = functions.iter().map(|name| text(name)).collect();
        let lines = self.solution.matches('\n').count();
        format!("(4:{}{}({}:{names}i{lines:x}:", text(prompt), text(tests), functions.len()).into_bytes()
    }

    fn tester_ended(&mut self) -> io::Result<Outcome> {
        if !self.tester.has_started {
            return Ok(Outcome::Impossible(self.tester.not_started()?));
        }
        Ok(match self.tester.how(self.judge.level, self.judge.limits)? {
            Ok(how) => {
                Outcome::failed(format!("was not tested to the end: the interpreter of its tests {how}"))
            }
            Err(disturbed) => Outcome::Disturbed(disturbed),
        })
    }
}
