//! Deletion: at once, after a grace period, or once every finalizer is gone.

use super::metadata;
use super::object::{key_of, respond, respond_value, value_of};
use super::options::{ListOptions, Selection};
use super::update::{State, is_released, remove, store_at};
use crate::admission;
use crate::body::Body;
use crate::codec;
use crate::context::{Cx, check_dry_run, invalid_option};
use crate::negotiate;
use crate::response;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use rkube_api::registry::Kind;
use rkube_api::schema::FieldValidation;
use rkube_api::{ApiError, FieldError};
use rkube_store::{Key, Object};
use serde_json::{Value, json};
use std::sync::Arc;

const ATTEMPTS: usize = 10;
/// The default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: i64 = 30;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// How an object is to be deleted.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// Seconds; the object's own if None.
    pub grace_seconds: Option<i64>,
    /// What becomes of dependents; background if None.
    pub propagation: Option<String>,
    /// The uid it must have.
    pub uid: Option<String>,
    /// The revision it must have.
    pub revision: Option<String>,
    /// Nothing is kept.
    pub dry: bool,
}

impl Deletion {
    /// From the body, or from the query where there is none.
    ///
    /// # Errors
    /// 400 and 422 for what can't be read.
    pub fn parse(api: &ApiServer, cx: &Cx, body: &Bytes) -> Result<Self, ApiError> {
        let options = if body.is_empty() { Value::Null } else { options_in(api, cx, body)? };
        let query = &cx.query;
        let text =
            |name: &str| options[name].as_str().or_else(|| query.text(name)).map(str::to_owned);
        let listed = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let dry = check_dry_run(listed, "DeleteOptions")? || cx.dry_run("DeleteOptions")?;
        let orphan = options["orphanDependents"].as_bool().or(query.flag("orphanDependents")?);
        let deletion = Deletion {
            grace_seconds: match options["gracePeriodSeconds"].as_i64() {
                Some(seconds) => Some(seconds),
                None => query.number("gracePeriodSeconds")?,
            },
            propagation: text("propagationPolicy")
                .or_else(|| orphan.map(|o| if o { "Orphan".into() } else { "Background".into() })),
            uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
            revision: options["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
            dry,
        };
        deletion.check()?;
        Ok(deletion)
    }

    fn check(&self) -> Result<(), ApiError> {
        let policy = self.propagation.as_deref().unwrap_or("Background");
        if !matches!(policy, "Background" | "Foreground" | "Orphan") {
            return Err(invalid_option(
                "DeleteOptions",
                FieldError::NotSupported {
                    path: "propagationPolicy".into(),
                    value: policy.into(),
                    supported: ["Foreground", "Background", "Orphan", "nil"]
                        .map(String::from)
                        .into(),
                },
            ));
        }
        if self.grace_seconds.is_some_and(|s| s < 0) {
            return Err(invalid_option(
                "DeleteOptions",
                FieldError::Invalid {
                    path: "gracePeriodSeconds".into(),
                    value: json!(self.grace_seconds),
                    detail: "must be greater than or equal to 0".into(),
                },
            ));
        }
        Ok(())
    }

    /// Holds an object against the preconditions.
    ///
    /// # Errors
    /// 409 if one does not hold.
    pub fn check_preconditions(&self, kind: &Kind, object: &Object) -> Result<(), ApiError> {
        let conflict =
            |why: String| Err(ApiError::conflict(&kind.group, &kind.kind, &object.key.name, why));
        if let Some(uid) = self.uid.as_deref().filter(|uid| **uid != *object.header.uid) {
            return conflict(format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                object.header.uid
            ));
        }
        let revision = object.revision.to_string();
        if let Some(asked) = self.revision.as_deref().filter(|r| *r != revision) {
            return conflict(format!(
                "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
            ));
        }
        Ok(())
    }
}

fn options_in(api: &ApiServer, cx: &Cx, body: &Bytes) -> Result<Value, ApiError> {
    let encoding = negotiate::content_encoding(Some(cx.header(header::CONTENT_TYPE)))?;
    let id = codec::type_named(api.schema, "meta.v1.DeleteOptions")?;
    Ok(codec::decode(api.schema, id, encoding, body, FieldValidation::Ignore)?.value)
}

