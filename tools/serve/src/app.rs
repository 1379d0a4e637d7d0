//! [`App`]: what is at which path, and what holds for every request.

use crate::error::Error;
use crate::record::{REQUEST_ID, Record};
use crate::service::Service;
use crate::{completions, llama, models, status, tokens};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use program::esay;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The page at `/`.
const PAGE: &str = include_str!("page.html");
/// Paths that need no key: what says whether the server is there, and the page on which a person enters the key.
const OPEN: [&str; 4] = ["/", "/health", "/v1/health", "/openapi.json"];

/// What all handlers share.
pub(crate) struct App {
    /// None while it is loaded.
    pub(crate) service: OnceLock<Arc<Service>>,
    /// Whether no more texts are taken.
    pub(crate) ends: AtomicBool,
    /// The hash of the key that clients must know.
    pub(crate) key: Option<blake3::Hash>,
    pub(crate) metrics: PrometheusHandle,
}

/// The model, for handlers that need it.
pub(crate) struct Loaded(pub(crate) Arc<Service>);

impl FromRequestParts<Arc<App>> for Loaded {
    type Rejection = Error;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Loaded, Error> {
        if app.ends.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the server ends"));
        }
        let loading = || Error::unavailable("the model is being loaded and its programs compiled");
        app.service.get().cloned().map(Loaded).ok_or_else(loading)
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "PythonLM",
    description = "Completion and fill-in-the-middle with a Python code model"
))]
struct Description;

/// Everything. `origins`: the sites whose pages may ask; none is every site.
pub(crate) fn router(app: Arc<App>, origins: &[HeaderValue]) -> Router {
    let (router, mut description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(completions::completions))
        .routes(routes!(completions::fim_completions))
        .routes(routes!(llama::infill))
        .routes(routes!(llama::completion))
        .routes(routes!(models::all))
        .routes(routes!(models::one))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::detokenize))
        .routes(routes!(tokens::info))
        .routes(routes!(status::health))
        .routes(routes!(status::metrics))
        .routes(routes!(status::props))
        .routes(routes!(status::slots))
        .routes(routes!(status::version))
        .split_for_parts();
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let origins = match origins {
        [] => AllowOrigin::any(),
        some => AllowOrigin::list(some.to_vec()),
    };
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::HeaderName::from_static(REQUEST_ID), header::RETRY_AFTER]);
    router
        // Other names that clients use.
        .route("/v1/health", get(status::health))
        .route("/completions", post(llama::completion))
        .route("/", get(async || Html(PAGE)))
        .route("/openapi.json", get(async move || Json(description)))
        .route("/v1/chat/completions", post(no_chat))
        .fallback(async |uri: Uri| {
            Error::not_found(
                "not_found",
                format!("there is nothing at {}; /openapi.json says what is where", uri.path()),
            )
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Error::method(&method, uri.path()))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), check_key))
        .layer(cors)
        .layer(middleware::from_fn(keep_record))
        .with_state(app)
}

async fn no_chat() -> Error {
    let message = "this is a base model without a chat template: use /v1/completions, or /infill";
    Error::not_found("not_found", message)
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    esay!("error: a request's handler panicked; this is a fault of the program");
    Error::internal().into_response()
}

async fn keep_record(mut request: Request, next: Next) -> Response {
    // Not the path that was asked for: anything may be in it.
    let route = request.extensions().get::<MatchedPath>().map_or("none", |path| path.as_str()).to_owned();
    let record = Arc::new(Record::new(request.method().clone(), route, request.headers()));
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).await;
    record.answered(response.status().as_u16());
    response.headers_mut().insert(REQUEST_ID, record.id.clone());
    response
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|given| given.strip_prefix(b"Bearer ")).unwrap_or_default();
    // Hashes are compared in constant time.
    if OPEN.contains(&request.uri().path()) || blake3::hash(given.trim_ascii()) == *key {
        return next.run(request).await;
    }
    Error::unauthorized().into_response()
}
