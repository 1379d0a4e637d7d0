//! Decoding: programs over a key/value cache of fixed size.
//!
//! One function, `forward`, computes some new tokens of each row against the cache: a chunk of the prompt, one token,
//! or a token and the draft after it. Each row has a length of its own: its tokens fill its slots from the first one on, so
//! a token's slot is its position, and what lies beyond the row's length is written over before it is seen.
//!
//! The programs, in the order in which they run:
//!
//! | program | does |
//! |---|---|
//! | [`prepare_program`] | master weights to [`Weights`], once |
//! | [`prefill_program`] | a chunk of a prompt into its row; called for one chunk after the other |
//! | [`copy_program`] | what one row has computed to another, whose prompt begins like its own |
//! | [`tokens_program`] | a bounded number of new tokens: draw, emit, forward, in one loop on the device |

mod weights;

pub use weights::{Layer, Matrices, Second, Weights, prepare_program, weight_types};

use crate::config::{Attention, Config, Yarn};
use crate::rope::rope_tables;
use engine::{Builder, DType, Host, Program, Tensor, Type};
pub use kernels::TOP;
use kernels::{CachedBlock, HeadNorm, LogProbs, Sampling, normalized, project};

/// Keys and values of all layers. They lie exactly as the products read them: for another
/// shape, even of the same bytes, XLA writes the update twice, once for the loop and once for the product, and copies the
/// whole cache in between.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache<T> {
    /// Of each layer, `[b*g*2, d, slots]`; with `diff_v2`, whose two maps share their keys, `[b*g, d, slots]`.
    pub keys: Vec<T>,
    /// Of each layer, in two halves of a head's width: `[b*g*2, slots, e/2]`.
    pub values: Vec<T>,
}

/// What programs are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences side by side.
    pub rows: usize,
    /// Slots of each row in the cache: for its tokens, and two more where there are drafts.
    pub slots: usize,
    /// How the weights' matrices lie.
    pub matrices: Matrices,
}

/// Whether [`tokens_program`] drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drafts {
    /// One token a pass.
    Off,
    /// One token and, if the second head guessed it, the next one.
    SecondHead,
}

/// Whether a program gives the [`TOP`] most probable tokens of each place, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopTokens {
    /// No.
    Off,
    /// Yes.
    On,
}

/// Tokens of a prompt that are computed at a time: between two such pieces other rows go on.
pub const CHUNK: usize = 64;

/// Tokens that one call of [`tokens_program`] can give for each row.
pub const TOKENS: usize = 32;

/// The configuration whose RoPE tables a request of this many positions takes: a model without scaling that is asked for
/// more positions than it was trained at is stretched to its whole context by YaRN. A request keeps its tables from its
/// first token on, for cached keys are turned already: see [`maths`](crate::maths).
pub fn stretched(config: &Config, positions: usize) -> Config {
    let (whole, trained) = (config.max_position_embeddings, config.trained_positions());
    let mut config = config.clone();
    if config.rope_scaling.is_none() && positions > trained {
        config.rope_scaling = Some(Yarn::new(whole as f64 / trained as f64, trained));
    }
    config
}

/// The configurations whose tables requests of a model take: its own, and the stretched one if its context allows requests
/// that are longer than it was trained at.
fn forms(config: &Config) -> Vec<Config> {
    let mut forms = vec![config.clone(), stretched(config, config.max_position_embeddings)];
    forms.dedup();
    forms
}

/// Cosine and sine for all requests of a model, `f32[rows, d/2]`: the tables of its configuration, and if its context
/// allows longer requests than it was trained at, the [`stretched`] ones below them.
pub fn decoding_tables(config: &Config) -> [Host; 2] {
    let pairs = forms(config).into_iter().map(|form| rope_tables(&form, config.max_position_embeddings));
    let (cos, sin): (Vec<Host>, Vec<Host>) = pairs.unzip();
    [cos, sin].map(|parts| {
        let bytes: Vec<u8> = parts.iter().flat_map(Host::bytes).copied().collect();
        Host::from_bytes(table_type(config), &bytes)
    })
}

fn table_type(config: &Config) -> Type {
    Type::f32([forms(config).len() * config.max_position_embeddings, config.head_dim / 2])
}

