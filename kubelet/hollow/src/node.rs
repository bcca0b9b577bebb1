//! A simulated node as an object, and its lease.

use crate::fleet::node_address;
use jiff::Timestamp;
use serde_json::{Value, json};

/// How long a lease is good for, as nodes say it.
const LEASE_SECONDS: u32 = 40;

/// The node `index`, Ready.
pub fn node(name: &str, index: usize, now: Timestamp) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "rkube.io/hollow": "true",
            },
        },
        "status": status(name, index, now),
    })
}

/// What the node says of itself.
pub fn status(name: &str, index: usize, now: Timestamp) -> Value {
    let resources =
        json!({"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110"});
    json!({
        "capacity": resources,
        "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": node_address(index).to_string()},
            {"type": "Hostname", "address": name},
        ],
        "conditions": conditions(now),
        "nodeInfo": {
            "machineID": name,
            "systemUUID": name,
            "bootID": name,
            "kernelVersion": "0.0.0",
            "osImage": "none",
            "containerRuntimeVersion": "hollow://0.1.0",
            "kubeletVersion": concat!("v1.36.0+rkube.", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
        },
    })
}

fn conditions(now: Timestamp) -> Value {
    let now = seconds(now);
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!([
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is simulated"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the disk is simulated"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "processes are simulated"),
        condition("Ready", "True", "KubeletReady", "the node is simulated"),
    ])
}

/// The node's lease; it goes when the node goes.
pub fn lease(name: &str, uid: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": "kube-node-lease",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": microseconds(now),
        },
    })
}

/// The change that renews a lease.
pub fn renewal(now: Timestamp) -> Value {
    json!({"spec": {"renewTime": microseconds(now)}})
}

/// A time as most objects tell it.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as leases tell it.
fn microseconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_kubernetes_does() {
        let time: Timestamp = "2026-11-21T10:00:00.5Z".parse().unwrap();
        assert_eq!(seconds(time), "2026-11-21T10:00:00Z");
        assert_eq!(microseconds(time), "2026-11-21T10:00:00.500000Z");
    }

    #[test]
    fn a_node_is_ready_from_the_first() {
        let node = node("hollow-3", 3, Timestamp::UNIX_EPOCH);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        assert_eq!(node["status"]["addresses"][0]["address"], "127.1.0.4");
    }
}
