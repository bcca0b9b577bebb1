//! Service.

use super::access::{
    carry_over, child, default_to, existing, get, int, items, items_mut, len, name_cell, remove,
    text, unset,
};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::print::{labels as shown_labels, or_none};
use super::{Kind, Strategy, Target, metadata, names, pod};
use crate::error::FieldError;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// How long a client sticks to its endpoint, in seconds, where nothing else is said.
const AFFINITY_SECONDS: i64 = 10_800;
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const SPEC: Path<'static> = Path::root("spec");
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    let service = define("", "v1", "Service", "services")
        .namespaced()
        .short_names(&["svc"])
        .categories(&["all"])
        .columns(&[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            ("Age", "string", 0),
            ("Selector", "string", 1),
        ])
        .selectable(&["spec.clusterIP", "spec.type"])
        .subresource_of(
            "proxy",
            &["create", "delete", "get", "patch", "update"],
            ("", "v1", "ServiceProxyOptions"),
        )
        .status()
        .build(ServiceRules);
    vec![service]
}

/// Whether services of this type have an address of their own.
fn has_cluster_ip(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName"
}

/// Whether nodes listen for it.
fn has_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn reachable_from_outside(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => len(spec, "externalIPs") > 0,
        _ => false,
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

struct ServiceRules;

impl Strategy for ServiceRules {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        default_to(spec, "type", "ClusterIP");
        affinity(spec);
        for port in items_mut(spec, "ports") {
            default_to(port, "protocol", "TCP");
            if unset(port, "targetPort") || int(port, "targetPort") == Some(0) {
                port["targetPort"] = port.get("port").cloned().unwrap_or_default();
            }
        }
        if reachable_from_outside(spec) {
            default_to(spec, "externalTrafficPolicy", "Cluster");
        }
        if text(spec, "type") == "LoadBalancer" {
            default_to(spec, "allocateLoadBalancerNodePorts", true);
        }
        if has_cluster_ip(spec) {
            default_to(spec, "internalTrafficPolicy", "Cluster");
            addresses(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        if let Some(spec) = existing(object, "spec") {
            families(spec);
        }
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        match target {
            Target::Status => carry_over(new, old, "spec"),
            _ => {
                carry_over(new, old, "status");
                if let (Some(spec), Some(old)) = (existing(new, "spec"), old.get("spec")) {
                    keep_allocated(spec, old);
                    drop_unneeded(spec, old);
                    families(spec);
                }
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_label);
        body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        if target == Target::Status {
            load_balancer_status(&mut faults, new);
            return faults.0;
        }
        let none = Value::Null;
        let (now, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
        if has_cluster_ip(now) && has_cluster_ip(before) && !text(before, "clusterIP").is_empty() {
            let path = SPEC.field("clusterIPs");
            let first = |spec: &Value| spec.pointer("/clusterIPs/0").cloned();
            let kept = first(before).or_else(|| get(before, "clusterIP").cloned());
            let wanted = first(now).or_else(|| get(now, "clusterIP").cloned());
            if wanted != kept {
                let detail = "may not change once set";
                let list = get(now, "clusterIPs").cloned().unwrap_or_default();
                faults.invalid(&path.index(0), list, detail);
            }
        }
        body(&mut faults, new);
        faults.0
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        vec![text(spec, "clusterIP").into(), text(spec, "type").into()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let ports: Vec<String> = items(spec, "ports").map(|(_, p)| shown_port(p)).collect();
        let first = spec.pointer("/clusterIPs/0").and_then(Value::as_str);
        vec![
            name_cell(object),
            text(spec, "type").into(),
            or_none(first.unwrap_or(text(spec, "clusterIP"))),
            external(object, spec).into(),
            or_none(&ports.join(",")),
            age_cell(object, now),
            shown_labels(spec.get("selector")).into(),
        ]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_label(name))
    }
}

fn affinity(spec: &mut Value) {
    default_to(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None" {
        remove(spec, "sessionAffinityConfig");
        return;
    }
    let client = child(spec, "sessionAffinityConfig").and_then(|config| child(config, "clientIP"));
    if let Some(client) = client {
        default_to(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
}

/// `clusterIP` and the first of `clusterIPs` are one.
fn addresses(spec: &mut Value) {
    let single = text(spec, "clusterIP").to_owned();
    let first = spec.pointer("/clusterIPs/0").and_then(Value::as_str).map(str::to_owned);
    match (single.as_str(), first) {
        ("", Some(first)) => spec["clusterIP"] = first.into(),
        ("", None) => {}
        (single, None) => spec["clusterIPs"] = json!([single]),
        _ => {}
    }
}

/// The address families of a service that says nothing about them. A headless one without a
/// selector may have endpoints of any family.
fn families(spec: &mut Value) {
    if !has_cluster_ip(spec) {
        return;
    }
    let any = text(spec, "clusterIP") == "None" && len(spec, "selector") == 0;
    let asked = len(spec, "ipFamilies") > 0 || !unset(spec, "ipFamilyPolicy");
    if any && !asked {
        spec["ipFamilyPolicy"] = "RequireDualStack".into();
        spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
        return;
    }
    default_to(spec, "ipFamilyPolicy", "SingleStack");
    if len(spec, "ipFamilies") == 0 {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
}

/// An update that leaves allocated values out keeps them.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if has_cluster_ip(spec) && has_cluster_ip(old) && text(spec, "clusterIP").is_empty() {
        for key in ["clusterIP", "clusterIPs"] {
            carry_over(spec, old, key);
        }
    }
    if has_cluster_ip(spec) && has_cluster_ip(old) {
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if len(spec, key) == 0 && unset_or_list(spec, key) {
                carry_over(spec, old, key);
            }
        }
    }
    if has_node_ports(spec) && has_node_ports(old) {
        keep_node_ports(spec, old);
    }
    if needs_health_check(spec)
        && needs_health_check(old)
        && int(spec, "healthCheckNodePort").unwrap_or(0) == 0
    {
        carry_over(spec, old, "healthCheckNodePort");
    }
}

fn unset_or_list(spec: &Value, key: &str) -> bool {
    unset(spec, key) || spec.get(key).is_some_and(Value::is_array)
}

fn node_port(port: &Value) -> i64 {
    int(port, "nodePort").unwrap_or(0)
}

/// Ports go by their names; a number that the new ports use otherwise is not kept.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    let wanted: Vec<i64> =
        items(spec, "ports").map(|(_, p)| node_port(p)).filter(|n| *n > 0).collect();
    let mut used: Vec<i64> = wanted;
    for port in items_mut(spec, "ports").filter(|p| node_port(p) == 0) {
        let name = text(port, "name");
        let before = items(old, "ports").find(|(_, p)| text(p, "name") == name);
        let number = before.map_or(0, |(_, p)| node_port(p));
        if number > 0 && !used.contains(&number) {
            used.push(number);
            port["nodePort"] = number.into();
        }
    }
}

/// A change of type drops what only the old type had, unless it was changed with it.
fn drop_unneeded(spec: &mut Value, old: &Value) {
    let same = |spec: &Value, key: &str| spec.get(key) == old.get(key);
    if has_cluster_ip(old) && !has_cluster_ip(spec) && same(spec, "clusterIP") {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove(spec, key);
        }
    }
    if has_node_ports(old) && !has_node_ports(spec) {
        let before: Vec<i64> = items(old, "ports").map(|(_, p)| node_port(p)).collect();
        for port in items_mut(spec, "ports").filter(|p| before.contains(&node_port(p))) {
            remove(port, "nodePort");
        }
    }
    if !reachable_from_outside(spec) && same(spec, "externalTrafficPolicy") {
        remove(spec, "externalTrafficPolicy");
    }
    if !needs_health_check(spec) && same(spec, "healthCheckNodePort") {
        remove(spec, "healthCheckNodePort");
    }
    if text(spec, "type") != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(spec, key) {
                remove(spec, key);
            }
        }
    }
}

