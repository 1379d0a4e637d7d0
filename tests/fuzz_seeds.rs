//! Writes the inputs from which fuzzing starts, a folder for each target: `cargo run -p tests --bin fuzz-seeds -- FOLDER`.

use clap::Parser;
use std::fs;
use std::path::PathBuf;
use tests::fuzz::TARGETS;

#[derive(Parser)]
struct Cli {
    /// Gets a folder for each target.
    folder: PathBuf,
}

fn main() -> std::io::Result<()> {
    let Cli { folder } = Cli::parse();
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for (i, input) in target.known().iter().enumerate() {
            fs::write(folder.join(format!("known_{i}")), input)?;
        }
    }
    Ok(())
}
