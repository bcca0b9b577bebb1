//! What a node must have (`filter`) and what makes it a good one (`score`, more is better). Each
//! function looks at one pod and one node; only [`topology`] prepares itself with all nodes first.

pub mod affinity;
pub mod cordon;
pub mod fit;
pub mod ports;
pub mod spread;
pub mod taints;
pub mod topology;

use crate::pod::PodInfo;
use crate::reason::Reason;
use crate::snapshot::NodeState;

/// Whether the pod fits the node, apart from its wishes about other pods. Cheap tests come first.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    takes(pod, node)?;
    ports::filter(pod, node)?;
    fit::filter(pod, node)
}

/// Whether the node would take the pod, whatever else is on it.
pub fn takes(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    cordon::filter(pod, node)?;
    taints::filter(pod, node)?;
    affinity::filter(pod, node)
}
