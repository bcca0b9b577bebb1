//! The four kinds of patches.

use super::create::{Created, create_value};
use super::metadata;
use super::object::{key_of, respond, respond_value};
use super::update::{self, Change, modify_value};
use crate::body::Body;
use crate::codec;
use crate::context::{Cx, invalid_option};
use crate::negotiate::{self, Encoding};
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use rkube_api::patch::{Writer, apply, json, managed, merge, strategic};
use rkube_api::registry::{Kind, Target};
use rkube_api::schema::{self, FieldValidation, TypeId, decode};
use rkube_api::{ApiError, FieldError, Reason};
use serde_json::Value;
use std::sync::Arc;

/// A patch, read.
pub enum Patch {
    /// RFC 6902
    Json(Bytes),
    /// RFC 7386
    Merge(Value),
    /// By the schema's merge keys.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

impl Patch {
    /// Reads a patch by its content type.
    ///
    /// # Errors
    /// 415 for an unknown type, 400 for what can't be read.
    pub fn read(content_type: &str, body: &Bytes) -> Result<Self, ApiError> {
        let parse = || {
            serde_json::from_slice::<Value>(body).map_err(|e| {
                let why = decode::syntax_error(body, &e);
                ApiError::bad_request(format!("error decoding patch: {why}"))
            })
        };
        match negotiate::media_type(Some(content_type)) {
            "application/json-patch+json" => Ok(Patch::Json(body.clone())),
            "application/merge-patch+json" => Ok(Patch::Merge(parse()?)),
            "application/strategic-merge-patch+json" => Ok(Patch::Strategic(parse()?)),
            "application/apply-patch+yaml" => {
                let text = std::str::from_utf8(body)
                    .map_err(|_| ApiError::bad_request("error decoding YAML: not UTF-8"))?;
                let value = rkube_api::yaml::parse_value(text)
                    .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
                Ok(Patch::Apply(value))
            }
            _ => Err(negotiate::unsupported(
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
            )),
        }
    }
}

/// Answers a PATCH.
///
/// # Errors
/// What the client gets to see.
pub async fn patch(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    target: Target,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let dry = cx.dry_run("PatchOptions")?;
    let mode = cx.field_validation("PatchOptions")?;
    let patch = Patch::read(cx.header(header::CONTENT_TYPE), body)?;
    let subresource = if target == Target::Status { "status" } else { "" };
    if let Patch::Apply(config) = &patch {
        let change = Change { managed: true, ..Change::plain(target, subresource, dry) };
        return apply_patch(api, cx, kind, &change, config).await;
    }
    if cx.query.flag("force")?.is_some() {
        return Err(invalid_option(
            "PatchOptions",
            FieldError::Forbidden {
                path: "force".into(),
                detail: "may not be specified for non-apply patch".into(),
            },
        ));
    }
    let id = codec::type_of(api.schema, kind)?;
    let change = Change::plain(target, subresource, dry);
    let changed = modify_value(api, cx, kind, &change, |old| {
        let patched = patched(api, id, &patch, old.clone())?;
        check_identity(cx, kind, &patched)?;
        checked(api, cx, id, patched, mode)
    })
    .await?;
    update::answer(api, cx, kind, changed)
}

/// The value that a patch makes of another.
///
/// # Errors
/// 400 and 422 in upstream's words.
pub fn patched(api: &ApiServer, id: TypeId, patch: &Patch, old: Value) -> Result<Value, ApiError> {
    match patch {
        Patch::Json(operations) => {
            // It may point into the fields.
            let mut old = old;
            managed::unpack(&mut old);
            json::apply(old, operations)
        }
        Patch::Merge(patch) if patch.is_object() => {
            let mut value = old;
            merge::apply(&mut value, patch);
            Ok(value)
        }
        Patch::Merge(_) => Err(ApiError::bad_request("a merge patch must be an object")),
        Patch::Strategic(patch) => strategic::apply(api.schema, id, old, patch),
        Patch::Apply(_) => Err(ApiError::internal("an apply is no plain patch")),
    }
}

/// Runs the patched object through the decoder again: types, unknown fields.
fn checked(
    api: &ApiServer,
    cx: &Cx,
    id: TypeId,
    value: Value,
    mode: FieldValidation,
) -> Result<Value, ApiError> {
    let decoded = schema::check(api.schema, id, value, mode).map_err(|mut error| {
        // A patch that makes the object undecodable is at fault itself: 422, as upstream.
        if error.message.contains("strict decoding error") || error.message.contains("json: ") {
            error.reason = Reason::Invalid;
        }
        error
    })?;
    cx.warn(decoded.warnings);
    let mut value = decoded.value;
    managed::pack(&mut value);
    Ok(value)
}

fn check_identity(cx: &Cx, kind: &Kind, value: &Value) -> Result<(), ApiError> {
    let same = value["kind"] == kind.kind.as_str()
        && value["apiVersion"] == kind.api_version().as_str()
        && metadata::name(value) == cx.info.name;
    if same {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the name of the object ({}) does not match the name on the URL ({})",
        metadata::name(value),
        cx.info.name
    )))
}

