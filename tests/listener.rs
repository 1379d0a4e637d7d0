//! Waits for a signal as a training run does. `polite` ends after the first one, `deaf` waits a minute for a second.

use std::time::{Duration, Instant};
use train::signals::Stop;

fn main() {
    let mode = std::env::args().nth(1).expect("polite or deaf");
    let stop = Stop::on_signals().expect("handlers");
    println!("listening");
    let wait = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|| stop.requested());
    println!("asked");
    // Long enough for the message of the other thread.
    wait(&|| mode == "polite");
    std::thread::sleep(Duration::from_millis(300));
}
