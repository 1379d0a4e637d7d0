//! Prints the path of a platform's plugin, fetching it if need be.

fn main() -> Result<(), engine::plugin::Error> {
    let platform = engine::plugin::Platform::choose(std::env::args().nth(1).as_deref())?;
    println!("{}", platform.library()?.display());
    Ok(())
}
