//! Decoding: programs over a key/value cache of fixed size.
//!
//! One function, `forward`, computes some new tokens of each row against the cache: a chunk of the prompt, one token,
//! or a token and the draft after it. Slots of the cache are filled for all rows alike; prompts of different lengths
//! end at the same slot and begin at different ones, and rows that reject a draft while another accepts it leave a hole.
//! So a slot is not a position: each row says which slots it sees, and keys are turned by the row's own positions before
//! they are written.
//!
//! The programs, in the order in which they run:
//!
//! | program | does |
//! |---|---|
//! | [`prepare_program`] | master weights to [`Weights`], once |
//! | [`prefill_program`] | a chunk of the prompts into the cache; called for one chunk after the other |
//! | [`spread_program`] | rows of prompts to rows of samples |
//! | [`tokens_program`] | a bounded number of new tokens: draw, emit, forward, in one loop on the device |

mod weights;

pub use kernels::{Filter, Sampler};
pub use weights::{Layer, Matrices, Second, Weights, prepare_program, weight_types};

use crate::config::{Attention, Config, Yarn};
use crate::rope::rope_tables;
use engine::{Builder, DType, Host, Program, Tensor, Type};
use kernels::{CachedBlock, HeadNorm, Sampling, normalized, project};

/// Keys and values of all layers, and which slots each row sees. They lie exactly as the products read them: for another
/// shape, even of the same bytes, XLA writes the update twice, once for the loop and once for the product, and copies the
/// whole cache in between.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache<T> {
    /// Of each layer, `[b*g*2, d, slots]`; with `diff_v2`, whose two maps share their keys, `[b*g, d, slots]`.
    pub keys: Vec<T>,
    /// Of each layer, in two halves of a head's width: `[b*g*2, slots, e/2]`.
    pub values: Vec<T>,
    /// `[b, slots]` bool: not before the row's prompt, and no rejected draft. Slots not yet filled are visible.
    pub visible: T,
}

/// What programs are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences side by side.
    pub rows: usize,
    /// Slots of the cache: tokens of the longest prompt, padded to whole chunks, and of what is generated.
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
    /// Applies a function to every tensor with its name, in the order of every flat list: keys, values, visible.
    pub fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> Cache<U> {
        let mut named = |what: &str, stack: Vec<T>| -> Vec<U> {
            (0..).zip(stack).map(|(l, leaf): (usize, T)| f(&format!("{what}.{l}"), leaf)).collect()
        };
        let (keys, values) = (named("keys", self.keys), named("values", self.values));
        Cache { keys, values, visible: f("visible", self.visible) }
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
        visible: Type::new(DType::Bool, [b, s]),
    }
}

/// New tokens of each row: what [`forward`] computes.
#[derive(Clone, Copy)]
struct Tokens<'f> {
    /// `[b, n]` i32.
    ids: Tensor<'f>,
    /// `[b, n]` i32, in the row's own count.
    positions: Tensor<'f>,
    /// Slot of the first one, i32 scalar.
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
    let rows = tokens.positions + start.along(tokens.positions, &[0]); // [b, n]
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
        operands.extend([*keys, *values, cache.visible, tokens.slot]);
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

/// A chunk of the prompts into the cache. Inputs: `weights.*`, `rope.cos`, `rope.sin`, `rope.start` `i32[rows]`, the cache
/// (written over), `ids` and `positions` `i32[rows, chunk]`, `slot` i32: that of the chunk's first token. Outputs: the
/// cache, and `hidden` `[rows, D]`, the state after the chunk's last token.
pub fn prefill_program(config: &Config, shape: Shape, chunk: usize) -> Program {
    Program::build("prefill", |f| {
        let model = Model::inputs(f, config, shape);
        let cache = cache_types(config, shape).map(|name, ty| f.input(name, ty));
        let ids = f.input("ids", Type::i32([shape.rows, chunk]));
        let positions = f.input("positions", Type::i32([shape.rows, chunk]));
        let slot = f.input("slot", Type::scalar(DType::I32));
        let tokens = Tokens { ids, positions, slot };
        let (hidden, filled) = forward(config, &model, cache.clone(), tokens);
        output_over(f, filled, cache);
        let last = hidden.slice_axis(1, chunk - 1, chunk);
        f.output("hidden", last.reshape([shape.rows, config.hidden_size]));
    })
}

fn output_over<'f>(f: &'f Builder<'f>, new: Cache<Tensor<'f>>, old: Cache<Tensor<'f>>) {
    let mut inputs = Vec::new();
    old.map(|_, input| inputs.push(input));
    let mut inputs = inputs.into_iter();
    new.map(|name, tensor| f.output_over(name, tensor, inputs.next().expect("caches of one form")));
}

