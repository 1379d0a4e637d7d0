//! How random the dropout masks are: the same statistics of the masks and of good random numbers, and of a hash that is
//! too simple, which must be found out. `cargo test -p tests --test kernels dropout:: -- --nocapture` prints them.

use engine::{DType, Host, Program, Type};
use kernels::dropout_mask;
use model::dropout::{Dropout, Masks, Site};
use tests::close::largest;
use tests::{Random, cpu, lowered};

/// Tokens and columns of a mask.
const ROWS: usize = 2048;
const COLUMNS: usize = 3072;
const RATE: f64 = 0.1;
const LAYERS: usize = 2;

/// How far above those of random numbers the largest of millions of correlations may be: over 16 draws of random numbers
/// it was 0.091 to 0.109 for rows and 0.119 to 0.148 for columns.
const SLACK: f64 = 1.3;

/// The bits of a mask by lines, all of one length.
struct Lines {
    words: Vec<u64>,
    length: usize,
    ones: Vec<u32>,
}

impl Lines {
    fn new(count: usize, length: usize, bit: impl Fn(usize, usize) -> bool) -> Lines {
        let width = length / 64;
        let mut words = vec![0u64; count * width];
        for (i, line) in words.chunks_mut(width).enumerate() {
            for (j, word) in line.iter_mut().enumerate() {
                *word = (0..64).fold(0, |word, k| word | u64::from(bit(i, 64 * j + k)) << k);
            }
        }
        let ones = words.chunks(width).map(|line| line.iter().map(|word| word.count_ones()).sum()).collect();
        Lines { words, length, ones }
    }

    fn line(&self, i: usize) -> &[u64] {
        let width = self.length / 64;
        &self.words[i * width..(i + 1) * width]
    }

    /// Pearson's correlation of a line with one of others as long.
    fn correlation(&self, i: usize, other: &Lines, j: usize) -> f64 {
        let both: u32 = self.line(i).iter().zip(other.line(j)).map(|(a, b)| (a & b).count_ones()).sum();
        let n = self.length as f64;
        let [a, b] = [self.ones[i], other.ones[j]].map(|ones| f64::from(ones) / n);
        (f64::from(both) / n - a * b) / (a * (1.0 - a) * b * (1.0 - b)).sqrt()
    }

    /// How much the lines' parts of ones differ, as a multiple of what independent bits give.
    fn spread(&self, rate: f64) -> f64 {
        let n = self.length as f64;
        let squares: f64 = self.ones.iter().map(|&ones| (f64::from(ones) / n - rate).powi(2)).sum();
        (squares / self.ones.len() as f64 / (rate * (1.0 - rate) / n)).sqrt()
    }
}

/// Which elements of a mask are kept.
struct Mask {
    rows: Lines,
    columns: Lines,
}

impl Mask {
    fn new(kept: impl Fn(usize, usize) -> bool) -> Mask {
        let rows = Lines::new(ROWS, COLUMNS, &kept);
        let columns = Lines::new(COLUMNS, ROWS, |j, i| rows.line(i)[j / 64] >> (j % 64) & 1 == 1);
        Mask { rows, columns }
    }

    /// What good random numbers make.
    fn random(seed: u64) -> Mask {
        let mut random = Random::new(seed);
        let bits: Vec<bool> = (0..ROWS * COLUMNS).map(|_| random.between(0.0, 1.0) >= RATE).collect();
        Mask::new(|i, j| bits[i * COLUMNS + j])
    }

    fn rate(&self) -> f64 {
        self.rows.ones.iter().map(|&ones| f64::from(ones)).sum::<f64>() / (ROWS * COLUMNS) as f64
    }
}

