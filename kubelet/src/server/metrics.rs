//! What monitors ask: counts, usage of containers, the list of pods.

use super::{Body, Shared, json, text, with_type};
use crate::node::machine::meminfo;
use crate::pod::state::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use http::{Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rkube_cri::{ContainerState, Stats};
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn pods(shared: &Shared) -> Response<Body> {
    let items: Vec<Value> = shared
        .known
        .all()
        .iter()
        .filter_map(|pod| serde_json::to_value(pod.as_ref()).ok())
        .collect();
    json(&value!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

pub async fn metrics(shared: &Shared) -> Response<Body> {
    let mut registry = Registry::default();
    let running = Family::<Vec<(String, String)>, Gauge>::default();
    let containers = shared.context.runtime.list_containers().await.unwrap_or_default();
    for container in &containers {
        let state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited => "exited",
            ContainerState::Unknown => "unknown",
        };
        running.get_or_create(&vec![("container_state".to_owned(), state.to_owned())]).inc();
    }
    registry.register("kubelet_running_containers", "Containers by state", running);
    let pods: Gauge = Gauge::default();
    pods.set(i64::try_from(shared.known.all().len()).unwrap_or(i64::MAX));
    registry.register("kubelet_desired_pods", "Pods bound to this node", pods);
    let resident: Gauge<f64, AtomicU64> = Gauge::default();
    #[allow(clippy::cast_precision_loss)]
    resident.set(resident_bytes() as f64);
    registry.register("process_resident_memory_bytes", "Resident memory of the agent", resident);
    let mut body = String::new();
    match encode(&mut body, &registry) {
        Ok(()) => with_type(StatusCode::OK, OPEN_METRICS, super::full(body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn label<'a>(stats: &'a Stats, key: &str) -> &'a str {
    stats.labels.get(key).map(String::as_str).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The figures that a metrics server reads.
pub async fn resource(shared: &Shared) -> Response<Body> {
    let stats = match shared.context.runtime.stats().await {
        Ok(stats) => stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut out = String::from(
        "# TYPE container_cpu_usage_seconds_total counter\n# TYPE container_memory_working_set_bytes gauge\n",
    );
    let mut pods: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for one in &stats {
        let (namespace, pod) = (label(one, POD_NAMESPACE), label(one, POD_NAME));
        let names = format!(
            "{{container=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"}}",
            label(one, CONTAINER_NAME)
        );
        // Writing to a String can't fail.
        let _ = writeln!(
            out,
            "container_cpu_usage_seconds_total{names} {}",
            seconds(one.cpu_nanoseconds)
        );
        let _ =
            writeln!(out, "container_memory_working_set_bytes{names} {}", one.working_set_bytes);
        let sum = pods.entry((namespace, pod)).or_default();
        *sum = (sum.0 + one.cpu_nanoseconds, sum.1 + one.working_set_bytes);
    }
    out.push_str(
        "# TYPE pod_cpu_usage_seconds_total counter\n# TYPE pod_memory_working_set_bytes gauge\n",
    );
    for ((namespace, pod), (cpu, memory)) in pods {
        let names = format!("{{namespace=\"{namespace}\",pod=\"{pod}\"}}");
        let _ = writeln!(out, "pod_cpu_usage_seconds_total{names} {}", seconds(cpu));
        let _ = writeln!(out, "pod_memory_working_set_bytes{names} {memory}");
    }
    let used = meminfo("MemTotal").saturating_sub(meminfo("MemAvailable"));
    out.push_str(
        "# TYPE node_cpu_usage_seconds_total counter\n# TYPE node_memory_working_set_bytes gauge\n",
    );
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", seconds(node_cpu_nanoseconds()));
    let _ = writeln!(out, "node_memory_working_set_bytes {used}");
    with_type(StatusCode::OK, PLAIN, super::full(out))
}

/// CPU time of the machine since boot: ticks of a hundredth of a second.
fn node_cpu_nanoseconds() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    let idle = ticks.get(3).copied().unwrap_or(0) + ticks.get(4).copied().unwrap_or(0);
    ticks.iter().take(8).sum::<u64>().saturating_sub(idle) * 10_000_000
}

pub async fn summary(shared: &Shared) -> Response<Body> {
    let stats = match shared.context.runtime.stats().await {
        Ok(stats) => stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut pods: BTreeMap<&str, Vec<&Stats>> = BTreeMap::new();
    for one in &stats {
        pods.entry(label(one, POD_UID)).or_default().push(one);
    }
    let pods: Vec<Value> = pods.iter().map(|(uid, list)| pod_summary(uid, list)).collect();
    let used = meminfo("MemTotal").saturating_sub(meminfo("MemAvailable"));
    json(&value!({
        "node": {
            "nodeName": shared.context.config.node_name,
            "cpu": {"usageCoreNanoSeconds": node_cpu_nanoseconds()},
            "memory": {"workingSetBytes": used, "availableBytes": meminfo("MemAvailable")},
        },
        "pods": pods,
    }))
}

fn pod_summary(uid: &str, list: &[&Stats]) -> Value {
    let first = list.first();
    let name = |key| first.map(|one| label(one, key)).unwrap_or_default();
    let containers: Vec<Value> = list
        .iter()
        .map(|one| {
            value!({
                "name": label(one, CONTAINER_NAME),
                "cpu": {"usageCoreNanoSeconds": one.cpu_nanoseconds},
                "memory": {"workingSetBytes": one.working_set_bytes},
                "rootfs": {"usedBytes": one.writable_bytes},
            })
        })
        .collect();
    value!({
        "podRef": {"name": name(POD_NAME), "namespace": name(POD_NAMESPACE), "uid": uid},
        "cpu": {"usageCoreNanoSeconds": list.iter().map(|one| one.cpu_nanoseconds).sum::<u64>()},
        "memory": {"workingSetBytes": list.iter().map(|one| one.working_set_bytes).sum::<u64>()},
        "containers": containers,
    })
}
