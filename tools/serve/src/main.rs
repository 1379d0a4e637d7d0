//! `serve`: the library's command line.

fn main() -> std::process::ExitCode {
    serve::main()
}
