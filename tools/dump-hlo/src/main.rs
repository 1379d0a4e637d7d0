//! `dump-hlo`: the library's command line.

fn main() -> std::process::ExitCode {
    dump_hlo::main()
}
