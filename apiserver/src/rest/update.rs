//! Changes of one object: read, change, check, and write if nobody was in between.

use super::create::decode_object;
use super::metadata;
use super::object::{encode, key_of, packed_of, respond, respond_value, value_of};
use crate::admission;
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::server::ApiServer;
use crate::storage::Settled;
use bytes::Bytes;
use http::{Response, StatusCode};
use rkube_api::patch::{Writer, managed, track_update};
use rkube_api::registry::{Kind, Target, bump_generation};
use rkube_api::schema;
use rkube_api::{ApiError, Reason};
use rkube_store::{Key, Object, Precondition, View, Write};
use serde_json::Value;
use std::sync::Arc;

/// How often a change that names no revision is tried again.
const ATTEMPTS: usize = 10;

/// What came of a change.
pub enum Changed {
    /// It is in the store (or was there already).
    Kept(Arc<Object>),
    /// It would be.
    Dry(Value),
    /// The change let go of the last finalizer of an object that was going away.
    Removed(Arc<Object>),
}

/// How a change is meant.
pub struct Change<'a> {
    /// Spec or status.
    pub target: Target,
    /// The name in `managedFields`: `status`, `scale` or empty.
    pub subresource: &'a str,
    /// Nothing is kept.
    pub dry: bool,
    /// The managers of fields stand in the new value already (an apply).
    pub managed: bool,
    /// The server itself has made the change to what it had found valid: nothing is defaulted,
    /// carried over or checked, and the generation stays (a binding sets a node and a condition).
    pub trusted: bool,
}

impl<'a> Change<'a> {
    /// A client's change that is no apply.
    pub fn plain(target: Target, subresource: &'a str, dry: bool) -> Self {
        Change { target, subresource, dry, managed: false, trusted: false }
    }
}

/// Answers a PUT.
///
/// # Errors
/// What the client gets to see.
pub async fn put(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    target: Target,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let dry = cx.dry_run("UpdateOptions")?;
    let value = decode_object(api, cx, kind, body, "UpdateOptions")?;
    check_names(cx, &value)?;
    let subresource = if target == Target::Status { "status" } else { "" };
    let change = Change::plain(target, subresource, dry);
    let changed = modify_value(api, cx, kind, &change, |_| Ok(value.clone())).await?;
    answer(api, cx, kind, changed)
}

/// The response to a change.
///
/// # Errors
/// 406 if there is no acceptable form.
pub fn answer(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    changed: Changed,
) -> Result<Response<Body>, ApiError> {
    match changed {
        Changed::Kept(object) | Changed::Removed(object) => {
            respond(api, cx, kind, StatusCode::OK, &object)
        }
        Changed::Dry(value) => respond_value(api, cx, kind, StatusCode::OK, &value),
    }
}

fn check_names(cx: &Cx, value: &Value) -> Result<(), ApiError> {
    let name = metadata::name(value);
    if name.is_empty() {
        return Err(ApiError::bad_request(
            "name must be provided in the object's metadata of an update",
        ));
    }
    if name == cx.info.name {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({})",
        cx.info.name
    )))
}