fn body(faults: &mut Faults, object: &Value) {
    let none = Value::Null;
    let spec = object.get("spec").unwrap_or(&none);
    let headless = text(spec, "clusterIP") == "None";
    if len(spec, "ports") == 0 && !headless && has_cluster_ip(spec) {
        faults.required(&SPEC.field("ports"), "");
    }
    by_type(faults, spec, headless);
    ports(faults, spec);
    metadata::labels(faults, &SPEC.field("selector"), spec.get("selector"));
    session(faults, spec);
    cluster_ips(faults, spec);
    outside(faults, spec);
    faults.one_of(&SPEC.field("type"), text(spec, "type"), TYPES);
    duplicates(faults, spec);
    policies(faults, spec);
}

fn by_type(faults: &mut Faults, spec: &Value, headless: bool) {
    let path = SPEC.field("clusterIPs");
    match text(spec, "type") {
        kind @ ("LoadBalancer" | "NodePort") if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            faults.invalid(&path.index(0), "None", detail);
        }
        "ExternalName" => {
            if len(spec, "clusterIPs") > 0 || !text(spec, "clusterIP").is_empty() {
                faults.forbidden(&path, "may not be set for ExternalName services");
            }
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if len(spec, key) > 0 || !text(spec, key).is_empty() {
                    faults.forbidden(&SPEC.field(key), "may not be set for ExternalName services");
                }
            }
            let name = text(spec, "externalName");
            let path = SPEC.field("externalName");
            // A trailing dot is good: the name goes to a CNAME record as it is.
            let plain = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                faults.required(&path, "");
            } else {
                faults.each(&path, name, names::dns_subdomain(plain));
            }
        }
        _ => {}
    }
}

