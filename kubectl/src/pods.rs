//! The pod that is meant by `POD`, `TYPE/NAME` or a selector, and the container in it.

use crate::client::escape;
use crate::context::Context;
use crate::describe::{list, selector_text, text};
use crate::error::{Error, Result};
use crate::resource::{self, Info};
use serde_json::Value;
use std::cmp::Reverse;

/// Names the container that verbs take if none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The pods behind a name: the pod itself, or those that a workload or service selects, best first.
pub async fn behind(ctx: &Context, typed: &str) -> Result<Vec<Info>> {
    let (kind, name) = typed.split_once('/').unwrap_or(("pods", typed));
    let resource = ctx.resource(kind).await?;
    let mut info = resource::bare(ctx, resource, name).await?;
    info.object = ctx
        .http()
        .await?
        .get(&info.path())
        .await
        .map_err(|e| resource::no_such_type(e, &info.resource))?;
    if info.resource.plural == "pods" && info.resource.group.is_empty() {
        return Ok(vec![info]);
    }
    let selector = selector_of(&info)?;
    let mut pods = selected(ctx, &selector, false).await?;
    if pods.is_empty() {
        return Err(Error::msg(format!(
            "no pods found for {}/{name}: nothing matches its selector {selector}",
            info.resource.plural
        )));
    }
    pods.sort_by_key(|p| rank(&p.object));
    Ok(pods)
}

/// All pods that a label selector selects.
pub async fn selected(ctx: &Context, selector: &str, all_namespaces: bool) -> Result<Vec<Info>> {
    let pods = ctx.resource("pods").await?;
    let namespace = ctx.namespace().await?;
    let scope = (!all_namespaces).then_some(namespace.as_str());
    let path = format!("{}?labelSelector={}", pods.collection(scope), escape(selector));
    let mut answer = ctx.http().await?.get(&path).await?;
    match answer["items"].take() {
        Value::Array(items) => {
            Ok(items.into_iter().map(|i| resource::from_item(&pods, i)).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// The label selector of a workload or service.
pub fn selector_of(info: &Info) -> Result<String> {
    let selector = &info.object["spec"]["selector"];
    let labels = selector["matchLabels"].is_object() || selector["matchExpressions"].is_array();
    if labels {
        return Ok(selector_text(selector));
    }
    if selector.as_object().is_some_and(|m| !m.is_empty()) {
        return Ok(crate::printers::table::labels_text(selector));
    }
    Err(Error::msg(format!("cannot attach to {}: it selects no pods", info.shown())))
}

/// Running and ready pods first, then the oldest.
fn rank(pod: &Value) -> (Reverse<bool>, Reverse<bool>, String, String) {
    let ready = list(&pod["status"]["conditions"])
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let running = pod["status"]["phase"] == "Running";
    let metadata = &pod["metadata"];
    let own = |field: &str| text(&metadata[field]).to_owned();
    (Reverse(running), Reverse(ready), own("creationTimestamp"), own("name"))
}

/// The names of a pod's containers.
pub fn containers(pod: &Value, with_init: bool) -> Vec<String> {
    let names = |field: &str| -> Vec<String> {
        list(&pod["spec"][field]).iter().map(|c| text(&c["name"]).to_owned()).collect()
    };
    let mut all = if with_init { names("initContainers") } else { Vec::new() };
    all.extend(names("containers"));
    if with_init {
        all.extend(names("ephemeralContainers"));
    }
    all
}

/// The container that is meant; says so on stderr if it had to choose.
pub fn container(ctx: &Context, pod: &Info, wanted: Option<&str>, quiet: bool) -> Result<String> {
    let all = containers(&pod.object, true);
    if let Some(wanted) = wanted {
        if all.iter().any(|c| c == wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(Error::msg(format!("container {wanted} not found in pod {}", pod.name)));
    }
    let named = text(&pod.object["metadata"]["annotations"][DEFAULT_CONTAINER]);
    if all.iter().any(|c| c == named) {
        return Ok(named.to_owned());
    }
    let first = containers(&pod.object, false).into_iter().next().unwrap_or_default();
    if all.len() > 1 && !quiet {
        let init = containers(&pod.object, false).len();
        let shown: Vec<String> = containers(&pod.object, false)
            .into_iter()
            .chain(all.iter().take(all.len() - init).map(|c| format!("{c} (init)")))
            .collect();
        ctx.io.note(format!("Defaulted container {first:?} out of: {}", shown.join(", ")));
    }
    Ok(first)
}
