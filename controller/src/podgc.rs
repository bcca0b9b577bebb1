//! Pods that nobody else ends: those of nodes that are gone, those that go away without ever having
//! had a node, and ended ones beyond a number.

use crate::{
    claim::unless_gone,
    common::{disrupted, is_terminal},
    context::Context,
};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use parking_lot::Mutex;
use rkube_runtime::{
    ActError, Change, ClientError, Controller, ObjectKey, Plan, Reconcile, Store, WorkQueue,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// Pods are looked through at this pace.
const PERIOD: Duration = Duration::from_secs(20);

/// All pods and nodes.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Every pod.
    pub pods: Vec<Arc<Pod>>,
    /// The nodes that are gone though pods name them, with when that was first seen.
    pub gone: HashMap<String, Timestamp>,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make sure that the node is gone, then remove its pod.
    RemoveOrphan(Arc<Pod>),
    /// Remove a pod that never ran, or one that has ended long ago.
    Remove(Arc<Pod>),
}

/// The rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// How many ended pods are kept.
    pub threshold: usize,
    /// How long a node must be gone.
    pub quarantine: Duration,
}

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan<Action> {
        let mut plan = Plan::none();
        plan.recheck(PERIOD);
        let mut ended = Vec::new();
        for pod in &view.pods {
            match node_of(pod) {
                None if pod.metadata.deletion_timestamp.is_some() => {
                    plan.push(Action::Remove(pod.clone()));
                }
                Some(node) if view.gone.contains_key(node) => {
                    let since = view.gone[node];
                    let due = since.saturating_add(self.quarantine).unwrap_or(Timestamp::MAX);
                    match due <= now {
                        true => plan.push(Action::RemoveOrphan(pod.clone())),
                        false => plan.recheck_at(due, now),
                    }
                }
                _ if is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() => {
                    ended.push(pod.clone());
                }
                _ => {}
            }
        }
        let surplus = ended.len().saturating_sub(self.threshold);
        ended.sort_by_key(|pod| {
            (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone())
        });
        plan.actions.extend(ended.into_iter().take(surplus).map(Action::Remove));
        plan
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

struct PodGc {
    ctx: Context,
    rule: Rule,
    pods: Store<Pod>,
    nodes: Store<Node>,
    gone: Mutex<HashMap<String, Timestamp>>,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("pod-garbage-collector", &ctx.metrics);
    let (pods, nodes) = (ctx.caches.store::<Pod>(), ctx.caches.store::<Node>());
    pods.wait_synced().await;
    nodes.wait_synced().await;
    queue
        .feed(&nodes, |change: &Change<Node>| if change.new.is_none() { vec![()] } else { vec![] });
    queue.add(());
    let rule = Rule {
        threshold: ctx.config.terminated_pod_gc_threshold,
        quarantine: ctx.config.gone_node_quarantine,
    };
    let controller = PodGc { ctx: ctx.clone(), rule, pods, nodes, gone: Mutex::default() };
    ctx.run(controller, queue, 1).await;
}

impl PodGc {
    /// Removes a pod at once: no kubelet is left to end it.
    async fn remove(&self, pod: &Pod, orphaned: bool) -> Result<(), ClientError> {
        let key = ObjectKey::of(&pod.metadata);
        if orphaned && !is_terminal(pod) {
            let reason = ("DeletionByPodGC", "PodGC: node no longer exists");
            let patch = disrupted(pod, reason, Some("Failed"), self.ctx.clock.now());
            unless_gone(self.ctx.client.patch_status::<Pod>(&key, patch).await)?;
        }
        let uid = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams::default().grace_period(0).preconditions(uid);
        unless_gone(self.ctx.client.delete::<Pod>(&key, &params).await)
    }
}

#[async_trait]
impl Controller for PodGc {
    type Key = ();
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn rule(&self) -> &Rule {
        &self.rule
    }

    fn view(&self, _key: &()) -> Option<View> {
        let (pods, now) = (self.pods.list(), self.ctx.clock.now());
        let named: HashSet<&str> = pods.iter().filter_map(|pod| node_of(pod)).collect();
        let missing = named.into_iter().filter(|node| self.nodes.named("", node).is_none());
        let mut gone = self.gone.lock();
        let since = missing.map(|n| (n.to_owned(), gone.get(n).copied().unwrap_or(now))).collect();
        *gone = since;
        Some(View { gone: gone.clone(), pods: pods.clone() })
    }

    async fn act(&self, _key: &(), _view: &View, action: Action) -> Result<(), ActError> {
        match action {
            Action::Remove(pod) => self.remove(&pod, false).await?,
            Action::RemoveOrphan(pod) => {
                let node = ObjectKey::cluster(node_of(&pod).unwrap_or_default());
                if self.ctx.client.get_live::<Node>(&node).await?.is_none() {
                    self.remove(&pod, true).await?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, deleted: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "deletionTimestamp": deleted.then_some("1970-01-01T00:00:01Z")},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn pods_without_a_keeper_are_removed() {
        let rule = Rule { threshold: 1, quarantine: Duration::from_secs(40) };
        let pods = vec![
            pod("fine", "n1", "Running", false),
            pod("orphan", "n2", "Running", false),
            pod("stuck", "n2", "Running", true),
            pod("unassigned", "", "Pending", true),
            pod("ended-b", "n1", "Succeeded", false),
            pod("ended-a", "n1", "Failed", false),
        ];
        let view = View { pods: pods.clone(), gone: HashMap::from([("n2".into(), at(100))]) };
        let (remove, ended) = (Action::Remove(pods[3].clone()), Action::Remove(pods[5].clone()));
        let early = rule.reconcile(&view, at(135));
        assert_eq!(early.actions, [remove.clone(), ended.clone()]);
        assert_eq!(early.recheck_after, Some(Duration::from_secs(5)));
        let orphan = |n: usize| Action::RemoveOrphan(pods[n].clone());
        assert_eq!(rule.reconcile(&view, at(140)).actions, [orphan(1), orphan(2), remove, ended]);
    }
}
