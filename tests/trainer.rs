//! `train` as a process of this package, for tests of what a person or a signal does to it.

fn main() -> std::process::ExitCode {
    train::run::main()
}
