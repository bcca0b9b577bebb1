//! What can be set about the controllers.

use std::time::Duration;

/// Settings of all controllers, with Kubernetes' defaults.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// A node that has not posted its status or renewed its lease for this long is NotReady.
    pub node_monitor_grace_period: Duration,
    /// How often nodes are looked at when nothing changes; deadlines are kept besides.
    pub node_monitor_period: Duration,
    /// The pods' addresses; each node gets a share of it. Empty leaves pod CIDRs to others.
    pub cluster_cidr: String,
    /// The prefix length of a node's share.
    pub node_cidr_mask_size: u8,
    /// How many ended pods are kept before the oldest are deleted.
    pub terminated_pod_gc_threshold: usize,
    /// How long a node must be gone before its pods are deleted.
    pub gone_node_quarantine: Duration,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        ControllersConfig {
            node_monitor_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            cluster_cidr: "10.42.0.0/16".into(),
            node_cidr_mask_size: 24,
            terminated_pod_gc_threshold: 12_500,
            gone_node_quarantine: Duration::from_secs(40),
        }
    }
}