/// The row of [`decoding_tables`] for position 0 of a request of this many positions. It follows from the request alone:
/// rows of a batch may have different ones.
pub fn table_start(config: &Config, positions: usize) -> usize {
    let form = stretched(config, positions);
    let place = forms(config).iter().position(|one| *one == form).expect("one of its forms");
    place * config.max_position_embeddings
}

impl<T> Cache<T> {
    /// Applies a function to every tensor with its name, in the order of every flat list: keys, values.
    pub fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> Cache<U> {
        let mut named = |what: &str, stack: Vec<T>| -> Vec<U> {
            (0..).zip(stack).map(|(l, leaf): (usize, T)| f(&format!("{what}.{l}"), leaf)).collect()
        };
        Cache { keys: named("keys", self.keys), values: named("values", self.values) }
    }
}

/// The types of a cache.
pub fn cache_types(config: &Config, shape: Shape) -> Cache<Type> {
    let (b, s, d) = (shape.rows, shape.slots, config.head_dim);
    let dtype = config.dtype.dtype();
    let (groups, maps, width) = match config.attention {
        Attention::DiffV1 => (config.num_key_value_heads / 2, 2, 2 * d),
        Attention::DiffV2 => (config.num_key_value_heads, 1, d),
    };
    Cache {
        keys: vec![Type::new(dtype, [b * groups * maps, d, s]); config.num_hidden_layers],
        values: vec![Type::new(dtype, [b * groups * 2, s, width / 2]); config.num_hidden_layers],
    }
}

/// New tokens of each row: what [`forward`] computes.
#[derive(Clone, Copy)]
struct Tokens<'f> {
    /// `[b, n]` i32.
    ids: Tensor<'f>,
    /// Slot of each row's first one, `[b]` i32.
    slot: Tensor<'f>,
}

/// Hidden states after the final norm, `[b, n, m]`, and the cache with the tokens' keys and values.
fn forward<'f>(
    config: &Config,
    model: &Model<Tensor<'f>>,
    mut cache: Cache<Tensor<'f>>,
    tokens: Tokens<'f>,
) -> (Tensor<'f>, Cache<Tensor<'f>>) {
    let Model { weights, tables, start } = model;
    let ty = tokens.ids.ty();
    let rows = (tokens.slot + *start).along(tokens.ids, &[0]) + tokens.ids.builder().iota(ty, 1); // [b, n]
    let [cos, sin] = tables.map(|table| table.gather(rows)); // [b, n, d/2]
    let mut x = weights.embed.gather(tokens.ids); // [b, n, m]
    for (l, layer) in weights.layers.iter().enumerate() {
        let norm = match layer.lambda {
            Some(_) => HeadNorm::Rms { eps: config.subln_eps },
            None => HeadNorm::None,
        };
        let eps = config.rms_norm_eps;
        let qk_norm = if config.qk_norm { HeadNorm::Rms { eps } } else { HeadNorm::None };
        let kernel = CachedBlock { eps, qk_norm, norm, cap: config.attention_logit_cap };
        let Layer { qkv, lambda, o, gate_up, down } = *layer;
        let (keys, values) = (&mut cache.keys[l], &mut cache.values[l]);
        let mut operands = vec![x, cos, sin, qkv, o, gate_up, down];
        operands.extend([*keys, *values, tokens.slot]);
        operands.extend(lambda);
        let results = x.builder().kernel(kernel, &operands);
        (x, *keys, *values) = (results[0], results[1], results[2]);
    }
    (rms_norm(x, weights.norm, config.rms_norm_eps), cache)
}

/// A norm with its weight; the result has x's type.
fn rms_norm<'f>(x: Tensor<'f>, w: Tensor<'f>, eps: f64) -> Tensor<'f> {
    let y = normalized(x, eps);
    (y * w.along(y, &[x.rank() - 1])).convert(x.dtype())
}

/// Logits of a head before the cap, f32, padding columns among them. hidden `[b, n, m]`, head `[m, v]` -> `[b, n, v]`.
fn logits<'f>(hidden: Tensor<'f>, head: Tensor<'f>) -> Tensor<'f> {
    project(hidden, head, DType::F32)
}

fn log_probs(config: &Config) -> LogProbs {
    LogProbs { cap: config.final_logit_cap, columns: config.num_tokens }
}

/// Inputs that every program has: weights, and RoPE tables with the row of each sequence's position 0.
struct Model<T> {
    weights: Weights<T>,
    /// As [`decoding_tables`] makes them.
    tables: [T; 2],
    /// `[b]` i32, as [`table_start`] says.
    start: T,
}

