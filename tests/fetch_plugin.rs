//! Prints the path of a platform's plugin, fetching it if need be.

fn main() -> Result<(), fetch::platform::Error> {
    let platform = fetch::platform::Platform::choose(std::env::args().nth(1).as_deref())?;
    println!("{}", platform.library()?.display());
    Ok(())
}
