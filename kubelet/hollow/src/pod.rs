//! What is to be done about a pod, told by the pod alone.

use crate::node::seconds;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// What is decoded of a pod; the rest is skipped over.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: Spec,
    #[serde(default)]
    pub status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub deletion_timestamp: Option<IgnoredAny>,
    pub deletion_grace_period_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: String,
    pub host_network: bool,
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub phase: String,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new on its node: say that it runs.
    ReportRunning,
    /// It is to end: its containers are gone at once, so let the object go.
    Remove,
    /// Nothing.
    Leave,
}

/// Decides what to do about a pod that is bound to one of our nodes.
pub fn decide(pod: &Pod) -> Action {
    let metadata = &pod.metadata;
    if metadata.deletion_timestamp.is_some() {
        // With 0 it was removed already and waits for its finalizers.
        return match metadata.deletion_grace_period_seconds {
            Some(0) => Action::Leave,
            _ => Action::Remove,
        };
    }
    match pod.status.phase.as_str() {
        "" | "Pending" => Action::ReportRunning,
        _ => Action::Leave,
    }
}

/// The change of status that says: all runs and is ready.
pub fn running(pod: &Pod, host: Ipv4Addr, address: Ipv4Addr, now: Timestamp) -> Value {
    let (now, host) = (seconds(now), host.to_string());
    let address = if pod.spec.host_network { host.clone() } else { address.to_string() };
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let uid = &pod.metadata.uid;
    let mut status = json!({
        "phase": "Running",
        "startTime": now,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": (["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"]
            .map(condition)),
        "containerStatuses": statuses(uid, &pod.spec.containers, |_| true, &now),
    });
    if !pod.spec.init_containers.is_empty() {
        let sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
        status["initContainerStatuses"] = statuses(uid, &pod.spec.init_containers, sidecar, &now);
    }
    // The uid makes the server refuse it for another pod of the same name.
    json!({"metadata": {"uid": uid}, "status": status})
}

fn statuses(uid: &str, all: &[Container], runs: impl Fn(&Container) -> bool, now: &str) -> Value {
    let status = |container: &Container| {
        let id = format!("hollow://{uid}-{}", container.name);
        let running = runs(container);
        let state = match running {
            true => json!({"running": {"startedAt": now}}),
            false => json!({"terminated": {
                "exitCode": 0, "reason": "Completed", "containerID": id,
                "startedAt": now, "finishedAt": now,
            }}),
        };
        json!({
            "name": container.name, "image": container.image, "imageID": container.image,
            "containerID": id, "restartCount": 0, "ready": true, "started": running,
            "state": state,
        })
    };
    all.iter().map(status).collect()
}

/// The options of a removal at once, of this very pod.
pub fn removal(uid: &str) -> Value {
    json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_tells_what_to_do() {
        let ending = |grace: i64| json!({"deletionTimestamp": "2026-11-21T10:00:00Z", "deletionGracePeriodSeconds": grace});
        let cases = [
            (json!({"metadata": {}}), Action::ReportRunning),
            (json!({"metadata": {}, "status": {"phase": "Pending"}}), Action::ReportRunning),
            (json!({"metadata": {}, "status": {"phase": "Running"}}), Action::Leave),
            (json!({"metadata": {}, "status": {"phase": "Failed"}}), Action::Leave),
            (json!({"metadata": ending(30), "status": {"phase": "Running"}}), Action::Remove),
            (json!({"metadata": ending(30), "status": {"phase": "Pending"}}), Action::Remove),
            (json!({"metadata": ending(0), "status": {"phase": "Running"}}), Action::Leave),
        ];
        for (value, action) in cases {
            assert_eq!(decide(&pod(value.clone())), action, "{value}");
        }
    }

    #[test]
    fn every_container_is_reported() {
        let pod = pod(json!({
            "metadata": {"uid": "u"},
            "spec": {
                "initContainers": [
                    {"name": "i", "image": "a"},
                    {"name": "s", "image": "a", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "c", "image": "a"}],
            },
        }));
        let host = Ipv4Addr::new(127, 1, 0, 1);
        let patch = running(&pod, host, Ipv4Addr::new(100, 64, 0, 9), Timestamp::UNIX_EPOCH);
        let status = &patch["status"];
        assert_eq!(status["podIP"], "100.64.0.9");
        assert_eq!(status["hostIPs"][0]["ip"], "127.1.0.1");
        assert_eq!(status["containerStatuses"][0]["ready"], true);
        assert!(status["containerStatuses"][0]["state"]["running"].is_object());
        assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
        assert!(status["initContainerStatuses"][1]["state"]["running"].is_object());
        assert_eq!(status["conditions"].as_array().unwrap().len(), 4);
        assert_eq!(patch["metadata"]["uid"], "u");
    }

    #[test]
    fn a_pod_on_the_host_network_has_the_nodes_address() {
        let pod = pod(json!({"metadata": {}, "spec": {"hostNetwork": true}}));
        let host = Ipv4Addr::new(127, 1, 0, 1);
        let patch = running(&pod, host, Ipv4Addr::new(100, 64, 0, 9), Timestamp::UNIX_EPOCH);
        assert_eq!(patch["status"]["podIP"], "127.1.0.1");
    }
}
