//! Feeds the lifecycle's rule from the caches and carries out what it says.

use super::{
    lifecycle::{Action, Rule, View},
    taint::condition,
};
use crate::{
    claim::unless_gone,
    common::{disrupted, name, seconds},
    context::Context,
};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::api::{DeleteParams, Patch, Preconditions};
use parking_lot::Mutex;
use rkube_runtime::{
    ActError, Change, ClientError, Controller, EventType, Index, ObjectKey, Recorder, Store,
    WorkQueue,
};
use serde_json::json;
use std::{collections::HashMap, sync::Arc};

/// Where the nodes' leases are.
const LEASES: &str = "kube-node-lease";

struct Nodes {
    ctx: Context,
    rule: Rule,
    nodes: Store<Node>,
    pods: Store<Pod>,
    leases: Store<Lease>,
    heard: Mutex<HashMap<String, (Sign, Timestamp)>>,
    events: Recorder,
}

/// What changes as long as a kubelet lives: its lease's renewal and its status' heartbeats.
#[derive(PartialEq)]
struct Sign {
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("node-lifecycle", &ctx.metrics);
    let (nodes, pods) = (ctx.caches.store::<Node>(), ctx.caches.store::<Pod>());
    let leases = ctx.caches.store::<Lease>();
    nodes.wait_synced().await;
    pods.wait_synced().await;
    leases.wait_synced().await;
    let all = nodes.clone();
    queue.feed(&nodes, move |change: &Change<Node>| concerned(&all, change));
    queue.feed(&leases, |change: &Change<Lease>| {
        let of_node = change.key.namespace == LEASES;
        of_node.then(|| change.key.name.clone()).into_iter().collect()
    });
    queue.feed(&pods, |change: &Change<Pod>| {
        let node = |pod: &Option<Arc<Pod>>| pod.as_ref()?.spec.as_ref()?.node_name.clone();
        let (old, new) = (node(&change.old), node(&change.new));
        new.filter(|new| old.as_ref() != Some(new)).into_iter().collect()
    });
    let rule = Rule {
        grace_period: ctx.config.node_monitor_grace_period,
        period: ctx.config.node_monitor_period,
    };
    let events = ctx.recorder("node-controller");
    let heard = Mutex::default();
    let controller = Nodes { ctx: ctx.clone(), rule, nodes, pods, leases, heard, events };
    ctx.run(controller, queue, 2).await;
}

/// Every node if whether any is ready at all may have changed, since that decides whether pods are
/// driven away; else the one that changed.
fn concerned(nodes: &Store<Node>, change: &Change<Node>) -> Vec<String> {
    let ready = |node: &Node| condition(node, "Ready") == "True";
    let was = change.old.as_ref().is_some_and(|node| ready(node));
    let is = change.new.as_ref().is_some_and(|node| ready(node));
    let all = nodes.list();
    let other = |node: &&Arc<Node>| node.metadata.name.as_deref() != Some(&change.key.name);
    if was == is || all.iter().filter(other).any(|node| ready(node)) {
        return vec![change.key.name.clone()];
    }
    all.iter().map(|node| name(&node.metadata).to_owned()).collect()
}

impl Nodes {
    /// When the node's sign of life was last seen to change.
    fn heard(&self, node: &Node) -> Timestamp {
        let (name, now) = (name(&node.metadata), self.ctx.clock.now());
        let sign = self.sign(node);
        let mut heard = self.heard.lock();
        match heard.get(name) {
            Some((old, at)) if *old == sign => *at,
            _ => {
                heard.insert(name.to_owned(), (sign, now));
                now
            }
        }
    }

    fn sign(&self, node: &Node) -> Sign {
        let lease = self.leases.named(LEASES, name(&node.metadata));
        let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0));
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let heartbeats = conditions.filter_map(|c| c.last_heartbeat_time.as_ref().map(|t| t.0));
        Sign { renewed, heartbeat: heartbeats.max() }
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), ClientError> {
        let patch = Patch::Strategic(json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": seconds(self.ctx.clock.now()),
            }] },
        }));
        let key = ObjectKey::of(&pod.metadata);
        unless_gone(self.ctx.client.patch_status::<Pod>(&key, patch).await)?;
        self.events.event(pod, EventType::Warning, "NodeNotReady", "Node is not ready");
        Ok(())
    }

    async fn evict(&self, pod: &Pod) -> Result<(), ClientError> {
        let key = ObjectKey::of(&pod.metadata);
        let message = format!("Marking for deletion Pod {key}");
        self.events.event(pod, EventType::Normal, "TaintManagerEviction", &message);
        let reason = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        let patch = disrupted(pod, reason, None, self.ctx.clock.now());
        unless_gone(self.ctx.client.patch_status::<Pod>(&key, patch).await)?;
        let uid = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(uid);
        unless_gone(self.ctx.client.delete::<Pod>(&key, &params).await)
    }
}

#[async_trait]
impl Controller for Nodes {
    type Key = String;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn rule(&self) -> &Rule {
        &self.rule
    }

    fn view(&self, key: &String) -> Option<View> {
        let Some(node) = self.nodes.named("", key) else {
            self.heard.lock().remove(key);
            return None;
        };
        let is_ready = |node: &Arc<Node>| condition(node, "Ready") == "True";
        let any_ready = is_ready(&node) || self.nodes.list().iter().any(is_ready);
        let pods = self.pods.by_index(Index::Node, key);
        Some(View { heard: self.heard(&node), node, pods, any_ready })
    }

    async fn act(&self, key: &String, view: &View, action: Action) -> Result<(), ActError> {
        let (client, node) = (&self.ctx.client, ObjectKey::cluster(key));
        match action {
            Action::PatchConditions(conditions) => {
                let patch = json!({
                    "metadata": { "uid": view.node.metadata.uid },
                    "status": { "conditions": conditions },
                });
                client.patch_status::<Node>(&node, Patch::Strategic(patch)).await?;
            }
            Action::PatchTaints(taints) => {
                // The status was perhaps just written: what counts is the node as it is known now.
                let known = self.nodes.get(&node);
                let version = known.and_then(|n| n.metadata.resource_version.clone());
                let patch = json!({
                    "metadata": { "resourceVersion": version, "uid": view.node.metadata.uid },
                    "spec": { "taints": taints },
                });
                client.patch::<Node>(&node, Patch::Merge(patch)).await?;
            }
            Action::MarkNotReady(pod) => self.mark_not_ready(&pod).await?,
            Action::Evict(pod) => self.evict(&pod).await?,
            Action::TellNotReady => {
                let message = format!("Node {key} status is now: NodeNotReady");
                let events = &self.events;
                events.event(view.node.as_ref(), EventType::Normal, "NodeNotReady", &message);
            }
        }
        Ok(())
    }
}