/// Rows of prompts to rows of samples. Inputs: the cache and `hidden` of `prompts` rows, `sources` `i32[rows]`, the prompt of
/// each row. Outputs: the cache and `hidden` of `shape.rows` rows.
pub fn spread_program(config: &Config, prompts: usize, shape: Shape) -> Program {
    Program::build("spread", |f| {
        let prompt_shape = Shape { rows: prompts, ..shape };
        let cache = cache_types(config, prompt_shape).map(|name, ty| f.input(name, ty));
        let hidden = f.input("hidden", Type::new(config.dtype.dtype(), [prompts, config.hidden_size]));
        let sources = f.input("sources", Type::i32([shape.rows]));
        cache.map(|name, tensor| {
            let shape = tensor.shape();
            let by_row = |rows: usize| [&[rows, shape[0] / prompts], &shape[1..]].concat();
            let spread = tensor.reshape(by_row(prompts)).gather(sources); // [rows, .., ..]
            let mut wanted = shape.clone();
            wanted[0] = shape[0] / prompts * spread.dim(0);
            f.output(name, spread.reshape(wanted));
        });
        f.output("hidden", hidden.gather(sources));
    })
}

/// What the token loop carries from iteration to iteration and from call to call.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// Keys and values of all tokens up to the last drawn one, and of the draft.
    pub cache: Cache<T>,
    /// The state after the last drawn token, `[b, D]`.
    pub hidden: T,
    /// The state after the draft, `[b, D]`; anything if there is none.
    pub draft_hidden: T,
    /// The draft, `i32[b]`; -1 if there is none.
    pub draft: T,
    /// The position of the next token, `i32[b]`.
    pub position: T,
    /// The slot of the draft, which the next token takes if it is dropped; i32.
    pub slot: T,
}

impl<T> State<T> {
    /// Applies a function to every tensor with its name, in the order of the program's inputs and outputs.
    pub fn map<U>(self, mut f: impl FnMut(&str, T) -> U) -> State<U> {
        State {
            cache: self.cache.map(&mut f),
            hidden: f("hidden", self.hidden),
            draft_hidden: f("draft_hidden", self.draft_hidden),
            draft: f("draft", self.draft),
            position: f("position", self.position),
            slot: f("slot", self.slot),
        }
    }

    fn leaves(self) -> Vec<T> {
        let mut leaves = Vec::new();
        self.map(|_, leaf| leaves.push(leaf));
        leaves
    }

    /// A state of the same form from a flat list.
    ///
    /// # Panics
    /// If the list is too short.
    pub fn with_leaves<U>(self, leaves: &mut impl Iterator<Item = U>) -> State<U> {
        self.map(|name, _| leaves.next().unwrap_or_else(|| panic!("no leaf left for `{name}`")))
    }
}

/// The types of the token loop's state.
pub fn state_types(config: &Config, shape: Shape) -> State<Type> {
    let row = Type::i32([shape.rows]);
    let hidden = Type::new(config.dtype.dtype(), [shape.rows, config.hidden_size]);
    State {
        cache: cache_types(config, shape),
        hidden: hidden.clone(),
        draft_hidden: hidden,
        draft: row.clone(),
        position: row,
        slot: Type::scalar(DType::I32),
    }
}

/// What one call returns: for each row its new tokens, their log-probabilities, and counts.
#[derive(Clone, Copy)]
struct Emitted<'f> {
    /// `i32[b, TOKENS]`.
    tokens: Tensor<'f>,
    /// `f32[b, TOKENS]`.
    log_probs: Tensor<'f>,
    /// `i32[b]`.
    count: Tensor<'f>,
    /// Tokens that the row still wants, `i32[b]`; 0 ends it.
    left: Tensor<'f>,
    /// Drafts that were judged, `i32[b]`.
    drafted: Tensor<'f>,
    /// And found right, `i32[b]`.
    accepted: Tensor<'f>,
}

impl<'f> Emitted<'f> {
    /// Appends one token to the rows `on` (`[b]` bool): it must be one that they want.
    fn emit(&mut self, on: Tensor<'f>, token: Tensor<'f>, log_prob: Tensor<'f>, stops: Tensor<'f>) {
        let column = on.builder().iota(self.tokens.ty(), 1);
        let here = column.eq(self.count.along(column, &[0])) & on.along(column, &[0]);
        self.tokens = here.select(token.along(column, &[0]), self.tokens);
        self.log_probs = here.select(log_prob.along(column, &[0]), self.log_probs);
        let one = on.convert(DType::I32);
        self.count = self.count + one;
        let ends = on & stops.gather(token);
        self.left = ends.select(self.left.zeros_like(), self.left - one);
    }

    fn leaves(self) -> [Tensor<'f>; 6] {
        [self.tokens, self.log_probs, self.count, self.left, self.drafted, self.accepted]
    }