/// What came of a deletion.
pub enum Deleted {
    /// It is gone.
    Gone(Arc<Object>),
    /// It is on its way.
    Terminating(Arc<Object>),
    /// It would be.
    Dry(Value),
}

/// Answers a DELETE of one object.
///
/// # Errors
/// What the client gets to see.
pub async fn delete(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let deletion = Deletion::parse(api, cx, body)?;
    let key = key_of(kind, &cx.info.namespace, &cx.info.name);
    let deleted = delete_key(api, cx, kind, &key, &deletion)
        .await?
        .ok_or_else(|| ApiError::not_found(&kind.group, &kind.plural, &cx.info.name))?;
    match deleted {
        // As upstream: pods, services and the like are given back, of others only the name.
        Deleted::Gone(object)
            if matches!(kind.plural.as_str(), "pods" | "services" | "serviceaccounts") =>
        {
            respond(api, cx, kind, StatusCode::OK, &object)
        }
        Deleted::Gone(object) => {
            let status =
                response::deleted(&kind.group, &kind.plural, &object.key.name, &object.header.uid);
            Ok(response::encoded(StatusCode::OK, &status, cx.accepted.encoding))
        }
        Deleted::Terminating(object) => respond(api, cx, kind, StatusCode::OK, &object),
        Deleted::Dry(value) => respond_value(api, cx, kind, StatusCode::OK, &value),
    }
}

/// Deletes an object, or begins to; None if there is none.
///
/// # Errors
/// What the client gets to see.
pub async fn delete_key(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    key: &Key,
    deletion: &Deletion,
) -> Result<Option<Deleted>, ApiError> {
    admission::check_delete(kind, &key.name)?;
    let mut state = State::known(api);
    for _ in 0..ATTEMPTS {
        let current = state.view().get(key);
        let fits = current.as_ref().map_or(Ok(()), |o| deletion.check_preconditions(kind, o));
        let Some(current) = current.filter(|_| fits.is_ok() || state.is_fresh()) else {
            if state.is_fresh() {
                return Ok(None);
            }
            state.freshen(api).await?;
            continue;
        };
        fits?;
        let mut value = value_of(kind, &current)?;
        let changed = mark(kind, &mut value, deletion, cx.now);
        if deletion.dry {
            return Ok(Some(Deleted::Dry(value)));
        }
        if is_released(kind, &value) {
            if let Some(object) = remove(api, cx, key, current.revision).await? {
                return Ok(Some(Deleted::Gone(object)));
            }
        } else if !changed && state.is_fresh() {
            return Ok(Some(Deleted::Terminating(current)));
        } else if changed
            && let Some(object) = store_at(api, cx, kind, key, &value, current.revision).await?
        {
            return Ok(Some(Deleted::Terminating(object)));
        }
        state.freshen(api).await?;
    }
    Err(ApiError::modified(&kind.group, &kind.plural, &key.name))
}

/// Writes into the object that it is going away; says whether that is news.
fn mark(kind: &Kind, value: &mut Value, deletion: &Deletion, now: Timestamp) -> bool {
    let grace = grace_seconds(kind, value, deletion);
    let before = value.clone();
    propagate(value, deletion.propagation.as_deref());
    let metadata = &value["metadata"];
    let terminating = metadata["deletionTimestamp"].is_string();
    let had = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if !terminating || grace < had {
        let at = now + SignedDuration::from_secs(grace);
        if kind.has_generation && !terminating {
            let generation = metadata["generation"].as_i64().unwrap_or(0) + 1;
            metadata::of(value).insert("generation".into(), generation.into());
        }
        let metadata = metadata::of(value);
        metadata.insert("deletionTimestamp".into(), metadata::time(at).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if kind.plural == "namespaces" {
            value["status"]["phase"] = "Terminating".into();
        }
    }
    *value != before
}

/// How long the object may take. Only a pod that is bound to a node and has not finished has
/// somebody who needs the time.
fn grace_seconds(kind: &Kind, value: &Value, deletion: &Deletion) -> i64 {
    if kind.plural != "pods" || !kind.group.is_empty() {
        return 0;
    }
    let spec = &value["spec"];
    let bound = spec["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    let finished = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || finished {
        return 0;
    }
    let own = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS);
    // As upstream: what the pod itself says to be below zero means one second.
    let own = if own < 0 { 1 } else { own };
    deletion.grace_seconds.unwrap_or(own)
}

