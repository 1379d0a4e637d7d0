//! Decoding with a cache against the full forward pass, drafts against none, and drawn tokens against the distribution
//! that they are drawn from. All in f32 on the CPU plugin.

use decode::{Generator, Rows, Sampling, Scorer, Scoring, Settings, Speculation, Statistics, key};
use engine::{Compiled, Form, Host, Program, Type};
use model::decode::{TOP, stretched, table_start};
use model::{Attention, Batch, Config, Params, Remat, Yarn, fold, forward, loss, specs};
use std::time::Duration;
use tests::close::{assert_small, largest};
use tests::{Random, cpu, lowered, numbers, small_config, uneven_params};
use train::device::Device;

fn config() -> Config {
    small_config(512)
}

/// Weights whose second head often guesses what the main head draws: blocks change little, and the second head looks at
/// the next token's embedding as the main head will at its state.
fn agreeing_params(config: &Config) -> Params<Host> {
    let m = config.hidden_size;
    let params = uneven_params(config);
    let embed = params.embed.to_f64();
    // Of both signs, or every token would be its own most probable successor.
    let norm: Vec<f64> = numbers(params.norm.ty().clone(), 1).to_f64().iter().map(|x| 5.0 * x).collect();
    params.map(|name, host| {
        let old = host.to_f64();
        let scaled = |by: f64| old.iter().map(|x| x * by).collect::<Vec<f64>>();
        let new = match name {
            "layers.o" | "layers.down" => scaled(0.1),
            "mtp.proj" => (0..2 * m * m).map(|i| f64::from(u8::from(i / m == m + i % m))).collect(),
            "norm" | "mtp.norm" => norm.clone(),
            "mtp.lm_head" => embed.clone(),
            _ => old,
        };
        Host::from_f64(host.ty().clone(), &new)
    })
}

fn generator(config: &Config, params: &Params<Host>) -> Generator {
    Generator::new(Device::open("cpu", None).unwrap(), config, params).unwrap()
}

fn random_ids(random: &mut Random, count: usize, config: &Config) -> Vec<i32> {
    (0..count).map(|_| random.below(config.num_tokens) as i32).collect()
}

/// Logits of every position by the full forward pass, for rows of at most `length` ids.
struct Full {
    program: Compiled,
    weights: Vec<Host>,
    length: usize,
    vocabulary: usize,
}

impl Full {
    fn new(config: &Config, params: &Params<Host>, length: usize) -> Full {
        let program = Program::build("full", |f| {
            let params = specs(config).map(|name, spec| f.input(name, spec.ty));
            let ids = f.input("ids", Type::i32([1, length]));
            let batch = Batch { ids, segments: ids.zeros_like() };
            let weights = fold(config, &params);
            let hidden = forward::trunk(config, &weights, batch, None, Remat::Full);
            f.output("logits", loss::logits(config, hidden, weights.embed));
        });
        let weights = params.iter().map(|(_, host)| host.clone()).collect();
        let program = lowered(&program).compile(cpu()).unwrap();
        Full { program, weights, length, vocabulary: config.vocab_size }
    }

