//! Properties of the whole model and of the step program that no numbers of another implementation can show: what
//! depends on what, and what must not matter.

use engine::{Array, Compiled, DType, Host, Program, Rounding, Tensor, Type, evaluate};
use model::dropout::{Masks, Site};
use model::folded::unfold_gradients;
use model::loss::{Counts, gradients, losses};
use model::{
    Attention, Batch, Config, Dropout, Params, Preset, Remat, Yarn, fold, initial_params, specs,
    token_log_probs,
};
use tests::close::F32;
use tests::{close, cpu, lowered, numbers, small_config, uneven_params};
use train::config::BatchShape;
use train::step::{AdamW, Metric, step_program, validation_program};

/// As where the model is compared with another implementation, in `parity.rs`: losses, and gradients, which are sums of
/// terms that partly cancel.
const OUTPUTS: f64 = 16.0 * F32;
const GRADIENTS: f64 = 64.0 * F32;

fn config() -> Config {
    small_config(64)
}

/// The last real token ends documents and fills rows: one id for both, as in Qwen's base tokenizer.
const EOS: i32 = 60;

fn weights(config: &Config) -> Vec<Host> {
    uneven_params(config).into_flat().into_iter().map(|(_, host)| host).collect()
}

fn inputs<'f>(f: &'f engine::Builder<'f>, config: &Config) -> Params<Tensor<'f>> {
    specs(config).map(|name, spec| f.input(name, spec.ty))
}

fn compile(program: &Program) -> Compiled {
    lowered(program).compile(cpu()).unwrap()
}

/// Random tokens other than the last one.
fn tokens(count: usize, seed: u32) -> Vec<i32> {
    let token = |i: u32| (engine::random::threefry2x32([seed, 1], [i, 0])[0] % EOS as u32) as i32;
    (0..count as u32).map(token).collect()
}

/// A head whose logits are N(0, s^2) loses `ln V + s^2 / 2` nats a token; ours have s = 0.02 sqrt(D).
/// `PRESET=1b cargo test -p tests --test model model::initial -- --nocapture` tries that one, which takes 15 GiB and minutes.
#[test]
fn initial_losses_are_those_of_random_logits() {
    let preset: Preset = std::env::var("PRESET").map_or(Preset::Tiny, |name| name.parse().unwrap());
    let config = Config::preset(preset);
    let shape = BatchShape { micro: 1, accumulation: 1, seq: 512 };
    let token = |i: u32| engine::random::threefry2x32([7, 7], [i, 0])[0] as usize % config.num_tokens;
    let ids: Vec<i32> = (0..shape.seq as u32).map(|i| token(i) as i32).collect();
    let params = initial_params(&config, 3).into_flat();
    let mut args: Vec<Host> = params.into_iter().map(|(_, host)| host).collect();
    args.extend([Host::new([1, shape.seq], &ids), Host::zeros(Type::i32([1, shape.seq]))]);
    let sums = compile(&validation_program(&config, shape)).call(&args).unwrap()[0].to_f64();
    let s = 0.02 * (config.hidden_size as f64).sqrt();
    let predicted = (config.num_tokens as f64).ln() + s * s / 2.0;
    for (head, loss, count) in [("first", sums[0], sums[1]), ("second", sums[2], sums[3])] {
        let loss = loss / count;
        println!("{}: {head} head {loss:.4}, predicted {predicted:.4}", preset.name());
        let three_sigma = 3.0 * s / count.sqrt();
        assert!((loss - predicted).abs() < three_sigma, "{loss} is not {predicted} within {three_sigma}");
    }
}

/// Log-probabilities of both heads: `[b][s - 1]` and `[b][s - 2]`.
struct Scorer {
    program: Compiled,
    weights: Vec<Host>,
    shape: [usize; 2],
}

impl Scorer {
    fn new(config: &Config, shape: [usize; 2]) -> Scorer {
        let program = Program::build("score", |f| {
            let params = inputs(f, config);
            let batch = Batch {
                ids: f.input("ids", Type::i32(shape)),
                segments: f.input("segments", Type::i32(shape)),
            };
            let (next, after) = token_log_probs(config, &fold(config, &params), batch);
            f.output("next", next);
            f.output("after", after.unwrap());
        });
        Scorer { program: compile(&program), weights: weights(config), shape }
    }