impl<'f> Model<Tensor<'f>> {
    fn inputs(f: &'f Builder<'f>, config: &Config, shape: Shape) -> Model<Tensor<'f>> {
        let weights =
            weight_types(config, shape.matrices).map(|name, ty| f.input(&format!("weights.{name}"), ty));
        let tables = ["cos", "sin"].map(|name| f.input(&format!("rope.{name}"), table_type(config)));
        Model { weights, tables, start: f.input("rope.start", Type::i32([shape.rows])) }
    }

    fn captured<'g>(&self, g: &'g Builder<'g>) -> Model<Tensor<'g>> {
        Model {
            weights: self.weights.clone().map(|_, weight| g.capture(weight)),
            tables: self.tables.map(|table| g.capture(table)),
            start: g.capture(self.start),
        }
    }
}

/// A chunk of a prompt into one row of the cache. Inputs: `weights.*`, `rope.cos`, `rope.sin`, `rope.start` `i32[1]`, the cache
/// (written over), `row` i32, `ids` `i32[1, chunk]`, `slot` `i32[1]`: that of the chunk's first token. Outputs: the cache.
///
/// With [`TopTokens`] one more input, `next` `i32[chunk]`, the tokens after those of the chunk, and before the cache the
/// outputs of [`LogProbs`] for them: `log_probs` `f32[chunk]`, `top` `i32[chunk, TOP]` and `top_log_probs` f32.
pub fn prefill_program(config: &Config, shape: Shape, chunk: usize, top: TopTokens) -> Program {
    Program::build("prefill", |f| {
        let model = Model::inputs(f, config, Shape { rows: 1, ..shape });
        let cache = cache_types(config, shape).map(|name, ty| f.input(name, ty));
        let row = f.input("row", Type::scalar(DType::I32));
        let ids = f.input("ids", Type::i32([1, chunk]));
        let slot = f.input("slot", Type::i32([1]));
        let own = cache.clone().map(|_, whole| row_of(whole, shape, row));
        let (hidden, own) = forward(config, &model, own, Tokens { ids, slot });
        if top == TopTokens::On {
            let next = f.input("next", Type::i32([chunk]));
            let logits = logits(hidden, model.weights.head).reshape([chunk, config.vocab_size]);
            let results = logits.builder().kernel(log_probs(config), &[logits, next]);
            for (name, result) in ["log_probs", "top", "top_log_probs"].into_iter().zip(results) {
                f.output(name, result);
            }
        }
        output_row(f, cache, own, shape, row);
    })
}

/// Keys and values of one row over those of another. Inputs: the cache (written over), `from` and `to` i32. Outputs: the
/// cache.
pub fn copy_program(config: &Config, shape: Shape) -> Program {
    Program::build("copy", |f| {
        let cache = cache_types(config, shape).map(|name, ty| f.input(name, ty));
        let [from, to] = ["from", "to"].map(|name| f.input(name, Type::scalar(DType::I32)));
        let own = cache.clone().map(|_, whole| row_of(whole, shape, from));
        output_row(f, cache, own, shape, to);
    })
}

/// Where a row's part of keys or values begins, and the extent of such a part.
fn place_of<'f>(whole: Tensor<'f>, shape: Shape, row: Tensor<'f>) -> ([Tensor<'f>; 3], [usize; 3]) {
    let count = whole.dim(0) / shape.rows;
    let zero = row.zeros_like();
    ([row * count as i32, zero, zero], [count, whole.dim(1), whole.dim(2)])
}

/// A row's keys or values.
fn row_of<'f>(whole: Tensor<'f>, shape: Shape, row: Tensor<'f>) -> Tensor<'f> {
    let (starts, sizes) = place_of(whole, shape, row);
    whole.dynamic_slice(&starts, &sizes)
}

/// The cache with one row's keys and values replaced, written over the one that it was.
fn output_row<'f>(
    f: &'f Builder<'f>,
    cache: Cache<Tensor<'f>>,
    own: Cache<Tensor<'f>>,
    shape: Shape,
    row: Tensor<'f>,
) {
    let mut parts = own.keys.into_iter().chain(own.values);
    cache.map(|name, whole| {
        let part = parts.next().expect("caches of one form");
        let (starts, _) = place_of(whole, shape, row);
        f.output_over(name, whole.dynamic_update_slice(part, &starts), whole);
    });
}

