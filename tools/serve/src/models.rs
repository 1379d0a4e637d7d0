//! `/v1/models`.

use crate::app::Loaded;
use crate::error::Error;
use crate::service::Service;
use axum::Json;
use axum::extract::Path;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(crate) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// The model that the server has.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    /// Seconds since 1970 when it was loaded.
    created: u64,
    owned_by: &'static str,
    /// Tokens of a prompt and its continuation at most.
    max_model_len: usize,
    meta: Meta,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Meta {
    /// Tokens that it was trained with at most.
    n_ctx_train: usize,
    n_params: usize,
    n_vocab: usize,
}

/// The models: one
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = Models), Error))]
pub(crate) async fn all(Loaded(service): Loaded) -> Json<Models> {
    Json(Models { object: "list", data: vec![of(&service)] })
}

/// The model, by its name
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    params(("id" = String, Path)),
    responses((status = 200, body = Model), Error)
)]
pub(crate) async fn one(Loaded(service): Loaded, Path(id): Path<String>) -> Result<Json<Model>, Error> {
    if id != service.name {
        let message = format!("there is no model {id} here; the one that is here is {}", service.name);
        return Err(Error::not_found("model_not_found", message));
    }
    Ok(Json(of(&service)))
}

fn of(service: &Service) -> Model {
    Model {
        id: service.name.clone(),
        object: "model",
        created: service.created,
        owned_by: "pythonlm",
        max_model_len: service.context,
        meta: Meta {
            n_ctx_train: service.trained,
            n_params: service.parameters,
            n_vocab: service.vocabulary,
        },
    }
}
