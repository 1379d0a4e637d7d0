//! The program `prepare-data`.

fn main() -> std::process::ExitCode {
    prepare_data::main()
}
