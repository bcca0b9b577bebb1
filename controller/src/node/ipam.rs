//! Gives each node its share of the pods' addresses.

use crate::common::name;
use crate::context::Context;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::Patch;
use rkube_runtime::{
    ActError, Change, Controller, EventType, ObjectKey, Plan, Reconcile, Recorder, Store, WorkQueue,
};
use serde_json::json;
use std::{collections::HashSet, net::Ipv4Addr, sync::Arc};

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Give the node this range.
    Assign {
        /// The node as it was seen.
        node: Arc<Node>,
        /// `10.42.3.0/24`
        cidr: String,
    },
    /// Tell users that no range is left.
    TellFull(Arc<Node>),
}

/// The rule.
#[derive(Clone, Debug)]
pub struct Rule {
    network: u32,
    prefix: u8,
    node_prefix: u8,
}

impl Rule {
    /// Shares `cidr` (IPv4) in ranges of `node_prefix` bits; none if that makes no sense.
    pub fn new(cidr: &str, node_prefix: u8) -> Option<Self> {
        let (network, prefix) = cidr.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        if !(1..=30).contains(&prefix) || !(prefix..=32).contains(&node_prefix) {
            return None;
        }
        let network = u32::from(network.parse::<Ipv4Addr>().ok()?);
        let network = network >> (32 - prefix) << (32 - prefix);
        Some(Rule { network, prefix, node_prefix })
    }

    fn ranges(&self) -> impl Iterator<Item = String> + '_ {
        let count = 1u64 << (self.node_prefix - self.prefix);
        (0..count).map(|n| {
            // The count keeps this within the network, whose addresses are 32 bits wide.
            let address = self.network + ((n << (32 - self.node_prefix)) as u32);
            format!("{}/{}", Ipv4Addr::from(address), self.node_prefix)
        })
    }
}

impl Reconcile for Rule {
    type View = Vec<Arc<Node>>;
    type Action = Action;

    fn reconcile(&self, nodes: &Vec<Arc<Node>>, _now: Timestamp) -> Plan<Action> {
        let cidr_of = |node: &Node| node.spec.as_ref().and_then(|s| s.pod_cidr.clone());
        let used: HashSet<String> = nodes.iter().filter_map(|node| cidr_of(node)).collect();
        let mut free = self.ranges().filter(|range| !used.contains(range));
        let mut waiting: Vec<_> = nodes.iter().filter(|node| cidr_of(node).is_none()).collect();
        waiting.sort_by_key(|node| {
            (node.metadata.creation_timestamp.clone(), node.metadata.name.clone())
        });
        let assign = waiting.into_iter().map(|node| match free.next() {
            Some(cidr) => Action::Assign { node: node.clone(), cidr },
            None => Action::TellFull(node.clone()),
        });
        Plan::of(assign.collect())
    }
}

struct Ipam {
    ctx: Context,
    rule: Rule,
    nodes: Store<Node>,
    events: Recorder,
}

/// Runs the controller until the future is dropped. One worker, so no range is given twice.
pub(crate) async fn start(ctx: Context) {
    let cidr = ctx.config.cluster_cidr.clone();
    let Some(rule) = Rule::new(&cidr, ctx.config.node_cidr_mask_size) else {
        tracing::info!(cidr, "nodes get no pod CIDR from here");
        return std::future::pending().await;
    };
    let queue = WorkQueue::new("node-ipam", &ctx.metrics);
    let nodes = ctx.caches.store::<Node>();
    nodes.wait_synced().await;
    queue.feed(&nodes, |change: &Change<Node>| {
        let spec = change.new.as_ref().and_then(|node| node.spec.as_ref());
        let done = spec.is_some_and(|spec| spec.pod_cidr.is_some());
        if done { Vec::new() } else { vec![()] }
    });
    let events = ctx.recorder("cidrAllocator");
    let controller = Ipam { ctx: ctx.clone(), rule, nodes, events };
    ctx.run(controller, queue, 1).await;
}

#[async_trait]
impl Controller for Ipam {
    type Key = ();
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn rule(&self) -> &Rule {
        &self.rule
    }

    fn view(&self, _key: &()) -> Option<Vec<Arc<Node>>> {
        Some(self.nodes.list())
    }

    async fn act(&self, _key: &(), _view: &Vec<Arc<Node>>, action: Action) -> Result<(), ActError> {
        match action {
            Action::Assign { node, cidr } => {
                let patch = Patch::Merge(json!({
                    "metadata": { "resourceVersion": node.metadata.resource_version },
                    "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
                }));
                let key = ObjectKey::cluster(name(&node.metadata));
                self.ctx.client.patch::<Node>(&key, patch).await?;
                tracing::info!(node = key.name, cidr, "pod CIDR assigned");
            }
            Action::TellFull(node) => {
                let message =
                    format!("Node {} status is now: CIDRNotAvailable", name(&node.metadata));
                self.events.event(node.as_ref(), EventType::Normal, "CIDRNotAvailable", &message);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn node(name: &str, cidr: Option<&str>) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn the_lowest_free_range_is_given_and_none_twice() {
        let rule = Rule::new("10.42.0.0/22", 24).unwrap();
        let nodes = vec![
            node("d", None),
            node("a", Some("10.42.0.0/24")),
            node("b", Some("10.42.2.0/24")),
            node("c", None),
            node("e", None),
        ];
        let plan = rule.reconcile(&nodes, at(0));
        let assign = |node: usize, cidr: &str| Action::Assign {
            node: nodes[node].clone(),
            cidr: cidr.into(),
        };
        let full = Action::TellFull(nodes[4].clone());
        assert_eq!(plan.actions, [assign(3, "10.42.1.0/24"), assign(0, "10.42.3.0/24"), full]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (cidr, prefix) in [("10.0.0.0", 24), ("10.0.0.0/16", 8), ("x/16", 24), ("::/64", 80)] {
            assert!(Rule::new(cidr, prefix).is_none(), "{cidr} {prefix}");
        }
        assert_eq!(
            Rule::new("10.42.9.9/16", 24).unwrap().ranges().last().unwrap(),
            "10.42.255.0/24"
        );
    }
}
