//! [`Error`]: what a client is told when a request is not answered, as JSON in OpenAI's form.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    /// The class of the error, `invalid_request_error`.
    kind: &'static str,
    /// The exact error, if clients tell it apart, `context_length_exceeded`.
    code: Option<&'static str>,
    /// The field of the request that is wrong.
    param: Option<String>,
    message: String,
    /// Seconds after which to try again.
    retry_after: Option<u32>,
}

impl Error {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Error {
        Error { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    /// A field has a value that cannot be.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Error {
        let error = Error::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Error { param: Some(param.to_owned()), ..error }
    }

    /// The request is no JSON of the form that is wanted, or does not come as JSON, or is too long.
    pub(crate) fn body(status: StatusCode, message: impl Into<String>) -> Error {
        Error::new(status, "invalid_request_error", message)
    }

    /// Prompt and new tokens do not fit.
    pub(crate) fn too_long(context: usize, prompt: usize, new: usize) -> Error {
        let message = format!(
            "This model's maximum context length is {context} tokens, however you requested {} ({prompt} in your prompt; {new} for the completion).",
            prompt.saturating_add(new)
        );
        Error { code: Some("context_length_exceeded"), ..Error::field("prompt", message) }
    }

    /// A text took too long.
    pub(crate) fn timed_out(limit: std::time::Duration) -> Error {
        let message = format!("the text was not finished within {} s; ask for fewer tokens", limit.as_secs());
        Error::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message)
    }

    /// There is no such model or place.
    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Error {
        let error = Error::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Error { code: Some(code), ..error }
    }

    /// The path has no such method.
    pub(crate) fn method(method: &Method, path: &str) -> Error {
        let message = format!("{path} does not take {method}; /openapi.json says what it takes");
        Error::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// The key is not the server's.
    pub(crate) fn unauthorized() -> Error {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        let error = Error::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Error { code: Some("invalid_api_key"), ..error }
    }

    /// The queue is full.
    pub(crate) fn overloaded(waiting: usize) -> Error {
        let message = format!("{waiting} texts wait already, as many as may; try again later");
        let error = Error::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Error { retry_after: Some(1), ..error }
    }

    /// The server ends, or is not ready.
    pub(crate) fn unavailable(message: &str) -> Error {
        let error = Error::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", message);
        Error { retry_after: Some(5), ..error }
    }

    /// A fault of the server; what it was is in its log.
    pub(crate) fn internal() -> Error {
        let message = "the server could not compute this; its log says why";
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body, for an answer or within a stream.
    pub(crate) fn json(&self) -> Value {
        let Error { status, kind, code, param, message, .. } = self;
        json!({"error": {
            "message": message,
            "type": kind,
            "param": param,
            "code": code.map_or_else(|| json!(status.as_u16()), |code| json!(code)),
        }})
    }
}

/// Its form, for `/openapi.json`.
#[derive(ToSchema)]
#[schema(as = Error)]
#[allow(dead_code, reason = "it is the form of what `json` makes")]
struct Form {
    #[schema(inline)]
    error: Told,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "it is the form of what `json` makes")]
struct Told {
    /// What was wrong, and what to do.
    message: String,
    r#type: String,
    /// The field of the request that is wrong.
    param: Option<String>,
    /// The exact error as a name, or the status.
    #[schema(value_type = Value)]
    code: (),
}

impl IntoResponses for Error {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let all = [
            ("400", "A field is wrong, or the prompt too long"),
            ("401", "The API key is missing or wrong"),
            ("404", "There is no such model"),
            ("408", "The body did not come in time"),
            ("413", "The body is too large"),
            ("415", "The body is no JSON by its header"),
            ("429", "The queue is full"),
            ("500", "A fault of the server"),
            ("503", "The model is being loaded, or the server ends"),
            ("504", "The text took too long"),
        ];
        let content = ContentBuilder::new().schema(Some(Form::schema())).build();
        let response =
            |text| ResponseBuilder::new().description(text).content("application/json", content.clone());
        all.map(|(status, text)| (status.to_owned(), response(text).build().into())).into()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
