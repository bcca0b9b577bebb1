//! Binding: a pod gets its node, once.

use super::metadata;
use super::update::{Change, modify_value};
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::response;
use crate::rest::patch::body_encoding;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode};
use rkube_api::registry::Target;
use rkube_api::schema::{FieldValidation, decode::expect_kind};
use rkube_api::{ApiError, FieldError, GroupVersionKind};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a POST to `bindings` (`pod` is None) or to a pod's `binding`.
///
/// # Errors
/// 404 without the pod, 409 if it is bound or going away, 422 for a target that is no node.
pub async fn create(
    api: &Arc<ApiServer>,
    cx: &Cx,
    pod: Option<&str>,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let id = codec::type_named(api.schema, "core.v1.Binding")?;
    let mut binding =
        codec::decode(api.schema, id, body_encoding(cx)?, body, FieldValidation::Ignore)?.value;
    expect_kind(&mut binding, &GroupVersionKind::new("v1", "Binding"))?;
    let named = metadata::name(&binding);
    let name = pod.unwrap_or(named).to_owned();
    if !named.is_empty() && named != name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let node = target(&binding, &name)?;
    bind(api, cx, &name, &node, &binding).await?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(response::encoded(StatusCode::CREATED, &status, cx.accepted.encoding))
}

fn target(binding: &Value, name: &str) -> Result<String, ApiError> {
    let target = &binding["target"];
    let kind = target["kind"].as_str().unwrap_or("");
    let node = target["name"].as_str().unwrap_or("");
    let mut faults = Vec::new();
    if !matches!(kind, "" | "Node") {
        faults.push(FieldError::NotSupported {
            path: "target.kind".into(),
            value: kind.into(),
            supported: vec!["Node".into(), "<empty>".into()],
        });
    }
    if node.is_empty() {
        faults.push(FieldError::Required { path: "target.name".into(), detail: String::new() });
    }
    if faults.is_empty() {
        Ok(node.into())
    } else {
        Err(ApiError::invalid("", "Binding", name, &faults))
    }
}

async fn bind(
    api: &Arc<ApiServer>,
    cx: &Cx,
    name: &str,
    node: &str,
    binding: &Value,
) -> Result<(), ApiError> {
    let kind = api.registry.resource("", "v1", "pods").ok_or_else(ApiError::no_route)?;
    let mut info = cx.info.clone();
    info.name = name.into();
    let cx = Cx::new(info, cx.identity.clone(), cx.query.clone(), cx.headers.clone(), cx.now)?
        .in_term(cx.term);
    let dry = cx.dry_run("CreateOptions")?;
    let change = Change { trusted: true, ..Change::plain(Target::Main, "binding", dry) };
    let conflict = |why: String| ApiError::conflict("", "pods/binding", name, why);
    modify_value(api, &cx, kind, &change, |old| {
        if old["metadata"]["deletionTimestamp"].is_string() {
            return Err(conflict(format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            )));
        }
        let bound = old["spec"]["nodeName"].as_str().unwrap_or("");
        if !bound.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
        }
        let gates = old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
        if gates {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let uid = binding["metadata"]["uid"].as_str().unwrap_or("");
        let mut new = old.clone();
        if !uid.is_empty() {
            metadata::of(&mut new).insert("uid".into(), uid.into());
        }
        new["spec"]["nodeName"] = node.into();
        set_scheduled(&mut new, &metadata::time(cx.now));
        if carry_metadata(binding, &mut new) {
            let faults = kind.strategy.validate(&new);
            if !faults.is_empty() {
                return Err(ApiError::invalid("", "Pod", name, &faults));
            }
        }
        Ok(new)
    })
    .await?;
    Ok(())
}

/// Copies a binding's annotations and labels to the pod; whether there were any.
fn carry_metadata(binding: &Value, pod: &mut Value) -> bool {
    let mut any = false;
    for map in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][map].as_object().into_iter().flatten() {
            pod["metadata"][map][key] = value.clone();
            any = true;
        }
    }
    any
}

/// Sets the condition `PodScheduled`.
fn set_scheduled(pod: &mut Value, time: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time});
    if !pod["status"].is_object() {
        pod["status"] = json!({"phase": "Pending"});
    }
    let list = &mut pod["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(had) => *had = condition,
        None => list.push(condition),
    }
}
