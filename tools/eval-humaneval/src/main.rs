//! `eval-humaneval`: completions of HumanEval and MBPP problems, generated, judged and counted.

fn main() -> std::process::ExitCode {
    eval_humaneval::main()
}
