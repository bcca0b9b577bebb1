//! Reviews: questions about identities and permissions, answered and not kept.

use crate::authn::Identity;
use crate::authz::{self, Attributes};
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::discovery::{VIRTUALS, Virtual};
use crate::request_info::RequestInfo;
use crate::response;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use rkube_api::meta::api_version;
use rkube_api::schema::{FieldValidation, decode::expect_kind};
use rkube_api::{ApiError, FieldError, GroupVersionKind};
use serde_json::{Value, json};
use std::sync::Arc;

/// The virtual resource that a request names.
pub fn find(info: &RequestInfo) -> Option<&'static Virtual> {
    VIRTUALS.iter().find(|v| {
        v.group == info.group
            && info.version == "v1"
            && v.plural == info.resource
            && info.subresource.is_empty()
            && v.namespaced != info.namespace.is_empty()
    })
}

/// Answers a review.
///
/// # Errors
/// 400, 415, 422 for a review that can't be read.
pub fn answer(
    api: &Arc<ApiServer>,
    cx: &Cx,
    entry: &Virtual,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let gvk = GroupVersionKind::new(&api_version(entry.group, "v1"), entry.kind);
    let id = api
        .schema
        .id_of_kind(&gvk.group, &gvk.version, &gvk.kind)
        .ok_or_else(|| ApiError::internal(format!("the schema has no type {gvk}")))?;
    let encoding = crate::negotiate::content_encoding(Some(cx.header(header::CONTENT_TYPE)))?;
    let mut review = codec::decode(api.schema, id, encoding, body, FieldValidation::Ignore)?.value;
    expect_kind(&mut review, &gvk)?;
    review["status"] = match entry.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(&cx.identity)}),
        "SelfSubjectAccessReview" => access(api, &cx.identity, &review["spec"]),
        _ => access(api, &subject(entry, cx, &review["spec"])?, &review["spec"]),
    };
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    Ok(response::encoded(StatusCode::CREATED, &review, cx.accepted.encoding))
}

fn user_info(identity: &Identity) -> Value {
    json!({"username": identity.user, "groups": identity.groups})
}

/// Whom the review is about.
fn subject(entry: &Virtual, cx: &Cx, spec: &Value) -> Result<Identity, ApiError> {
    let user = spec["user"].as_str().unwrap_or("");
    let groups: Vec<String> = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|g| g.as_str().map(str::to_owned))
        .collect();
    let invalid = |fault| Err(ApiError::invalid(entry.group, entry.kind, "", &[fault]));
    if user.is_empty() && groups.is_empty() {
        return invalid(FieldError::Invalid {
            path: "spec.user".into(),
            value: "".into(),
            detail: "at least one of user or group must be specified".into(),
        });
    }
    let asked = spec["resourceAttributes"]["namespace"].as_str().unwrap_or("");
    if entry.namespaced && asked != cx.info.namespace {
        return invalid(FieldError::Invalid {
            path: "spec.resourceAttributes.namespace".into(),
            value: asked.into(),
            detail: "must match metadata.namespace".into(),
        });
    }
    Ok(Identity { user: user.into(), groups })
}

fn access(api: &ApiServer, identity: &Identity, spec: &Value) -> Value {
    let text =
        |part: &'static str, field: &str| spec[part][field].as_str().unwrap_or("").to_owned();
    let resource = |field: &str| text("resourceAttributes", field);
    let is_resource = spec["resourceAttributes"].is_object();
    let verb = if is_resource { resource("verb") } else { text("nonResourceAttributes", "verb") };
    let path = text("nonResourceAttributes", "path");
    let (group, plural, subresource) =
        (resource("group"), resource("resource"), resource("subresource"));
    let (namespace, name) = (resource("namespace"), resource("name"));
    let asked = Attributes {
        is_resource,
        path: &path,
        verb: &verb,
        group: &group,
        resource: &plural,
        subresource: &subresource,
        namespace: &namespace,
        name: &name,
        field_selector: "",
    };
    match authz::authorize(identity, &asked, &api.storage.graph()) {
        Ok(()) => json!({"allowed": true}),
        Err(why) if why.is_empty() => json!({"allowed": false}),
        Err(why) => json!({"allowed": false, "reason": why}),
    }
}
