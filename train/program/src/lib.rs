//! How programs begin, speak and end: large pages for the memory that the CPU plugin takes from malloc, the command line,
//! standard [`output`], commands that are said to be pasted, and the exit code. It is a crate of its own because `doctor` uses it without the trainer.

pub mod output;

use anyhow::Result;
use clap::Parser;
use output::Reader;
use std::process::ExitCode;

/// glibc's names for: large pages for large blocks, and one heap for all threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TUNABLES: &str = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1";

/// Starts this process anew with tunables for large pages and one heap, if it runs on glibc and nobody has set others.
///
/// The CPU plugin allocates a step's temporaries at every step, hundreds of megabytes that the system hands out page by
/// page; glibc asks for large pages only if its environment says so before the process starts. Steps of preset `bench` and
/// `tiny` take about a tenth less time, so do new tokens, and one heap saves 50 to 80 MiB of what threads keep for themselves.
pub fn with_large_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("GLIBC_TUNABLES").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let mut command = std::process::Command::new(program);
        // Comes back only if it cannot be done.
        let error = command.arg0(name).args(arguments).env("GLIBC_TUNABLES", TUNABLES).exec();
        esay!("warning: goes on without large pages, a little slower: starting again failed: {error}");
    }
}

/// The command line. Help and version are printed, and wrong arguments explained, and the process ends.
pub fn arguments<A: Parser>() -> A {
    A::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() {
            error.exit()
        }
        match output::wrote(error.print()) {
            Reader::There | Reader::Gone => std::process::exit(0),
            Reader::Lost => std::process::exit(1),
        }
    })
}

/// The exit code of a program, after its error, if there is one, was written to standard error: failure too if its output
/// could not be written.
pub fn exit_code(result: Result<ExitCode>) -> ExitCode {
    let code = result.unwrap_or_else(|error| {
        esay!("error: {error:#}");
        ExitCode::FAILURE
    });
    match output::reader() {
        Reader::There | Reader::Gone => code,
        Reader::Lost => ExitCode::FAILURE,
    }
}

/// A word for a POSIX shell, in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    shlex::try_quote(word).expect("an argument of a process holds no zero byte").into_owned()
}
