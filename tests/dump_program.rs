//! `dump-hlo`, as a process for tests.

fn main() -> std::process::ExitCode {
    dump_hlo::main()
}
