//! Cordoned nodes take no pods.

use super::taints::tolerates;
use crate::pod::PodInfo;
use crate::reason::Reason;
use crate::snapshot::NodeState;
use k8s_openapi::api::core::v1::Taint;

/// Refuses a cordoned node unless the pod bears the taint that stands for it.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    if !node.unschedulable {
        return Ok(());
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if pod.tolerations.iter().any(|t| tolerates(t, &taint)) {
        Ok(())
    } else {
        Err(Reason::Unschedulable)
    }
}
