//! A program and its tests in one interpreter.
//!
//! Neither an exit code nor anything printed shows that the tests have ended: after the last test the harness says so on a
//! pipe of its own, and must then repeat a random number that is sent only now. Leaving early by
//! whatever exit, by a signal, by `exec` or with a printed claim is a failure. But a program that was written against
//! this very harness can find the pipe and play the harness's part, or return an object that is equal to everything.

use super::process::{Process, exchange};
use super::{Judge, Outcome, TICK, Watch, Words};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// What the interpreter runs.
pub(super) const HARNESS: &str =
    concat!(include_str!("../harness/start.py"), include_str!("../harness/together.py"));

/// Judges a whole program.
pub(super) fn judge(judge: &Judge, process: &mut Process, program: &str) -> io::Result<Outcome> {
    process.send(b'P', program.as_bytes());
    let mut watch = Watch::new(&[process]);
    let mut nonce = None;
    loop {
        exchange(&mut [process], TICK)?;
        if let Some(outcome) = heard(process, program, &mut nonce)? {
            return Ok(outcome);
        }
        if process.has_ended()? {
            process.drain()?;
            return match heard(process, program, &mut nonce)? {
                Some(outcome) => Ok(outcome),
                None => judge.ended(process),
            };
        }
        if let Some(outcome) = watch.look(judge, process, &[]) {
            return Ok(outcome);
        }
    }
}

/// Takes the messages, and sends the nonce when the tests have ended.
fn heard(process: &mut Process, program: &str, nonce: &mut Option<[u8; 16]>) -> io::Result<Option<Outcome>> {
    let forged = || Ok(Some(Outcome::failed("wrote to the pipe of its own verdict")));
    loop {
        let message = match process.message() {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(_) => return forged(),
        };
        match (message.letter, &*nonce) {
            (b'R', None) => {}
            (b'F', None) => {
                return Ok(Some(Outcome::failed(Words::from_program(&message.content).reason(program))));
            }
            (b'E', None) => {
                let mut number = [0; 16];
                getrandom(&mut number, GetRandomFlags::empty())?;
                process.send(b'N', &number);
                *nonce = Some(number);
            }
            (b'N', Some(nonce)) if message.content == nonce => return Ok(Some(Outcome::Passed)),
            _ => return forged(),
        }
    }
}
