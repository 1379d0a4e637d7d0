//! Standard output of all programs goes through [`say!`](crate::say) or [`write()`]. Errors and notes go to standard error through
//! [`esay!`](crate::esay); if nobody reads them there, nothing else happens.
//!
//! A reader that has closed its pipe or its terminal has seen enough. That is no error: the program goes on if it has files to write, and
//! otherwise ends early, with the exit code it would have had. Anything else that keeps output from being written, such
//! as a full disk, is said once, at once, and the program ends with exit code 1; work that goes to files goes on.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether somebody still reads what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reader {
    /// As far as is known.
    There,
    /// No: the pipe or the terminal is closed. What is written is dropped.
    Gone,
    /// Unknown, for writing failed. What is written is dropped.
    Lost,
}

/// The [`Reader`] of this process's standard output.
static READER: AtomicU8 = AtomicU8::new(Reader::There as u8);

/// Says a line on standard output: `println!` that does not panic.
#[macro_export]
macro_rules! say {
    () => { $crate::say!("") };
    ($($words:tt)*) => {{
        $crate::output::write(format_args!("{}\n", format_args!($($words)*)));
    }};
}

/// Says a line on standard error: `eprintln!` that does not panic.
#[macro_export]
macro_rules! esay {
    ($($words:tt)*) => {{
        $crate::output::complain(format_args!("{}\n", format_args!($($words)*)));
    }};
}

/// Writes to standard error. There is no other place to say that this failed.
pub fn complain(text: fmt::Arguments<'_>) {
    // As one piece: threads and processes that share the terminal do not cut it.
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

/// The error of a terminal that hung up (EIO); of a file it would be a damaged disk.
const HUNG_UP: i32 = 5;

/// Whether standard output was a terminal when the first words were written: one that hung up no longer says so.
static TERMINAL: OnceLock<bool> = OnceLock::new();

/// Writes to standard output at once, unless nobody reads it.
pub fn write(text: fmt::Arguments<'_>) -> Reader {
    match reader() {
        Reader::There => {
            TERMINAL.get_or_init(|| io::stdout().is_terminal());
            let mut out = io::stdout().lock();
            wrote(out.write_fmt(text).and_then(|()| out.flush()))
        }
        other => other,
    }
}

/// Notes the result of writing to standard output by other means.
pub fn wrote(result: io::Result<()>) -> Reader {
    let reader = match result {
        Ok(()) => return Reader::There,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Reader::Gone,
        Err(error) if error.raw_os_error() == Some(HUNG_UP) && TERMINAL.get() == Some(&true) => Reader::Gone,
        Err(error) => {
            crate::esay!("error: writing to standard output: {error}");
            Reader::Lost
        }
    };
    READER.store(reader as u8, Ordering::Relaxed);
    reader
}

/// Whether somebody reads, as far as writing has shown.
pub fn reader() -> Reader {
    let reader = READER.load(Ordering::Relaxed);
    [Reader::There, Reader::Gone, Reader::Lost][usize::from(reader)]
}
