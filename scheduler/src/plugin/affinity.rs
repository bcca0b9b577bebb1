//! Node selector and node affinity.

use crate::pod::PodInfo;
use crate::reason::Reason;
use crate::snapshot::NodeState;

/// Refuses a node without the labels of `nodeSelector`, or of which no required term holds.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    if matches(pod, node) { Ok(()) } else { Err(Reason::NodeAffinity) }
}

/// Whether selector and required affinity hold of the node.
pub fn matches(pod: &PodInfo, node: &NodeState) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    selected
        && pod
            .required_nodes
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

/// The sum of the weights of the preferred terms that hold.
pub fn score(pod: &PodInfo, node: &NodeState) -> i64 {
    let holding = pod.preferred_nodes.iter().filter(|(_, t)| t.matches(&node.name, &node.labels));
    holding.map(|(weight, _)| weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::info;
    use crate::snapshot::{Snapshot, tests as fixture};
    use serde_json::{Value, json};

    fn pod(spec: Value) -> std::sync::Arc<PodInfo> {
        let mut pod = fixture::pod("p", "1");
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        info(pod)
    }

    fn node_affinity(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    fn expression(key: &str, operator: &str, values: Value) -> Value {
        json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}])
    }

    #[test]
    fn required() {
        let mut s = Snapshot::default();
        let mut n = fixture::node("n", "1");
        n["metadata"]["labels"] = json!({"disk": "ssd", "cores": "16"});
        fixture::set(&mut s, n);
        let node = s.node("n").unwrap();
        for (spec, expected) in [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "ssd", "gpu": "x"}}), false),
            (node_affinity(expression("disk", "In", json!(["hdd", "ssd"]))), true),
            (node_affinity(expression("disk", "NotIn", json!(["ssd"]))), false),
            (node_affinity(expression("gpu", "DoesNotExist", json!([]))), true),
            (node_affinity(expression("gpu", "Exists", json!([]))), false),
            (node_affinity(expression("cores", "Gt", json!(["8"]))), true),
            (node_affinity(expression("cores", "Lt", json!(["8"]))), false),
            (node_affinity(expression("cores", "Odd", json!(["8"]))), false),
            (node_affinity(json!([{}])), false),
            (
                node_affinity(
                    json!([{}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]),
                ),
                true,
            ),
            (
                node_affinity(
                    json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
                ),
                true,
            ),
            (
                node_affinity(
                    json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]),
                ),
                false,
            ),
        ] {
            assert_eq!(filter(&pod(spec.clone()), node).is_ok(), expected, "{spec}");
        }
        let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 10, "preference": expression("disk", "In", json!(["ssd"]))[0]},
            {"weight": 5, "preference": expression("disk", "In", json!(["hdd"]))[0]}]}}});
        assert_eq!(score(&pod(preferred), node), 10);
    }
}
