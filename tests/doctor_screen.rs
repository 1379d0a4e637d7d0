//! `doctor`, as a process for tests.

fn main() -> std::process::ExitCode {
    doctor::main()
}
