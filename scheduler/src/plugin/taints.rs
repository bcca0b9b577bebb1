//! Taints and tolerations.

use crate::pod::PodInfo;
use crate::reason::Reason;
use crate::snapshot::NodeState;
use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Refuses a node with a taint `NoSchedule` or `NoExecute` that the pod does not bear.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    let untolerated =
        |t: &&Taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, t));
    match node.taints.iter().filter(hard).find(untolerated) {
        Some(taint) => Err(Reason::Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
        }),
        None => Ok(()),
    }
}

/// Minus the number of taints `PreferNoSchedule` that the pod does not bear.
pub fn score(pod: &PodInfo, node: &NodeState) -> i64 {
    let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    let untolerated =
        soft.filter(|t| !pod.tolerations.iter().any(|toleration| tolerates(toleration, t)));
    -(untolerated.count() as i64)
}

/// Whether a toleration bears a taint. No effect means all; `Exists` without a key means all keys.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |s: &'_ Option<String>| s.as_deref().is_some_and(|s| !s.is_empty());
    if set(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    if set(&toleration.key) && toleration.key.as_deref() != Some(&taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            let value = |v: &Option<String>| v.clone().unwrap_or_default();
            set(&toleration.key) && value(&toleration.value) == value(&taint.value)
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn tolerations() {
        for (toleration, expected) in [
            (json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"key": "k"}), false),
            (json!({"operator": "Odd", "key": "k"}), false),
        ] as [(Value, bool); 9]
        {
            let taint = Taint {
                key: "k".into(),
                value: Some("v".into()),
                effect: "NoSchedule".into(),
                ..Taint::default()
            };
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&parsed, &taint), expected, "{toleration}");
        }
    }
}
