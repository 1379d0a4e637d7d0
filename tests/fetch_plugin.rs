//! Prints the path of a platform's plugin, fetching it if need be.

use fetch::platform::{Error, Platform, Purpose};

fn main() -> Result<(), Error> {
    let platform = Platform::choose(std::env::args().nth(1).as_deref())?;
    println!("{}", platform.library(Purpose::Compute)?.display());
    Ok(())
}
