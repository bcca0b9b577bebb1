//! The nodes and what runs on them, kept up to date one change at a time.
//!
//! A pod here is placed (bound, as the API server says) or assumed (decided, its binding not yet
//! confirmed). Invariants: a node's sums are those of exactly the pods on it; a uid is on one node
//! at most; pods on a node that is not known (yet, or any more) are counted for it, but it takes no
//! more; what was placed is never undone by a binding that failed.

use crate::pod::{HostPort, Labels, PodInfo};
use crate::resources::Resources;
use k8s_openapi::api::core::v1::{Node, Taint};
use std::collections::HashMap;
use std::sync::Arc;

/// All nodes and the pods on them.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeState>,
    by_name: HashMap<Arc<str>, usize>,
    pods: HashMap<Arc<str>, Placed>,
    namespaces: HashMap<String, Labels>,
    keeping_away: usize,
    known: usize,
    /// Where the next search begins, so that all nodes get their turn.
    pub(crate) next: usize,
}

#[derive(Debug)]
struct Placed {
    node: Arc<str>,
    assumed: bool,
    pod: Arc<PodInfo>,
}

/// A node as plugins see it.
#[derive(Debug)]
pub struct NodeState {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// It is cordoned.
    pub unschedulable: bool,
    /// What it has for pods.
    pub allocatable: Resources,
    /// How many pods it may run.
    pub max_pods: i64,
    /// The Node object exists.
    pub known: bool,
    /// What its pods ask for together.
    pub used: Resources,
    /// The same with a minimum for each container, for comparing nodes.
    pub weight: (i64, i64),
    /// Ports that its pods take.
    pub ports: Vec<HostPort>,
    /// How many pods of each group are on it.
    pub groups: HashMap<Arc<str>, i64>,
    /// Its pods by uid.
    pub pods: HashMap<Arc<str>, Arc<PodInfo>>,
}

impl NodeState {
    fn unknown(name: Arc<str>) -> Self {
        NodeState {
            name,
            labels: Labels::new(),
            taints: Vec::new(),
            unschedulable: false,
            allocatable: Resources::default(),
            max_pods: 0,
            known: false,
            used: Resources::default(),
            weight: (0, 0),
            ports: Vec::new(),
            groups: HashMap::new(),
            pods: HashMap::new(),
        }
    }

    fn add(&mut self, pod: &Arc<PodInfo>) {
        self.used.add(&pod.requests);
        self.weight = (self.weight.0 + pod.weight.0, self.weight.1 + pod.weight.1);
        self.ports.extend(pod.ports.iter().cloned());
        if let Some(group) = &pod.group {
            *self.groups.entry(group.clone()).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), pod.clone());
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.pods.remove(&pod.uid);
        self.used.subtract(&pod.requests);
        self.weight = (self.weight.0 - pod.weight.0, self.weight.1 - pod.weight.1);
        for port in &pod.ports {
            if let Some(i) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(i);
            }
        }
        if let Some(group) = &pod.group
            && let Some(count) = self.groups.get_mut(group)
        {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(group);
            }
        }
    }
}