    /// Rows of each head, bit by bit.
    fn score(&self, ids: &[i32], segments: &[i32]) -> [Vec<Vec<u32>>; 2] {
        let mut args = self.weights.clone();
        args.extend([ids, segments].map(|ints| Host::new(self.shape, ints)));
        let results = self.program.call(&args).unwrap();
        [0, 1].map(|head| {
            let row = results[head].ty().shape[1];
            results[head]
                .as_slice::<f32>()
                .chunks(row)
                .map(|row| row.iter().map(|x| x.to_bits()).collect())
                .collect()
        })
    }
}

#[test]
fn the_past_and_other_rows_do_not_see_a_change() {
    let (b, s, changed) = (3, 32, 17);
    let scorer = Scorer::new(&config(), [b, s]);
    let ids = tokens(b * s, 1);
    let segments = vec![0; b * s];
    let mut other = ids.clone();
    other[s + changed] = (other[s + changed] + 1) % EOS;
    let (before, after) = (scorer.score(&ids, &segments), scorer.score(&other, &segments));
    for head in [0, 1] {
        for row in [0, 2] {
            assert_eq!(before[head][row], after[head][row], "head {head}, row {row}");
        }
        let ahead = head + 1; // entry i is about token i + ahead
        let (before, after) = (&before[head][1], &after[head][1]);
        let unseen = changed - ahead;
        assert_eq!(before[..unseen], after[..unseen], "head {head}");
        assert_ne!(before[unseen], after[unseen], "the changed token itself");
        assert!(before[unseen..].iter().zip(&after[unseen..]).all(|(a, b)| a != b), "all that see it");
    }
}

#[test]
fn documents_of_a_row_do_not_see_each_other() {
    let s = 32;
    let scorer = Scorer::new(&config(), [1, s]);
    let documents = |lengths: &[usize]| -> Vec<i32> {
        lengths.iter().zip(0..).flat_map(|(&length, document)| vec![document; length]).collect()
    };
    let ids = tokens(s, 1);
    let mut other = tokens(s, 2);
    other[11..20].copy_from_slice(&ids[11..20]);
    // The same document between others of another content and number; only the order of segments counts.
    let found = scorer.score(&ids, &documents(&[11, 9, 12]));
    let again = scorer.score(&other, &documents(&[4, 7, 9, 3, 9]));
    for (head, ahead) in [(0, 1), (1, 2)] {
        let inside = 11..20 - ahead;
        assert_eq!(found[head][0][inside.clone()], again[head][0][inside.clone()], "head {head}");
        // The test can fail: within one document, the same tokens get other probabilities.
        let joined = scorer.score(&ids, &vec![0; s]);
        assert_ne!(found[head][0][inside.clone()], joined[head][0][inside], "head {head}");
    }
}

/// The loss is the mean of the log-probabilities of all targets within documents, the end-of-text token among them even
/// where padding has its id.
#[test]
fn the_end_of_a_document_is_a_target() {
    let (config, s) = (config(), 24);
    let scorer = Scorer::new(&config, [1, s]);
    let mut ids = tokens(s, 4);
    let mut segments = vec![0; s];
    ids[9] = EOS;
    segments[10..].fill(1);
    ids[17..].fill(EOS); // the document's end, then padding
    segments[18..].fill(-1);
    let found = scorer.score(&ids, &segments);
    let mut sums = [(0.0, 0); 2];
    let mut of_eos = 0.0;
    for (head, ahead) in [(0, 1), (1, 2)] {
        for i in 0..s - ahead {
            if segments[i] >= 0 && segments[i] == segments[i + ahead] {
                let log_prob = f64::from(f32::from_bits(found[head][0][i]));
                sums[head] = (sums[head].0 - log_prob, sums[head].1 + 1);
                of_eos -= if ids[i + ahead] == EOS && head == 0 { log_prob } else { 0.0 };
            }
        }
    }
    assert_eq!([sums[0].1, sums[1].1], [16, 14]);
    assert!(of_eos > 0.1, "{of_eos}");
    let program = Program::build("loss", |f| {
        let params = inputs(f, &config);
        let ty = Type::i32([1, s]);
        let batch = Batch { ids: f.input("ids", ty.clone()), segments: f.input("segments", ty) };
        let counts = Counts::of(batch.segments);
        let losses = losses(&config, &fold(&config, &params), batch, counts);
        [losses.main, losses.mtp, counts.main].into_iter().zip(["main", "mtp", "count"]).for_each(
            |(x, name)| {
                f.output(name, x);
            },
        );
    });
    let mut args = weights(&config);
    args.extend([&ids, &segments].map(|ints| Host::new([1, s], ints)));
    let results = compile(&program).call(&args).unwrap();
    for head in [0, 1] {
        let wanted = sums[head].0 / f64::from(sums[head].1);
        let mean = results[head].to_f64();
        close::assert_close(&format!("head {head}"), &mean, &[wanted], OUTPUTS);
    }
    assert_eq!(results[2].to_f64(), [16.0]);
}

