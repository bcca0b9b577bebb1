//! Which pods of a set go first when there are too many.

use crate::common::{annotation, is_ready, phase, pod_condition, uid};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{cmp::Reverse, collections::HashMap, sync::Arc};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The first `count` to delete: unassigned before assigned, pending before running, not ready before
/// ready, cheaper before dearer, doubled up on a node before alone, ready for a short time before
/// ready for long, more restarts before fewer, younger before older. `on_node` counts the pods per
/// node of this set and of the sets with the same owner.
pub(super) fn victims(
    pods: &[Arc<Pod>],
    on_node: &HashMap<String, usize>,
    count: usize,
) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<_> = pods.iter().map(|pod| (rank(pod, on_node), pod)).collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0));
    ranked.into_iter().take(count).map(|(_, pod)| pod.clone()).collect()
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    doubled_up: Reverse<usize>,
    ready_since: Reverse<Timestamp>,
    restarts: Reverse<i32>,
    created: Reverse<Timestamp>,
    uid: String,
}

fn rank(pod: &Pod, on_node: &HashMap<String, usize>) -> Rank {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    let ready = is_ready(pod);
    let since = pod_condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref());
    let created = pod.metadata.creation_timestamp.as_ref();
    Rank {
        assigned: !node.is_empty(),
        phase: match phase(pod) {
            "" | "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready,
        cost: annotation(&pod.metadata, DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0),
        doubled_up: Reverse(on_node.get(node).copied().unwrap_or(0)),
        ready_since: Reverse(since.filter(|_| ready).map_or(Timestamp::MAX, |t| t.0)),
        restarts: Reverse(restarts(pod)),
        created: Reverse(created.map_or(Timestamp::MAX, |t| t.0)),
        uid: uid(&pod.metadata).into(),
    }
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|s| s.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::{name, seconds};
    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};

    struct Of {
        node: &'static str,
        phase: &'static str,
        ready_since: Option<i64>,
        restarts: i32,
        created: i64,
        cost: &'static str,
    }

    const OF: Of = Of {
        node: "n1",
        phase: "Running",
        ready_since: Some(50),
        restarts: 0,
        created: 10,
        cost: "",
    };

    fn pod(name: &str, of: Of) -> Arc<Pod> {
        let at = |s| seconds(Timestamp::from_second(s).unwrap());
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.creation_timestamp = Some(at(of.created));
        if !of.cost.is_empty() {
            let cost = (DELETION_COST.into(), of.cost.into());
            pod.metadata.annotations = Some([cost].into());
        }
        let node = (!of.node.is_empty()).then(|| of.node.into());
        pod.spec = Some(PodSpec { node_name: node, ..Default::default() });
        let condition = PodCondition {
            type_: "Ready".into(),
            status: if of.ready_since.is_some() { "True" } else { "False" }.into(),
            last_transition_time: of.ready_since.map(at),
            ..Default::default()
        };
        let container = ContainerStatus { restart_count: of.restarts, ..Default::default() };
        pod.status = Some(PodStatus {
            phase: Some(of.phase.into()),
            conditions: Some(vec![condition]),
            container_statuses: Some(vec![container]),
            ..Default::default()
        });
        Arc::new(pod)
    }

    #[test]
    fn the_least_loss_goes_first() {
        let on_node = HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 3)]);
        let pods = [
            pod("plain", OF),
            pod("dear", Of { cost: "5", ..OF }),
            pod("younger", Of { created: 20, ..OF }),
            pod("restarted", Of { restarts: 3, ..OF }),
            pod("ready-later", Of { ready_since: Some(60), ..OF }),
            pod("doubled-up", Of { node: "n2", ..OF }),
            pod("cheap", Of { cost: "-1", ..OF }),
            pod("not-ready", Of { ready_since: None, ..OF }),
            pod("pending", Of { phase: "Pending", ready_since: None, ..OF }),
            pod("unassigned", Of { node: "", phase: "Pending", ready_since: None, ..OF }),
        ];
        let order = victims(&pods, &on_node, 10);
        let order: Vec<_> = order.iter().map(|p| name(&p.metadata)).collect();
        let expected = [
            "unassigned",
            "pending",
            "not-ready",
            "cheap",
            "doubled-up",
            "ready-later",
            "restarted",
            "younger",
            "plain",
            "dear",
        ];
        assert_eq!(order, expected);
    }
}