    /// The logits after each id; what follows the row does not matter to it.
    fn logits(&self, ids: &[i32]) -> Vec<Vec<f64>> {
        let mut row = ids.to_vec();
        row.resize(self.length, 0);
        let mut args = self.weights.clone();
        args.push(Host::new([1, self.length], &row));
        let logits = self.program.call(&args).unwrap()[0].to_f64();
        logits.chunks(self.vocabulary).take(ids.len()).map(<[f64]>::to_vec).collect()
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    logits.iter().map(|x| x - top - sum.ln()).collect()
}

fn argmax(logits: &[f64]) -> usize {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// Tokens and log-probabilities of each row.
type Written = Vec<(Vec<i32>, Vec<f32>)>;

const STREAMS: u32 = 7;

/// Writes in free rows until all are finished: a text for each prompt and its settings.
fn write_all(rows: &mut Rows<'_>, texts: &[(&[i32], Settings)]) -> Written {
    let mut written: Written = vec![Default::default(); texts.len()];
    let places: Vec<usize> =
        texts.iter().map(|&(prompt, settings)| rows.admit(prompt, settings).unwrap().unwrap()).collect();
    while rows.prefill().unwrap().is_some() {}
    loop {
        let news = rows.step(Duration::from_millis(100)).unwrap();
        for news in &news {
            let text = &mut written[places.iter().position(|&row| row == news.row).unwrap()];
            text.0.extend(&news.tokens);
            text.1.extend(news.scores.iter().map(|score| score.log_prob));
        }
        if news.is_empty() {
            break;
        }
    }
    places.into_iter().for_each(|row| rows.retire(row));
    written
}

/// Continues prompts, each `samples` times.
fn write(
    generator: &mut Generator,
    prompts: &[Vec<i32>],
    samples: usize,
    new_tokens: usize,
    sampling: Sampling,
    speculation: Speculation,
    stop: Option<i32>,
) -> (Written, Statistics) {
    let stops: Vec<bool> = (0..generator.config().vocab_size).map(|id| stop == Some(id as i32)).collect();
    let texts: Vec<(&[i32], Settings)> = (0..prompts.len() * samples)
        .map(|row| {
            let (prompt, sample) = (row / samples, row % samples);
            let key = key(5, STREAMS + prompt as u32, sample as u32);
            (&prompts[prompt][..], Settings { new_tokens, sampling, key, ..Settings::default() })
        })
        .collect();
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    let mut rows = Rows::new(generator, texts.len(), longest + new_tokens, &stops, speculation).unwrap();
    (write_all(&mut rows, &texts), rows.statistics())
}

const HOT: Sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0 };

/// Two orders of f32 sums of some hundred terms, one after the other through the layers: 2^-24 for each rounding of logits
/// of up to 8, and their roots' sum.
const LOG_PROBS: f64 = 1.0 / (1 << 16) as f64;

/// Checks every token that was written, after prompts of these lengths, against the full forward pass.
fn check_cache(config: &Config, lengths: &[usize], new_tokens: usize) {
    let params = uneven_params(config);
    let mut random = Random::new(1);
    let prompts: Vec<Vec<i32>> =
        lengths.iter().map(|&length| random_ids(&mut random, length, config)).collect();
    let longest = lengths.iter().max().unwrap() + new_tokens;
    // The tables of each prompt are those of its own length.
    let forms: Vec<Config> = lengths.iter().map(|length| stretched(config, length + new_tokens)).collect();
    let mut fulls: Vec<(&Config, Full)> = Vec::new();
    for form in &forms {
        if fulls.iter().all(|(made, _)| *made != form) {
            fulls.push((form, Full::new(form, &params, longest)));
        }
    }
    let mut generator = generator(config, &params);
    for speculation in [Speculation::Off, Speculation::On] {
        for sampling in [Sampling::Greedy, HOT] {
            let (written, took) = write(&mut generator, &prompts, 2, new_tokens, sampling, speculation, None);
            let mut errors = Vec::new();
            for (row, (tokens, log_probs)) in written.iter().enumerate() {
                let prompt = &prompts[row / 2];
                assert_eq!((tokens.len(), log_probs.len()), (new_tokens, new_tokens));
                let (_, full) = fulls.iter().find(|(form, _)| **form == forms[row / 2]).unwrap();
                let logits = full.logits(&[&prompt[..], tokens].concat());
                for (i, (&token, &log_prob)) in tokens.iter().zip(log_probs).enumerate() {
                    let logits = &logits[prompt.len() - 1 + i];
                    errors.push(log_softmax(logits)[token as usize] - f64::from(log_prob));
                    if sampling == Sampling::Greedy {
                        assert_eq!(token as usize, argmax(logits), "row {row}, token {i}");
                    }
                }
                if sampling == Sampling::Greedy {
                    assert_eq!(*tokens, written[row / 2 * 2].0, "samples of one prompt");
                }
            }
            println!("{took:?}");
            assert_small(&format!("{speculation:?} {sampling:?}"), largest(errors), LOG_PROBS);
            assert_eq!(took.drafted > 0, speculation == Speculation::On);
        }
    }
}

#[test]
fn cached_decoding_is_the_full_forward_pass() {
    check_cache(&config(), &[1, 40, 64, 7], 40);
}

#[test]
fn prompts_of_several_chunks_are_too() {
    check_cache(&config(), &[300, 3, 256, 257], 20);
}

#[test]
fn with_yarn_and_caps_too() {
    let rope_scaling = Some(Yarn::new(4.0, 128));
    check_cache(&Config { rope_scaling, attention_logit_cap: 5.0, ..config() }, &[100, 20], 40);
}

#[test]
fn with_the_second_form_of_attention_too() {
    check_cache(&Config { attention: Attention::DiffV2, num_key_value_heads: 1, ..config() }, &[30, 65], 30);
}

#[test]
fn with_normed_queries_and_keys_too() {
    check_cache(&Config { qk_norm: true, ..config() }, &[30, 65], 30);
    let v2 = Config { attention: Attention::DiffV2, num_key_value_heads: 1, ..config() };
    check_cache(&Config { qk_norm: true, ..v2 }, &[30, 65], 30);
}

/// More positions than the model was trained at take YaRN tables, from the first token on, each row by its own length.
#[test]
fn long_requests_are_stretched() {
    let unsaid = Config { max_position_embeddings: 4096, ..config() };
    assert_eq!(stretched(&unsaid, 2048), unsaid);
    assert_eq!(stretched(&unsaid, 2049).rope_scaling, Some(Yarn::new(2.0, 2048)));
    assert_eq!((table_start(&unsaid, 2048), table_start(&unsaid, 2049)), (0, 4096));
    let long = Config { original_max_position_embeddings: Some(4096), ..unsaid };
    assert_eq!((stretched(&long, 4096), table_start(&long, 4096)), (long.clone(), 0));
    let short = Config { original_max_position_embeddings: Some(64), ..config() };
    assert_eq!(stretched(&short, 64), short);
    assert_eq!(stretched(&short, 65).rope_scaling, Some(Yarn::new(8.0, 64)));
    // Trained with YaRN: tables as configured, for every length.
    let configured = Config { rope_scaling: Some(Yarn::new(4.0, 128)), ..short.clone() };
    assert_eq!((stretched(&configured, 512), table_start(&configured, 512)), (configured.clone(), 0));
    check_cache(&short, &[300, 10, 52, 53], 12);
}

/// Rows that are admitted and retired at whatever times, with prompts that begin alike or not, longer than the model was
/// trained at or not, each with settings of its own: each writes what it writes alone, and
/// finds it as probable. Where keys of another length's tables are shared, a small model often writes the same with other
/// probabilities. What is allowed of those is some fifty roundings of logits of up to 30: products of other shapes sum in
/// another order.
#[test]
fn no_row_depends_on_its_neighbours() {
    let config = Config { original_max_position_embeddings: Some(96), ..config() };
    let mut generator = generator(&config, &agreeing_params(&config));
    let stops: Vec<bool> = (0..config.vocab_size).map(|id| id % 16 == 1).collect();
    let mut random = Random::new(8);
    let common = random_ids(&mut random, 200, &config);
    let texts: Vec<(Vec<i32>, Settings)> = (0..24u32)
        .map(|text| {
            let begun = [0, 1, 64, 130, 200][random.below(5)];
            let more = [1, 3, 64, 70][random.below(4)];
            let prompt = [&common[..begun], &random_ids(&mut random, more, &config)].concat();
            let sampling = match random.below(3) {
                0 => Sampling::Greedy,
                1 => HOT,
                _ => Sampling::Random { temperature: 0.7, top_k: 20, top_p: 0.9 },
            };
            (
                prompt,
                Settings {
                    new_tokens: 1 + random.below(40),
                    sampling,
                    min_tokens: 10 * random.below(2),
                    key: key(3, text, 0),
                    scoring: [Scoring::New, Scoring::NewTop, Scoring::PromptTop][random.below(3)],
                },
            )
        })
        .collect();
    let stretched_texts = texts
        .iter()
        .filter(|(prompt, settings)| prompt.len() + settings.new_tokens > config.trained_positions());
    assert!((6..18).contains(&stretched_texts.count()), "only one kind");
    for speculation in [Speculation::Off, Speculation::On] {
        let alone: Written = texts
            .iter()
            .map(|(prompt, settings)| {
                let mut rows = Rows::new(&mut generator, 1, 400, &stops, speculation).unwrap();
                write_all(&mut rows, &[(prompt, *settings)]).remove(0)
            })
            .collect();
        for ((_, settings), (tokens, _)) in texts.iter().zip(&alone) {
            assert!(tokens.len() >= settings.min_tokens.min(settings.new_tokens));
        }
        let ends = |text: &(Vec<i32>, Vec<f32>)| text.0.last().is_some_and(|&token| stops[token as usize]);
        assert!(alone.iter().any(ends), "no token ends a row");
        let mut rows = Rows::new(&mut generator, 3, 400, &stops, speculation).unwrap();
        let mut written: Written = vec![Default::default(); texts.len()];
        let mut most = 0.0;
        // Which text each row writes, and how many were cut off.
        let (mut open, mut next, mut cut) = ([None; 3], 0, 0);
        while next < texts.len() || open != [None; 3] {
            if next < texts.len() && random.below(3) > 0 {
                let (prompt, settings) = &texts[next];
                let row = rows.admit(prompt, *settings).unwrap();
                assert_eq!(row.is_none(), open.iter().all(Option::is_some));
                if let Some(row) = row {
                    assert_eq!(open[row].replace(next), None);
                    next += 1;
                }
            }
            if random.below(3) > 0 {
                rows.prefill().unwrap();
            }
            let paused = [(); 3].map(|()| random.below(4) == 0);
            (0..3).for_each(|row| if paused[row] { rows.pause(row) } else { rows.resume(row) });
            for news in rows.step(Duration::ZERO).unwrap() {
                assert!(!paused[news.row]);
                let text = open[news.row].unwrap();
                written[text].0.extend(news.tokens);
                written[text].1.extend(news.scores.iter().map(|score| score.log_prob));
                let given_up = random.below(30) == 0;
                if news.finished || given_up {
                    let ((tokens, log_probs), (whole, certain)) = (&written[text], &alone[text]);
                    assert_eq!(*tokens, whole[..tokens.len()], "{:?}", texts[text]);
                    let off = largest(log_probs.iter().zip(certain).map(|(a, b)| f64::from(a - b)));
                    assert!(off < 1e-4, "{off} {:?}", texts[text]);
                    most = f64::max(most, off);
                    assert!(given_up || tokens.len() == whole.len());
                    cut += usize::from(tokens.len() < whole.len());
                    rows.retire(news.row);
                    open[news.row] = None;
                }
            }
        }
        println!("log-probabilities differ by {most:.1e} at most");
        assert!((1..12).contains(&cut), "{cut} were cut off");
    }
}

/// Scores of a prompt and of what follows it are those of the whole text; the most probable tokens come first, and a token has
/// the same bits among them. A row with scores neither takes what others know nor changes what they write.
#[test]
fn scores_are_those_of_the_whole_text() {
    let config = config();
    let params = agreeing_params(&config);
    let mut random = Random::new(5);
    let prompt = random_ids(&mut random, 150, &config);
    let stops = vec![false; config.vocab_size];
    for kernels in [None, Some(Form::Portable)] {
        let device = || Device::open("cpu", kernels).unwrap();
        let mut scorer = Scorer::new(device(), &config, &params).unwrap();
        let mut generator = Generator::new(device(), &config, &params).unwrap();
        let mut rows = Rows::new(&mut generator, 2, 200, &stops, Speculation::Auto).unwrap();
        let plain = Settings { new_tokens: 12, ..Settings::default() };
        let unscored = write_all(&mut rows, &[(&prompt, plain)]).remove(0).0;
        for new_tokens in [0, 12] {
            let settings = Settings { new_tokens, scoring: Scoring::PromptTop, ..Settings::default() };
            let row = rows.admit(&prompt, settings).unwrap().unwrap();
            let neighbour = rows.admit(&prompt[..70], plain).unwrap().unwrap();
            assert_eq!((rows.known(row), rows.known(neighbour)), (0, 69));
            let (mut ids, mut scores) = (prompt.clone(), Vec::new());
            while let Some(prefilled) = rows.prefill().unwrap() {
                assert!(prefilled.row == row || prefilled.scores.is_empty());
                scores.extend(prefilled.scores);
            }
            assert_eq!(scores.len(), prompt.len() - 1);
            loop {
                let news = rows.step(Duration::ZERO).unwrap();
                if news.is_empty() {
                    break;
                }
                for news in news.into_iter().filter(|news| news.row == row) {
                    ids.extend(news.tokens);
                    scores.extend(news.scores);
                }
            }
            rows.retire(row);
            rows.retire(neighbour);
            assert_eq!(ids[prompt.len()..], unscored[..new_tokens]);
            let whole = scorer.score(&ids, None).unwrap().log_probs;
            let off = largest(scores.iter().zip(&whole).map(|(a, b)| f64::from(a.log_prob - b)));
            // Some fifty roundings of logits of up to 30, as above.
            assert!(off < 1e-4, "{off}");
            for (score, id) in scores.iter().zip(&ids[1..]) {
                let top = &score.top;
                assert_eq!(top.len(), TOP);
                assert!(top.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)), "{top:?}");
                match top.iter().find(|(token, _)| token == id) {
                    Some((_, log_prob)) => assert_eq!(*log_prob, score.log_prob),
                    None => assert!(score.log_prob <= top[TOP - 1].1),
                }
            }
            // What is written is the most probable each time.
            assert!(
                scores[prompt.len() - 1..].iter().zip(&ids[prompt.len()..]).all(|(s, id)| s.top[0].0 == *id)
            );
            println!("{:?}: off {off:.1e}", kernels);
        }
    }
}

