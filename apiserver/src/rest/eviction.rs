//! Eviction: a deletion that a disruption budget may hold up. There are no budgets yet, so it
//! deletes.

use super::delete::{Deletion, delete_key};
use super::metadata;
use super::object::key_of;
use crate::body::Body;
use crate::codec;
use crate::context::{Cx, check_dry_run};
use crate::response;
use crate::rest::patch::body_encoding;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode};
use rkube_api::schema::FieldValidation;
use rkube_api::{ApiError, Reason};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a POST to a pod's `eviction`.
///
/// # Errors
/// 404 without the pod, 400 for another name in the body.
pub async fn create(
    api: &Arc<ApiServer>,
    cx: &Cx,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let id = codec::type_named(api.schema, "policy.v1.Eviction")?;
    let eviction =
        codec::decode(api.schema, id, body_encoding(cx)?, body, FieldValidation::Ignore)?.value;
    let named = metadata::name(&eviction);
    if !named.is_empty() && named != cx.info.name {
        return Err(ApiError::new(
            Reason::BadRequest,
            "name in URL does not match name in Eviction object",
        ));
    }
    let options = &eviction["deleteOptions"];
    let listed = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let deletion = Deletion {
        grace_seconds: options["gracePeriodSeconds"].as_i64(),
        propagation: None,
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        revision: options["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
        dry: check_dry_run(listed, "DeleteOptions")? || cx.dry_run("CreateOptions")?,
    };
    let kind = api.registry.resource("", "v1", "pods").ok_or_else(ApiError::no_route)?;
    let key = key_of(kind, &cx.info.namespace, &cx.info.name);
    delete_key(api, cx, kind, &key, &deletion)
        .await?
        .ok_or_else(|| ApiError::not_found("", "pods", &cx.info.name))?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(response::encoded(StatusCode::CREATED, &status, cx.accepted.encoding))
}