/// How far each row is: `[b]` i32 each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends<T> {
    /// The row's last token, whose keys and values are not in the cache yet.
    pub token: T,
    /// Its slot: all before it are filled.
    pub slot: T,
    /// The token that the second head expects next; -1 if it was not asked.
    pub draft: T,
    /// Tokens that the row still wants. At 0 it stays as it is.
    pub left: T,
}

impl<T> Ends<T> {
    /// Applies a function to every member with its name, in the order of the program's inputs and outputs.
    pub fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> Ends<U> {
        Ends {
            token: f("token", self.token),
            slot: f("slot", self.slot),
            draft: f("draft", self.draft),
            left: f("left", self.left),
        }
    }
}

/// What one call returns: for each row its new tokens, their log-probabilities, and counts.
#[derive(Clone)]
struct Emitted<T> {
    /// `i32[b, TOKENS]`.
    tokens: T,
    /// `f32[b, TOKENS]`.
    log_probs: T,
    /// `i32[b]`.
    count: T,
    /// Drafts that were judged, `i32[b]`.
    drafted: T,
    /// And found right, `i32[b]`.
    accepted: T,
    /// The most probable tokens at each place, `i32[b, TOKENS, TOP]`, and their log-probabilities, f32.
    top: Option<[T; 2]>,
}

/// What the token loop carries from iteration to iteration.
#[derive(Clone)]
struct State<T> {
    emitted: Emitted<T>,
    ends: Ends<T>,
    cache: Cache<T>,
}

impl<T> State<T> {
    fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> State<U> {
        let Emitted { tokens, log_probs, count, drafted, accepted, top } = self.emitted;
        let emitted = Emitted {
            tokens: f("tokens", tokens),
            log_probs: f("log_probs", log_probs),
            count: f("count", count),
            drafted: f("drafted", drafted),
            accepted: f("accepted", accepted),
            top: top.map(|[tokens, log_probs]| [f("top", tokens), f("top_log_probs", log_probs)]),
        };
        State { emitted, ends: self.ends.map(&mut f), cache: self.cache.map(&mut f) }
    }
}

impl<'f> State<Tensor<'f>> {
    fn leaves(self) -> Vec<Tensor<'f>> {
        let mut leaves = Vec::new();
        self.map(|_, leaf| leaves.push(leaf));
        leaves
    }

    /// A state of the same form from a flat list.
    fn with_leaves<'g>(&self, leaves: &[Tensor<'g>]) -> State<Tensor<'g>> {
        let mut leaves = leaves.iter();
        self.clone().map(|_, _| *leaves.next().expect("states of one form"))
    }

    /// Appends one token to the rows `on` (`[b]` bool), which want it.
    fn push(&mut self, on: Tensor<'f>, drawn: Drawn<'f>, stops: Stops<Tensor<'f>>) {
        let State { emitted, ends, .. } = self;
        let Drawn { token, log_prob, top } = drawn;
        let column = on.builder().iota(emitted.tokens.ty(), 1);
        let here = column.eq(emitted.count.along(column, &[0])) & on.along(column, &[0]);
        emitted.tokens = here.select(token.along(column, &[0]), emitted.tokens);
        emitted.log_probs = here.select(log_prob.along(column, &[0]), emitted.log_probs);
        if let (Some(all), Some(new)) = (&mut emitted.top, top) {
            for (all, new) in all.iter_mut().zip(new) {
                *all = here.along(*all, &[0, 1]).select(new.along(*all, &[0, 2]), *all);
            }
        }
        let one = on.convert(DType::I32);
        emitted.count = emitted.count + one;
        ends.token = on.select(token, ends.token);
        ends.slot = ends.slot + one;
        let last = on & stops.tokens.gather(token) & ends.slot.ge(stops.from);
        ends.left = last.select(ends.left.zeros_like(), ends.left - one);
    }
}

