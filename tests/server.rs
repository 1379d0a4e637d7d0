//! `serve`, as a process for tests.

fn main() -> std::process::ExitCode {
    serve::main()
}