fn ports(faults: &mut Faults, spec: &Value) {
    let list = SPEC.field("ports");
    let many = len(spec, "ports") > 1;
    let mut seen = Vec::new();
    for (index, port) in items(spec, "ports") {
        let path = list.index(index);
        let name = text(port, "name");
        if name.is_empty() && many {
            faults.required(&path.field("name"), "");
        } else if !name.is_empty() {
            faults.each(&path.field("name"), name, names::dns_label(name));
            if seen.contains(&name) {
                faults.duplicate(&path.field("name"), name);
            }
            seen.push(name);
        }
        faults.within(&path.field("port"), int(port, "port").unwrap_or(0), 1, 65535);
        faults.one_of(&path.field("protocol"), text(port, "protocol"), PROTOCOLS);
        pod::port(faults, &path.field("targetPort"), get(port, "targetPort"));
        let protocol = text(port, "appProtocol");
        if !protocol.is_empty() {
            faults.each(&path.field("appProtocol"), protocol, names::label_key(protocol));
        }
        if text(spec, "type") == "ClusterIP" && node_port(port) != 0 {
            let detail = "may not be used when `type` is 'ClusterIP'";
            faults.forbidden(&path.field("nodePort"), detail);
        }
    }
}

fn session(faults: &mut Faults, spec: &Value) {
    let kind = text(spec, "sessionAffinity");
    faults.one_of(&SPEC.field("sessionAffinity"), kind, &["ClientIP", "None"]);
    if kind == "ClientIP" {
        let seconds = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
        let seconds = seconds.and_then(Value::as_i64).unwrap_or(AFFINITY_SECONDS);
        if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
            let path = SPEC.field("sessionAffinityConfig");
            let path = path.field("clientIP");
            let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
            faults.invalid(&path.field("timeoutSeconds"), seconds, detail);
        }
    }
}

fn cluster_ips(faults: &mut Faults, spec: &Value) {
    let list = SPEC.field("clusterIPs");
    let single = text(spec, "clusterIP");
    if len(spec, "clusterIPs") > 0 {
        let first = spec.pointer("/clusterIPs/0").and_then(Value::as_str).unwrap_or("");
        if first != single {
            let detail = "first value must match `clusterIP`";
            faults.invalid(&list, spec["clusterIPs"].clone(), detail);
        }
    }
    for (index, ip) in items(spec, "clusterIPs") {
        let ip = ip.as_str().unwrap_or("");
        if ip == "None" && index == 0 {
            continue;
        }
        faults.each(&list.index(index), ip, names::ip(ip));
    }
    let families = SPEC.field("ipFamilies");
    for (index, family) in items(spec, "ipFamilies") {
        let family = family.as_str().unwrap_or("");
        faults.one_of(&families.index(index), family, &["IPv4", "IPv6"]);
    }
    let policy = text(spec, "ipFamilyPolicy");
    let known = &["SingleStack", "PreferDualStack", "RequireDualStack"];
    if !policy.is_empty() && !known.contains(&policy) {
        faults.not_supported(&SPEC.field("ipFamilyPolicy"), policy, known);
    }
}

