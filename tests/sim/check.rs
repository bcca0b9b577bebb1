//! What must hold of all that happened. Pure: events in order of revision come in, what is wrong
//! comes out.

use crate::history::{Change, Event, Name, Objects, fold, name_of};
use crate::nodes::{MEBIBYTES, MILLI_CPU, PODS};
use crate::rest::{condition, controller, is_active, is_ready, is_terminal};
use crate::user::HOLD;
use crate::wire::Acknowledged;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// All that is known of a run.
pub struct Record {
    /// In order of revision.
    pub events: Vec<Event>,
    pub acknowledged: Vec<Acknowledged>,
    /// Uids whose finalizer the user has taken away, or meant to.
    pub let_go: BTreeSet<String>,
    /// From and to which revision there was no fault.
    pub calm: Option<(u64, u64)>,
    /// What the watches themselves did wrong.
    pub stream_faults: Vec<String>,
}

/// What is wrong, at most a handful of each.
pub fn check(record: &Record) -> Vec<String> {
    let mut faults = record.stream_faults.clone();
    faults.extend(lost_writes(record));
    let mut walk = Walk::new(record);
    for event in &record.events {
        walk.take(event);
    }
    faults.extend(walk.faults);
    faults.truncate(20);
    faults
}

/// Each acknowledged write must be in the history.
fn lost_writes(record: &Record) -> Vec<String> {
    let told: BTreeSet<(&str, u64)> = record
        .events
        .iter()
        .map(|e| (e.object["metadata"]["uid"].as_str().unwrap_or_default(), e.revision))
        .collect();
    let watched = |kind: &str| crate::history::KINDS.iter().any(|(k, _)| *k == kind);
    // A watch may still be about to tell the last ones.
    let last = record.events.last().map_or(0, |e| e.revision);
    let lost = record.acknowledged.iter().filter(|a| {
        watched(&a.kind) && a.revision <= last && !told.contains(&(&a.uid, a.revision))
    });
    lost.map(|a| format!("lost: {} gave {} of {}", a.what, a.revision, a.uid)).collect()
}

/// A Deployment's or set's size since it was last settled.
#[derive(Clone, Copy)]
struct Sizes {
    least: i64,
    most: i64,
}