/// Changes the object that the request names: `make` gives the new value for the current one, both
/// with packed managed fields.
///
/// # Errors
/// What the client gets to see.
pub async fn modify_value(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    change: &Change<'_>,
    make: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Changed, ApiError> {
    let key = key_of(kind, &cx.info.namespace, &cx.info.name);
    let mut state = State::known(api);
    for attempt in 1..=ATTEMPTS {
        let seen = (&key, state.view(), attempt);
        match try_modify(api, cx, kind, change, seen, &make).await? {
            Tried::Done(changed) => return Ok(changed),
            Tried::Seen(answer) => {
                let seen = state.revision_of(&key);
                state.freshen(api).await?;
                if state.revision_of(&key) == seen {
                    return answer;
                }
            }
            Tried::Changed => state.freshen(api).await?,
        }
    }
    Err(ApiError::modified(&kind.group, &kind.plural, &key.name))
}

/// The state that a write begins with: what this member has applied, which is good enough if the
/// write then finds it unchanged. An answer that writes nothing needs one that is as new as any
/// that was ever answered.
pub struct State {
    view: View,
    fresh: bool,
}

impl State {
    /// What is known here.
    pub fn known(api: &ApiServer) -> Self {
        State { view: api.storage.view(), fresh: false }
    }

    /// The state.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// When an object in it was last changed; None if there is none.
    fn revision_of(&self, key: &Key) -> Option<u64> {
        self.view.get(key).map(|object| object.revision)
    }

    /// Whether an answer may rest on it alone.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Brings it up to date.
    ///
    /// # Errors
    /// 503 without a leader.
    pub async fn freshen(&mut self, api: &ApiServer) -> Result<(), ApiError> {
        self.view = api.storage.fresh_view().await?;
        self.fresh = true;
        Ok(())
    }
}

/// What came of one attempt at a change.
enum Tried {
    /// It is written.
    Done(Changed),
    /// Nothing needs to be or can be written, judging by the state that was given.
    Seen(Result<Changed, ApiError>),
    /// The state was not the last one.
    Changed,
}

async fn try_modify(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    change: &Change<'_>,
    (key, view, attempt): (&Key, &View, usize),
    make: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Tried, ApiError> {
    let decide = || {
        let current = view
            .get(key)
            .ok_or_else(|| ApiError::not_found(&kind.group, &kind.plural, &cx.info.name))?;
        let old = packed_of(kind, &current)?;
        let new = make(&old)?;
        check_lock(kind, key, &current, &new)?;
        let prepared = prepare(api, cx, kind, change, new, &old, attempt)?;
        Ok((current, prepared))
    };
    let (current, prepared) = match decide() {
        Ok(decided) => decided,
        Err(error) => return Ok(Tried::Seen(Err(error))),
    };
    if change.dry {
        let mut value = with_revision(prepared.value, current.revision);
        managed::unpack(&mut value);
        return Ok(Tried::Seen(Ok(Changed::Dry(value))));
    }
    if is_released(kind, &prepared.value) {
        let removed = remove(api, cx, key, current.revision).await?;
        return Ok(removed.map_or(Tried::Changed, |o| Tried::Done(Changed::Removed(o))));
    }
    let new = encode(api, kind, &prepared.value, cx.now)?;
    if is_unchanged(&current, &new) {
        return Ok(Tried::Seen(Ok(Changed::Kept(current))));
    }
    let mut preconditions = vec![Precondition::RevisionIs(key.clone(), current.revision)];
    preconditions.extend(prepared.wanted);
    let writes = vec![Write::Put(key.clone(), new)];
    match api.storage.propose(cx.term, preconditions, writes).await? {
        Settled::Applied(objects) => {
            let object = objects.into_iter().next().flatten();
            let object = object.ok_or_else(|| ApiError::internal("nothing was written"))?;
            Ok(Tried::Done(Changed::Kept(object)))
        }
        // A client that insists on its revision is refused by the look at it in the next round.
        Settled::Refused { .. } => Ok(Tried::Changed),
    }
}

/// Whether a put would change nothing; the expiry of an event alone is no change.
fn is_unchanged(current: &Object, new: &rkube_store::NewObject) -> bool {
    let (before, after) = current.unspliced();
    let (new_before, new_after) = new.json.split_at(new.splice_at as usize);
    current.splice_at == new.splice_at && before == new_before && after == new_after
}

/// Holds uid and revision of the new value against the current object. A patch that names no
/// revision carries the current one along.
fn check_lock(kind: &Kind, key: &Key, current: &Object, new: &Value) -> Result<(), ApiError> {
    let uid = new["metadata"]["uid"].as_str().unwrap_or("");
    if !uid.is_empty() && uid != &*current.header.uid {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            current.header.uid
        );
        return Err(ApiError::conflict(&kind.group, &kind.plural, &key.name, why));
    }
    let asked = new["metadata"]["resourceVersion"].as_str().unwrap_or("");
    match asked.parse::<u64>() {
        _ if asked.is_empty() => Ok(()),
        Ok(revision) if revision == current.revision => Ok(()),
        Ok(_) => Err(ApiError::modified(&kind.group, &kind.plural, &key.name)),
        Err(_) => Err(ApiError::bad_request(format!(
            "metadata.resourceVersion: Invalid value: {asked:?}: must be an unsigned integer"
        ))),
    }
}

struct Prepared {
    value: Value,
    wanted: Vec<Precondition>,
}

fn prepare(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    change: &Change<'_>,
    mut new: Value,
    old: &Value,
    attempt: usize,
) -> Result<Prepared, ApiError> {
    let id = codec::type_of(api.schema, kind)?;
    metadata::set_namespace(kind, &mut new, &cx.info.namespace)?;
    if !change.trusted {
        schema::apply_defaults(api.schema, id, &mut new);
        kind.strategy.default(&mut new);
    }
    metadata::prepare_update(&mut new, old);
    if !change.trusted {
        kind.strategy.prepare_update(change.target, &mut new, old);
        bump_generation(kind, &mut new, old);
    }
    admission::node_restriction(cx, kind, &new, Some(old))?;
    let wanted = admission::mutate_update(api, kind, &mut new, old, attempt)?;
    let faults = match change.trusted {
        true => Vec::new(),
        false => kind.strategy.validate_update(change.target, &new, old),
    };
    if !faults.is_empty() {
        let name = metadata::name(&new);
        return Err(ApiError::invalid(&kind.group, &kind.kind, name, &faults));
    }
    if !change.managed {
        let (manager, api_version) = (cx.field_manager(), kind.api_version());
        let writer = Writer {
            manager: &manager,
            api_version: &api_version,
            subresource: change.subresource,
            now: cx.now,
        };
        track_update(api.schema, id, Some(old), &mut new, &writer);
    }
    cx.warn(kind.strategy.warnings(&new));
    Ok(Prepared { value: new, wanted })
}

/// Whether nothing holds a terminating object any more.
pub fn is_released(kind: &Kind, value: &Value) -> bool {
    let metadata = &value["metadata"];
    let held_by_spec = kind.plural == "namespaces"
        && value["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && metadata::finalizers(value).is_empty()
        && !held_by_spec
}

/// Removes an object at a revision; None if it has changed.
pub async fn remove(
    api: &ApiServer,
    cx: &Cx,
    key: &Key,
    revision: u64,
) -> Result<Option<Arc<Object>>, ApiError> {
    let preconditions = vec![Precondition::RevisionIs(key.clone(), revision)];
    match api.storage.propose(cx.term, preconditions, vec![Write::Delete(key.clone())]).await? {
        Settled::Applied(objects) => Ok(objects.into_iter().next().flatten()),
        Settled::Refused { .. } => Ok(None),
    }
}

fn with_revision(mut value: Value, revision: u64) -> Value {
    metadata::of(&mut value).insert("resourceVersion".into(), revision.to_string().into());
    value
}

/// Answers a PUT of a namespace's `/finalize`: only `spec.finalizers` is taken.
///
/// # Errors
/// What the client gets to see.
pub async fn finalize(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let dry = cx.dry_run("UpdateOptions")?;
    let sent = decode_object(api, cx, kind, body, "UpdateOptions")?;
    check_names(cx, &sent)?;
    let finalizers = sent["spec"]["finalizers"].clone();
    let revision = sent["metadata"]["resourceVersion"].clone();
    let key = key_of(kind, "", &cx.info.name);
    for _ in 0..ATTEMPTS {
        let view = api.storage.fresh_view().await?;
        let current =
            view.get(&key).ok_or_else(|| ApiError::not_found("", "namespaces", &cx.info.name))?;
        let asked = revision.as_str().unwrap_or("");
        if !asked.is_empty() && asked != current.revision.to_string() {
            return Err(ApiError::modified("", "namespaces", &cx.info.name));
        }
        let mut value = value_of(kind, &current)?;
        if finalizers.as_array().is_some_and(|f| !f.is_empty()) {
            value["spec"]["finalizers"] = finalizers.clone();
        } else if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("finalizers");
        }
        if dry {
            return respond_value(api, cx, kind, StatusCode::OK, &value);
        }
        let object = if is_released(kind, &value) {
            remove(api, cx, &key, current.revision).await?
        } else {
            store_at(api, cx, kind, &key, &value, current.revision).await?
        };
        if let Some(object) = object {
            return respond(api, cx, kind, StatusCode::OK, &object);
        }
    }
    Err(ApiError::new(Reason::Conflict, "the namespace keeps changing"))
}

/// Writes a value at a revision; None if the object has changed.
pub async fn store_at(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    key: &Key,
    value: &Value,
    revision: u64,
) -> Result<Option<Arc<Object>>, ApiError> {
    let new = encode(api, kind, value, cx.now)?;
    let preconditions = vec![Precondition::RevisionIs(key.clone(), revision)];
    let writes = vec![Write::Put(key.clone(), new)];
    match api.storage.propose(cx.term, preconditions, writes).await? {
        Settled::Applied(objects) => Ok(objects.into_iter().next().flatten()),
        Settled::Refused { .. } => Ok(None),
    }
}