fn outside(faults: &mut Faults, spec: &Value) {
    let list = SPEC.field("externalIPs");
    for (index, ip) in items(spec, "externalIPs") {
        let ip = ip.as_str().unwrap_or("");
        let wrong = names::ip(ip);
        let local = ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
        if wrong.is_empty() && local {
            let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
            faults.invalid(&list.index(index), ip, detail);
        }
        faults.each(&list.index(index), ip, wrong);
    }
    let list = SPEC.field("loadBalancerSourceRanges");
    if len(spec, "loadBalancerSourceRanges") > 0 && text(spec, "type") != "LoadBalancer" {
        faults.forbidden(&list, "may only be used when `type` is 'LoadBalancer'");
    }
    for (index, range) in items(spec, "loadBalancerSourceRanges") {
        let range = range.as_str().unwrap_or("");
        faults.each(&list.index(index), range, names::cidr(range.trim()));
    }
}

fn duplicates(faults: &mut Faults, spec: &Value) {
    let list = SPEC.field("ports");
    let (mut node_ports, mut numbers) = (Vec::new(), Vec::new());
    for (index, port) in items(spec, "ports") {
        let path = list.index(index);
        let protocol = text(port, "protocol");
        let (node, number) = (node_port(port), int(port, "port").unwrap_or(0));
        if node != 0 && node_ports.contains(&(protocol, node)) {
            faults.duplicate(&path.field("nodePort"), node);
        }
        node_ports.push((protocol, node));
        if numbers.contains(&(protocol, number)) {
            let mut shown = Map::new();
            shown.insert("protocol".into(), protocol.into());
            shown.insert("port".into(), number.into());
            faults.duplicate(&path, shown);
        }
        numbers.push((protocol, number));
    }
}

fn policies(faults: &mut Faults, spec: &Value) {
    let path = SPEC.field("externalTrafficPolicy");
    let policy = text(spec, "externalTrafficPolicy");
    if !reachable_from_outside(spec) {
        if !policy.is_empty() {
            let detail = "may only be set for externally-accessible services";
            faults.invalid(&path, policy, detail);
        }
    } else {
        faults.one_of(&path, policy, POLICIES);
    }
    let health = int(spec, "healthCheckNodePort").unwrap_or(0);
    if health != 0 && !needs_health_check(spec) {
        let detail =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        faults.invalid(&SPEC.field("healthCheckNodePort"), health, detail);
    }
    if has_cluster_ip(spec) {
        let policy = text(spec, "internalTrafficPolicy");
        faults.one_of(&SPEC.field("internalTrafficPolicy"), policy, POLICIES);
    }
    if let Some(preference) = get(spec, "trafficDistribution").and_then(Value::as_str) {
        let known = &["PreferClose", "PreferSameNode", "PreferSameZone"];
        faults.one_of(&SPEC.field("trafficDistribution"), preference, known);
    }
}

fn load_balancer_status(faults: &mut Faults, object: &Value) {
    let root = Path::root("status");
    let path = root.field("loadBalancer");
    let list = path.field("ingress");
    let ingress = object.pointer("/status/loadBalancer");
    for (index, entry) in ingress.into_iter().flat_map(|l| items(l, "ingress")) {
        let path = list.index(index);
        let (ip, host) = (text(entry, "ip"), text(entry, "hostname"));
        if !ip.is_empty() {
            faults.each(&path.field("ip"), ip, names::ip(ip));
        }
        if host.parse::<IpAddr>().is_ok() {
            let detail = "must be a DNS name, not an IP address";
            faults.invalid(&path.field("hostname"), host, detail);
        } else if !host.is_empty() {
            faults.each(&path.field("hostname"), host, names::dns_subdomain(host));
        }
    }
}

fn shown_port(port: &Value) -> String {
    let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
    match node_port(port) {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

/// Where the service can be reached from outside.
fn external(object: &Value, spec: &Value) -> String {
    let joined = |list: Vec<&str>, none: &str| {
        if list.is_empty() { none.to_owned() } else { list.join(",") }
    };
    let own: Vec<&str> = items(spec, "externalIPs").filter_map(|(_, ip)| ip.as_str()).collect();
    match text(spec, "type") {
        "ClusterIP" | "NodePort" => joined(own, "<none>"),
        "LoadBalancer" => {
            let ingress = object.pointer("/status/loadBalancer").unwrap_or(&Value::Null);
            let given = items(ingress, "ingress").map(|(_, entry)| match text(entry, "ip") {
                "" => text(entry, "hostname"),
                ip => ip,
            });
            joined(given.filter(|a| !a.is_empty()).chain(own).collect(), "<pending>")
        }
        "ExternalName" => text(spec, "externalName").into(),
        _ => "<unknown>".into(),
    }
}