/// Names of the conditions that do not hold; each is so written that NaN does not meet it.
fn unmet<const N: usize>(conditions: [(&'static str, bool); N]) -> Vec<&'static str> {
    conditions.into_iter().filter_map(|(name, holds)| (!holds).then_some(name)).collect()
}

/// Statistics of one mask.
#[derive(Clone, Copy, Debug)]
struct Within {
    /// Distance of the kept part from what it should be, in standard deviations.
    rate: f64,
    /// Differences between the kept parts of rows, and of columns, as a multiple of those of independent bits.
    spreads: [f64; 2],
    /// The largest correlation of two rows, and of two columns.
    largest: [f64; 2],
    /// The square root of the mean squared correlation, as a multiple of that of independent bits.
    typical: [f64; 2],
}

impl Within {
    fn of(mask: &Mask) -> Within {
        let rate = mask.rate();
        let deviation = (RATE * (1.0 - RATE) / (ROWS * COLUMNS) as f64).sqrt();
        let sides = [&mask.rows, &mask.columns];
        let correlations = sides.map(|lines| {
            let count = lines.ones.len();
            let mut squares = 0.0;
            let pairs = (0..count).flat_map(|i| (0..i).map(move |j| (i, j)));
            let largest = largest(pairs.map(|(i, j)| {
                let correlation = lines.correlation(i, lines, j);
                squares += correlation * correlation;
                correlation
            }));
            let pairs = (count * (count - 1) / 2) as f64;
            (largest, (squares / pairs * lines.length as f64).sqrt())
        });
        Within {
            rate: (rate - (1.0 - RATE)) / deviation,
            spreads: sides.map(|lines| lines.spread(rate)),
            largest: correlations.map(|(largest, _)| largest),
            typical: correlations.map(|(_, typical)| typical),
        }
    }

    fn print(&self, name: &str) {
        let Within { rate, spreads: [a, b], largest: [c, d], typical: [e, f] } = self;
        println!("{name:<34} {rate:>6.2} {a:>8.3} {b:>8.3} {c:>8.3} {d:>8.3} {e:>8.4} {f:>8.4}");
    }

    /// In what it is not like good random numbers.
    fn complaints(&self, good: &[Within]) -> Vec<&'static str> {
        let limit = |k: usize| SLACK * largest(good.iter().map(|known| known.largest[k]));
        let counts = [ROWS, COLUMNS].map(|count| count as f64);
        // The spread of n numbers is known to 1 in sqrt(2 n); five times that is chance for nobody.
        let spread = |k: usize| (self.spreads[k] - 1.0).abs() <= 5.0 / (2.0 * counts[k]).sqrt();
        unmet([
            ("rate", self.rate.abs() <= 4.0),
            ("spread of rows", spread(0)),
            ("spread of columns", spread(1)),
            ("largest correlation of rows", self.largest[0] <= limit(0)),
            ("largest correlation of columns", self.largest[1] <= limit(1)),
            ("correlations of rows", (self.typical[0] - 1.0).abs() <= 0.003),
            ("correlations of columns", (self.typical[1] - 1.0).abs() <= 0.003),
        ])
    }
}

/// Statistics of two masks.
#[derive(Clone, Copy, Debug)]
struct Between {
    /// The correlation of all elements, in standard deviations.
    whole: f64,
    /// The largest correlation of a row of one with the same row of the other, and of columns.
    same: [f64; 2],
    /// The largest correlation of any row of one with any row of the other, and of columns.
    any: [f64; 2],
}

impl Between {
    fn of(one: &Mask, other: &Mask) -> Between {
        let mut both = 0.0;
        for i in 0..ROWS {
            let pairs = one.rows.line(i).iter().zip(other.rows.line(i));
            both += pairs.map(|(a, b)| f64::from((a & b).count_ones())).sum::<f64>();
        }
        let n = (ROWS * COLUMNS) as f64;
        let [a, b] = [one, other].map(Mask::rate);
        let sides = [(&one.rows, &other.rows), (&one.columns, &other.columns)];
        Between {
            whole: (both / n - a * b) / (a * (1.0 - a) * b * (1.0 - b)).sqrt() * n.sqrt(),
            same: sides
                .map(|(one, other)| largest((0..one.ones.len()).map(|i| one.correlation(i, other, i)))),
            any: sides.map(|(one, other)| {
                let count = one.ones.len();
                let pairs = (0..count).flat_map(|i| (0..count).map(move |j| (i, j)));
                largest(pairs.map(|(i, j)| one.correlation(i, other, j)))
            }),
        }
    }

    fn print(&self, name: &str) {
        let Between { whole, same: [a, b], any: [c, d] } = self;
        println!("{name:<34} {whole:>6.2} {a:>8.3} {b:>8.3} {c:>8.3} {d:>8.3}");
    }

    fn complaints(&self, good: &Between) -> Vec<&'static str> {
        let below = |found: [f64; 2], good: [f64; 2]| (0..2).all(|k| found[k] <= SLACK * good[k]);
        unmet([
            ("correlation of the whole", self.whole.abs() <= 4.0),
            ("correlation of the same lines", below(self.same, good.same)),
            ("correlation of any lines", below(self.any, good.any)),
        ])
    }
}

/// What a run makes for a step and micro-batch: random words of rows and columns, and the masks mixed from them, each
/// `[layer][site]`.
struct Made {
    words: Vec<[Vec<u32>; 2]>,
    masks: Vec<Mask>,
}

/// The masks of micro-batch `micro` of step `step`, as the model makes them.
fn made(step: u32, micro: u32) -> Made {
    let program = Program::build("masks", |f| {
        let word = |word: u32| f.constant(&Host::scalar(word));
        let tokens = Dropout::token_indices(word(micro), ROWS);
        let dropout = Dropout { rate: RATE, key: Dropout::key([word(5), word(6)], word(step)), tokens };
        let words = dropout.words(LAYERS, COLUMNS);
        for (layer, site) in places() {
            let [rows, columns] = [words.rows, words.columns].map(|words| {
                let of_layer = words.slice_axis(0, layer, layer + 1);
                of_layer.slice_axis(1, site as usize, site as usize + 1).reshape([words.dim(2)])
            });
            f.output(&format!("rows.{layer}.{site:?}"), rows);
            f.output(&format!("columns.{layer}.{site:?}"), columns);
            let mask = dropout_mask(rows, columns, RATE, DType::F32);
            f.output(&format!("kept.{layer}.{site:?}"), mask.gt(0.0).convert(DType::U8));
        }
    });
    let results = lowered(&program).compile(cpu()).unwrap().call(&[]).unwrap();
    let mut made = Made { words: Vec::new(), masks: Vec::new() };
    for parts in results.chunks(3) {
        made.words.push([0, 1].map(|k| parts[k].as_slice::<u32>().to_vec()));
        let kept = parts[2].as_slice::<u8>();
        made.masks.push(Mask::new(|i, j| kept[i * COLUMNS + j] != 0));
    }
    made
}

/// Layers and sites in order.
fn places() -> impl Iterator<Item = (usize, Site)> {
    (0..LAYERS).flat_map(|layer| Site::ALL.map(|site| (layer, site)))
}

/// The mask of the same words with one multiplication instead of two.
fn of_one_multiplication([rows, columns]: &[Vec<u32>; 2]) -> Mask {
    let below = (RATE * 2f64.powi(32)).ceil() as u32;
    Mask::new(|i, j| (rows[i] ^ columns[j]).wrapping_mul(0x9E37_79B1) >= below)
}

#[test]
fn a_mask_is_like_random_numbers_and_a_simpler_hash_is_not() {
    println!("{ROWS} x {COLUMNS}, rate {RATE}: kept part in deviations, spread of rows and columns, largest");
    println!("correlations of rows and columns, typical correlations of rows and columns");
    let good: Vec<Within> = (1..=3).map(|seed| Within::of(&Mask::random(seed))).collect();
    for (k, within) in good.iter().enumerate() {
        within.print(&format!("random numbers {k}"));
    }
    // The bounds are not so narrow that good numbers fail.
    assert!(good[0].complaints(&good[1..]).is_empty() && good[2].complaints(&good[..2]).is_empty());
    // Nor does NaN pass: a mask that keeps everything has no correlations.
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    let none = Within { rate: nan, spreads: [nan; 2], largest: [infinite; 2], typical: [nan; 2] };
    assert_eq!(none.complaints(&good).len(), 7);
    let made = made(0, 0);
    let mut failures = Vec::new();
    for ((layer, site), mask) in places().zip(&made.masks) {
        let within = Within::of(mask);
        within.print(&format!("layer {layer}, {site:?}"));
        failures.extend(
            within.complaints(&good).into_iter().map(|what| format!("layer {layer}, {site:?}: {what}")),
        );
    }
    let simple = Within::of(&of_one_multiplication(&made.words[0]));
    simple.print("one multiplication");
    assert!(failures.is_empty(), "{failures:#?}");
    let found = simple.complaints(&good);
    println!("one multiplication: {}", found.join(", "));
    assert!(
        found.contains(&"largest correlation of rows") && found.contains(&"largest correlation of columns")
    );
}

#[test]
fn masks_of_sites_layers_steps_and_micro_batches_are_independent() {
    println!(
        "{ROWS} x {COLUMNS}, rate {RATE}: correlation of the whole in deviations, largest correlations of the same"
    );
    println!("rows and columns, of any rows and columns");
    let good = Between::of(&Mask::random(1), &Mask::random(2));
    good.print("random numbers");
    let (first, next_step, next_micro) = (made(0, 0), made(1, 0), made(0, 1));
    let sites = Site::ALL.len();
    let pairs = [
        ("sites Attention and Hidden", &first.masks[0], &first.masks[1]),
        ("sites Attention and Mlp", &first.masks[0], &first.masks[2]),
        ("sites Hidden and Mlp", &first.masks[1], &first.masks[2]),
        ("layers 0 and 1", &first.masks[0], &first.masks[sites]),
        ("steps 0 and 1", &first.masks[0], &next_step.masks[0]),
        ("micro-batches 0 and 1", &first.masks[0], &next_micro.masks[0]),
    ];
    let mut failures = Vec::new();
    for (name, one, other) in pairs {
        let between = Between::of(one, other);
        between.print(name);
        failures.extend(between.complaints(&good).into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // Micro-batches share the words of the columns, which the simpler hash lets through.
    let [one, other] = [&first, &next_micro].map(|made| of_one_multiplication(&made.words[0]));
    let simple = Between::of(&one, &other);
    simple.print("one multiplication, micro-batches");
    assert!(simple.complaints(&good).contains(&"correlation of any lines"));
}

/// In bf16 what is kept is as large on the mean as before: the roundings, to 2^-9, of the 128 numbers that bf16 has between 1
/// and 2 are independent and cancel to `2^-9 / sqrt(128)`. The factor rounded to bf16 is off by 1.6e-3 in every element.
#[test]
fn what_is_kept_in_bf16_keeps_the_mean() {
    let ty = Type::new(DType::Bf16, [ROWS, COLUMNS]);
    let x = Random::new(3).array(ty.clone(), 1.0, 2.0).to_host();
    let program = Program::build("dropped", |f| {
        let x = f.input("x", ty);
        let word = |word: u32| f.constant(&Host::scalar(word));
        let tokens = Dropout::token_indices(word(0), ROWS);
        let words = Dropout { rate: RATE, key: [word(5), word(6)], tokens }.words(1, COLUMNS);
        let [rows, columns] =
            [words.rows, words.columns].map(|words| words.reshape([Site::ALL.len(), words.dim(2)]));
        let masks = Masks { rate: RATE, rows, columns };
        f.output("dropped", masks.dropped(x, Site::Mlp));
    });
    let found = lowered(&program).compile(cpu()).unwrap().call(std::slice::from_ref(&x)).unwrap();
    let (mut sum, mut kept) = (0.0, 0.0);
    for (found, x) in found[0].to_f64().into_iter().zip(x.to_f64()) {
        sum += found;
        kept += if found == 0.0 { 0.0 } else { x };
    }
    let error = sum / kept * (1.0 - RATE) - 1.0;
    let rounding = 2f64.powi(-9) / 128f64.sqrt();
    println!("the mean is off by {error:.1e}, of {rounding:.1e}");
    assert!(error.abs() < rounding, "the mean is off by {error:e}, of {rounding:e}");
}
