//! Feeds readers with bytes that nobody wrote, for minutes: `cargo run -p tests --bin fuzz -- --minutes 10 tensors rows`.
//! Without names: every target, one after the other. Ends with exit code 1 at the first finding, whose input is kept.

use clap::Parser;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::fuzz::TARGETS;

#[derive(Parser)]
struct Cli {
    /// Targets; default: all.
    targets: Vec<String>,
    /// Minutes for each target.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the mutations; default: the time.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    if let Some(unknown) = cli.targets.iter().find(|name| !names.contains(&name.as_str())) {
        eprintln!("error: no target `{unknown}`; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = cli.seed.unwrap_or(now);
    // Panics are what is looked for; those of decoders are caught by the readers and are no findings.
    std::panic::set_hook(Box::new(|_| {}));
    for target in TARGETS
        .iter()
        .filter(|target| cli.targets.is_empty() || cli.targets.iter().any(|name| name == target.name))
    {
        match target.fuzz(seed, Duration::from_secs_f64(60.0 * cli.minutes)) {
            Ok(executions) => println!(
                "{:<9} {executions} inputs in {} minutes, seed {seed}: no finding",
                target.name, cli.minutes
            ),
            Err(finding) => {
                let path = std::env::temp_dir().join(format!("finding-{}-{seed}", target.name));
                match std::fs::write(&path, &finding.input) {
                    Ok(()) => eprintln!(
                        "{}: {}\nits input: {}; when it is mended, copy it to tests/golden/fuzz/{}/",
                        target.name,
                        finding.message,
                        path.display(),
                        target.name
                    ),
                    Err(error) => eprintln!(
                        "{}: {}\nits input {:?} could not be kept: {error}",
                        target.name, finding.message, finding.input
                    ),
                }
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
