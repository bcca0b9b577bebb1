//! Creation.

use super::metadata;
use super::object::{encode, key_of, respond, respond_value};
use crate::admission;
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::ids;
use crate::negotiate;
use crate::server::ApiServer;
use crate::storage::Settled;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use rkube_api::patch::{Writer, managed, track_update};
use rkube_api::registry::{Kind, bump_generation};
use rkube_api::schema::{self, TypeId, decode::expect_kind};
use rkube_api::{ApiError, Cause, GroupVersionKind, Reason};
use rkube_store::{Key, Object, Precondition, Write};
use serde_json::Value;
use std::sync::Arc;

/// How often a generated name or address is drawn again (as upstream).
const ATTEMPTS: usize = 8;

/// What came of a creation.
pub enum Created {
    /// It is in the store.
    Kept(Arc<Object>),
    /// It would have been.
    Dry(Value),
}

/// Answers a POST.
///
/// # Errors
/// What the client gets to see.
pub async fn create(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let dry = cx.dry_run("CreateOptions")?;
    let value = decode_object(api, cx, kind, body, "CreateOptions")?;
    if let Some(text) = value["metadata"]["resourceVersion"].as_str().filter(|t| !t.is_empty()) {
        tracing::debug!(text, "resourceVersion on a create");
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    match create_value(api, cx, kind, value, dry, false).await? {
        Created::Kept(object) => respond(api, cx, kind, StatusCode::CREATED, &object),
        Created::Dry(value) => respond_value(api, cx, kind, StatusCode::CREATED, &value),
    }
}

/// Decodes a whole object of the kind from a request's body, with packed managed fields.
///
/// # Errors
/// 400, 415, in upstream's words.
pub fn decode_object(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    body: &Bytes,
    options: &str,
) -> Result<Value, ApiError> {
    let encoding = negotiate::content_encoding(Some(cx.header(header::CONTENT_TYPE)))?;
    let mode = cx.field_validation(options)?;
    let id = codec::type_of(api.schema, kind)?;
    let decoded = codec::decode(api.schema, id, encoding, body, mode)?;
    cx.warn(decoded.warnings);
    let mut value = decoded.value;
    let gvk = GroupVersionKind {
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
    };
    expect_kind(&mut value, &gvk)?;
    managed::pack(&mut value);
    Ok(value)
}

/// Creates an object from a decoded value. `managed` is set if the fields' managers stand in the
/// value already (an apply).
///
/// # Errors
/// What the client gets to see.
pub async fn create_value(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    mut value: Value,
    dry: bool,
    managed: bool,
) -> Result<Created, ApiError> {
    metadata::set_namespace(kind, &mut value, &cx.info.namespace)?;
    let id = codec::type_of(api.schema, kind)?;
    if !managed && !value["metadata"]["managedFields"].is_array() {
        metadata::of(&mut value).remove("managedFields");
    }
    let generated = metadata::name(&value).is_empty()
        && value["metadata"]["generateName"].as_str().is_some_and(|p| !p.is_empty());
    schema::apply_defaults(api.schema, id, &mut value);
    kind.strategy.default(&mut value);
    kind.strategy.prepare_create(&mut value);
    metadata::prepare_create(&mut value, cx.now);
    bump_generation(kind, &mut value, &Value::Null);
    // What another attempt begins with: most objects have nothing that could be drawn again.
    let undrawn = (generated || admission::draws(kind)).then(|| value.clone());
    for attempt in 1.. {
        if let Some(undrawn) = undrawn.as_ref().filter(|_| attempt > 1) {
            value.clone_from(undrawn);
        }
        if generated {
            generate_name(&mut value);
        }
        admission::node_restriction(cx, kind, &value, None)?;
        let view = api.storage.view();
        let wanted = admission::mutate_create(api, &view, cx, kind, &mut value, attempt)?;
        let faults = kind.strategy.validate(&value);
        if !faults.is_empty() {
            let name = metadata::name(&value);
            return Err(ApiError::invalid(&kind.group, &kind.kind, name, &faults));
        }
        if !managed {
            track(api, cx, kind, id, &mut value);
        }
        if attempt == 1 {
            cx.warn(kind.strategy.warnings(&value));
        }
        let key = key_of(kind, &cx.info.namespace, metadata::name(&value));
        if dry {
            dry_checks(api, kind, &key).await?;
            managed::unpack(&mut value);
            return Ok(Created::Dry(value));
        }
        let new = encode(api, kind, &value, cx.now)?;
        let mut preconditions = vec![Precondition::Absent(key.clone())];
        preconditions.extend(namespace_condition(kind, &key));
        let fixed = preconditions.len();
        preconditions.extend(wanted);
        let outcome =
            api.storage.propose(cx.term, preconditions, vec![Write::Put(key.clone(), new)]).await?;
        match outcome {
            Settled::Applied(objects) => {
                let object = objects.into_iter().next().flatten();
                return object
                    .map(Created::Kept)
                    .ok_or_else(|| ApiError::internal("nothing was written"));
            }
            Settled::Refused { precondition: 0, .. } if generated && attempt < ATTEMPTS => {}
            Settled::Refused { precondition, .. }
                if precondition >= fixed && attempt < ATTEMPTS => {}
            Settled::Refused { precondition: 0, .. } => {
                let mut error = ApiError::already_exists(&kind.group, &kind.plural, &key.name);
                error.retry_after_seconds = generated.then_some(1);
                return Err(error);
            }
            Settled::Refused { precondition, current } if precondition < fixed => {
                return Err(namespace_fault(kind, &key, current.is_some()));
            }
            Settled::Refused { .. } => {
                return Err(ApiError::conflict(
                    &kind.group,
                    &kind.plural,
                    &key.name,
                    "an address or port was taken in the meantime",
                ));
            }
        }
    }
    // The loop above leaves only by returning.
    Err(ApiError::internal("no attempt left"))
}

/// Writes down who the fields belong to. A status that a creation begins with is the server's.
fn track(api: &ApiServer, cx: &Cx, kind: &Kind, id: TypeId, value: &mut Value) {
    let (manager, api_version) = (cx.field_manager(), kind.api_version());
    let writer =
        Writer { manager: &manager, api_version: &api_version, subresource: "", now: cx.now };
    let object = value.as_object_mut().filter(|_| kind.has_status);
    let status = object.and_then(|o| o.remove("status"));
    track_update(api.schema, id, None, value, &writer);
    if let Some(status) = status {
        value["status"] = status;
    }
}

fn generate_name(value: &mut Value) {
    let prefix = value["metadata"]["generateName"].as_str().unwrap_or("");
    // The name must stay within 63 bytes, so that it can be a label.
    let mut end = prefix.len().min(58);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let name = format!("{}{}", &prefix[..end], ids::name_suffix());
    metadata::of(value).insert("name".into(), name.into());
}

fn namespace_key(namespace: &str) -> Key {
    Key::new("namespaces", "", namespace)
}

fn namespace_condition(kind: &Kind, key: &Key) -> Option<Precondition> {
    kind.namespaced.then(|| Precondition::Live(namespace_key(&key.namespace)))
}

fn namespace_fault(kind: &Kind, key: &Key, terminating: bool) -> ApiError {
    let namespace = &key.namespace;
    if !terminating {
        return ApiError::not_found("", "namespaces", namespace);
    }
    let mut error = ApiError::forbidden(
        &kind.group,
        &kind.plural,
        &key.name,
        format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        ),
    );
    error.causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    });
    error
}

/// What the store would refuse.
async fn dry_checks(api: &ApiServer, kind: &Kind, key: &Key) -> Result<(), ApiError> {
    let view = api.storage.fresh_view().await?;
    if kind.namespaced {
        let namespace = view.get(&namespace_key(&key.namespace));
        if namespace.as_ref().is_none_or(|n| n.header.terminating) {
            return Err(namespace_fault(kind, key, namespace.is_some()));
        }
    }
    match view.get(key) {
        Some(_) => Err(ApiError::already_exists(&kind.group, &kind.plural, &key.name)),
        None => Ok(()),
    }
}

/// Whether an error says that somebody else was first.
pub fn is_already_there(error: &ApiError) -> bool {
    error.reason == Reason::AlreadyExists
}