impl Snapshot {
    /// Takes a node as it is. True if something changed that scheduling looks at.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let state = self.node_entry(node.metadata.name.as_deref().unwrap_or_default());
        let spec = node.spec.as_ref();
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let taints = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        let unschedulable = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        let max_pods = allocatable
            .and_then(|a| a.get("pods"))
            .and_then(|pods| rkube_api::quantity::Quantity::parse(&pods.0).ok())
            .map_or(0, |pods| pods.value());
        let allocatable = allocatable.map(Resources::of).unwrap_or_default();
        let same = state.known
            && state.labels == labels
            && state.taints == taints
            && state.unschedulable == unschedulable
            && state.max_pods == max_pods
            && state.allocatable == allocatable;
        let new = !state.known;
        state.known = true;
        (state.labels, state.taints, state.unschedulable) = (labels, taints, unschedulable);
        (state.max_pods, state.allocatable) = (max_pods, allocatable);
        self.known += usize::from(new);
        !same
    }

    /// The Node object is gone. Its pods stay until they go too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(&i) = self.by_name.get(name) else { return };
        self.known -= usize::from(self.nodes[i].known);
        self.nodes[i].known = false;
        self.drop_if_unused(i);
    }

    /// The pod is bound to the node, as the API server says.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.put(pod, node, false);
    }

    /// The pod is to be bound to the node.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.put(pod, node, true);
    }

    /// The pod is gone, or takes nothing any more. Answers whether it was here.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.pods.remove(uid) else { return false };
        self.keeping_away -= usize::from(keeps_away(&placed.pod));
        if let Some(&i) = self.by_name.get(&placed.node) {
            self.nodes[i].remove(&placed.pod);
            self.drop_if_unused(i);
        }
        true
    }

    /// The node on which the pod is assumed; None if it is placed or not here.
    pub fn assumed_on(&self, uid: &str) -> Option<&Arc<str>> {
        self.pods.get(uid).filter(|p| p.assumed).map(|p| &p.node)
    }

    /// The binding of an assumed pod was refused. Answers whether it was still assumed.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.assumed_on(uid).is_some() && self.remove_pod(uid)
    }

    /// The labels of a namespace; None if it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// The labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// All nodes, also those of which only pods are known.
    pub fn nodes(&self) -> &[NodeState] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.by_name.get(name).map(|&i| &self.nodes[i])
    }

    /// How many Node objects there are.
    pub fn known(&self) -> usize {
        self.known
    }

    /// Whether the pod is placed or assumed.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Some pod on some node keeps others away.
    pub(crate) fn has_keeping_away(&self) -> bool {
        self.keeping_away > 0
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.uid);
        self.keeping_away += usize::from(keeps_away(&pod));
        let state = self.node_entry(node);
        state.add(&pod);
        let node = state.name.clone();
        self.pods.insert(pod.uid.clone(), Placed { node, assumed, pod });
    }

    fn node_entry(&mut self, name: &str) -> &mut NodeState {
        let i = match self.by_name.get(name) {
            Some(&i) => i,
            None => {
                let name: Arc<str> = name.into();
                self.by_name.insert(name.clone(), self.nodes.len());
                self.nodes.push(NodeState::unknown(name));
                self.nodes.len() - 1
            }
        };
        &mut self.nodes[i]
    }

    fn drop_if_unused(&mut self, i: usize) {
        if self.nodes[i].known || !self.nodes[i].pods.is_empty() {
            return;
        }
        let gone = self.nodes.swap_remove(i);
        self.by_name.remove(&gone.name);
        if let Some(moved) = self.nodes.get(i) {
            self.by_name.insert(moved.name.clone(), i);
        }
    }
}

fn keeps_away(pod: &PodInfo) -> bool {
    pod.topology.as_ref().is_some_and(|t| !t.anti_affinity.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pod::info;
    use serde_json::{Value, json};

    pub(crate) fn node(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10", "ephemeral-storage": "10Gi"}}})
    }

    pub(crate) fn set(snapshot: &mut Snapshot, node: Value) -> bool {
        snapshot.set_node(&serde_json::from_value(node).unwrap())
    }

    pub(crate) fn pod(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn sums_follow_pods() {
        let mut s = Snapshot::default();
        assert!(set(&mut s, node("n", "4")));
        assert!(!set(&mut s, node("n", "4")), "nothing changed");
        assert!(set(&mut s, node("n", "2")));
        let mut with_port = pod("b", "500m");
        with_port["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 80, "hostPort": 80}]);
        s.place(info(pod("a", "250m")), "n");
        s.assume(info(with_port), "n");
        assert_eq!(
            (s.node("n").unwrap().used.cpu_milli, s.node("n").unwrap().ports.len()),
            (750, 1)
        );
        assert_eq!((s.assumed_on("b").map(|n| &**n), s.assumed_on("a")), (Some("n"), None));
        assert!(s.forget("b"));
        assert!(!s.forget("a"), "a placed pod is not forgotten");
        assert_eq!(
            (s.node("n").unwrap().used.cpu_milli, s.node("n").unwrap().ports.len()),
            (250, 0)
        );
        s.assume(info(pod("c", "1")), "n");
        s.place(info(pod("c", "1")), "m");
        assert_eq!(s.node("n").unwrap().used.cpu_milli, 250, "the API server said otherwise");
        assert!(!s.forget("c"));
    }

    #[test]
    fn pods_outlive_their_node_here() {
        let mut s = Snapshot::default();
        s.place(info(pod("a", "1")), "n");
        assert_eq!((s.nodes().len(), s.known()), (1, 0));
        set(&mut s, node("n", "4"));
        set(&mut s, node("m", "4"));
        assert_eq!((s.known(), s.node("n").unwrap().used.cpu_milli), (2, 1000));
        s.remove_node("n");
        assert_eq!((s.known(), s.nodes().len()), (1, 2));
        s.remove_pod("a");
        assert_eq!(s.nodes().len(), 1);
        assert_eq!(&*s.node("m").unwrap().name, "m");
    }
}
