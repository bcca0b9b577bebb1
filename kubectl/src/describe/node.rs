//! Nodes.

use super::{Page, date, list, sorted_pairs, text};
use rkube_api::quantity::Quantity;
use serde_json::Value;

/// A node with its lease and the pods that are bound to it.
pub fn node(
    page: &mut Page,
    node: &Value,
    lease: Result<&Value, String>,
    pods: &[Value],
    events: Option<&[Value]>,
) {
    let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Roles", roles(metadata));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.field(0, "CreationTimestamp", date(&metadata["creationTimestamp"]));
    let taints = list(&spec["taints"]).iter().map(taint_text).collect();
    page.lines("Taints", taints);
    page.field(0, "Unschedulable", (spec["unschedulable"] == true).to_string());
    match lease {
        Ok(lease) => self::lease(page, lease),
        Err(why) => page.field(0, "Lease", format!("Failed to get lease: {why}")),
    }
    conditions(page, &status["conditions"]);
    page.line(0, "Addresses:");
    for a in list(&status["addresses"]) {
        page.field(1, text(&a["type"]), text(&a["address"]));
    }
    for (title, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        let amounts = sorted_pairs(&status[field]);
        if !amounts.is_empty() {
            page.line(0, format!("{title}:"));
            amounts.iter().for_each(|(name, amount)| page.field(1, name, amount));
        }
    }
    system(page, &status["nodeInfo"]);
    if !text(&spec["podCIDR"]).is_empty() {
        page.field(0, "PodCIDR", text(&spec["podCIDR"]));
        let all: Vec<&str> = list(&spec["podCIDRs"]).iter().map(text).collect();
        page.field(0, "PodCIDRs", all.join(","));
    }
    if !text(&spec["providerID"]).is_empty() {
        page.field(0, "ProviderID", text(&spec["providerID"]));
    }
    self::pods(page, &status["allocatable"], pods);
    page.events(events);
}

/// `key=value:Effect`
pub fn taint_text(taint: &Value) -> String {
    let (key, value, effect) = (text(&taint["key"]), text(&taint["value"]), text(&taint["effect"]));
    match (value, effect) {
        ("", "") => key.into(),
        ("", effect) => format!("{key}:{effect}"),
        (value, "") => format!("{key}={value}"),
        (value, effect) => format!("{key}={value}:{effect}"),
    }
}

fn roles(metadata: &Value) -> String {
    let mut roles: Vec<String> = sorted_pairs(&metadata["labels"])
        .into_iter()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role.to_owned()),
            None => (key == "kubernetes.io/role").then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.dedup();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn lease(page: &mut Page, lease: &Value) {
    let or_unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
    let spec = &lease["spec"];
    page.line(0, "Lease:");
    page.field(1, "HolderIdentity", or_unset(text(&spec["holderIdentity"]).to_owned()));
    page.field(1, "AcquireTime", or_unset(date(&spec["acquireTime"])));
    page.field(1, "RenewTime", or_unset(date(&spec["renewTime"])));
}

fn conditions(page: &mut Page, conditions: &Value) {
    let conditions = list(conditions);
    if conditions.is_empty() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for c in conditions {
        let row = format!(
            "{} \t{} \t{} \t{} \t{} \t{}",
            text(&c["type"]),
            text(&c["status"]),
            date(&c["lastHeartbeatTime"]),
            date(&c["lastTransitionTime"]),
            text(&c["reason"]),
            text(&c["message"])
        );
        page.line(1, row);
    }
}

fn system(page: &mut Page, info: &Value) {
    page.line(0, "System Info:");
    let fields = [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
        ("Kube-Proxy Version", "kubeProxyVersion"),
    ];
    for (title, field) in fields {
        page.field(1, title, text(&info[field]));
    }
}

/// What a pod asks for or may use of one resource: the containers' sum, or one init container's
/// if that is more.
fn wanted(pod: &Value, field: &str, resource: &str) -> Quantity {
    let of = |c: &Value| {
        Quantity::from_value(&c["resources"][field][resource]).unwrap_or(Quantity::from_i64(0))
    };
    let sum =
        list(&pod["spec"]["containers"]).iter().map(of).fold(Quantity::from_i64(0), |a, b| a + b);
    list(&pod["spec"]["initContainers"]).iter().map(of).fold(sum, Ord::max)
}

fn percent(amount: Quantity, of: &Value) -> i64 {
    let whole = Quantity::from_value(of).map(|q| q.as_milli()).unwrap_or(0);
    if whole == 0 { 0 } else { (i128::from(amount.as_milli()) * 100 / i128::from(whole)) as i64 }
}

fn pods(page: &mut Page, allocatable: &Value, pods: &[Value]) {
    let live: Vec<&Value> = pods
        .iter()
        .filter(|p| !matches!(text(&p["status"]["phase"]), "Succeeded" | "Failed"))
        .collect();
    page.line(0, format!("Non-terminated Pods:\t({} in total)", live.len()));
    page.line(
        1,
        "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge",
    );
    page.line(
        1,
        "---------\t----\t\t------------\t----------\t---------------\t-------------\t---",
    );
    let shown = |amount: Quantity, resource: &str| {
        format!("{amount} ({}%)", percent(amount, &allocatable[resource]))
    };
    for p in &live {
        let row = format!(
            "{}\t{}\t\t{}\t{}\t{}\t{}\t{}",
            text(&p["metadata"]["namespace"]),
            text(&p["metadata"]["name"]),
            shown(wanted(p, "requests", "cpu"), "cpu"),
            shown(wanted(p, "limits", "cpu"), "cpu"),
            shown(wanted(p, "requests", "memory"), "memory"),
            shown(wanted(p, "limits", "memory"), "memory"),
            page.age(&p["metadata"]["creationTimestamp"])
        );
        page.line(1, row);
    }
    page.line(0, "Allocated resources:");
    page.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let total = |field: &str| {
            live.iter()
                .map(|p| wanted(p, field, resource))
                .fold(Quantity::from_i64(0), |a, b| a + b)
        };
        let (requests, limits) =
            (shown(total("requests"), resource), shown(total("limits"), resource));
        page.line(1, format!("{resource}\t{requests}\t{limits}"));
    }
}
