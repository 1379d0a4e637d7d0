//! `doctor`: the library's command line.

fn main() -> std::process::ExitCode {
    doctor::main()
}
