//! `score`: the library's command line.

fn main() -> std::process::ExitCode {
    score::main()
}