/// A large eps keeps the rounding of gradients near 0 from deciding the sign of a whole update.
const ADAMW: AdamW =
    AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-2, weight_decay: 0.1, clip: 1.0, first_moment: DType::F32 };

/// One step's results: the state, and the metrics.
struct Step {
    state: Vec<Host>,
    metrics: Vec<f64>,
}

impl Step {
    fn metric(&self, wanted: Metric) -> f64 {
        self.metrics[Metric::ALL.iter().position(|metric| *metric == wanted).unwrap()]
    }
}

/// Moments are smaller than gradients, so that comparisons see these.
fn state(config: &Config) -> Vec<Host> {
    let mapped = |map: fn(f64) -> f64| {
        specs(config).into_flat().into_iter().map(move |(_, spec)| {
            let values: Vec<f64> = numbers(spec.ty.clone(), 8).to_f64().into_iter().map(map).collect();
            Host::from_f64(spec.ty, &values)
        })
    };
    let (moments, squares) = (mapped(|x| 1e-4 * x), mapped(|x| 1e-8 * x * x));
    let updates = Host::scalar(3i32);
    weights(config).into_iter().chain(moments).chain(squares).chain([updates]).collect()
}

const ROWS: usize = 8;
const SEQ: usize = 16;

/// Eight rows with documents of different numbers and lengths, and padding.
fn rows() -> [Vec<i32>; 2] {
    let segments = (0..ROWS)
        .flat_map(|row| (0..SEQ).map(move |i| if i > SEQ - 2 * row { -1 } else { i32::from(i > row + 2) }));
    [tokens(ROWS * SEQ, 6), segments.collect()]
}

fn step(config: &Config, micro: usize, remat: Remat, rate: f32, largest_norm: f32, number: u32) -> Step {
    let shape = BatchShape { accumulation: ROWS / micro, micro, seq: SEQ };
    let program = compile(&step_program(config, shape, ADAMW, remat));
    let mut args = state(config);
    args.extend(rows().map(|ints| Host::new(shape.ids().shape, &ints)));
    args.extend([Host::scalar(rate), Host::scalar(largest_norm), Host::scalar(number)]);
    args.push(Host::new([2], &[7u32, 0]));
    let mut state = program.call(&args).unwrap();
    let metrics = state.pop().unwrap().to_f64();
    Step { state, metrics }
}

/// Largest difference of two states, each tensor's as a part of its largest element.
fn worst(found: &Step, wanted: &Step) -> f64 {
    assert_eq!(found.state.len(), wanted.state.len());
    let pairs = found.state.iter().zip(&wanted.state);
    close::largest(pairs.map(|(a, b)| close::error(&a.to_f64(), &b.to_f64())))
}

/// With dropout, so that the masks of a token must not depend on its micro-batch either.
#[test]
fn micro_batches_do_not_matter() {
    let config = Config { dropout: 0.2, z_loss: 1e-3, ..config() };
    let run = |micro, number| step(&config, micro, Remat::Selective, 1e-2, f32::MAX, number);
    let at_once = run(8, 0);
    for micro in [1, 2] {
        let cut = run(micro, 0);
        for metric in [Metric::Loss, Metric::Main, Metric::Mtp, Metric::GradientNorm, Metric::Targets] {
            let (found, wanted) = (cut.metric(metric), at_once.metric(metric));
            close::assert_close(&format!("{metric:?}"), &[found], &[wanted], OUTPUTS);
        }
        close::assert_small(&format!("{micro} rows at a time"), worst(&cut, &at_once), GRADIENTS);
    }
    assert!(worst(&run(8, 1), &at_once) > 1e-4, "another step drops other elements");
}

