//! What the server derives from an object on every write: index terms and the generation.

use super::Kind;
use super::access::{fields, items, same_field, text};
use crate::meta::str_at;
use serde_json::Value;

/// The terms by which an object is found without a scan: `owner=<uid>` for each owner; pods
/// `node=<name>`; events `involved=<uid>`; services `clusterIP=<ip>` and `nodePort=<n>`; nodes
/// `podCIDR=<cidr>`.
pub fn index_terms(kind: &Kind, object: &Value) -> Vec<String> {
    let mut terms: Vec<String> = object
        .get("metadata")
        .into_iter()
        .flat_map(|m| items(m, "ownerReferences"))
        .map(|(_, owner)| text(owner, "uid"))
        .filter(|uid| !uid.is_empty())
        .map(|uid| format!("owner={uid}"))
        .collect();
    match (kind.store_resource().as_str(), object.get("spec").unwrap_or(&Value::Null)) {
        ("pods", spec) => push(&mut terms, "node", text(spec, "nodeName")),
        ("nodes", spec) => node_terms(&mut terms, spec),
        ("services", spec) => service_terms(&mut terms, spec),
        ("events", _) => {
            push(&mut terms, "involved", str_at(object, &["involvedObject", "uid"]));
            push(&mut terms, "involved", str_at(object, &["regarding", "uid"]));
        }
        _ => {}
    }
    terms
}

fn push(terms: &mut Vec<String>, name: &str, value: &str) {
    if !value.is_empty() {
        terms.push(format!("{name}={value}"));
    }
}

fn node_terms(terms: &mut Vec<String>, spec: &Value) {
    push(terms, "podCIDR", text(spec, "podCIDR"));
    for (_, cidr) in items(spec, "podCIDRs") {
        let cidr = cidr.as_str().unwrap_or("");
        if cidr != text(spec, "podCIDR") {
            push(terms, "podCIDR", cidr);
        }
    }
}

fn service_terms(terms: &mut Vec<String>, spec: &Value) {
    let first = text(spec, "clusterIP");
    let others = items(spec, "clusterIPs").filter_map(|(_, ip)| ip.as_str());
    let mut seen = Vec::new();
    for ip in std::iter::once(first).chain(others) {
        if !ip.is_empty() && ip != "None" && !seen.contains(&ip) {
            seen.push(ip);
            push(terms, "clusterIP", ip);
        }
    }
    let ports = items(spec, "ports").filter_map(|(_, p)| p.get("nodePort")?.as_u64());
    let health = spec.get("healthCheckNodePort").and_then(Value::as_u64);
    let mut numbers: Vec<u64> = ports.chain(health).filter(|n| *n > 0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    terms.extend(numbers.into_iter().map(|n| format!("nodePort={n}")));
}

/// Whether anything but names, metadata and status differs.
pub(super) fn differ_beside_status(new: &Value, old: &Value) -> bool {
    let desired =
        |key: &&String| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status");
    let keys = fields(new).chain(fields(old)).map(|(key, _)| key);
    keys.filter(desired).any(|key| !same_field(new, old, key))
}

/// Sets `metadata.generation` of a changed object: the old one's, plus one if what is desired has
/// changed. A kind without generations keeps whatever the old object has. With `old` null (a
/// creation) it is 1.
pub fn bump_generation(kind: &Kind, new: &mut Value, old: &Value) {
    let before = old.pointer("/metadata/generation").and_then(Value::as_i64);
    let generation = match (kind.has_generation, before) {
        (false, before) => before,
        (true, _) if old.is_null() => Some(1),
        (true, before) => {
            let changed = kind.strategy.desired_changed(new, old);
            Some(before.unwrap_or(0) + i64::from(changed))
        }
    };
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match generation {
        Some(generation) => metadata.insert("generation".into(), generation.into()),
        None => metadata.remove("generation"),
    };
}
