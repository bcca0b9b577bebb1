//! Admission: what the server adds to an object or refuses, beyond the rules of its kind.
//!
//! Built in: a pod gets its service account, its tolerations and its priority; a Service gets its
//! addresses and ports; the first namespaces can't be deleted; a node writes its own things only.
//! That a namespace exists and is not going away is a precondition of the write itself.

mod nodes;
mod pods;
pub mod services;

pub use nodes::node_restriction;

use crate::context::Cx;
use crate::server::ApiServer;
use rkube_api::ApiError;
use rkube_api::registry::Kind;
use rkube_store::{Precondition, View};
use serde_json::Value;

/// The namespaces that every cluster has.
pub const FIRST_NAMESPACES: [&str; 4] =
    ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Completes a new object. The conditions under which that holds go into the write; `attempt`
/// counts from 1.
///
/// # Errors
/// Why the object is refused.
pub fn mutate_create(
    api: &ApiServer,
    view: &View,
    cx: &Cx,
    kind: &Kind,
    value: &mut Value,
    attempt: usize,
) -> Result<Vec<Precondition>, ApiError> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => {
            pods::complete(api.config(), value);
            pods::check_service_account(view, &cx.info.namespace, value)?;
            Ok(Vec::new())
        }
        ("", "services") => services::allocate(api.config(), view, value, None, attempt),
        _ => Ok(Vec::new()),
    }
}

/// Whether [`mutate_create`] gives something that somebody else may get first.
pub fn draws(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

/// Completes a changed object.
///
/// # Errors
/// Why the change is refused.
pub fn mutate_update(
    api: &ApiServer,
    kind: &Kind,
    value: &mut Value,
    old: &Value,
    attempt: usize,
) -> Result<Vec<Precondition>, ApiError> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "services") => {
            let view = api.storage.view();
            services::allocate(api.config(), &view, value, Some(old), attempt)
        }
        ("", "nodes") => Ok(nodes::range_conditions(value, old)),
        _ => Ok(Vec::new()),
    }
}

/// Refuses the deletion of what every cluster needs.
///
/// # Errors
/// 403 for one of the first namespaces.
pub fn check_delete(kind: &Kind, name: &str) -> Result<(), ApiError> {
    if kind.plural == "namespaces" && FIRST_NAMESPACES.contains(&name) {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}
