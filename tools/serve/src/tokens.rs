//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM and llama.cpp have them.

use crate::app::Loaded;
use crate::body::Body;
use crate::error::Error;
use axum::Json;
use serde::{Deserialize, Serialize};
use train::data::END_OF_TEXT;
use utoipa::ToSchema;

/// A text, as `prompt` or `content`. Nothing is ever added to it.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Tokenize {
    prompt: Option<String>,
    content: Option<String>,
    /// Whether names of special tokens stand for them: yes, if nobody says otherwise.
    parse_special: Option<bool>,
    /// Whether each token's text is wanted.
    with_pieces: Option<bool>,
    /// Makes no difference: this model's texts begin without a special token.
    #[serde(rename = "add_special_tokens")]
    _add_special_tokens: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Tokenized {
    tokens: Vec<Piece>,
    count: usize,
    max_model_len: usize,
}

/// A token's id, or that and its text; a part of a character as `bytes:\xe2\x82`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Piece {
    Id(i32),
    Shown { id: i32, piece: String },
}

/// Token ids of a text
#[utoipa::path(post, path = "/tokenize", request_body = Tokenize, responses((status = 200, body = Tokenized), Error))]
pub(crate) async fn tokenize(
    Loaded(service): Loaded,
    Body(request): Body<Tokenize>,
) -> Result<Json<Tokenized>, Error> {
    let Some(text) = request.prompt.or(request.content) else {
        return Err(Error::field("prompt", "prompt is missing: the text whose tokens are wanted"));
    };
    let ids = match request.parse_special.unwrap_or(true) {
        true => service.parse_special(&text),
        false => service.encode(&text),
    };
    let ids = ids.map_err(|error| Error::field("prompt", format!("{error:#}")))?;
    let count = ids.len();
    let tokens = ids.into_iter().map(|id| match request.with_pieces.unwrap_or(false) {
        true => Piece::Shown { id, piece: service.shown(id) },
        false => Piece::Id(id),
    });
    Ok(Json(Tokenized { tokens: tokens.collect(), count, max_model_len: service.context }))
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Detokenize {
    tokens: Vec<i32>,
}

/// The text under both names.
#[derive(Serialize, ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
    content: String,
}

/// The text of token ids
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = Detokenize,
    responses((status = 200, body = Detokenized), Error)
)]
pub(crate) async fn detokenize(
    Loaded(service): Loaded,
    Body(Detokenize { tokens }): Body<Detokenize>,
) -> Result<Json<Detokenized>, Error> {
    let ids = service.known(tokens).map_err(|message| Error::field("tokens", message))?;
    let text = service.text(&ids);
    Ok(Json(Detokenized { prompt: text.clone(), content: text }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    tokenizer_class: &'static str,
    eos_token: Option<&'static str>,
    bos_token: Option<&'static str>,
    pad_token: Option<&'static str>,
}

/// What lm-eval asks before it makes token ids with `/tokenize`
#[utoipa::path(get, path = "/tokenizer_info", responses((status = 200, body = TokenizerInfo), Error))]
pub(crate) async fn info(Loaded(service): Loaded) -> Json<TokenizerInfo> {
    let end = service.tokenizer.find_special(END_OF_TEXT).map(|_| END_OF_TEXT);
    let tokenizer_class = "PreTrainedTokenizerFast";
    Json(TokenizerInfo { tokenizer_class, eos_token: end, bos_token: None, pad_token: end })
}
