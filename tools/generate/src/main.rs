//! `generate`: the library's command line.

fn main() -> std::process::ExitCode {
    generate::main()
}
