//! `train`: trains a Python code model. Without arguments, a small one on the Python standard library.

fn main() -> std::process::ExitCode {
    train::run::main()
}
