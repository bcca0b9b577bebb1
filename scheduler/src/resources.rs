//! Amounts of resources as integers, so that sums on a node cost nothing.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use rkube_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An amount of each resource. Sums saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local disk.
    pub ephemeral_storage: i64,
    /// Everything else (`example.com/gpu`, `hugepages-2Mi`), sorted by name.
    pub extended: Vec<(Arc<str>, i64)>,
}

impl Resources {
    /// From requests, allocatable or overhead. What can't be read counts as nothing: the API
    /// server refuses it before it comes here.
    pub fn of(list: &BTreeMap<String, Text>) -> Self {
        let mut out = Resources::default();
        for (name, text) in list {
            let amount = Quantity::parse(&text.0).unwrap_or(Quantity::ZERO);
            match name.as_str() {
                "cpu" => out.cpu_milli = amount.as_milli(),
                "memory" => out.memory = amount.value(),
                "ephemeral-storage" => out.ephemeral_storage = amount.value(),
                "pods" => {}
                other => out.extended.push((other.into(), amount.value())),
            }
        }
        out
    }

    /// What a pod asks for: the larger of what its containers ask for together and what each init
    /// container asks for when it runs, both with the sidecars started by then, and the overhead.
    pub fn of_pod(pod: &PodSpec) -> Self {
        let mut sidecars = Resources::default();
        let mut init = Resources::default();
        for container in pod.init_containers.iter().flatten() {
            let mut own = requests(container.resources.as_ref());
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own);
                init.raise_to(&sidecars);
            } else {
                own.add(&sidecars);
                init.raise_to(&own);
            }
        }
        let mut sum = sidecars;
        for container in &pod.containers {
            sum.add(&requests(container.resources.as_ref()));
        }
        sum.raise_to(&init);
        if let Some(whole) = pod.resources.as_ref().and_then(|r| r.requests.as_ref()) {
            sum.replace_by(whole);
        }
        if let Some(overhead) = &pod.overhead {
            sum.add(&Resources::of(overhead));
        }
        sum
    }

    /// The amount of an extended resource.
    pub fn extended(&self, name: &str) -> i64 {
        let found = self.extended.binary_search_by(|(n, _)| (**n).cmp(name));
        found.map_or(0, |i| self.extended[i].1)
    }

    /// Adds.
    pub fn add(&mut self, other: &Resources) {
        self.cpu_milli = self.cpu_milli.saturating_add(other.cpu_milli);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(other.ephemeral_storage);
        self.each_extended(other, i64::saturating_add);
    }

    /// Takes away what was added before.
    pub fn subtract(&mut self, other: &Resources) {
        self.cpu_milli = self.cpu_milli.saturating_sub(other.cpu_milli);
        self.memory = self.memory.saturating_sub(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_sub(other.ephemeral_storage);
        self.each_extended(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Resources) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        self.each_extended(other, i64::max);
    }

    /// Requests of the pod as a whole count instead of its containers'.
    fn replace_by(&mut self, whole: &BTreeMap<String, Text>) {
        let amounts = Resources::of(whole);
        if whole.contains_key("cpu") {
            self.cpu_milli = amounts.cpu_milli;
        }
        if whole.contains_key("memory") {
            self.memory = amounts.memory;
        }
        for (name, amount) in amounts.extended {
            match self.extended.binary_search_by(|(n, _)| n.cmp(&name)) {
                Ok(i) => self.extended[i].1 = amount,
                Err(i) => self.extended.insert(i, (name, amount)),
            }
        }
    }

    fn each_extended(&mut self, other: &Resources, combine: fn(i64, i64) -> i64) {
        for (name, amount) in &other.extended {
            match self.extended.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(i) => self.extended[i].1 = combine(self.extended[i].1, *amount),
                Err(i) => self.extended.insert(i, (name.clone(), combine(0, *amount))),
            }
        }
    }
}

/// The cpu (thousandths) and memory (bytes) that a pod counts for when nodes are compared: a
/// container that asks for nothing still takes something.
pub fn weight(pod: &PodSpec) -> (i64, i64) {
    const CPU_MILLI: i64 = 100;
    const MEMORY: i64 = 200 << 20;
    let weigh = |container: &Container| {
        let asked = requests(container.resources.as_ref());
        let or = |amount, default| if amount == 0 { default } else { amount };
        (or(asked.cpu_milli, CPU_MILLI), or(asked.memory, MEMORY))
    };
    pod.containers.iter().map(weigh).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Whether the pod still takes its node's resources.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    resources.and_then(|r| r.requests.as_ref()).map(Resources::of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(spec: Value) -> Resources {
        Resources::of_pod(&serde_json::from_value(spec).unwrap())
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}})
    }

    #[test]
    fn requests_of_a_pod() {
        let sidecar = |cpu| {
            let mut c = container(cpu);
            c["restartPolicy"] = "Always".into();
            c
        };
        for (spec, cpu_milli) in [
            (json!({"containers": [container("100m"), container("0.2")]}), 300),
            (
                json!({"containers": [container("100m")], "initContainers": [container("1"), container("500m")]}),
                1000,
            ),
            (json!({"containers": [container("900m")], "initContainers": [container("1")]}), 1000),
            (
                json!({"containers": [container("300m")], "initContainers": [sidecar("200m"), container("400m")]}),
                600,
            ),
            (
                json!({"containers": [container("300m")], "initContainers": [container("400m"), sidecar("200m")]}),
                500,
            ),
            (json!({"containers": [container("300m")], "overhead": {"cpu": "50m"}}), 350),
            (
                json!({"containers": [container("300m")], "resources": {"requests": {"cpu": "1"}}}),
                1000,
            ),
            (json!({"containers": [{"name": "c"}]}), 0),
        ] {
            assert_eq!(asked(spec.clone()).cpu_milli, cpu_milli, "{spec}");
        }
    }

    #[test]
    fn sums_come_back_to_where_they_were() {
        let list = |v: Value| Resources::of(&serde_json::from_value(v).unwrap());
        let a = list(json!({"cpu": "1", "memory": "1Gi", "example.com/gpu": "2", "pods": "5"}));
        let mut sum = a.clone();
        let b = list(json!({"cpu": "250m", "ephemeral-storage": "1Mi", "example.com/fpga": "1"}));
        sum.add(&b);
        assert_eq!(
            (sum.cpu_milli, sum.extended("example.com/fpga"), sum.extended("x")),
            (1250, 1, 0)
        );
        sum.subtract(&b);
        assert_eq!(
            (sum.cpu_milli, sum.memory, sum.extended("example.com/gpu")),
            (1000, 1 << 30, 2)
        );
    }
}