/// Goes through the events, knowing how things were at each.
struct Walk<'a> {
    record: &'a Record,
    objects: HashMap<&'static str, Objects>,
    /// Name by uid, of sets and Deployments.
    named: HashMap<String, Name>,
    bound: HashMap<String, String>,
    sizes: HashMap<String, Sizes>,
    calm_broken: bool,
    faults: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(record: &'a Record) -> Self {
        Walk {
            record,
            objects: HashMap::new(),
            named: HashMap::new(),
            bound: HashMap::new(),
            sizes: HashMap::new(),
            calm_broken: false,
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, event: &Event, what: &str) {
        let name = name_of(&event.object);
        self.faults.push(format!("at {} {} {name:?}: {what}", event.revision, event.kind));
    }

    fn is_calm(&self, event: &Event) -> bool {
        let calm = self.record.calm.is_some_and(|(a, b)| a < event.revision && event.revision <= b);
        calm && !self.calm_broken
    }

    fn take(&mut self, event: &Event) {
        let objects = self.objects.entry(event.kind).or_default();
        let old = objects.get(&name_of(&event.object)).cloned();
        let misfit = fold(objects, event);
        if let Some(misfit) = misfit {
            self.fault(event, &misfit);
        }
        let uid = uid(&event.object).to_owned();
        self.named.insert(uid, name_of(&event.object));
        self.owners(event);
        self.finalizers(event, old.as_deref());
        self.generations(event, old.as_deref());
        match event.kind {
            "Pod" => self.pod(event, old.as_deref()),
            "Node" if self.is_calm(event) => {
                // A node that lost its time slice is a fault, of the machine's.
                self.calm_broken |= condition(&event.object, "Ready") != Some("True");
            }
            "Deployment" => self.deployment(event),
            "ReplicaSet" => self.set(event),
            _ => {}
        }
    }

    fn owners(&mut self, event: &Event) {
        let owners = event.object["metadata"]["ownerReferences"].as_array();
        let controllers =
            owners.map_or(0, |o| o.iter().filter(|o| o["controller"] == true).count());
        if controllers > 1 {
            self.fault(event, "two controllers");
        }
    }

    fn finalizers(&mut self, event: &Event, old: Option<&Value>) {
        let held = |o: &Value| {
            let finalizers = o["metadata"]["finalizers"].as_array();
            finalizers.is_some_and(|f| f.iter().any(|f| f == HOLD))
        };
        let let_go = self.record.let_go.contains(uid(&event.object));
        if event.change == Change::Deleted && old.is_some_and(held) && !let_go {
            self.fault(event, "gone though a finalizer held it");
        }
    }

    fn generations(&mut self, event: &Event, old: Option<&Value>) {
        let Some(old) = old.filter(|old| uid(old) == uid(&event.object)) else { return };
        let new = &*event.object;
        let of = |o: &Value| o["metadata"]["generation"].as_i64().unwrap_or(0);
        let observed = |o: &Value| o["status"]["observedGeneration"].as_i64().unwrap_or(0);
        if of(new) < of(old) || observed(new) < observed(old) {
            self.fault(event, "a generation went back");
        }
        if observed(new) > of(new) {
            self.fault(event, "a generation was observed that never was");
        }
        let going = |o: &Value| !o["metadata"]["deletionTimestamp"].is_null();
        // Of Deployments annotations count as spec does.
        let notes = |o: &Value| match event.kind {
            "Deployment" => o["metadata"]["annotations"].clone(),
            _ => Value::Null,
        };
        let same =
            old["spec"] == new["spec"] && notes(old) == notes(new) && going(old) == going(new);
        if matches!(event.kind, "Deployment" | "ReplicaSet") && same != (of(old) == of(new)) {
            self.fault(event, "generation and spec do not change together");
        }
    }

    fn pod(&mut self, event: &Event, old: Option<&Value>) {
        let node = event.object["spec"]["nodeName"].as_str().unwrap_or_default();
        let uid = uid(&event.object).to_owned();
        let known = self.bound.get(&uid).cloned().unwrap_or_default();
        if known != node && !known.is_empty() {
            self.fault(event, &format!("moved from {known} to {node:?}"));
        }
        if known.is_empty() && !node.is_empty() {
            self.bound.insert(uid, node.to_owned());
            self.room(event, node);
        }
        self.set_of(event, old);
    }

    /// What is on a node must fit, from the moment that something is put there.
    fn room(&mut self, event: &Event, node: &str) {
        let pods: Vec<Arc<Value>> = self.objects["Pod"]
            .values()
            .filter(|p| p["spec"]["nodeName"] == node && !is_terminal(p))
            .cloned()
            .collect();
        let total = |resource: &str| pods.iter().map(|p| request(p, resource)).sum::<u64>();
        let ports: Vec<u64> = pods.iter().flat_map(|p| host_ports(p)).collect();
        let distinct: BTreeSet<u64> = ports.iter().copied().collect();
        let (cpu, memory) = (total("cpu"), total("memory"));
        if cpu > MILLI_CPU || memory > MEBIBYTES || pods.len() > PODS {
            self.fault(event, &format!("{node}: {cpu}m, {memory}Mi, {} pods", pods.len()));
        }
        if distinct.len() != ports.len() {
            self.fault(event, &format!("{node}: a host port twice"));
        }
    }

    fn deployment(&mut self, event: &Event) {
        let (spec, status) = (&event.object["spec"], &event.object["status"]);
        let replicas = spec["replicas"].as_i64().unwrap_or(1);
        let all = ["replicas", "updatedReplicas", "availableReplicas"];
        let settled = all.iter().all(|f| status[f].as_i64().unwrap_or(0) == replicas)
            && status["observedGeneration"] == event.object["metadata"]["generation"];
        self.resize(event, replicas, settled);
        if self.is_calm(event) {
            self.promises_of(event, &name_of(&event.object));
        }
    }

    fn set(&mut self, event: &Event) {
        let replicas = event.object["spec"]["replicas"].as_i64().unwrap_or(1);
        let settled = event.object["status"]["replicas"].as_i64().unwrap_or(0) == replicas
            && event.object["status"]["observedGeneration"]
                == event.object["metadata"]["generation"];
        self.resize(event, replicas, settled);
    }

    fn resize(&mut self, event: &Event, replicas: i64, settled: bool) {
        let sizes = self.sizes.entry(uid(&event.object).to_owned());
        let now = Sizes { least: replicas, most: replicas };
        let sizes = sizes.or_insert(now);
        *sizes = match settled {
            true => now,
            false => Sizes { least: sizes.least.min(replicas), most: sizes.most.max(replicas) },
        };
    }

    /// What the set of a pod promises whatever happens, and its Deployment while nothing does.
    fn set_of(&mut self, event: &Event, old: Option<&Value>) {
        let Some(owner) = controller(&event.object).map(str::to_owned) else { return };
        let adopted = old.is_some_and(|old| controller(old) != Some(&owner));
        if let Some(sizes) = self.sizes.get_mut(&owner).filter(|_| adopted) {
            // One too many until the set has sent another away.
            sizes.most += 1;
        }
        let pods = self.pods_of(&owner).filter(|p| is_active(p)).count() as i64;
        if self.sizes.get(&owner).is_some_and(|sizes| pods > sizes.most) {
            self.fault(event, &format!("{pods} pods of its set"));
        }
        if !self.is_calm(event) {
            return;
        }
        let set = self.named.get(&owner).and_then(|n| self.objects["ReplicaSet"].get(n)).cloned();
        let deployment = set.as_deref().and_then(controller).and_then(|uid| self.named.get(uid));
        if let Some(name) = deployment.cloned() {
            self.promises_of(event, &name);
        }
    }

    fn pods_of<'s>(&'s self, set: &'s str) -> impl Iterator<Item = &'s Arc<Value>> {
        let pods = self.objects.get("Pod").into_iter().flat_map(BTreeMap::values);
        pods.filter(move |p| controller(p) == Some(set))
    }

    /// The surge and the availability of a Deployment.
    fn promises_of(&mut self, event: &Event, name: &Name) {
        let Some(deployment) = self.objects["Deployment"].get(name).cloned() else { return };
        let Some(sizes) = self.sizes.get(uid(&deployment)).copied() else { return };
        let sets = self.objects.get("ReplicaSet").into_iter().flat_map(BTreeMap::values);
        let sets: Vec<_> =
            sets.filter(|s| controller(s) == Some(uid(&deployment))).cloned().collect();
        let mut counts = Vec::new();
        for set in &sets {
            let pods: Vec<_> = self.pods_of(uid(set)).filter(|p| !is_terminal(p)).collect();
            let active = pods.iter().filter(|p| is_active(p)).count() as i64;
            let ready = pods.iter().filter(|p| is_active(p) && is_ready(p)).count() as i64;
            counts.push((pods.len(), active, ready));
        }
        let active: i64 = counts.iter().map(|c| c.1).sum();
        let ready: i64 = counts.iter().map(|c| c.2).sum();
        if deployment["spec"]["strategy"]["type"] == "Recreate" {
            if counts.iter().filter(|c| c.0 > 0).count() > 1 {
                self.fault(event, &format!("{name:?}: pods of two templates at once"));
            }
            return;
        }
        let (surge, unavailable) = bounds(&deployment["spec"], sizes);
        if active > sizes.most + surge {
            let most = sizes.most;
            self.fault(event, &format!("{name:?}: {active} pods, {most} and {surge} more allowed"));
        }
        if ready < sizes.least - unavailable {
            let least = sizes.least;
            self.fault(event, &format!("{name:?}: {ready} ready of {least}, less {unavailable}"));
        }
    }
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Millicores or mebibytes that a pod asks for.
fn request(pod: &Value, resource: &str) -> u64 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let amounts = containers.filter_map(|c| c["resources"]["requests"][resource].as_str());
    amounts.map(|text| amount(text, resource)).sum()
}

