//! Faults of a pod's spec.

use super::container::{Context, ephemeral_containers, id, init_containers, main_containers};
use super::schedule;
use super::volume::volumes;
use crate::registry::access::{fields, flag, get, int, items, len, text};
use crate::registry::fault::{Faults, Path};
use crate::registry::{metadata, names};
use serde_json::Value;

const MAX_INT32: i64 = 2_147_483_647;
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
/// What the resolver of libc takes.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH_PATHS: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// Everything that may be wrong with the spec of a pod or of a pod template.
pub(super) fn spec(faults: &mut Faults, path: &Path<'_>, spec: &Value, is_pod: bool) {
    let sound = volumes(faults, &path.field("volumes"), spec);
    let context = Context { volumes: &sound, host_network: flag(spec, "hostNetwork"), is_pod };
    main_containers(faults, &context, &path.field("containers"), spec);
    init_containers(faults, &context, &path.field("initContainers"), spec);
    ephemeral_containers(faults, &context, &path.field("ephemeralContainers"), spec);
    faults.one_of(&path.field("restartPolicy"), text(spec, "restartPolicy"), RESTART_POLICIES);
    faults.one_of(&path.field("dnsPolicy"), text(spec, "dnsPolicy"), DNS_POLICIES);
    metadata::labels(faults, &path.field("nodeSelector"), spec.get("nodeSelector"));
    if let Some(security) = get(spec, "securityContext") {
        security_context(faults, &path.field("securityContext"), security);
    }
    if let Some(affinity) = get(spec, "affinity") {
        schedule::affinity(faults, &path.field("affinity"), affinity);
    }
    dns_config(faults, &path.field("dnsConfig"), spec);
    namespaces_of_host(faults, path, spec);
    gates(faults, path, spec);
    names_of_others(faults, path, spec);
    if let Some(deadline) = int(spec, "activeDeadlineSeconds") {
        faults.within(&path.field("activeDeadlineSeconds"), deadline, 1, MAX_INT32);
    }
    schedule::tolerations(faults, &path.field("tolerations"), spec);
    host_aliases(faults, &path.field("hostAliases"), spec);
    schedule::topology_spread(faults, &path.field("topologySpreadConstraints"), spec);
    if let Some(policy) = get(spec, "preemptionPolicy").and_then(Value::as_str) {
        let known = &["Never", "PreemptLowerPriority"];
        faults.one_of(&path.field("preemptionPolicy"), policy, known);
    }
    os(faults, &path.field("os"), spec);
}

fn names_of_others(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    let rules: [(&str, metadata::NameRule); 7] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("schedulerName", names::label_key),
    ];
    for (key, rule) in rules {
        let name = text(spec, key);
        if !name.is_empty() {
            faults.each(&path.field(key), name, rule(name));
        }
    }
    for (index, secret) in items(spec, "imagePullSecrets") {
        let list = path.field("imagePullSecrets");
        if text(secret, "name").is_empty() {
            faults.required(&list.index(index).field("name"), "");
        }
    }
}

/// Which of the node's namespaces go together.
fn namespaces_of_host(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let path = path.field("securityContext");
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        faults.invalid(&path.field("shareProcessNamespace"), true, detail);
    }
    if spec.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if flag(spec, key) {
            faults.forbidden(&path.field(key), "when `pod.Spec.HostUsers` is false");
        }
    }
}

fn gates(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    let list = path.field("readinessGates");
    for (index, gate) in items(spec, "readinessGates") {
        let kind = text(gate, "conditionType");
        faults.each(&list.index(index).field("conditionType"), kind, names::label_key(kind));
    }
    let list = path.field("schedulingGates");
    let mut seen = Vec::new();
    for (index, gate) in items(spec, "schedulingGates") {
        let name = text(gate, "name");
        let path = list.index(index);
        faults.each(&path, name, names::label_key(name));
        if seen.contains(&name) {
            faults.duplicate(&path, name);
        }
        seen.push(name);
    }
    if !seen.is_empty() && !text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        faults.forbidden(&path.field("nodeName"), detail);
    }
}

fn os(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    if let Some(os) = get(spec, "os") {
        faults.one_of(&path.field("name"), text(os, "name"), &["linux", "windows"]);
    }
}

fn security_context(faults: &mut Faults, path: &Path<'_>, security: &Value) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(faults, &path.field(key), int(security, key));
    }
    let list = path.field("supplementalGroups");
    for (index, group) in items(security, "supplementalGroups") {
        id(faults, &list.index(index), group.as_i64());
    }
    let list = path.field("sysctls");
    for (index, sysctl) in items(security, "sysctls") {
        let (path, name) = (list.index(index), text(sysctl, "name"));
        if name.is_empty() {
            faults.required(&path.field("name"), "");
        } else if !sysctl_name(name) {
            let detail = "must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            faults.invalid(&path.field("name"), name, detail);
        }
    }
    if let Some(policy) = get(security, "fsGroupChangePolicy").and_then(Value::as_str)
        && !matches!(policy, "Always" | "OnRootMismatch")
    {
        faults.not_supported(
            &path.field("fsGroupChangePolicy"),
            policy,
            &["Always", "OnRootMismatch"],
        );
    }
    if let Some(profile) = get(security, "seccompProfile") {
        seccomp(faults, &path.field("seccompProfile"), profile);
    }
}

