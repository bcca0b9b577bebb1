//! Pods of one controller are spread over the nodes.

use crate::pod::PodInfo;
use crate::snapshot::NodeState;

/// Minus the number of pods of the same group on the node.
pub fn score(pod: &PodInfo, node: &NodeState) -> i64 {
    -pod.group.as_ref().and_then(|group| node.groups.get(group)).copied().unwrap_or(0)
}