/// The token loop. Inputs: `weights.*`, `rope.cos`, `rope.sin`, `rope.start` `i32[b]`, `stops` `bool[V]` (tokens that end a
/// row), the cache (written over), the
/// [`Ends`], `keys` `u32[b, 2]`, `temperature` f32, `top_k` i32 and `top_p` f32, `[b]` each, as [`Sampling`] has them,
/// `stops.from` `i32[b]` (the slot from which on they end it), `passes` i32 (iterations
/// at most: [`TOKENS`] without drafts, half of it with them). Outputs: `tokens` `i32[b, TOKENS]`, `log_probs` f32 of the same
/// shape, `count` `i32[b]` (how many of them), `drafted` and `accepted` `i32[b]`, with [`TopTokens`] `top`
/// `i32[b, TOKENS, TOP]` and `top_log_probs` f32, the ends, and the cache.
///
/// An iteration computes the last token and draws the next one. If a draft was there and is that very token, it was computed
/// too, and the token after it is drawn. So with drafts the same tokens come out as without them.
pub fn tokens_program(config: &Config, shape: Shape, drafts: Drafts, top: TopTokens) -> Program {
    Program::build("tokens", |f| {
        let model = Model::inputs(f, config, shape);
        let stops = f.input("stops", Type::new(DType::Bool, [config.vocab_size]));
        let cache = cache_types(config, shape).map(|name, ty| f.input(name, ty));
        let row = Type::i32([shape.rows]);
        let each = [(); 4].map(|()| row.clone());
        let [token, slot, draft, left] = each;
        let ends = Ends { token, slot, draft, left }.map(|name, ty| f.input(name, ty));
        let numbers = Numbers {
            keys: f.input("keys", Type::new(DType::U32, [shape.rows, 2])),
            temperature: f.input("temperature", Type::f32([shape.rows])),
            top_k: f.input("top_k", row.clone()),
            top_p: f.input("top_p", Type::f32([shape.rows])),
        };
        let stops = Stops { tokens: stops, from: f.input("stops.from", row.clone()) };
        let passes = f.input("passes", Type::scalar(DType::I32));
        let none = f.zeros(row);
        let emitted = Emitted {
            tokens: f.zeros(Type::i32([shape.rows, TOKENS])),
            log_probs: f.zeros(Type::f32([shape.rows, TOKENS])),
            count: none,
            drafted: none,
            accepted: none,
            top: (top == TopTokens::On).then(|| {
                [DType::I32, DType::F32].map(|ty| f.zeros(Type::new(ty, [shape.rows, TOKENS, TOP])))
            }),
        };
        let start = State { emitted, ends, cache: cache.clone() };
        let carry = [&[passes], &start.clone().leaves()[..]].concat();
        let results = f.while_loop(
            &carry,
            |_, carry| carry[0].gt(0) & start.with_leaves(&carry[1..]).ends.left.reduce_max(&[0]).gt(0),
            |g, carry| {
                let pass = Pass {
                    config,
                    model: model.captured(g),
                    numbers: numbers.map(|number| g.capture(number)),
                    stops: Stops { tokens: g.capture(stops.tokens), from: g.capture(stops.from) },
                    top,
                };
                let state = start.with_leaves(&carry[1..]);
                let state = match drafts {
                    Drafts::Off => pass.one(state),
                    Drafts::SecondHead => pass.drafted(state),
                };
                [&[carry[0] - 1], &state.leaves()[..]].concat()
            },
        );
        let mut inputs = Vec::new();
        cache.map(|name, input| inputs.push((name.to_owned(), input)));
        start.with_leaves(&results[1..]).map(|name, tensor| {
            match inputs.iter().find(|(input, _)| input == name) {
                Some(&(_, input)) => f.output_over(name, tensor, input),
                None => f.output(name, tensor),
            }
        });
    })
}

/// What one iteration of the token loop reads.
struct Pass<'c, 'f> {
    config: &'c Config,
    model: Model<Tensor<'f>>,
    numbers: Numbers<Tensor<'f>>,
    stops: Stops<Tensor<'f>>,
    top: TopTokens,
}

/// What ends a row.
#[derive(Clone, Copy)]
struct Stops<T> {
    /// Whether each token does, `bool[V]`.
    tokens: T,
    /// The slot from which on they do, `[b]` i32.
    from: T,
}

/// One token of each row.
#[derive(Clone, Copy)]
struct Drawn<'f> {
    /// `[b]` i32.
    token: Tensor<'f>,
    /// `[b]` f32.
    log_prob: Tensor<'f>,
    /// The most probable tokens, `[b, TOP]`, and their log-probabilities.
    top: Option<[Tensor<'f>; 2]>,
}

/// What a draw depends on beside logits and positions, as [`Sampling`] wants it.
#[derive(Clone, Copy)]
struct Numbers<T> {
    keys: T,
    temperature: T,
    top_k: T,
    top_p: T,
}