async fn apply_patch(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    change: &Change<'_>,
    config: &Value,
) -> Result<Response<Body>, ApiError> {
    let manager = cx.query.text("fieldManager").ok_or_else(|| {
        invalid_option(
            "PatchOptions",
            FieldError::Required {
                path: "fieldManager".into(),
                detail: "is required for apply patch".into(),
            },
        )
    })?;
    let force = cx.query.flag("force")?.unwrap_or(false);
    let api_version = kind.api_version();
    let writer =
        Writer { manager, api_version: &api_version, subresource: change.subresource, now: cx.now };
    check_config(cx, kind, config)?;
    let mode = cx.field_validation("PatchOptions")?;
    let id = codec::type_of(api.schema, kind)?;
    let config = schema::check(api.schema, id, config.clone(), mode)?;
    cx.warn(config.warnings);
    let config = config.value;
    for _ in 0..5 {
        let key = key_of(kind, &cx.info.namespace, &cx.info.name);
        if api.storage.view().get(&key).is_some() {
            let changed = modify_value(api, cx, kind, change, |old| {
                apply::apply(api.schema, id, Some(old), &config, &writer, force)
            });
            match changed.await {
                // Gone in the meantime: the next round makes it.
                Err(error) if error.reason == Reason::NotFound => {}
                changed => return update::answer(api, cx, kind, changed?),
            }
            continue;
        }
        if change.target == Target::Status {
            return Err(ApiError::not_found(&kind.group, &kind.plural, &cx.info.name));
        }
        let mut value = apply::apply(api.schema, id, None, &config, &writer, force)?;
        metadata::of(&mut value).insert("name".into(), cx.info.name.clone().into());
        let created = create_value(api, cx, kind, value, change.dry, true).await;
        return match created {
            Ok(Created::Kept(object)) => respond(api, cx, kind, StatusCode::CREATED, &object),
            Ok(Created::Dry(value)) => respond_value(api, cx, kind, StatusCode::CREATED, &value),
            // Somebody was first: the next round changes what he made.
            Err(error) if super::create::is_already_there(&error) => continue,
            Err(error) => Err(error),
        };
    }
    Err(ApiError::modified(&kind.group, &kind.plural, &cx.info.name))
}

fn check_config(cx: &Cx, kind: &Kind, config: &Value) -> Result<(), ApiError> {
    let version = config["apiVersion"].as_str().unwrap_or("");
    let named = config["kind"].as_str().unwrap_or("");
    if version != kind.api_version() || named != kind.kind {
        return Err(ApiError::bad_request(format!(
            "invalid object type: {version}, Kind={named}, expected {}, Kind={}",
            kind.api_version(),
            kind.kind
        )));
    }
    let name = metadata::name(config);
    if name != cx.info.name && !name.is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            cx.info.name
        )));
    }
    Ok(())
}

/// The encoding a body that is no patch has.
///
/// # Errors
/// 415 for what is not understood.
pub fn body_encoding(cx: &Cx) -> Result<Encoding, ApiError> {
    negotiate::content_encoding(Some(cx.header(header::CONTENT_TYPE)))
}
