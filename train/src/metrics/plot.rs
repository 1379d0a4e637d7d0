//! `loss.svg`: training and validation loss over steps, readable in any browser, without a plotting service.

use super::Record;
use std::fmt::Write;

/// The points of the plot: (step, nats a token), in the order of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Loss of the next token while training.
    pub train: Vec<(u64, f64)>,
    /// Loss of the next token on the held-out split.
    pub validation: Vec<(u64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 56.0;
/// Points of a curve: more than two a pixel cannot be seen.
const POINTS: usize = 1500;
const TRAIN: &str = "#2563eb";
const VALIDATION: &str = "#ea580c";

impl Curves {
    /// Adds a record's point; losses that are not finite have none.
    pub fn add(&mut self, record: &Record) {
        let (curve, loss) = match record {
            Record::Train(train) => (&mut self.train, train.loss),
            Record::Validation(validation) => (&mut self.validation, validation.loss),
        };
        if loss.is_finite() {
            curve.push((record.step(), loss));
        }
    }
}

/// The plot as SVG text.
pub fn loss_svg(curves: &Curves) -> String {
    let smooth = smoothed(&curves.train);
    let (x, y) = axes(curves, &smooth);
    let mut svg = String::new();
    let mut add = |text: std::fmt::Arguments| svg.write_fmt(text).expect("writing to a string");
    add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#374151\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"32\" font-size=\"17\" font-weight=\"bold\" fill=\"#111827\">Loss, nats per token</text>\n"
    ));
    for tick in y.ticks() {
        let at = y.place(tick);
        add(format_args!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e5e7eb\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.5,
            y.label(tick)
        ));
    }
    let floor = HEIGHT - BOTTOM;
    for tick in x.ticks() {
        let at = x.place(tick);
        add(format_args!(
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{floor}\" y2=\"{}\" stroke=\"#9ca3af\"/>\n\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            floor + 5.0,
            floor + 20.0,
            x.label(tick)
        ));
    }
    add(format_args!(
        "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{floor}\" y2=\"{floor}\" stroke=\"#9ca3af\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
        WIDTH - RIGHT,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0
    ));
    let raw = points(&thinned(&curves.train), &x, &y);
    add(format_args!(
        "<polyline points=\"{raw}\" fill=\"none\" stroke=\"{TRAIN}\" stroke-opacity=\"0.25\"/>\n"
    ));
    let line = points(&thinned(&smooth), &x, &y);
    add(format_args!("<polyline points=\"{line}\" fill=\"none\" stroke=\"{TRAIN}\" stroke-width=\"2\"/>\n"));
    let line = points(&curves.validation, &x, &y);
    add(format_args!(
        "<polyline points=\"{line}\" fill=\"none\" stroke=\"{VALIDATION}\" stroke-width=\"2\"/>\n"
    ));
    for &(step, loss) in &thinned(&curves.validation) {
        let (cx, cy) = (x.place(step as f64), y.place(loss));
        add(format_args!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{VALIDATION}\"/>\n"));
    }
    let legend = [("train (smoothed)", TRAIN, &smooth), ("validation", VALIDATION, &curves.validation)];
    for (row, (name, colour, curve)) in legend.into_iter().enumerate() {
        let (left, at) = (WIDTH - 256.0, TOP + 18.0 + 22.0 * row as f64);
        let last = curve.last().map_or("no value yet".into(), |(_, loss)| format!("{loss:.3}"));
        add(format_args!(
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"3\"/>\n\
             <text x=\"{}\" y=\"{at}\">{name}: {last}</text>\n",
            left + 26.0,
            at - 4.5,
            at - 4.5,
            left + 34.0
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A range of values with round ticks and its place on the paper.
struct Axis {
    from: f64,
    to: f64,
    tick: f64,
    start: f64,
    length: f64,
}

impl Axis {
    /// An axis that covers the values with about `count` ticks.
    fn new(from: f64, to: f64, count: f64, start: f64, length: f64) -> Axis {
        let span = if to > from { to - from } else { 1.0 };
        let rough = span / count;
        let power = 10_f64.powf(rough.log10().floor());
        let tick =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&t| t >= rough).unwrap_or(rough);
        Axis { from, to: from + span, tick, start, length }
    }

    /// The same axis with its ends moved outward to ticks.
    fn rounded(self) -> Axis {
        let (from, to) =
            ((self.from / self.tick).floor() * self.tick, (self.to / self.tick).ceil() * self.tick);
        Axis { from, to, ..self }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, last) =
            ((self.from / self.tick).ceil() as i64, (self.to / self.tick + 1e-9).floor() as i64);
        (first..=last).map(|i| i as f64 * self.tick)
    }

    fn place(&self, value: f64) -> f64 {
        self.start + self.length * (value - self.from) / (self.to - self.from)
    }

    fn label(&self, tick: f64) -> String {
        match tick {
            0.0 => "0".into(),
            t if self.tick >= 1e6 => format!("{}M", t / 1e6),
            t if self.tick >= 1e3 => format!("{}k", t / 1e3),
            t => format!("{t:.*}", (-self.tick.log10()).ceil().max(0.0) as usize),
        }
    }
}

/// Steps from 0, and losses between the lowest and the highest of what is drawn bold.
fn axes(curves: &Curves, smooth: &[(u64, f64)]) -> (Axis, Axis) {
    let last = curves.train.iter().chain(&curves.validation).map(|(step, _)| *step).max().unwrap_or(1);
    let bold = || smooth.iter().chain(&curves.validation).map(|(_, loss)| *loss);
    let (low, high) = (bold().fold(f64::INFINITY, f64::min), bold().fold(f64::NEG_INFINITY, f64::max));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let x = Axis::new(0.0, last as f64, 8.0, LEFT, WIDTH - LEFT - RIGHT);
    let y = Axis::new(low, high, 6.0, HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT);
    (x, y.rounded())
}

/// Mean over a window around each point, a fiftieth of the curve: an average of the past alone would draw a falling
/// loss too high. The window narrows at the steep start and is cut off at the end, so that the last value is a mean.
fn smoothed(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(curve.iter().scan(0.0, |sum, (_, loss)| {
            *sum += loss;
            Some(*sum)
        }))
        .collect();
    let reach = curve.len() / 100;
    let mean = |(i, &(step, _)): (usize, &(u64, f64))| {
        let from = i - reach.min(i);
        let to = (i + reach.min(i) + 1).min(curve.len());
        (step, (sums[to] - sums[from]) / (to - from) as f64)
    };
    curve.iter().enumerate().map(mean).collect()
}

/// At most [`POINTS`] points, the last one among them.
fn thinned(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let every = curve.len().div_ceil(POINTS).max(1);
    let skip = curve.len().saturating_sub(1) % every;
    curve.iter().skip(skip).step_by(every).copied().collect()
}

fn points(curve: &[(u64, f64)], x: &Axis, y: &Axis) -> String {
    // Single steps of training may leave the frame that the smoothed curve sets.
    let inside = |loss: f64| y.place(loss).clamp(TOP, HEIGHT - BOTTOM);
    let place = |&(step, loss): &(u64, f64)| format!("{:.1},{:.1}", x.place(step as f64), inside(loss));
    curve.iter().map(place).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::new(2.13, 8.4, 6.0, 0.0, 100.0).rounded();
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!((axis.place(2.0), axis.place(10.0)), (0.0, 100.0));
        let steps = Axis::new(0.0, 732_420.0, 8.0, 0.0, 1.0);
        assert_eq!(steps.ticks().map(|t| steps.label(t)).collect::<Vec<_>>()[..3], ["0", "100k", "200k"]);
        let fine = Axis::new(1.50, 1.54, 6.0, 0.0, 1.0);
        assert_eq!(fine.label(1.5), "1.50");
    }

    #[test]
    fn every_run_has_a_plot() {
        let mut curves = Curves::default();
        for loss in [f64::NAN, 5.0] {
            assert!(!loss_svg(&curves).contains("NaN"), "{curves:?}");
            curves.add(&Record::Validation(super::super::Validation { step: 1, loss, mtp_loss: None }));
        }
        assert_eq!(curves.validation, [(1, 5.0)]);
        assert!(!loss_svg(&curves).contains("NaN"));
        let long: Vec<_> = (0..100_000).map(|step| (step, 3.0)).collect();
        let thin = thinned(&long);
        assert!(thin.len() <= POINTS && thin.last() == long.last());
        assert!(loss_svg(&Curves { train: long, validation: Vec::new() }).len() < 100_000);
    }
}