/// Adds or removes the finalizers that stand for a propagation policy.
fn propagate(value: &mut Value, policy: Option<&str>) {
    let wanted = match policy {
        Some("Orphan") => Some(ORPHAN),
        Some("Foreground") => Some(FOREGROUND),
        Some(_) => None,
        // Without a word an earlier decision stands.
        None => return,
    };
    let had = metadata::finalizers(value);
    let mut list: Vec<String> = had
        .iter()
        .filter(|f| !matches!(**f, ORPHAN | FOREGROUND))
        .map(|f| (*f).to_owned())
        .collect();
    list.extend(wanted.map(str::to_owned));
    if list.len() == had.len() && list.iter().all(|f| had.contains(&f.as_str())) {
        return;
    }
    let metadata = metadata::of(value);
    if list.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(list));
    }
}

/// Answers a DELETE of a collection.
///
/// # Errors
/// What the client gets to see; objects before the faulty one are gone.
pub async fn delete_collection(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let deletion = Deletion::parse(api, cx, body)?;
    let options = ListOptions::parse(kind, cx, false)?;
    let selection: &Selection = &options.selection;
    let scope = selection.scope(kind, &cx.info.namespace, None);
    let view = api.storage.fresh_view().await?;
    let most = if options.limit == 0 { usize::MAX } else { options.limit };
    let objects: Vec<Arc<Object>> =
        view.range(&scope, None).filter(|o| selection.matches(kind, o)).take(most).collect();
    for object in &objects {
        delete_key(api, cx, kind, &object.key, &deletion).await?;
    }
    let mut items = Vec::with_capacity(objects.len());
    for object in &objects {
        items.push(value_of(kind, object)?);
    }
    let list = json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": api.storage.view().revision().to_string()}, "items": items,
    });
    Ok(response::json(StatusCode::OK, &list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec, "status": status})
    }

    #[test]
    fn only_a_bound_and_running_pod_has_grace() {
        let registry = rkube_api::registry::builtin();
        let pods = registry.resource("", "v1", "pods").unwrap();
        let maps = registry.resource("", "v1", "configmaps").unwrap();
        let plain = Deletion::default();
        let now = Deletion { grace_seconds: Some(0), ..Deletion::default() };
        let bound = pod(json!({"nodeName": "n", "terminationGracePeriodSeconds": 7}), json!({}));
        assert_eq!(grace_seconds(pods, &bound, &plain), 7);
        assert_eq!(grace_seconds(pods, &bound, &now), 0);
        assert_eq!(grace_seconds(pods, &pod(json!({}), json!({})), &plain), 0);
        let done = pod(json!({"nodeName": "n"}), json!({"phase": "Succeeded"}));
        assert_eq!(grace_seconds(pods, &done, &plain), 0);
        assert_eq!(grace_seconds(maps, &bound, &plain), 0);
    }

    #[test]
    fn marks_shorten_and_never_lengthen() {
        let registry = rkube_api::registry::builtin();
        let pods = registry.resource("", "v1", "pods").unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut value = pod(json!({"nodeName": "n"}), json!({}));
        assert!(mark(pods, &mut value, &Deletion::default(), now));
        assert_eq!(value["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        let longer = Deletion { grace_seconds: Some(60), ..Deletion::default() };
        assert!(!mark(pods, &mut value, &longer, now));
        let shorter = Deletion { grace_seconds: Some(5), ..Deletion::default() };
        assert!(mark(pods, &mut value, &shorter, now));
        assert_eq!(value["metadata"]["deletionGracePeriodSeconds"], 5);
    }

    #[test]
    fn policies_are_finalizers() {
        let mut value = json!({"metadata": {"finalizers": ["a.b/c"]}});
        propagate(&mut value, Some("Foreground"));
        assert_eq!(metadata::finalizers(&value), ["a.b/c", FOREGROUND]);
        propagate(&mut value, Some("Orphan"));
        assert_eq!(metadata::finalizers(&value), ["a.b/c", ORPHAN]);
        propagate(&mut value, None);
        assert_eq!(metadata::finalizers(&value), ["a.b/c", ORPHAN]);
        propagate(&mut value, Some("Background"));
        assert_eq!(metadata::finalizers(&value), ["a.b/c"]);
    }
}
