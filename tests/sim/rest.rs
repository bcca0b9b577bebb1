//! When a cluster is at rest: everything is as it was asked for.

use crate::history::{History, Name, Objects};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How things are, by kind.
pub struct State(BTreeMap<&'static str, Objects>);

impl State {
    pub fn of(history: &History) -> Self {
        State(crate::history::KINDS.iter().map(|(k, _)| (*k, history.objects(k))).collect())
    }

    fn kind(&self, kind: &str) -> impl Iterator<Item = (&Name, &Value)> {
        self.0[kind].iter().map(|(name, object)| (name, &**object))
    }

    /// What is not yet as it should be.
    pub fn unrest(&self) -> Vec<String> {
        let mut unrest = self.dangling();
        for (kind, test) in TESTS {
            let found = self.kind(kind).filter_map(|(name, o)| Some((name, test(self, o)?)));
            unrest.extend(found.map(|(name, why)| format!("{kind} {}/{}: {why}", name.0, name.1)));
        }
        unrest
    }

    /// Objects whose owner is gone.
    fn dangling(&self) -> Vec<String> {
        let all = || self.0.iter().flat_map(|(k, o)| o.values().map(move |o| (*k, o)));
        let uids: BTreeSet<&str> =
            all().filter_map(|(_, o)| o["metadata"]["uid"].as_str()).collect();
        let gone = |o: &Value| {
            let owners = o["metadata"]["ownerReferences"].as_array();
            owners
                .is_some_and(|o| !o.iter().any(|o| uids.contains(o["uid"].as_str().unwrap_or(""))))
        };
        all()
            .filter(|(_, o)| gone(o))
            .map(|(k, o)| format!("{k} {:?}: its owner is gone", crate::history::name_of(o)))
            .collect()
    }

    fn pods_of(&self, uid: &Value) -> usize {
        self.kind("Pod").filter(|(_, p)| is_active(p) && controller(p) == uid.as_str()).count()
    }
}

pub fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && !is_terminal(pod)
}

pub fn is_terminal(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The status of a condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// The uid of the owner that controls an object.
pub fn controller(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|o| o["controller"] == true)?["uid"].as_str()
}

type Test = fn(&State, &Value) -> Option<String>;

const TESTS: [(&str, Test); 6] = [
    ("Namespace", |_, ns| going(ns)),
    ("Node", |_, node| {
        let taints = node["spec"]["taints"].as_array().is_some_and(|t| !t.is_empty());
        let unwell = taints || condition(node, "Ready") != Some("True");
        unwell.then(|| format!("{} {}", node["spec"], condition(node, "Ready").unwrap_or("")))
    }),
    ("Pod", |_, pod| {
        let serves = is_terminal(pod) || is_ready(pod);
        going(pod)
            .or_else(|| (!serves).then(|| format!("{} {}", pod["spec"]["nodeName"], pod["status"])))
    }),
    ("ReplicaSet", |state, set| {
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
        let pods = state.pods_of(&set["metadata"]["uid"]) as u64;
        let told = (&set["status"]["replicas"], &set["status"]["readyReplicas"]);
        let told = (told.0.as_u64().unwrap_or(0), told.1.as_u64().unwrap_or(0));
        let right = pods == wanted && told == (wanted, wanted) && observed(set);
        going(set).or_else(|| (!right).then(|| format!("{pods} of {wanted}: {}", set["status"])))
    }),
    ("Deployment", |_, deployment| {
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let status = &deployment["status"];
        let fields = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
        let right = fields.iter().all(|f| status[f].as_u64().unwrap_or(0) == wanted);
        going(deployment)
            .or_else(|| (!(right && observed(deployment))).then(|| format!("{wanted}: {status}")))
    }),
    ("Service", endpoints_differ),
];

fn going(object: &Value) -> Option<String> {
    let meta = &object["metadata"];
    let going = !meta["deletionTimestamp"].is_null();
    going.then(|| format!("still going away, finalizers {}", meta["finalizers"]))
}

fn observed(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

fn endpoints_differ(state: &State, service: &Value) -> Option<String> {
    let app = service["spec"]["selector"]["app"].as_str()?;
    let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
    let here = |object: &Value| &object["metadata"]["namespace"] == namespace;
    let pods = state.kind("Pod").filter(|(_, p)| {
        here(p) && is_active(p) && is_ready(p) && p["metadata"]["labels"]["app"] == app
    });
    let wanted: BTreeSet<&str> = pods.filter_map(|(_, p)| p["status"]["podIP"].as_str()).collect();
    let slices = state
        .kind("EndpointSlice")
        .filter(|(_, s)| here(s) && &s["metadata"]["labels"]["kubernetes.io/service-name"] == name);
    let endpoints = slices.flat_map(|(_, s)| s["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    let told: BTreeSet<&str> = ready.filter_map(|e| e["addresses"][0].as_str()).collect();
    (wanted != told).then(|| format!("endpoints {told:?}, pods {wanted:?}"))
}

/// Waits until the cluster rests; gives what does not.
pub async fn wait(history: &History, within: Duration) -> Result<(), Vec<String>> {
    let end = Instant::now() + within;
    let mut quiet_at = None;
    loop {
        let unrest = State::of(history).unrest();
        let revision = resting_revision(history);
        // At rest twice in a row with nothing written between.
        if unrest.is_empty() && quiet_at == Some(revision) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(unrest);
        }
        quiet_at = unrest.is_empty().then_some(revision);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The last revision of anything but leases, which never rest, and nodes' heartbeats.
fn resting_revision(history: &History) -> u64 {
    let kinds = ["Pod", "ReplicaSet", "Deployment", "EndpointSlice", "Namespace"];
    let last =
        |kind: &&str| history.objects(kind).values().map(|o| crate::history::revision_of(o)).max();
    kinds.iter().filter_map(last).max().unwrap_or(0)
}
