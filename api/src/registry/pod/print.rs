//! A pod's row in a table.

use crate::registry::access::{flag, get, int, items, len, name_cell, text};
use crate::registry::age::{age_cell, since};
use crate::registry::print::or_none;
use jiff::Timestamp;
use serde_json::Value;

/// What a walk over a pod's containers tells.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// RFC 3339; empty if nothing ended yet.
    last_restart: String,
}

/// The cells in the order of the pod's columns.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let spec = pod.get("spec").unwrap_or(&none);
    let status = pod.get("status").unwrap_or(&none);
    let summary = summarize(pod, spec, status);
    let restarts = match (summary.restarts, summary.last_restart.as_str()) {
        (0, _) | (_, "") => summary.restarts.to_string(),
        (count, last) => format!("{count} ({} ago)", since(last, now)),
    };
    let first_ip = items(status, "podIPs").next().map_or("", |(_, ip)| text(ip, "ip"));
    let ip = if first_ip.is_empty() { text(status, "podIP") } else { first_ip };
    vec![
        name_cell(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age_cell(pod, now),
        or_none(ip),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        readiness_gates(spec, status),
    ]
}

fn summarize(pod: &Value, spec: &Value, status: &Value) -> Summary {
    let sidecars = items(spec, "initContainers").filter(|(_, c)| is_sidecar(c)).count();
    let mut summary = Summary {
        reason: phase_or_reason(status),
        ready: 0,
        total: len(spec, "containers") + sidecars,
        restarts: 0,
        last_restart: String::new(),
    };
    let initializing = init_containers(&mut summary, spec, status);
    if !initializing || condition(status, "Initialized") {
        count_restarts(&mut summary, spec, status);
        main_containers(&mut summary, status);
    }
    let deleted = pod.get("metadata").is_some_and(|m| get(m, "deletionTimestamp").is_some());
    if deleted && text(status, "reason") == "NodeLost" {
        summary.reason = "Unknown".into();
    } else if deleted && !matches!(text(status, "phase"), "Succeeded" | "Failed") {
        summary.reason = "Terminating".into();
    }
    summary
}

