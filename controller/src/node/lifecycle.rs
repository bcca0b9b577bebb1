//! What to do about a node's health.

use super::taint::{condition, eviction, wanted};
use crate::common::{is_ready, is_terminal, pod_condition, seconds};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use rkube_runtime::{Plan, Reconcile};
use std::{sync::Arc, time::Duration};

/// A node and its pods.
#[derive(Clone, Debug)]
pub struct View {
    /// The node.
    pub node: Arc<Node>,
    /// When its lease or status was last seen to change, by this process' clock.
    pub heard: Timestamp,
    /// The pods on it.
    pub pods: Vec<Arc<Pod>>,
    /// Whether any node of the cluster is Ready. If none is, the fault is likely here, and driving
    /// pods away would help nobody.
    pub any_ready: bool,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write these conditions; others stay.
    PatchConditions(Vec<NodeCondition>),
    /// Replace the node's taints, as far as nobody else has changed the node.
    PatchTaints(Vec<Taint>),
    /// The pod no longer serves.
    MarkNotReady(Arc<Pod>),
    /// Delete the pod for the node's taints.
    Evict(Arc<Pod>),
    /// Tell users that the node is not ready.
    TellNotReady,
}

/// The rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// A node not heard of for this long is NotReady.
    pub grace_period: Duration,
    /// Look again after this long at the latest.
    pub period: Duration,
}

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan<Action> {
        let mut plan = Plan::none();
        let silent_at = view.heard.saturating_add(self.grace_period).unwrap_or(Timestamp::MAX);
        let silent = silent_at <= now;
        if !silent {
            plan.recheck_at(silent_at, now);
        }
        let posted = condition(&view.node, "Ready");
        if silent && posted != "Unknown" {
            plan.push(Action::PatchConditions(unknown(&view.node, now)));
            plan.push(Action::TellNotReady);
        }
        let ready = if silent { "Unknown" } else { posted };
        let taints = wanted(&view.node, ready, view.any_ready, now);
        plan.actions.extend(taints.map(Action::PatchTaints));
        if ready != "True" {
            let stale = view.pods.iter().filter(|pod| is_stale(pod, &view.node, silent));
            plan.actions.extend(stale.cloned().map(Action::MarkNotReady));
            plan.recheck(self.period);
        }
        if view.any_ready {
            evict(&mut plan, view, now);
        }
        plan
    }
}

const NEVER: (&str, &str) = ("NodeStatusNeverUpdated", "Kubelet never posted node status.");
const STOPPED: (&str, &str) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");

/// The conditions that only the kubelet can know, now unknown.
fn unknown(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let kinds = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    let changed = |kind: &&str| condition(node, kind) != "Unknown";
    kinds
        .into_iter()
        .filter(changed)
        .map(|kind| {
            let old = conditions.iter().find(|c| c.type_ == kind);
            let (reason, message) = if old.is_some() { STOPPED } else { NEVER };
            let heartbeat = old.and_then(|c| c.last_heartbeat_time.clone());
            NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: heartbeat.or_else(|| node.metadata.creation_timestamp.clone()),
                last_transition_time: Some(seconds(now)),
            }
        })
        .collect()
}

/// Whether a pod's readiness is from before its node became unwell. A kubelet that still speaks may
/// have said so again since.
fn is_stale(pod: &Pod, node: &Node, silent: bool) -> bool {
    if !is_ready(pod) || is_terminal(pod) {
        return false;
    }
    let since = |at: &Option<_>| {
        at.clone().map(|t: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0)
    };
    let of_pod = pod_condition(pod, "Ready").and_then(|c| since(&c.last_transition_time));
    silent || of_pod < unwell_since(node)
}

fn unwell_since(node: &Node) -> Option<Timestamp> {
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.find(|c| c.type_ == "Ready")?;
    ready.last_transition_time.as_ref().map(|t| t.0)
}

/// Deletes the pods whose time on a tainted node is over.
fn evict(plan: &mut Plan<Action>, view: &View, now: Timestamp) {
    let taints = view.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let since = unwell_since(&view.node).unwrap_or(view.heard);
    for pod in &view.pods {
        if pod.metadata.deletion_timestamp.is_some() || is_terminal(pod) {
            continue;
        }
        match eviction(pod, taints, since) {
            Some(at) if at <= now => plan.push(Action::Evict(pod.clone())),
            Some(at) => plan.recheck_at(at, now),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use serde_json::json;

    const RULE: Rule =
        Rule { grace_period: Duration::from_secs(50), period: Duration::from_secs(5) };

    fn node(ready: &str, taints: serde_json::Value) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": "n1"},
            "spec": {"taints": taints},
            "status": {"conditions": [{
                "type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:01:00Z",
            }]},
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(ready_since: &str) -> Arc<Pod> {
        let toleration = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 300});
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [], "tolerations": [toleration]},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": ready_since},
            ]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn view(node: Arc<Node>, heard: i64) -> View {
        View { node, heard: at(heard), pods: vec![pod("1970-01-01T00:00:30Z")], any_ready: true }
    }

    fn secs(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn a_node_is_given_its_grace_period_and_not_a_second_more() {
        let view = view(node("True", json!([])), 1000);
        assert_eq!(
            RULE.reconcile(&view, at(1001)),
            Plan { actions: vec![], recheck_after: secs(49) }
        );
        assert_eq!(
            RULE.reconcile(&view, at(1049)),
            Plan { actions: vec![], recheck_after: secs(1) }
        );
        let plan = RULE.reconcile(&view, at(1050));
        let [Action::PatchConditions(c), Action::TellNotReady, Action::PatchTaints(t), mark] =
            &plan.actions[..]
        else {
            panic!("{:?}", plan.actions)
        };
        assert_eq!(c.len(), 4);
        assert_eq!((c[0].type_.as_str(), c[0].status.as_str()), ("Ready", "Unknown"));
        assert_eq!(c[0].message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(c[1].message.as_deref(), Some("Kubelet never posted node status."));
        assert_eq!(
            t.iter().map(|t| t.effect.as_str()).collect::<Vec<_>>(),
            ["NoSchedule", "NoExecute"]
        );
        assert_eq!(*mark, Action::MarkNotReady(view.pods[0].clone()));
    }

    #[test]
    fn pods_leave_when_their_toleration_is_used_up_unless_no_node_is_ready() {
        let taint = json!([
            {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "1970-01-01T00:18:20Z"},
        ]);
        let mut view = view(node("Unknown", taint), 1000);
        let marked = Action::MarkNotReady(view.pods[0].clone());
        let plan = RULE.reconcile(&view, at(1397));
        assert_eq!(plan, Plan { actions: vec![marked.clone()], recheck_after: secs(3) });
        let evict = Action::Evict(view.pods[0].clone());
        assert_eq!(RULE.reconcile(&view, at(1400)).actions, [marked.clone(), evict]);
        view.any_ready = false;
        assert_eq!(RULE.reconcile(&view, at(1400)).actions, [marked]);
    }

    #[test]
    fn a_kubelet_that_still_speaks_has_the_last_word_on_its_pods() {
        let mut view = view(node("False", json!([])), 1000);
        let marks = |view: &View| {
            let actions = RULE.reconcile(view, at(1001)).actions;
            actions.into_iter().filter(|a| matches!(a, Action::MarkNotReady(_))).count()
        };
        assert_eq!(marks(&view), 1);
        view.pods = vec![pod("1970-01-01T00:02:00Z")];
        assert_eq!(marks(&view), 0);
    }
}