impl<T> Numbers<T> {
    fn map<U>(self, mut f: impl FnMut(T) -> U) -> Numbers<U> {
        Numbers {
            keys: f(self.keys),
            temperature: f(self.temperature),
            top_k: f(self.top_k),
            top_p: f(self.top_p),
        }
    }
}

impl<'f> Pass<'_, 'f> {
    /// The drawn tokens at `positions` `[b]`, given the logits before the cap, `[b, v]`.
    fn draw(&self, logits: Tensor<'f>, positions: Tensor<'f>) -> Drawn<'f> {
        let kernel = Sampling { cap: self.config.final_logit_cap, columns: self.config.num_tokens };
        let Numbers { keys, temperature, top_k, top_p } = self.numbers;
        let args = [logits, keys, positions, temperature, top_k, top_p];
        let drawn = logits.builder().kernel(kernel, &args);
        let (token, log_prob) = (drawn[0], drawn[1]);
        match self.top {
            TopTokens::Off => Drawn { token, log_prob, top: None },
            TopTokens::On => {
                let results = logits.builder().kernel(log_probs(self.config), &[logits, token]);
                Drawn { token, log_prob: results[0], top: Some([results[1], results[2]]) }
            }
        }
    }

    /// Logits before the cap, `[b, v]`, and states, `[b, m]`, after each of the tokens `ids` `[b, n]`.
    fn forward(
        &self,
        cache: Cache<Tensor<'f>>,
        ids: Tensor<'f>,
        slot: Tensor<'f>,
    ) -> (Vec<(Tensor<'f>, Tensor<'f>)>, Cache<Tensor<'f>>) {
        let (hidden, cache) = forward(self.config, &self.model, cache, Tokens { ids, slot });
        let logits = logits(hidden, self.model.weights.head);
        let nth = |x: Tensor<'f>, i: usize| x.slice_axis(1, i, i + 1).reshape([x.dim(0), x.dim(2)]);
        ((0..ids.dim(1)).map(|i| (nth(logits, i), nth(hidden, i))).collect(), cache)
    }

    /// One token a row; a draft is dropped.
    fn one(&self, mut state: State<Tensor<'f>>) -> State<Tensor<'f>> {
        let Ends { token, slot, left, .. } = state.ends;
        let (after, cache) = self.forward(state.cache, token.reshape([token.dim(0), 1]), slot);
        state.cache = cache;
        state.push(left.gt(0), self.draw(after[0].0, slot + 1), self.stops);
        state.ends.draft = token.full_like(-1.0);
        state
    }

    /// The next token and, if it is the draft, the one after it; then a new draft.
    fn drafted(&self, mut state: State<Tensor<'f>>) -> State<Tensor<'f>> {
        let (config, weights) = (self.config, &self.model.weights);
        let Ends { token, slot, draft, left } = state.ends;
        let (b, m) = (token.dim(0), config.hidden_size);
        // No draft is computed as token 0, and not equal to what is drawn.
        let pair = Tensor::concatenate(&[token, draft.max(0)].map(|x| x.reshape([b, 1])), 1);
        let (after, cache) = self.forward(state.cache, pair, slot);
        state.cache = cache;
        let first = self.draw(after[0].0, slot + 1);
        let second = self.draw(after[1].0, slot + 2);

        let active = left.gt(0);
        let accepted = active & draft.eq(first.token);
        let count = |which: Tensor<'f>| which.convert(DType::I32);
        state.emitted.drafted = state.emitted.drafted + count(active & draft.ge(0));
        state.emitted.accepted = state.emitted.accepted + count(accepted);
        state.push(active, first, self.stops);
        let both = accepted & state.ends.left.gt(0);
        state.push(both, second, self.stops);

        let head = weights.second.as_ref().expect("drafts need the second head");
        let hidden = both.along(after[0].1, &[0]).select(after[1].1, after[0].1);
        let joined = Tensor::concatenate(&[hidden, weights.embed.gather(state.ends.token)], 1); // [b, 2m]
        let z = project(joined.reshape([b, 1, 2 * m]), head.proj, joined.dtype()); // [b, 1, m]
        let z = rms_norm(z, head.norm, config.rms_norm_eps);
        let guess = logits(z, head.head).reshape([b, config.vocab_size]);
        state.ends.draft = self.draw(guess, state.ends.slot + 1).token;
        state
    }
}