/// Weights that are numbers, and products of them that are none: no token is drawn, and no probability is said.
#[test]
fn logits_that_are_nan_are_an_error() {
    let config = config();
    let params = uneven_params(&config).map(|name, host| match name {
        "norm" => Host::from_f64(host.ty().clone(), &vec![f64::from(f32::MAX); config.hidden_size]),
        _ => host,
    });
    let stops = vec![false; config.vocab_size];
    for kernels in [None, Some(Form::Portable)] {
        let mut generator = Generator::new(Device::open("cpu", kernels).unwrap(), &config, &params).unwrap();
        for (sampling, speculation) in [(Sampling::Greedy, Speculation::Off), (HOT, Speculation::On)] {
            let mut rows = Rows::new(&mut generator, 1, 8, &stops, speculation).unwrap();
            rows.admit(&[1, 2, 3], Settings { new_tokens: 5, sampling, ..Settings::default() }).unwrap();
            while rows.prefill().unwrap().is_some() {}
            let error = rows.step(Duration::ZERO).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("logits are NaN at new token 0"), "{error}");
        }
        let mut scorer = Scorer::new(Device::open("cpu", kernels).unwrap(), &config, &params).unwrap();
        let error = scorer.score(&[1, 2, 3], None).unwrap_err().to_string();
        assert!(error.contains("the log-probability of id 1 of the row is NaN"), "{error}");
    }
}