#[test]
fn what_is_computed_again_is_the_same() {
    let config = Config { dropout: 0.2, ..config() };
    let [full, lean, selective] =
        [Remat::Full, Remat::Lean, Remat::Selective].map(|remat| step(&config, 8, remat, 1e-2, f32::MAX, 0));
    for other in [&lean, &selective] {
        // The same operations in the same order; fused otherwise they may be rounded otherwise, a few of them.
        close::assert_small("remat", worst(&full, other), 4.0 * F32);
    }
}

#[test]
fn a_bad_step_leaves_the_state_as_it_was() {
    let config = config();
    let before = state(&config);
    for (rate, largest) in [(f32::NAN, f32::MAX), (f32::INFINITY, f32::MAX), (1e-2, 0.0), (1e-2, f32::NAN)] {
        let step = step(&config, 8, Remat::Full, rate, largest, 0);
        assert_eq!(step.metric(Metric::Applied), 0.0, "rate {rate}, largest norm {largest}");
        for (found, wanted) in step.state.iter().zip(&before) {
            assert!(found.bytes() == wanted.bytes(), "rate {rate}, largest norm {largest}");
        }
    }
    let good = step(&config, 8, Remat::Full, 1e-2, f32::MAX, 0);
    assert_eq!(good.metric(Metric::Applied), 1.0);
    assert_eq!(good.state.last().unwrap().to_f64(), [4.0]);
}

#[test]
fn the_other_attention_a_longer_context_and_normed_queries_train() {
    let plain = step(&config(), 8, Remat::Full, 1e-2, f32::MAX, 0).metric(Metric::Loss);
    let others = [
        Config { attention: Attention::DiffV2, ..config() },
        Config { rope_scaling: Some(Yarn::new(4.0, 16)), ..config() },
        Config { qk_norm: true, ..config() },
    ];
    for config in others {
        let step = step(&config, 2, Remat::Selective, 1e-2, f32::MAX, 0);
        assert_eq!(step.metric(Metric::Applied), 1.0);
        let loss = step.metric(Metric::Loss);
        assert!(loss.is_finite() && loss > 0.0 && loss != plain, "{loss}");
    }
}

/// The derivative of the loss along a random direction through all weights, without rounding: by the model's gradient and
/// by finite differences. The mask of the backward pass is that of the forward pass, or this fails.
#[test]
fn gradients_are_finite_differences() {
    let small = Config {
        hidden_size: 8,
        num_attention_heads: 2,
        head_dim: 4,
        intermediate_size: 12,
        vocab_size: 16,
        num_tokens: 13,
        dropout: 0.3,
        attention_logit_cap: 2.0,
        z_loss: 1e-2,
        ..config()
    };
    let v2 = Config { attention: Attention::DiffV2, ..small.clone() };
    let plain = Config { dropout: 0.0, ..small.clone() };
    let normed = Config { qk_norm: true, ..small.clone() };
    let mut seen = Vec::new();
    for config in [small, v2, plain, normed] {
        for remat in [Remat::Full, Remat::Selective] {
            let program = Program::build("along", |f| {
                let at = f.input("at", Type::scalar(DType::F32));
                let mut seed = 40;
                let directions = specs(&config).map(|_, spec| {
                    seed += 1;
                    f.constant(&numbers(spec.ty, seed)) * 0.1
                });
                let params = inputs(f, &config)
                    .zip(directions.clone())
                    .map(|_, (p, direction)| p + direction * at.broadcast_in_dim(p.shape(), &[]));
                let ids: Vec<i32> = tokens(12, 3).iter().map(|id| id % 13).collect();
                let segments = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, -1].map(|x: i32| x);
                let constant = |ints: &[i32]| f.constant(&Host::new([2, 6], ints));
                let batch = Batch { ids: constant(&ids), segments: constant(&segments) };
                let counts = Counts::of(batch.segments);
                let word = |word: u32| f.constant(&Host::scalar(word));
                let tokens = Dropout::token_indices(word(0), 12);
                let dropout = Dropout { rate: config.dropout, key: [word(5), word(6)], tokens };
                let dropout = (config.dropout > 0.0).then_some(dropout);
                let weights = fold(&config, &params);
                let (losses, folded) = gradients(&config, &weights, batch, counts, dropout, remat, None);
                let gradients = unfold_gradients(&config, &params, &folded);
                let along = gradients.zip(directions).into_flat().into_iter();
                let slope = along.map(|(_, (gradient, direction))| (gradient * direction).sum_all());
                f.output("loss", losses.total);
                f.output("slope", slope.reduce(|a, b| a + b).unwrap());
            });
            let program = lowered(&program);
            let at = |distance: f32| -> [f64; 2] {
                let mut args = vec![Array::from_host(&Host::scalar(distance))];
                args.extend(weights(&config).iter().map(Array::from_host));
                let results = evaluate(&program, &args, Rounding::None);
                [results[0].floats()[0], results[1].floats()[0]]
            };
            let numeric = close::slope(|distance| at(distance as f32)[0]).expect("a smooth loss");
            let [loss, slope] = at(0.0);
            // The constants of forward and backward pass are rounded to f32, each by itself.
            let what = format!("{:?} {remat:?}", config.attention);
            close::assert_small(&what, close::error(&[slope], &[numeric]), 4.0 * F32);
            seen.push(loss);
        }
    }
    assert!(seen[0] == seen[1] && seen[0] != seen[4], "dropout changes the loss, remat does not: {seen:?}");
}

