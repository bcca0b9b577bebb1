//! The node's status: pure.

use super::machine::{Free, Machine};
use crate::config::KubeletConfig;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rkube_cri::{Readiness, RuntimeStatus, Version};
use std::collections::BTreeMap;

/// The Kubernetes version that this kubelet speaks, and our own.
pub const VERSION: &str = "v1.36.0+rkube.0.1.0";
/// Fewer free process ids are pressure.
const MIN_PIDS: u64 = 1000;

/// What a status is made from.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the machine has.
    pub machine: Machine,
    /// What is free.
    pub free: Free,
    /// The runtime's version, once it has answered.
    pub version: Option<Version>,
    /// What the runtime says of itself; the error says why it can't be asked.
    pub runtime: Option<Result<RuntimeStatus, String>>,
    /// The range of addresses for the node's pods.
    pub pod_cidr: Option<String>,
}

/// The status that the API should have. `before` gives the times of earlier transitions.
pub fn node_status(
    config: &KubeletConfig,
    view: &View,
    before: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let capacity = capacity(config, &view.machine);
    NodeStatus {
        addresses: Some(addresses(config)),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(config, view, before, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        node_info: Some(info(view)),
        ..NodeStatus::default()
    }
}

/// Whether two statuses say the same apart from when it was said.
pub fn says_the_same(one: &NodeStatus, other: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(one) == timeless(other)
}

fn capacity(config: &KubeletConfig, machine: &Machine) -> BTreeMap<String, Quantity> {
    let cpu = match machine.cpu_milli % 1000 {
        0 => (machine.cpu_milli / 1000).to_string(),
        _ => format!("{}m", machine.cpu_milli),
    };
    let entries = [
        ("cpu", cpu),
        ("memory", format!("{}Ki", machine.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.storage / 1024)),
        ("pods", config.max_pods.to_string()),
    ];
    entries.map(|(name, value)| (name.to_owned(), Quantity(value))).into()
}

fn addresses(config: &KubeletConfig) -> Vec<NodeAddress> {
    let internal = config.node_ip.map(|ip| ("InternalIP", ip.to_string()));
    let hostname = Some(("Hostname", config.node_name.clone()));
    let all = internal.into_iter().chain(hostname);
    all.map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address }).collect()
}

fn info(view: &View) -> NodeSystemInfo {
    let machine = &view.machine;
    let version = view.version.clone().unwrap_or_default();
    let runtime = format!("{}://{}", version.name, version.version);
    NodeSystemInfo {
        architecture: machine.architecture.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: runtime,
        kernel_version: machine.kernel.clone(),
        kubelet_version: VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.machine_id.clone(),
        ..NodeSystemInfo::default()
    }
}

fn conditions(
    config: &KubeletConfig,
    view: &View,
    before: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let free = &view.free;
    let memory = free.memory < config.eviction_memory_mib << 20;
    let disk = free.disk_percent < config.eviction_disk_percent;
    let pressure = |name: &'static str, is: bool, what: &str| {
        let (status, word) = if is { ("True", "Has") } else { ("False", "HasNo") };
        let reason = match (name, is) {
            ("MemoryPressure", true) => "KubeletHasInsufficientMemory".to_owned(),
            ("MemoryPressure", false) => "KubeletHasSufficientMemory".to_owned(),
            ("PIDPressure", true) => "KubeletHasInsufficientPID".to_owned(),
            ("PIDPressure", false) => "KubeletHasSufficientPID".to_owned(),
            _ => format!("Kubelet{word}DiskPressure"),
        };
        let has = if is { "insufficient" } else { "sufficient" };
        let message = match what {
            "disk" if is => "kubelet has disk pressure".to_owned(),
            "disk" => "kubelet has no disk pressure".to_owned(),
            what => format!("kubelet has {has} {what} available"),
        };
        (name, status, reason, message)
    };
    let ready = match not_ready(view) {
        None => (
            "Ready",
            "True",
            "KubeletReady".to_owned(),
            "kubelet is posting ready status".to_owned(),
        ),
        Some(why) => ("Ready", "False", "KubeletNotReady".to_owned(), why),
    };
    let all = [
        pressure("MemoryPressure", memory, "memory"),
        pressure("DiskPressure", disk, "disk"),
        pressure("PIDPressure", free.pids < MIN_PIDS, "PID"),
        ready,
    ];
    all.map(|(name, status, reason, message)| {
        let known = before.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let mut same = known.filter(|c| c.type_ == name && c.status == status);
        let since = same.find_map(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: Some(reason),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        }
    })
    .to_vec()
}

/// Why pods can't run here; none if they can.
pub fn not_ready(view: &View) -> Option<String> {
    let status = match &view.runtime {
        None => {
            return Some("container runtime status check may not have completed yet".to_owned());
        }
        Some(Err(error)) => return Some(format!("container runtime is down: {error}")),
        Some(Ok(status)) => status,
    };
    if let Readiness::NotReady(why) = &status.runtime {
        return Some(format!("container runtime not ready: {why}"));
    }
    if view.pod_cidr.is_none() {
        return Some("the node has no podCIDR yet".to_owned());
    }
    match &status.network {
        Readiness::NotReady(why) => Some(why.clone()),
        Readiness::Ready => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready_view() -> View {
        View {
            free: Free { memory: 1 << 30, disk_percent: 50, pids: 30_000 },
            runtime: Some(Ok(RuntimeStatus {
                runtime: Readiness::Ready,
                network: Readiness::Ready,
            })),
            pod_cidr: Some("10.42.0.0/24".into()),
            ..View::default()
        }
    }

    fn condition<'a>(status: &'a NodeStatus, name: &str) -> &'a NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == name).unwrap()
    }

    #[test]
    fn ready_needs_runtime_range_and_network() {
        let full = ready_view();
        assert_eq!(not_ready(&full), None);
        let without = [
            View { runtime: None, ..full.clone() },
            View { runtime: Some(Err("x".into())), ..full.clone() },
            View { pod_cidr: None, ..full.clone() },
            View { runtime: Some(Ok(RuntimeStatus::default())), ..full },
        ];
        assert!(without.iter().all(|view| not_ready(view).is_some()));
    }

    #[test]
    fn transitions_keep_their_time() {
        let (config, view) = (KubeletConfig::default(), ready_view());
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = node_status(&config, &view, None, at(1));
        let second = node_status(&config, &view, Some(&first), at(2));
        assert!(says_the_same(&first, &second));
        let full = View { free: Free { disk_percent: 1, ..view.free }, ..view };
        let third = node_status(&config, &full, Some(&second), at(3));
        assert!(!says_the_same(&second, &third));
        assert_eq!(condition(&third, "DiskPressure").last_transition_time, Some(Time(at(3))));
        assert_eq!(condition(&third, "Ready").last_transition_time, Some(Time(at(1))));
    }
}
