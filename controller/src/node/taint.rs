//! Taints that follow from a node's conditions, and when they drive a pod away.

use crate::common::{after, spec_seconds};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that mean a NoSchedule taint while they are true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The status of a node's condition, empty if it has none.
pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> &'a str {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == kind).map(|c| c.status.as_str()).next().unwrap_or("")
}

/// The node's taints as its conditions want them, others left as they are; none if nothing changes.
/// `evict` says whether pods may be driven away.
pub(super) fn wanted(node: &Node, ready: &str, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut new: Vec<Taint> =
        old.iter().filter(|t| !is_ours(t) || keeps(t, node, ready, evict)).cloned().collect();
    for (key, effect) in keys(node, ready, evict) {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            let time_added = Some(crate::common::seconds(now));
            new.push(Taint { key: key.into(), effect: effect.into(), time_added, value: None });
        }
    }
    (old != new).then_some(new)
}

/// While no pods may be driven away a taint that does so stays if the node is still unwell.
fn keeps(taint: &Taint, node: &Node, ready: &str, evict: bool) -> bool {
    let evict = evict || taint.effect == "NoExecute";
    keys(node, ready, evict)
        .iter()
        .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
}

fn is_ours(taint: &Taint) -> bool {
    let of_health = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let of_pressure = PRESSURES.iter().any(|(_, key)| taint.key == *key);
    match taint.effect.as_str() {
        "NoSchedule" => of_health || of_pressure || taint.key == UNSCHEDULABLE,
        "NoExecute" => of_health,
        _ => false,
    }
}

fn keys(node: &Node, ready: &str, evict: bool) -> Vec<(&'static str, &'static str)> {
    let health = match ready {
        "True" => None,
        // A node that has not said yet is not ready, and nothing is driven away from it.
        "False" | "" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let mut keys = Vec::new();
    if let Some(key) = health {
        keys.push((key, "NoSchedule"));
        if evict && !ready.is_empty() {
            keys.push((key, "NoExecute"));
        }
    }
    let pressures = PRESSURES.iter().filter(|(kind, _)| condition(node, kind) == "True");
    keys.extend(pressures.map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        keys.push((UNSCHEDULABLE, "NoSchedule"));
    }
    keys
}

/// When a node's taints drive a pod away; none if it tolerates them for ever. A taint without a time
/// counts from `since`.
pub(super) fn eviction(pod: &Pod, taints: &[Taint], since: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let driving = taints.iter().filter(|t| t.effect == "NoExecute");
    driving.filter_map(|taint| leaves_at(tolerations, taint, since)).min()
}

fn leaves_at(tolerations: &[Toleration], taint: &Taint, since: Timestamp) -> Option<Timestamp> {
    let added = taint.time_added.as_ref().map_or(since, |t| t.0);
    let mut fitting = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
    if fitting.peek().is_none() {
        return Some(added);
    }
    let shortest = fitting.filter_map(|t| t.toleration_seconds).min()?;
    Some(after(added, spec_seconds(shortest.max(0))))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use serde_json::json;

    #[test]
    fn tolerations_decide_when_a_pod_leaves() {
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(crate::common::seconds(at(100))),
            value: None,
        };
        let exists = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let cases = [
            (json!([]), Some(100)),
            (json!([exists(UNREACHABLE, Some(300))]), Some(400)),
            (json!([exists(UNREACHABLE, Some(300)), exists(UNREACHABLE, Some(30))]), Some(130)),
            (json!([exists(UNREACHABLE, Some(-1))]), Some(100)),
            (json!([exists(UNREACHABLE, None)]), None),
            (json!([exists(NOT_READY, None)]), Some(100)),
            (json!([{"operator": "Exists"}]), None),
            (json!([{"key": UNREACHABLE, "value": "x"}]), Some(100)),
        ];
        for (tolerations, expected) in cases {
            let pod =
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let leaves = eviction(&pod, &[taint(UNREACHABLE)], at(0));
            assert_eq!(leaves, expected.map(at), "{tolerations}");
        }
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let node = |ready: &str, taints: serde_json::Value| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n1"},
                "spec": {"taints": taints, "unschedulable": true},
                "status": {"conditions": [
                    {"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "True"},
                ]},
            }))
            .unwrap()
        };
        let mine = json!({"key": "mine", "effect": "NoExecute"});
        let keys = |node: &Node, ready: &str, evict: bool| -> Vec<String> {
            let taints = wanted(node, ready, evict, at(5)).unwrap();
            taints
                .iter()
                .map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect))
                .collect()
        };
        let unknown = node("Unknown", json!([mine]));
        let rest = ["disk-pressure:NoSchedule", "unschedulable:NoSchedule"];
        let tainted = ["mine:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"];
        assert_eq!(keys(&unknown, "Unknown", true), [&tainted[..], &rest].concat());
        assert_eq!(keys(&unknown, "Unknown", false), [&tainted[..2], &rest].concat());
        let recovered = node("True", json!(wanted(&unknown, "Unknown", true, at(5))));
        assert_eq!(keys(&recovered, "True", true), [&tainted[..1], &rest].concat());
        let calm = node("True", json!(wanted(&recovered, "True", true, at(5))));
        assert_eq!(wanted(&calm, "True", true, at(6)), None);
    }
}
