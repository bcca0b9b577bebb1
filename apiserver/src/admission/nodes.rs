//! What a node may write: upstream's NodeRestriction.
//!
//! A node that was broken into must not be able to draw other nodes' work to itself or to hide:
//! it can't write about others, and of its own Node it can't change taints or the labels that
//! schedulers are meant to rely on.

use crate::context::Cx;
use rkube_api::ApiError;
use rkube_api::meta::metadata_str;
use rkube_api::registry::Kind;
use rkube_store::Precondition;
use serde_json::Value;

/// Labels below these domains that a kubelet may set.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "node.kubernetes.io/windows-build",
];

/// Holds a write by a node against what a node may write; everybody else passes.
///
/// # Errors
/// 403 with what is not allowed.
pub fn node_restriction(
    cx: &Cx,
    kind: &Kind,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let Some(node) = cx.identity.node_name() else { return Ok(()) };
    let name = metadata_str(new, "name");
    let forbidden = |why: String| Err(ApiError::forbidden(&kind.group, &kind.plural, name, why));
    let kind_key = (kind.group.as_str(), kind.plural.as_str());
    if matches!(kind_key, ("", "nodes") | ("coordination.k8s.io", "leases")) && name != node {
        return forbidden(format!("node {node:?} is not allowed to write about {name:?}"));
    }
    match kind_key {
        ("", "nodes") => match node_fault(new, old) {
            Some(why) => forbidden(format!("node {node:?} {why}")),
            None => Ok(()),
        },
        ("", "pods") => {
            // Who selects and who owns a pod is not for its node to say.
            let differs =
                |old: &Value, field: &str| old["metadata"][field] != new["metadata"][field];
            match old {
                Some(old) if differs(old, "labels") || differs(old, "ownerReferences") => {
                    forbidden(format!(
                        "node {node:?} is not allowed to change a pod's labels or owners"
                    ))
                }
                Some(_) => Ok(()),
                None => forbidden(format!("node {node:?} is not allowed to create pods")),
            }
        }
        _ => Ok(()),
    }
}

/// No two nodes may get the same range of pod addresses, whoever gives them out.
pub fn range_conditions(new: &Value, old: &Value) -> Vec<Precondition> {
    let range = new["spec"]["podCIDR"].as_str().unwrap_or("");
    if range.is_empty() || old["spec"]["podCIDR"] == range {
        return Vec::new();
    }
    let term = format!("podCIDR={range}").into();
    vec![Precondition::NoneIndexed { resource: "nodes".into(), term }]
}

fn node_fault(new: &Value, old: Option<&Value>) -> Option<String> {
    let none = Value::Null;
    let before = old.unwrap_or(&none);
    if old.is_some() && new["spec"]["taints"] != before["spec"]["taints"] {
        return Some("is not allowed to modify taints".into());
    }
    if new["metadata"]["ownerReferences"] != before["metadata"]["ownerReferences"] {
        return Some("is not allowed to set ownerReferences".into());
    }
    if !new["spec"]["configSource"].is_null() {
        return Some("is not allowed to set configSource".into());
    }
    let labels = |v: &'_ Value| v["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (now, had) = (labels(new), labels(before));
    let mut changed: Vec<&String> = now
        .keys()
        .chain(had.keys())
        .filter(|key| now.get(*key) != had.get(*key))
        .filter(|key| is_protected(key))
        .collect();
    changed.sort();
    changed.dedup();
    (!changed.is_empty()).then(|| {
        let list: Vec<&str> = changed.iter().map(|k| k.as_str()).collect();
        format!("is not allowed to modify labels: {}", list.join(", "))
    })
}

fn is_protected(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if below("node-restriction.kubernetes.io") {
        return true;
    }
    if OWN_LABELS.contains(&label)
        || below("kubelet.kubernetes.io")
        || domain == "node.kubernetes.io"
    {
        return false;
    }
    below("kubernetes.io") || below("k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(labels: Value, taints: Value) -> Value {
        json!({"metadata": {"name": "n", "labels": labels}, "spec": {"taints": taints}})
    }

    #[test]
    fn labels_and_taints() {
        let old = node(json!({"kubernetes.io/os": "linux"}), json!([]));
        let cases = [
            (json!({"kubernetes.io/os": "linux", "mine": "x"}), json!([]), true),
            (json!({"kubernetes.io/os": "windows"}), json!([]), true),
            (json!({"node-restriction.kubernetes.io/safe": "yes"}), json!([]), false),
            (json!({"node-role.kubernetes.io/control-plane": ""}), json!([]), false),
            (json!({}), json!([{"key": "a", "effect": "NoSchedule"}]), false),
        ];
        for (labels, taints, fine) in cases {
            let new = node(labels.clone(), taints);
            assert_eq!(node_fault(&new, Some(&old)).is_none(), fine, "{labels}");
        }
        let first = node(json!({}), json!([{"key": "a", "effect": "NoSchedule"}]));
        assert!(node_fault(&first, None).is_none());
    }
}
