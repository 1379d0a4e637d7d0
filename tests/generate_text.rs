//! `generate`, as a process for tests.

fn main() -> std::process::ExitCode {
    generate::main()
}