fn amount(text: &str, resource: &str) -> u64 {
    let quantity: rkube_api::quantity::Quantity = text.parse().expect("a quantity");
    match resource {
        "cpu" => u64::try_from(quantity.as_milli()).expect("few cores"),
        _ => u64::try_from(quantity.value()).expect("little memory") >> 20,
    }
}

fn host_ports(pod: &Value) -> Vec<u64> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports.filter_map(|p| p["hostPort"].as_u64()).collect()
}

/// How many pods more, and how many fewer, a rolling update may make of it.
fn bounds(spec: &Value, sizes: Sizes) -> (i64, i64) {
    let rolling = &spec["strategy"]["rollingUpdate"];
    let part = |value: &Value, up: bool| match value.as_i64() {
        Some(n) => n,
        None => {
            let text = value.as_str().unwrap_or("0%").trim_end_matches('%');
            let percent = text.parse::<i64>().expect("a percentage") * sizes.most;
            if up { (percent + 99) / 100 } else { percent / 100 }
        }
    };
    let surge = part(&rolling["maxSurge"], true);
    let unavailable = part(&rolling["maxUnavailable"], false);
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(revision: u64, kind: &'static str, change: Change, mut object: Value) -> Event {
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        Event { revision, kind, change, object: Arc::new(object) }
    }

    fn record(events: Vec<Event>) -> Record {
        Record {
            events,
            acknowledged: Vec::new(),
            let_go: BTreeSet::new(),
            calm: Some((0, 100)),
            stream_faults: Vec::new(),
        }
    }

    fn pod(name: &str, node: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "x", "uid": name},
            "spec": {"nodeName": node, "containers": [{
                "resources": {"requests": {"cpu": "1200m"}},
            }]},
        })
    }

    fn first(events: Vec<Event>) -> String {
        check(&record(events)).into_iter().next().unwrap_or_default()
    }

    #[test]
    fn pods_neither_move_nor_crowd() {
        use Change::{Added, Deleted, Modified};
        let bound = |r, name, node| event(r, "Pod", Added, pod(name, node));
        assert_eq!(first(vec![bound(1, "a", "n1"), bound(2, "b", "n2")]), "");
        assert!(first(vec![bound(1, "a", "n1"), bound(2, "b", "n1")]).contains("2400m"));
        let moved = event(2, "Pod", Modified, pod("a", "n2"));
        assert!(first(vec![bound(1, "a", "n1"), moved]).contains("moved"));
        assert!(first(vec![bound(1, "a", "n1"), bound(2, "a", "n1")]).contains("Added"));
        let gone = event(2, "Pod", Deleted, pod("a", "n1"));
        assert_eq!(first(vec![bound(1, "a", "n1"), gone, bound(3, "b", "n1")]), "");
    }

    #[test]
    fn what_was_acknowledged_or_held_stays() {
        let held = |r, change| {
            let mut pod = pod("a", "");
            pod["metadata"]["finalizers"] = json!([HOLD]);
            event(r, "Pod", change, pod)
        };
        let events = vec![held(1, Change::Added), held(2, Change::Deleted)];
        assert!(first(events.clone()).contains("finalizer"));
        let mut record = record(events);
        record.let_go.insert("a".into());
        assert_eq!(check(&record), Vec::<String>::new());
        let write = |revision| Acknowledged {
            what: String::new(),
            kind: "Pod".into(),
            uid: "a".into(),
            revision,
        };
        record.acknowledged = vec![write(1)];
        assert_eq!(check(&record), Vec::<String>::new());
        record.events.remove(0);
        assert!(check(&record)[0].contains("lost"));
    }

    #[test]
    fn surge_and_availability_are_kept() {
        let owned = |owner: &str| json!([{"uid": owner, "controller": true}]);
        let deployment = json!({
            "metadata": {"name": "d", "namespace": "x", "uid": "d"},
            "spec": {"replicas": 1, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}},
        });
        let set = json!({
            "metadata": {"name": "s", "namespace": "x", "uid": "s", "ownerReferences": owned("d")},
            "spec": {"replicas": 2},
        });
        let of_set = |name: &str| {
            let mut pod = pod(name, "");
            pod["metadata"]["ownerReferences"] = owned("s");
            pod
        };
        let added = |r, kind, object| event(r, kind, Change::Added, object);
        let one = vec![
            added(1, "Deployment", deployment),
            added(2, "ReplicaSet", set),
            added(3, "Pod", of_set("a")),
        ];
        assert_eq!(first(one.clone()), "");
        let two = [one, vec![added(4, "Pod", of_set("b"))]].concat();
        assert!(first(two).contains("2 pods, 1 and 0 more"));
    }
}