fn of_layer<'f>(words: Tensor<'f>, layer: usize) -> Tensor<'f> {
    words.slice_axis(0, layer, layer + 1).reshape([3, words.dim(2)])
}

#[test]
fn masks_keep_their_rate_wherever_a_token_is() {
    let (rate, layers, n, width) = (0.1, 2, 64, 96);
    let masks = |micros: usize| -> Vec<Vec<f32>> {
        let program = Program::build("masks", |f| {
            let word = |word: u32| f.constant(&Host::scalar(word));
            let mut parts: Vec<Vec<Tensor<'_>>> = Vec::new();
            for micro in 0..micros {
                let tokens = Dropout::token_indices(word(micro as u32), n / micros);
                let dropout = Dropout { rate, key: [word(5), word(6)], tokens };
                let words = dropout.words(layers, width);
                let mut all = Vec::new();
                for layer in 0..layers {
                    let masks = Masks {
                        rate,
                        rows: of_layer(words.rows, layer),
                        columns: of_layer(words.columns, layer),
                    };
                    all.extend(Site::ALL.map(|site| masks.mask(site, width)));
                }
                parts.push(all);
            }
            for i in 0..layers * Site::ALL.len() {
                let rows: Vec<Tensor<'_>> = parts.iter().map(|part| part[i]).collect();
                f.output(&format!("mask{i}"), Tensor::concatenate(&rows, 0));
            }
        });
        compile(&program).call(&[]).unwrap().iter().map(|mask| mask.as_slice::<f32>().to_vec()).collect()
    };
    let whole = masks(1);
    assert!(whole == masks(8));
    for (i, mask) in whole.iter().enumerate() {
        assert!(whole[..i].iter().all(|other| other != mask), "masks {i} and another one are the same");
        let kept = 1.0 / (1.0 - rate as f32);
        assert!(mask.iter().all(|&x| x == 0.0 || x == kept));
        let part = mask.iter().filter(|&&x| x > 0.0).count() as f64 / (n * width) as f64;
        let deviation = (rate * (1.0 - rate) / (n * width) as f64).sqrt();
        assert!((part - (1.0 - rate)).abs() < 4.0 * deviation, "mask {i} keeps {part}");
    }
}

/// What a policy keeps is not computed again: the forward kernels stand once in a step that keeps their results.
#[test]
fn what_is_kept_is_not_computed_again() {
    fn calls(func: &engine::Func, found: &mut Vec<String>) {
        for node in func.nodes() {
            if let engine::Op::KernelCall(kernel) = &node.op {
                found.push(kernel.0.name().split('(').next().unwrap().to_owned());
            }
            node.op.bodies().into_iter().for_each(|body| calls(body, found));
        }
    }
    let count = |remat| {
        let shape = BatchShape { accumulation: 2, micro: 2, seq: SEQ };
        let mut found = Vec::new();
        calls(step_program(&config(), shape, ADAMW, remat).main(), &mut found);
        ["diff_attention", "diff_attention_backward", "swiglu", "rms_norm_linear"]
            .map(|name| found.iter().filter(|found| *found == name).count())
    };
    assert_eq!(count(Remat::Full), [2, 1, 2, 2]);
    assert_eq!(count(Remat::Lean), [1, 1, 2, 1]);
    // Of SwiGLU the products are kept; the activation is made again from these.
    assert_eq!(count(Remat::Selective), [1, 1, 1, 1]);
}
