//! Standard output of all programs: what is said goes through [`say!`](crate::say) or [`write`].
//!
//! A reader that has closed its pipe has seen enough. That is no error: the program goes on if it has files to write, and
//! otherwise ends early, with the exit code it would have had. Anything else that keeps output from being written, such
//! as a full disk, is said once, at once, and the program ends with exit code 1; work that goes to files goes on.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether somebody still reads what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reader {
    /// As far as is known.
    There,
    /// No: the pipe is closed. What is written is dropped.
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

/// Writes to standard output at once, unless nobody reads it.
pub fn write(text: fmt::Arguments<'_>) -> Reader {
    match reader() {
        Reader::There => {
            let mut out = io::stdout().lock();
            wrote(out.write_fmt(text).and_then(|()| out.flush()))
        }
        other => other,
    }
}

/// Takes note of what came of writing to standard output by other means.
pub fn wrote(result: io::Result<()>) -> Reader {
    let reader = match result {
        Ok(()) => return Reader::There,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Reader::Gone,
        Err(error) => {
            eprintln!("error: writing to standard output: {error}");
            Reader::Lost
        }
    };
    READER.store(reader as u8, Ordering::Relaxed);
    reader
}

/// Whether somebody reads, by what came of writing so far.
pub fn reader() -> Reader {
    let reader = READER.load(Ordering::Relaxed);
    [Reader::There, Reader::Gone, Reader::Lost][usize::from(reader)]
}
