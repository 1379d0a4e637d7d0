//! `score`, as a process for tests.

fn main() -> std::process::ExitCode {
    score::main()
}
