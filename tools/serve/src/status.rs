//! How the server is: `/health`, `/metrics`, `/props`, `/slots` and `/version`.

use crate::app::{App, Loaded};
use crate::error::Error;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    status: &'static str,
}

/// Whether texts are written; 503 while the model is loaded or the server ends
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health), Error))]
pub(crate) async fn health(Loaded(_): Loaded) -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Metrics in Prometheus's form
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, body = String, content_type = "text/plain"), Error)
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}

/// In llama.cpp's form
#[derive(Serialize, ToSchema)]
pub(crate) struct Props {
    default_generation_settings: GenerationSettings,
    /// Texts that are written side by side.
    total_slots: usize,
    model_alias: String,
    build_info: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct GenerationSettings {
    n_ctx: usize,
}

/// What the server can do
#[utoipa::path(get, path = "/props", responses((status = 200, body = Props), Error))]
pub(crate) async fn props(Loaded(service): Loaded) -> Json<Props> {
    Json(Props {
        default_generation_settings: GenerationSettings { n_ctx: service.context },
        total_slots: service.slots.lock().expect("no holder panics").len(),
        model_alias: service.name.clone(),
        build_info: VERSION,
    })
}

const VERSION: &str = concat!("pythonlm ", env!("CARGO_PKG_VERSION"));

/// One of the texts that are written side by side.
#[derive(Serialize, ToSchema)]
pub(crate) struct Slot {
    id: usize,
    n_ctx: usize,
    is_processing: bool,
    /// Tokens of its prompt, and how many of them are computed.
    n_prompt_tokens: usize,
    n_prompt_tokens_processed: usize,
    /// New tokens so far.
    n_decoded: usize,
}

/// What is being written, without any text
#[utoipa::path(get, path = "/slots", responses((status = 200, body = Vec<Slot>), Error))]
pub(crate) async fn slots(Loaded(service): Loaded) -> Json<Vec<Slot>> {
    let slots = service.slots.lock().expect("no holder panics").clone();
    let slot = |(id, slot): (usize, crate::engine::Slot)| Slot {
        id,
        n_ctx: service.context,
        is_processing: slot.busy,
        n_prompt_tokens: slot.prompt,
        n_prompt_tokens_processed: slot.computed,
        n_decoded: slot.new,
    };
    Json(slots.into_iter().enumerate().map(slot).collect())
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Version {
    version: &'static str,
}

/// The program's version
#[utoipa::path(get, path = "/version", responses((status = 200, body = Version), Error))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