    fn from_leaves(leaves: &[Tensor<'f>]) -> Emitted<'f> {
        let &[tokens, log_probs, count, left, drafted, accepted] = leaves else { panic!("six leaves") };
        Emitted { tokens, log_probs, count, left, drafted, accepted }
    }
}

/// The token loop. Inputs: `weights.*`, `rope.cos`, `rope.sin`, `rope.start` `i32[b]`, the [`State`] (written over), `left`
/// `i32[b]` (tokens that each row still wants, 0 for a finished one), `keys` `u32[b, 2]`, `temperature` f32, `top_k` i32,
/// `top_p` f32, `stops` `bool[V]` (tokens that end a row), `passes` i32 (iterations at most: [`TOKENS`] without drafts, half
/// of it with them). Outputs: the state, `tokens` `i32[b, TOKENS]`, `log_probs` f32 of the same shape, `count` `i32[b]`
/// (how many of them), `left`, `drafted` and `accepted` `i32[b]`.
///
/// An iteration draws the token after the last one. If a draft was there and is that very token, it draws the token
/// after the draft too. So with drafts the same tokens come out as without them.
pub fn tokens_program(config: &Config, shape: Shape, sampler: Sampler, drafts: Drafts) -> Program {
    Program::build("tokens", |f| {
        let model = Model::inputs(f, config, shape);
        let state = state_types(config, shape).map(|name, ty| f.input(name, ty));
        let row = Type::i32([shape.rows]);
        let left = f.input("left", row.clone());
        let numbers = Numbers {
            keys: f.input("keys", Type::new(DType::U32, [shape.rows, 2])),
            temperature: f.input("temperature", Type::scalar(DType::F32)),
            top_k: f.input("top_k", Type::scalar(DType::I32)),
            top_p: f.input("top_p", Type::scalar(DType::F32)),
        };
        let stops = f.input("stops", Type::new(DType::Bool, [config.vocab_size]));
        let passes = f.input("passes", Type::scalar(DType::I32));
        let none = f.zeros(row);
        let emitted = Emitted {
            tokens: f.zeros(Type::i32([shape.rows, TOKENS])),
            log_probs: f.zeros(Type::f32([shape.rows, TOKENS])),
            count: none,
            left,
            drafted: none,
            accepted: none,
        };
        let mut carry = vec![passes];
        carry.extend(emitted.leaves());
        carry.extend(state.clone().leaves());
        let results = f.while_loop(
            &carry,
            |_, carry| carry[0].gt(0) & carry[4].reduce_max(&[0]).gt(0),
            |g, carry| {
                let pass = Pass {
                    config,
                    model: model.captured(g),
                    sampler,
                    numbers: numbers.map(|number| g.capture(number)),
                    stops: g.capture(stops),
                };
                let emitted = Emitted::from_leaves(&carry[1..7]);
                let state = state_types(config, shape).with_leaves(&mut carry[7..].iter().copied());
                let (emitted, state) = match drafts {
                    Drafts::Off => pass.one(emitted, state),
                    Drafts::SecondHead => pass.drafted(emitted, state),
                };
                let mut next = vec![carry[0] - 1];
                next.extend(emitted.leaves());
                next.extend(state.leaves());
                next
            },
        );
        let after = state.clone().with_leaves(&mut results[7..].iter().copied());
        let mut inputs = state.leaves().into_iter();
        after.map(|name, tensor| {
            f.output_over(name, tensor, inputs.next().expect("states of one form"));
        });
        let names = ["tokens", "log_probs", "count", "left", "drafted", "accepted"];
        for (name, &tensor) in names.iter().zip(&results[1..7]) {
            match *name {
                "left" => f.output_over(name, tensor, left),
                _ => f.output(name, tensor),
            }
        }
    })
}

/// What one iteration of the token loop reads.
struct Pass<'c, 'f> {
    config: &'c Config,
    model: Model<Tensor<'f>>,
    sampler: Sampler,
    numbers: Numbers<Tensor<'f>>,
    stops: Tensor<'f>,
}

/// What a random draw depends on beside logits and positions, as [`Sampling`] wants it. Unused numbers are there for every
/// sampler, so that one list of inputs serves all.
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
    /// The drawn tokens at `positions` `[b]` and their log-probabilities, given the logits before the cap, `[b, v]`.
    fn draw(&self, logits: Tensor<'f>, positions: Tensor<'f>) -> (Tensor<'f>, Tensor<'f>) {
        let kernel = Sampling {
            sampler: self.sampler,
            cap: self.config.final_logit_cap,
            columns: self.config.num_tokens,
        };
        let Numbers { keys, temperature, top_k, top_p } = self.numbers;
        let args = match self.sampler {
            Sampler::Greedy => vec![logits],
            Sampler::Random(_) => vec![logits, keys, positions, temperature, top_k, top_p],
        };
        let drawn = logits.builder().kernel(kernel, &args);
        (drawn[0], drawn[1])
    }

    /// The state after new tokens `ids` `[b, n]`, each n * `[b, m]`.
    fn forward(
        &self,
        cache: Cache<Tensor<'f>>,
        ids: Tensor<'f>,
        position: Tensor<'f>,
        slot: Tensor<'f>,
    ) -> (Vec<Tensor<'f>>, Cache<Tensor<'f>>) {
        let ty = ids.ty();
        let positions = position.along(ids, &[0]) + ids.builder().iota(ty.clone(), 1);
        let tokens = Tokens { ids, positions, slot };
        let (hidden, cache) = forward(self.config, &self.model, cache, tokens);
        let shape = [ty.shape[0], self.config.hidden_size];
        ((0..ty.shape[1]).map(|i| hidden.slice_axis(1, i, i + 1).reshape(shape)).collect(), cache)
    }

    /// One token a row; a draft is dropped.
    fn one(&self, mut out: Emitted<'f>, state: State<Tensor<'f>>) -> (Emitted<'f>, State<Tensor<'f>>) {
        let [b, m] = state.hidden.shape()[..] else { unreachable!("[b, m]") };
        let logits = logits(state.hidden.reshape([b, 1, m]), self.model.weights.head);
        let (token, log_prob) = self.draw(logits.reshape([b, self.config.vocab_size]), state.position);
        out.emit(out.left.gt(0), token, log_prob, self.stops);
        let (hidden, cache) = self.forward(state.cache, token.reshape([b, 1]), state.position, state.slot);
        let state = State {
            cache,
            hidden: hidden[0],
            draft_hidden: hidden[0],
            draft: state.draft.full_like(-1.0),
            position: state.position + 1,
            slot: state.slot + 1,
        };
        (out, state)
    }

    /// The next token and, if it is the draft, the one after it; then a new draft.
    fn drafted(&self, mut out: Emitted<'f>, state: State<Tensor<'f>>) -> (Emitted<'f>, State<Tensor<'f>>) {
        let (config, weights) = (self.config, &self.model.weights);
        let [b, m] = state.hidden.shape()[..] else { unreachable!("[b, m]") };
        let pair = |first: Tensor<'f>, second: Tensor<'f>| {
            let shape = [&[b, 1], &first.shape()[1..]].concat();
            Tensor::concatenate(&[first, second].map(|x| x.reshape(shape.clone())), 1) // [b, 2, ..]
        };
        let logits_of_both = logits(pair(state.hidden, state.draft_hidden), weights.head); // [b, 2, v]
        let nth = |i: usize| logits_of_both.slice_axis(1, i, i + 1).reshape([b, config.vocab_size]);
        let (first, first_log_prob) = self.draw(nth(0), state.position);
        let (second, second_log_prob) = self.draw(nth(1), state.position + 1);

        let active = out.left.gt(0);
        let accepted = active & state.draft.eq(first);
        out.drafted = out.drafted + (active & state.draft.ge(0)).convert(DType::I32);
        out.accepted = out.accepted + accepted.convert(DType::I32);
        out.emit(active, first, first_log_prob, self.stops);
        out.emit(accepted & out.left.gt(0), second, second_log_prob, self.stops);

        // The draft's slot stays if any row accepts it, and is a hole in the others; else it is written again.
        let any = accepted.convert(DType::I32).reduce_max(&[0]); // 0 or 1
        let sees = accepted | !any.eq(1).along(accepted, &[]);
        let zero = state.slot.zeros_like();
        let mut cache = state.cache;
        cache.visible = cache.visible.dynamic_update_slice(sees.reshape([b, 1]), &[zero, state.slot]);
        let slot = state.slot + any;
        let last = accepted.select(second, first);
        let position = state.position + accepted.convert(DType::I32);
        let hidden = accepted.along(state.hidden, &[0]).select(state.draft_hidden, state.hidden);

        let head = weights.second.as_ref().expect("drafts need the second head");
        let joined = Tensor::concatenate(&[hidden, weights.embed.gather(last)], 1); // [b, 2m]
        let z = project(joined.reshape([b, 1, 2 * m]), head.proj, joined.dtype()); // [b, 1, m]
        let z = rms_norm(z, head.norm, config.rms_norm_eps);
        let guess = logits(z, head.head).reshape([b, config.vocab_size]);
        let (draft, _) = self.draw(guess, position + 1);
        let (hidden, cache) = self.forward(cache, pair(last, draft), position, slot);
        let state = State {
            cache,
            hidden: hidden[0],
            draft_hidden: hidden[1],
            draft,
            position: position + 1,
            slot: slot + 1,
        };
        (out, state)
    }
}
