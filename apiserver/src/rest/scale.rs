//! `/scale`: the replicas of a workload, as autoscaling/v1 Scale.

use super::metadata;
use super::object::{key_of, value_of};
use super::patch::{Patch, body_encoding, patched};
use super::update::{Change, Changed, modify_value};
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::response;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use rkube_api::registry::{Kind, Target};
use rkube_api::schema::{self, FieldValidation};
use rkube_api::selector::LabelSelector;
use rkube_api::{ApiError, FieldError, GroupVersionKind};
use serde_json::{Value, json};
use std::sync::Arc;

const TYPE: &str = "autoscaling.v1.Scale";
const API_VERSION: &str = "autoscaling/v1";

/// The scale of a workload.
fn scale_of(value: &Value) -> Value {
    let metadata = &value["metadata"];
    let selector = LabelSelector::from_value(&value["spec"]["selector"]);
    let mut spec = json!({});
    if let Some(replicas) = value["spec"]["replicas"].as_i64() {
        spec["replicas"] = replicas.into();
    }
    json!({
        "kind": "Scale", "apiVersion": API_VERSION,
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": spec,
        "status": {
            "replicas": value["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector.map(|s| s.to_string()).unwrap_or_default(),
        },
    })
}

fn respond(cx: &Cx, value: &Value) -> Response<Body> {
    response::encoded(StatusCode::OK, &scale_of(value), cx.accepted.encoding)
}

/// Answers a GET.
///
/// # Errors
/// 404.
pub async fn get(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
) -> Result<Response<Body>, ApiError> {
    let view = api.storage.fresh_view().await?;
    let object = view
        .get(&key_of(kind, &cx.info.namespace, &cx.info.name))
        .ok_or_else(|| ApiError::not_found(&kind.group, &kind.plural, &cx.info.name))?;
    Ok(respond(cx, &value_of(kind, &object)?))
}

/// Answers a PUT.
///
/// # Errors
/// What the client gets to see.
pub async fn put(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let id = codec::type_named(api.schema, TYPE)?;
    let mode = cx.field_validation("UpdateOptions")?;
    let decoded = codec::decode(api.schema, id, body_encoding(cx)?, body, mode)?;
    cx.warn(decoded.warnings);
    let mut scale = decoded.value;
    schema::decode::expect_kind(&mut scale, &GroupVersionKind::new(API_VERSION, "Scale"))?;
    change(api, cx, kind, "UpdateOptions", |_| Ok(scale.clone())).await
}

/// Answers a PATCH.
///
/// # Errors
/// What the client gets to see.
pub async fn patch(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let patch = match Patch::read(cx.header(header::CONTENT_TYPE), body)? {
        // Of an apply only the replicas count here.
        Patch::Apply(config) => Patch::Merge(json!({"spec": config["spec"]})),
        patch => patch,
    };
    let id = codec::type_named(api.schema, TYPE)?;
    change(api, cx, kind, "PatchOptions", |old| {
        let scale = patched(api, id, &patch, old)?;
        Ok(schema::check(api.schema, id, scale, FieldValidation::Ignore)?.value)
    })
    .await
}

async fn change(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    options: &str,
    make: impl Fn(Value) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let dry = cx.dry_run(options)?;
    let change = Change::plain(Target::Main, "scale", dry);
    let changed = modify_value(api, cx, kind, &change, |old| {
        let scale = make(scale_of(old))?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            return Err(ApiError::invalid(
                "autoscaling",
                "Scale",
                &cx.info.name,
                &[FieldError::Invalid {
                    path: "spec.replicas".into(),
                    value: replicas.into(),
                    detail: "must be greater than or equal to 0".into(),
                }],
            ));
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        let sent = &scale["metadata"];
        for key in ["resourceVersion", "uid"] {
            match sent[key].as_str().filter(|t| !t.is_empty()) {
                Some(text) => metadata::of(&mut new).insert(key.into(), text.into()),
                None => metadata::of(&mut new).remove(key),
            };
        }
        Ok(new)
    })
    .await?;
    match changed {
        Changed::Kept(object) | Changed::Removed(object) => {
            Ok(respond(cx, &value_of(kind, &object)?))
        }
        Changed::Dry(value) => Ok(respond(cx, &value)),
    }
}
