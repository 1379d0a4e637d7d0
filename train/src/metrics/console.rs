//! The progress line: a bar on a terminal, plain lines elsewhere.

use super::{Train, Validation};
use crate::numbers::duration;
use indicatif::{ProgressBar, ProgressStyle};
use program::say;
use std::io::IsTerminal;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// One line that is drawn over itself.
    Bar,
    /// A line a record.
    Lines,
    /// Nothing.
    Silent,
}

/// Variables of processes that a notebook starts: Colab's and Jupyter's.
const NOTEBOOKS: [&str; 2] = ["COLAB_RELEASE_TAG", "JPY_PARENT_PID"];

/// Progress of one run on the screen.
pub(super) struct Console {
    look: Look,
    bar: ProgressBar,
    steps: u64,
}

impl Look {
    /// A line, unless nothing is shown.
    pub(crate) fn say(self, text: std::fmt::Arguments<'_>) {
        if self != Look::Silent {
            say!("{text}");
        }
    }

    /// A bar if someone watches, lines for files and notebooks, of which some pretend to be terminals.
    pub fn for_stdout() -> Look {
        let notebook = NOTEBOOKS.iter().any(|name| std::env::var_os(name).is_some());
        if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() && !notebook {
            Look::Bar
        } else {
            Look::Lines
        }
    }
}

impl Console {
    pub(super) fn new(look: Look, step: u64, steps: u64) -> Console {
        let bar = if look == Look::Bar { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{wide_bar:.cyan} {msg}").expect("a constant template");
        bar.set_style(style);
        bar.set_position(step);
        Console { look, bar, steps }
    }

    pub(super) fn train(&self, train: &Train) {
        let text = line(train, self.steps);
        match self.look {
            Look::Bar => {
                self.bar.set_position(train.step);
                self.bar.set_message(text);
            }
            Look::Lines => say!("{text}"),
            Look::Silent => {}
        }
    }

    pub(super) fn say(&self, text: &str) {
        match self.look {
            Look::Bar => self.bar.suspend(|| say!("{text}")),
            Look::Lines => say!("{text}"),
            Look::Silent => {}
        }
    }

    pub(super) fn go_back(&self, step: u64) {
        self.bar.set_position(step);
    }

    pub(super) fn finish(&self) {
        self.bar.finish();
    }
}

/// The progress line of a record.
pub fn line(train: &Train, steps: u64) -> String {
    let mfu = train.mfu.map_or("unknown".into(), |mfu| format!("{:.1} %", 100.0 * mfu));
    let skipped = if train.skipped > 0 { format!(" | {} skipped", train.skipped) } else { String::new() };
    // The little padding that packing leaves is not worth the room.
    let padding = match 100.0 * train.padding {
        percent if percent >= 1.0 => format!(" | {percent:.0} % padding"),
        _ => String::new(),
    };
    format!(
        "step {}/{steps} | {} | lr {:.2e} | grad {:.3} | {} tok/s | MFU {mfu} | ETA {}{padding}{skipped}",
        train.step,
        losses(train.loss, train.mtp_loss),
        train.learning_rate,
        train.gradient_norm,
        short(train.tokens_per_second),
        duration(train.eta_seconds)
    )
}

/// The line of an evaluation.
pub(super) fn validation_line(validation: &Validation) -> String {
    format!("step {} | validation {}", validation.step, losses(validation.loss, validation.mtp_loss))
}

/// The next token's loss, and that of the token after it if the model has that head.
fn losses(loss: f64, mtp_loss: Option<f64>) -> String {
    let second = mtp_loss.map_or(String::new(), |loss| format!(", second head {loss:.4}"));
    format!("loss {loss:.4}{second}")
}

/// Three digits and a unit: `6.10k`, `51.9k`, `1.20M`.
fn short(x: f64) -> String {
    let (x, unit) = match x {
        x if x >= 1e6 => (x / 1e6, "M"),
        x if x >= 1e3 => (x / 1e3, "k"),
        x => (x, ""),
    };
    let digits = if x >= 100.0 {
        0
    } else if x >= 10.0 {
        1
    } else {
        2
    };
    format!("{x:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters() {
        let train = Train {
            step: 120,
            loss: 4.12344,
            mtp_loss: None,
            learning_rate: 1e-3,
            gradient_norm: 0.5234,
            tokens_seen: 0,
            tokens_per_second: 6100.0,
            padding: 0.003,
            mfu: None,
            skipped: 0,
            eta_seconds: 192.4,
        };
        assert_eq!(
            line(&train, 600),
            "step 120/600 | loss 4.1234 | lr 1.00e-3 | grad 0.523 | 6.10k tok/s | MFU unknown | ETA 3m12s"
        );
        let train = Train {
            mtp_loss: Some(5.5),
            mfu: Some(0.4123),
            padding: 0.955,
            skipped: 2,
            eta_seconds: f64::INFINITY,
            tokens_per_second: 51_900.0,
            ..train
        };
        let text = line(&train, 600);
        assert!(
            text.ends_with("| 51.9k tok/s | MFU 41.2 % | ETA unknown | 96 % padding | 2 skipped"),
            "{text}"
        );
        assert!(text.starts_with("step 120/600 | loss 4.1234, second head 5.5000 | "), "{text}");
    }
}