fn sysctl_name(name: &str) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let segment = |s: &str| {
        let bytes = s.as_bytes();
        bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|b| edge(b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

/// A seccomp profile and its file.
pub(super) fn seccomp(faults: &mut Faults, path: &Path<'_>, profile: &Value) {
    let kind = text(profile, "type");
    let file = get(profile, "localhostProfile").and_then(Value::as_str);
    let known = &["Localhost", "RuntimeDefault", "Unconfined"];
    match (kind, file) {
        ("Localhost", None) => {
            let detail = "must be set when seccomp type is Localhost";
            faults.required(&path.field("localhostProfile"), detail);
        }
        ("Localhost", Some(file)) => {
            super::volume::local_path(faults, &path.field("localhostProfile"), file);
        }
        (_, Some(file)) => {
            let detail = "can only be set when seccomp type is Localhost";
            faults.invalid(&path.field("localhostProfile"), file, detail);
        }
        _ => {}
    }
    if kind.is_empty() {
        faults.required(&path.field("type"), "type is required when seccompProfile is set");
    } else if !known.contains(&kind) {
        faults.not_supported(&path.field("type"), kind, known);
    }
}

fn dns_config(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    let config = get(spec, "dnsConfig");
    if text(spec, "dnsPolicy") == "None" {
        match config {
            None => {
                return faults.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            }
            Some(config) if len(config, "nameservers") == 0 => {
                let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                return faults.required(&path.field("nameservers"), detail);
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else { return };
    let list = path.field("nameservers");
    if len(config, "nameservers") > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        faults.invalid(&list, config["nameservers"].clone(), detail);
    }
    for (index, server) in items(config, "nameservers") {
        let server = server.as_str().unwrap_or("");
        faults.each(&list.index(index), server, names::ip(server));
    }
    searches(faults, &path.field("searches"), config);
    let list = path.field("options");
    for (index, option) in items(config, "options") {
        if text(option, "name").is_empty() {
            faults.required(&list.index(index), "must not be empty");
        }
    }
}

fn searches(faults: &mut Faults, path: &Path<'_>, config: &Value) {
    let count = len(config, "searches");
    if count > MAX_SEARCH_PATHS {
        let detail = format!("must not have more than {MAX_SEARCH_PATHS} search paths");
        faults.invalid(path, config["searches"].clone(), detail);
    }
    let bytes: usize = items(config, "searches").map(|(_, s)| s.as_str().map_or(0, str::len)).sum();
    if bytes + count.saturating_sub(1) > MAX_SEARCH_BYTES {
        let detail = format!(
            "must not have more than {MAX_SEARCH_BYTES} characters (including spaces) in the search list"
        );
        faults.invalid(path, config["searches"].clone(), detail);
    }
    for (index, search) in items(config, "searches") {
        let search = search.as_str().unwrap_or("");
        let plain = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            // Underscores stand in the names of some directories' records.
            let wrong = names::dns_subdomain(&plain.replace('_', "-"));
            faults.each(&path.index(index), search, wrong);
        }
    }
}

fn host_aliases(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    for (index, alias) in items(spec, "hostAliases") {
        let path = path.index(index);
        let ip = text(alias, "ip");
        faults.each(&path.field("ip"), ip, names::ip(ip));
        let list = path.field("hostnames");
        for (index, name) in items(alias, "hostnames") {
            let name = name.as_str().unwrap_or("");
            faults.each(&list.index(index), name, names::dns_subdomain(name));
        }
    }
}

/// What holds for a pod but not for a template.
pub(super) fn pod_only(faults: &mut Faults, object: &Value) {
    let annotations = object.get("metadata").and_then(|m| get(m, "annotations"));
    let mirror = annotations.and_then(|a| get(a, "kubernetes.io/config.mirror"));
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if let Some(value) = mirror
        && text(spec, "nodeName").is_empty()
    {
        let root = Path::root("metadata");
        let list = root.field("annotations");
        let path = list.key("kubernetes.io/config.mirror");
        faults.invalid(
            &path,
            value.clone(),
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    single_huge_page_size(faults, spec);
}

fn single_huge_page_size(faults: &mut Faults, spec: &Value) {
    let mut first = None;
    for (_, container) in items(spec, "containers").chain(items(spec, "initContainers")) {
        for side in ["requests", "limits"] {
            let amounts = get(container, "resources").and_then(|r| get(r, side));
            for (name, _) in amounts.into_iter().flat_map(fields) {
                if !name.starts_with("hugepages-") {
                    continue;
                }
                if first.is_some_and(|f| f != name) {
                    let detail = "must use a single hugepage size in a pod spec";
                    return faults.invalid(&Path::root("spec"), name.as_str(), detail);
                }
                first = Some(name);
            }
        }
    }
}