#[test]
fn drafts_change_nothing_but_speed() {
    let config = config();
    let params = agreeing_params(&config);
    let mut random = Random::new(2);
    let prompts: Vec<Vec<i32>> =
        [9, 30, 3].into_iter().map(|length| random_ids(&mut random, length, &config)).collect();
    let mut generator = generator(&config, &params);
    let mut shares = Vec::new();
    for (prompts, samples) in [(&prompts[..1], 1), (&prompts[..], 3)] {
        for sampling in [Sampling::Greedy, HOT, Sampling::Random { temperature: 0.7, top_k: 20, top_p: 0.9 }]
        {
            let mut run =
                |speculation| write(&mut generator, prompts, samples, 120, sampling, speculation, Some(17));
            let (plain, took) = run(Speculation::Off);
            assert_eq!((took.drafted, took.acceptance()), (0, None));
            assert!(plain.iter().all(|(tokens, _)| {
                let stop = tokens.iter().position(|&token| token == 17);
                stop.map_or(tokens.len() == 120, |stop| stop + 1 == tokens.len())
            }));
            let tokens = |written: Written| -> Vec<Vec<i32>> {
                written.into_iter().map(|(tokens, _)| tokens).collect()
            };
            let plain = tokens(plain);
            let (drafted, took) = run(Speculation::On);
            assert_eq!(tokens(drafted), plain, "{sampling:?}, {samples} samples");
            println!("{sampling:?}, {} rows: {took:?}", prompts.len() * samples);
            shares.push(took.acceptance().unwrap());
            assert_eq!(tokens(run(Speculation::Auto).0), plain, "{sampling:?}, {samples} samples");
        }
    }
    // Otherwise the test would have seen only one of the two ways.
    assert!(shares.iter().all(|share| (0.1..0.95).contains(share)), "{shares:?}");
}

