//! Objects for tests.

use crate::common::{controlled_by, seconds};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Pod, PodCondition},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

/// A time.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A ReplicaSet.
pub fn set(name: &str, replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
            },
        },
    }))
    .unwrap()
}

/// A Deployment.
pub fn deployment(
    replicas: i32,
    max_surge: serde_json::Value,
    max_unavailable: serde_json::Value,
) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": max_surge, "maxUnavailable": max_unavailable},
            },
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
            },
        },
    }))
    .unwrap()
}

/// A pod of a set.
pub fn pod_of(set: &ReplicaSet, name: &str) -> Pod {
    let template = set.spec.as_ref().unwrap().template.clone().unwrap();
    let metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: set.metadata.namespace.clone(),
        uid: Some(format!("uid-{name}")),
        labels: template.metadata.unwrap().labels,
        owner_references: Some(vec![controlled_by(&set.metadata, "apps/v1", "ReplicaSet")]),
        ..Default::default()
    };
    Pod { metadata, spec: template.spec, status: None }
}

/// The pod, ready since a time.
pub fn ready(mut pod: Pod, since: i64) -> Pod {
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.conditions = Some(vec![PodCondition {
        type_: "Ready".into(),
        status: "True".into(),
        last_transition_time: Some(seconds(at(since))),
        ..Default::default()
    }]);
    pod
}
