//! REST: from a parsed and authorized request to the kind's handler.

mod binding;
mod computed;
mod create;
mod delete;
mod eviction;
mod list;
mod metadata;
mod object;
mod options;
mod patch;
mod scale;
mod table;
mod update;
mod watch;

pub use create::create_value;
pub use object::key_of;

use object::value_of;

use crate::body::{self, Body, RequestBody};
use crate::context::Cx;
use crate::server::ApiServer;
use crate::{proxy, review};
use http::request::Parts;
use http::{Response, StatusCode};
use rkube_api::registry::{Kind, Target};
use rkube_api::{ApiError, Reason};
use std::sync::Arc;

/// 405, worded as upstream.
pub fn method_not_allowed() -> ApiError {
    ApiError::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

/// The verbs that are served of a subresource, among those that its kind declares.
pub fn served<'a>(kind: &Kind, subresource: &str, verbs: &'a [String]) -> Vec<&'a str> {
    let get_only = kind.plural == "nodes" && subresource == "proxy";
    let unserved = match subresource {
        "proxy" => kind.plural != "nodes",
        "ephemeralcontainers" | "resize" | "token" => true,
        _ => false,
    };
    let is_served = |verb: &&str| !unserved && (!get_only || *verb == "get");
    verbs.iter().map(String::as_str).filter(is_served).collect()
}

/// Answers a request for a resource.
///
/// # Errors
/// What the client gets to see.
pub async fn dispatch(
    api: &Arc<ApiServer>,
    cx: &Cx,
    parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let info = &cx.info;
    if let Some(entry) = review::find(info) {
        if info.verb != "create" {
            return Err(method_not_allowed());
        }
        let body = body::read(body).await?;
        return match entry.plural {
            "bindings" => binding::create(api, cx, None, &body).await,
            _ => review::answer(api, cx, entry, &body),
        };
    }
    let kind = api
        .registry
        .resource(&info.group, &info.version, &info.resource)
        .ok_or_else(ApiError::no_route)?;
    check_scope(kind, cx)?;
    check_verb(kind, cx)?;
    if !info.subresource.is_empty() {
        return subresource(api, cx, kind, parts, body).await;
    }
    match info.verb {
        "get" => get(api, cx, kind).await,
        "list" => list::list(api, cx, kind).await,
        "watch" => watch::watch(api, cx, kind).await,
        verb => {
            let body = body::read(body).await?;
            match verb {
                "create" => create::create(api, cx, kind, &body).await,
                "update" => update::put(api, cx, kind, Target::Main, &body).await,
                "patch" => patch::patch(api, cx, kind, Target::Main, &body).await,
                "delete" if kind.computed => computed::delete(api, cx, kind, &body).await,
                "delete" => delete::delete(api, cx, kind, &body).await,
                "deletecollection" => delete::delete_collection(api, cx, kind, &body).await,
                _ => Err(method_not_allowed()),
            }
        }
    }
}

/// A path must fit the kind's scope.
fn check_scope(kind: &Kind, cx: &Cx) -> Result<(), ApiError> {
    let info = &cx.info;
    let fits = if kind.namespaced {
        !info.namespace.is_empty() || matches!(info.verb, "list" | "watch") && !info.named
    } else {
        info.namespace.is_empty() || kind.plural == "namespaces" && info.namespace == info.name
    };
    match (fits, kind.namespaced && info.verb == "create") {
        (true, _) => Ok(()),
        (false, true) => Err(ApiError::bad_request("the request must name a namespace")),
        (false, false) => Err(ApiError::no_route()),
    }
}

fn check_verb(kind: &Kind, cx: &Cx) -> Result<(), ApiError> {
    let info = &cx.info;
    let verbs: Vec<&str> = if info.subresource.is_empty() {
        kind.verbs.iter().map(String::as_str).collect()
    } else {
        let sub = kind.subresource(&info.subresource).ok_or_else(ApiError::no_route)?;
        served(kind, &sub.name, &sub.verbs)
    };
    if verbs.is_empty() {
        return Err(ApiError::no_route());
    }
    let misplaced = match info.verb {
        "update" | "patch" => !info.named,
        "create" => info.named && info.subresource.is_empty(),
        _ => false,
    };
    if misplaced {
        return Err(method_not_allowed());
    }
    if verbs.contains(&info.verb) { Ok(()) } else { Err(method_not_allowed()) }
}

async fn subresource(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
    parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let info = &cx.info;
    match (info.resource.as_str(), info.subresource.as_str(), info.verb) {
        ("pods", "log" | "exec" | "attach" | "portforward", _) | ("nodes", "proxy", _) => {
            proxy::to_kubelet(api, cx, parts, body).await
        }
        (_, "status", "get") => get(api, cx, kind).await,
        (_, "scale", "get") => scale::get(api, cx, kind).await,
        (resource, sub, verb) => {
            let body = body::read(body).await?;
            match (resource, sub, verb) {
                (_, "status", "update") => update::put(api, cx, kind, Target::Status, &body).await,
                (_, "status", "patch") => patch::patch(api, cx, kind, Target::Status, &body).await,
                (_, "scale", "update") => scale::put(api, cx, kind, &body).await,
                (_, "scale", "patch") => scale::patch(api, cx, kind, &body).await,
                ("pods", "binding", "create") => {
                    binding::create(api, cx, Some(&info.name), &body).await
                }
                ("pods", "eviction", "create") => eviction::create(api, cx, &body).await,
                ("namespaces", "finalize", "update") => {
                    update::finalize(api, cx, kind, &body).await
                }
                _ => Err(ApiError::no_route()),
            }
        }
    }
}

/// Changes the object that the context names, as this server itself.
///
/// # Errors
/// As of any update.
pub async fn change_main(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    make: impl Fn(&serde_json::Value) -> Result<serde_json::Value, ApiError>,
) -> Result<(), ApiError> {
    let change = update::Change::plain(Target::Main, "", false);
    update::modify_value(api, cx, kind, &change, make).await.map(|_| ())
}

/// Deletes an object as this server itself; that it is gone already is no fault.
///
/// # Errors
/// As of any deletion.
pub async fn delete_plainly(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Kind,
    key: &rkube_store::Key,
) -> Result<(), ApiError> {
    delete::delete_key(api, cx, kind, key, &delete::Deletion::default()).await.map(|_| ())
}

async fn get(api: &Arc<ApiServer>, cx: &Cx, kind: &Arc<Kind>) -> Result<Response<Body>, ApiError> {
    if kind.computed {
        let object = computed::object(api, cx, kind).await?;
        return object::respond(api, cx, kind, StatusCode::OK, &object);
    }
    let view = options::view_for_read(api, cx).await?;
    let key = key_of(kind, &cx.info.namespace, &cx.info.name);
    let object = view
        .get(&key)
        .ok_or_else(|| ApiError::not_found(&kind.group, &kind.plural, &cx.info.name))?;
    object::respond(api, cx, kind, StatusCode::OK, &object)
}