/// What a row writes does not depend on the rows beside it.
#[test]
fn rows_do_not_see_each_other() {
    let config = config();
    let mut random = Random::new(3);
    let prompts: Vec<Vec<i32>> =
        [20, 50, 3].into_iter().map(|length| random_ids(&mut random, length, &config)).collect();
    let mut generator = generator(&config, &agreeing_params(&config));
    for speculation in [Speculation::Off, Speculation::On] {
        let (together, _) = write(&mut generator, &prompts, 2, 30, HOT, speculation, None);
        let (alone, _) = write(&mut generator, &prompts[..1], 1, 30, HOT, speculation, None);
        assert_eq!(together[0].0, alone[0].0);
        assert_ne!(together[0].0, together[1].0, "samples have random numbers of their own");
    }
}

/// The distribution after temperature and filters, by sorting.
fn filtered(logits: &[f64], temperature: f64, top_k: usize, top_p: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|x| x / temperature).collect();
    let p: Vec<f64> = log_softmax(&scaled).iter().map(|x| x.exp()).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    order.truncate(if top_k == 0 { p.len() } else { top_k });
    let sum: f64 = order.iter().map(|&i| p[i]).sum();
    let mut kept = vec![0.0; p.len()];
    let mut reached = 0.0;
    for &i in &order {
        if reached >= top_p * sum {
            break;
        }
        kept[i] = p[i];
        reached += p[i];
    }
    kept.iter().map(|x| x / reached).collect()
}

