//! [`Body`]: a request's JSON, whose faults are told as all others are.

use crate::error::Error;
use crate::record::Record;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt;

/// Bytes of a request's body at most.
const MOST: usize = 4 << 20;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The body of a request. Fields that the type does not have are named in the log and let pass.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Body<T>, Error> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim).unwrap_or_default();
        if !kind.eq_ignore_ascii_case("application/json") {
            // A page of another site could send other types without asking first.
            let message = "the body must be JSON, with the header Content-Type: application/json";
            return Err(Error::body(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let record = request.extensions().get::<Arc<Record>>().cloned();
        let bytes = match tokio::time::timeout(PATIENCE, whole(request.into_body())).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => {
                let message = format!("the body is too large: at most {} MiB are taken", MOST >> 20);
                return Err(Error::body(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Err(_)) => return Err(Error::body(StatusCode::BAD_REQUEST, "the body did not come whole")),
            Err(_) => {
                let message = format!("the body did not come within {} s", PATIENCE.as_secs());
                return Err(Error::body(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        // A list of the fields' values would be read as well.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Error::body(
                StatusCode::BAD_REQUEST,
                "the body is a list, but must be an object of fields",
            ));
        }
        let mut ignored = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_ignored::deserialize(
            serde_path_to_error::Deserializer::new(&mut json, &mut track),
            |path| ignored.push(path.to_string()),
        );
        let read = read.and_then(|read| json.end().map(|()| read));
        for field in ignored {
            record.iter().for_each(|record| record.ignored(&field));
        }
        read.map(Body).map_err(|error| {
            let path = track.path().to_string();
            let message = format!("the body is not the JSON that is wanted: {error}");
            match path.as_str() {
                "." | "" | "?" => Error::body(StatusCode::BAD_REQUEST, message),
                path => {
                    Error::field(path.split(['.', '[']).next().unwrap_or(path), format!("{path}: {error}"))
                }
            }
        })
    }
}

/// All bytes; nothing if they are too many. Those are read to their end too: a client that is still sending does not listen.
async fn whole(body: axum::body::Body) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut pieces = body.into_data_stream();
    let mut bytes = Some(Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        bytes = bytes.filter(|bytes| bytes.len() + piece.len() <= MOST);
        bytes.iter_mut().for_each(|bytes| bytes.extend_from_slice(&piece));
    }
    Ok(bytes)
}
