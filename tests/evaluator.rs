//! `eval-humaneval` as a process of this package.

fn main() -> std::process::ExitCode {
    eval_humaneval::main()
}