/// Pearson's statistic in units of its spread: about standard normal if the counts come from the probabilities. Cells that
/// expect little are taken together.
fn surprise(counts: &[usize], p: &[f64]) -> f64 {
    let total = counts.iter().sum::<usize>() as f64;
    let (mut statistic, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
    let mut cell = |found: f64, expected: f64| {
        statistic += (found - expected) * (found - expected) / expected;
        cells += 1;
    };
    for (&count, &p) in counts.iter().zip(p) {
        assert!(p > 0.0 || count == 0, "{count} times what cannot be drawn");
        let (found, expected) = (count as f64, total * p);
        if expected >= 8.0 {
            cell(found, expected);
        } else {
            rest = (rest.0 + found, rest.1 + expected);
        }
    }
    if rest.1 > 0.0 {
        cell(rest.0, rest.1.max(1.0));
    }
    let freedom = f64::from(cells - 1).max(1.0);
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// Three tokens, drawn with drafts: the first has none, the second is judged against its draft, the third comes from
/// after an accepted draft or from a pass of its own.
#[test]
fn tokens_drawn_with_drafts_follow_the_models_distribution() {
    let v = 7;
    let config = Config { vocab_size: 8, num_tokens: v, ..config() };
    let params = agreeing_params(&config);
    let full = Full::new(&config, &params, 8);
    let mut generator = generator(&config, &params);
    let prompt = [3, 1, 4];
    for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (1.5, 4, 1.0), (1.0, 0, 0.8), (1.3, 5, 0.9)] {
        let sampling = Sampling::Random { temperature, top_k, top_p };
        let after = |ids: &[i32]| {
            let logits = full.logits(&[&prompt[..], ids].concat()).pop().unwrap();
            filtered(&logits[..v], temperature, top_k, top_p)
        };
        let mut joint = Vec::new();
        for a in 0..v as i32 {
            for b in 0..v as i32 {
                let of_pair = after(&[])[a as usize] * after(&[a])[b as usize];
                joint.extend(after(&[a, b]).iter().map(|p| of_pair * p));
            }
        }
        let samples = 16384;
        let mut counts = vec![0; joint.len()];
        let stops = vec![false; config.vocab_size];
        let mut rows = Rows::new(&mut generator, 32, 6, &stops, Speculation::On).unwrap();
        for round in 0..samples / 32 {
            let settings = |row: u32| Settings {
                new_tokens: 3,
                sampling,
                key: key(9, round, row),
                ..Settings::default()
            };
            let texts: Vec<(&[i32], Settings)> = (0..32).map(|row| (&prompt[..], settings(row))).collect();
            for (tokens, _) in write_all(&mut rows, &texts) {
                counts[tokens.iter().fold(0, |cell, &token| cell * v + token as usize)] += 1;
            }
        }
        let took = rows.statistics();
        let found = surprise(&counts, &joint);
        assert!(found.abs() < 4.0, "temperature {temperature}, top_k {top_k}, top_p {top_p}: {found}");
        let share = took.acceptance().unwrap();
        assert!((0.1..0.95).contains(&share), "{share}");
        // The test can fail: a other temperature is noticed.
        let mut other: Vec<f64> = joint.iter().map(|p| p.powf(1.1)).collect();
        let sum: f64 = other.iter().sum();
        other.iter_mut().for_each(|p| *p /= sum);
        let wrong = surprise(&counts, &other);
        println!("T {temperature} k {top_k} p {top_p}: {found:.2}, wrong {wrong:.2}, accepted {share:.2}");
        assert!(wrong > 8.0, "{wrong}");
    }
}

#[test]
fn what_cannot_be_generated_is_said() {
    let config = Config { mtp_num_tokens: 0, ..config() };
    let mut generator = generator(&config, &uneven_params(&config));
    let prompt = vec![1, 2, 3];
    let (written, took) =
        write(&mut generator, std::slice::from_ref(&prompt), 1, 5, Sampling::Greedy, Speculation::Auto, None);
    assert_eq!((written[0].0.len(), took.drafted), (5, 0));
    let stops = vec![false; config.vocab_size];
    let error = Rows::new(&mut generator, 1, 8, &stops, Speculation::On).err().unwrap().to_string();
    assert!(error.contains("no second head"), "{error}");
    let settings = |new_tokens: usize| Settings { new_tokens, ..Settings::default() };
    for (tokens, new_tokens, most) in [(1000, 510, 512), (8, 600, 255)] {
        let mut rows = Rows::new(&mut generator, 1, tokens, &stops, Speculation::Off).unwrap();
        let error = rows.admit(&prompt, settings(new_tokens)).unwrap_err().to_string();
        let wanted = format!("a prompt of 3 tokens and {new_tokens} new ones do not fit a row of {most}");
        assert!(error.contains(&wanted), "{error}");
        assert_eq!(rows.admit(&prompt, settings(5)).unwrap(), Some(0));
        assert_eq!(rows.admit(&prompt, settings(5)).unwrap(), None);
    }
}
