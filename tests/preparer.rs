//! `prepare-data`, as a process for tests.

fn main() -> std::process::ExitCode {
    prepare_data::main()
}