fn phase_or_reason(status: &Value) -> String {
    let gated = items(status, "conditions")
        .any(|(_, c)| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated");
    match (gated, text(status, "reason")) {
        (true, _) => "SchedulingGated".into(),
        (_, "") => text(status, "phase").into(),
        (_, reason) => reason.into(),
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

fn state<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    get(container, "state").and_then(|s| get(s, name))
}

fn condition(status: &Value, kind: &str) -> bool {
    items(status, "conditions").any(|(_, c)| text(c, "type") == kind && text(c, "status") == "True")
}

/// Counts a container's restarts and remembers when the last one ended.
fn add_restarts(summary: &mut Summary, container: &Value) {
    summary.restarts += int(container, "restartCount").unwrap_or(0);
    let ended = get(container, "lastState")
        .and_then(|s| get(s, "terminated"))
        .map_or("", |t| text(t, "finishedAt"));
    if ended > summary.last_restart.as_str() {
        summary.last_restart = ended.into();
    }
}

/// Walks the init containers up to the one that is at work; true if there is one.
fn init_containers(summary: &mut Summary, spec: &Value, status: &Value) -> bool {
    for (index, container) in items(status, "initContainerStatuses") {
        add_restarts(summary, container);
        let name = text(container, "name");
        let sidecar =
            items(spec, "initContainers").any(|(_, c)| text(c, "name") == name && is_sidecar(c));
        let terminated = state(container, "terminated");
        if terminated.is_some_and(|t| int(t, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && flag(container, "started") {
            summary.ready += usize::from(flag(container, "ready"));
            continue;
        }
        let waiting = state(container, "waiting").map_or("", |w| text(w, "reason"));
        summary.reason = match (terminated, waiting) {
            (Some(terminated), _) => format!("Init:{}", end_reason(terminated)),
            (None, "" | "PodInitializing") => {
                format!("Init:{index}/{}", len(spec, "initContainers"))
            }
            (None, waiting) => format!("Init:{waiting}"),
        };
        return true;
    }
    false
}

fn end_reason(terminated: &Value) -> String {
    match (text(terminated, "reason"), int(terminated, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

/// Once the pod is initialized only sidecars and main containers count.
fn count_restarts(summary: &mut Summary, spec: &Value, status: &Value) {
    summary.restarts = 0;
    summary.last_restart.clear();
    for (_, container) in items(status, "initContainerStatuses") {
        let name = text(container, "name");
        if items(spec, "initContainers").any(|(_, c)| text(c, "name") == name && is_sidecar(c)) {
            add_restarts(summary, container);
        }
    }
    for (_, container) in items(status, "containerStatuses") {
        add_restarts(summary, container);
    }
}

/// The first container that is not well gives the reason.
fn main_containers(summary: &mut Summary, status: &Value) {
    let mut running = false;
    let statuses: Vec<&Value> = items(status, "containerStatuses").map(|(_, c)| c).collect();
    for container in statuses.into_iter().rev() {
        let waiting = state(container, "waiting").map_or("", |w| text(w, "reason"));
        if !waiting.is_empty() {
            summary.reason = waiting.into();
        } else if let Some(terminated) = state(container, "terminated") {
            summary.reason = end_reason(terminated);
        } else if flag(container, "ready") && state(container, "running").is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(status, "Ready");
        summary.reason = if ready { "Running".into() } else { "NotReady".into() };
    }
}

fn readiness_gates(spec: &Value, status: &Value) -> Value {
    let gates = len(spec, "readinessGates");
    if gates == 0 {
        return "<none>".into();
    }
    let open = items(spec, "readinessGates")
        .filter(|(_, gate)| condition(status, text(gate, "conditionType")))
        .count();
    format!("{open}/{gates}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(spec: Value, status: Value, deleted: bool) -> Vec<String> {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec, "status": status});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
        }
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let text = |v: Value| v.as_str().map_or(v.to_string(), str::to_owned);
        cells(&pod, now).into_iter().map(text).collect()
    }

    #[test]
    fn status_and_restarts_tell_what_matters_most() {
        let one = || json!({"containers": [{"name": "c"}]});
        let with_init = || json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let sidecar = || json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i", "restartPolicy": "Always"}]});
        let crash = json!({"name": "c", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:05:00Z"}}});
        let runs = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let done =
            json!({"name": "c", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let killed = json!({"name": "c", "state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let cases = [
            (one(), json!({"phase": "Pending"}), false, ["0/1", "Pending", "0"]),
            (
                one(),
                json!({"phase": "Running", "containerStatuses": [runs]}),
                false,
                ["1/1", "Running", "0"],
            ),
            (
                one(),
                json!({"phase": "Running", "containerStatuses": [crash]}),
                false,
                ["0/1", "CrashLoopBackOff", "2 (5m ago)"],
            ),
            (
                one(),
                json!({"phase": "Succeeded", "containerStatuses": [done]}),
                false,
                ["0/1", "Completed", "0"],
            ),
            (
                one(),
                json!({"phase": "Succeeded", "containerStatuses": [done]}),
                true,
                ["0/1", "Completed", "0"],
            ),
            (
                one(),
                json!({"phase": "Failed", "containerStatuses": [killed]}),
                false,
                ["0/1", "Signal:9", "0"],
            ),
            (
                one(),
                json!({"phase": "Running", "containerStatuses": [runs]}),
                true,
                ["1/1", "Terminating", "0"],
            ),
            (
                one(),
                json!({"phase": "Failed", "reason": "Evicted"}),
                false,
                ["0/1", "Evicted", "0"],
            ),
            (
                with_init(),
                json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
                false,
                ["0/1", "Init:1/2", "0"],
            ),
            (
                with_init(),
                json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]}),
                false,
                ["0/1", "Init:Error", "0"],
            ),
            (
                sidecar(),
                json!({"phase": "Running", "containerStatuses": [runs], "initContainerStatuses": [
                {"name": "i", "ready": true, "started": true, "state": {"running": {}}}]}),
                false,
                ["2/2", "Running", "0"],
            ),
            (
                one(),
                json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                false,
                ["0/1", "SchedulingGated", "0"],
            ),
        ];
        for (spec, status, deleted, expected) in cases {
            let row = row(spec, status.clone(), deleted);
            assert_eq!(row[1..4], expected, "{status}");
            assert_eq!(row[4], "10m");
        }
    }
}
