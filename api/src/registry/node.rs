//! Node.

use super::access::{
    carry_over, child, default_to, existing, fields, flag, get, items, len, name_cell, text,
};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::pod::{quantity, taints};
use super::print::or_none;
use super::{Kind, Strategy, Target, metadata, names};
use crate::error::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    let node = define("", "v1", "Node", "nodes")
        .short_names(&["no"])
        .columns(&[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Roles", "string", 0),
            ("Age", "string", 0),
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ])
        .selectable(&["spec.unschedulable"])
        .subresource_of(
            "proxy",
            &["create", "delete", "get", "patch", "update"],
            ("", "v1", "NodeProxyOptions"),
        )
        .status()
        .build(NodeRules);
    vec![node]
}

struct NodeRules;

impl Strategy for NodeRules {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            let cidr = text(spec, "podCIDR").to_owned();
            let first = spec.pointer("/podCIDRs/0").and_then(Value::as_str).map(str::to_owned);
            match (cidr.as_str(), first) {
                ("", Some(first)) => spec["podCIDR"] = first.into(),
                ("", None) => {}
                (cidr, None) => spec["podCIDRs"] = json!([cidr]),
                _ => {}
            }
        }
        if let Some(status) = existing(object, "status")
            && let Some(capacity) = get(status, "capacity").cloned()
        {
            default_to(status, "allocatable", capacity);
        }
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        carry_over(new, old, if target == Target::Status { "spec" } else { "status" });
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        body(&mut faults, new);
        unique_addresses(&mut faults, new);
        let none = Value::Null;
        let (now, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
        let root = Path::root("spec");
        if len(before, "podCIDRs") > 0 && now.get("podCIDRs") != before.get("podCIDRs") {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            faults.forbidden(&root.field("podCIDRs"), detail);
        }
        let (provider, earlier) = (text(now, "providerID"), text(before, "providerID"));
        if !earlier.is_empty() && provider != earlier {
            let detail = "node updates may not change providerID except from \"\" to valid";
            faults.forbidden(&root.field("providerID"), detail);
        }
        faults.0
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        let unschedulable = object.get("spec").is_some_and(|s| flag(s, "unschedulable"));
        vec![unschedulable.to_string()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let none = Value::Null;
        let status = object.get("status").unwrap_or(&none);
        let info = status.get("nodeInfo").unwrap_or(&none);
        let known = |key: &str| match text(info, key) {
            "" => Value::from("<unknown>"),
            known => known.into(),
        };
        vec![
            name_cell(object),
            readiness(object, status).into(),
            roles(object),
            age_cell(object, now),
            text(info, "kubeletVersion").into(),
            address(status, "InternalIP"),
            address(status, "ExternalIP"),
            known("osImage"),
            known("kernelVersion"),
            known("containerRuntimeVersion"),
        ]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

fn body(faults: &mut Faults, object: &Value) {
    let none = Value::Null;
    let spec = object.get("spec").unwrap_or(&none);
    // Upstream names the taints so.
    let metadata = Path::root("metadata");
    taints(faults, &metadata.field("taints"), spec);
    let root = Path::root("spec");
    let list = root.field("podCIDRs");
    for (index, cidr) in items(spec, "podCIDRs") {
        let cidr = cidr.as_str().unwrap_or("");
        faults.each(&list.index(index), cidr, names::cidr(cidr));
    }
    let status = Path::root("status");
    for side in ["capacity", "allocatable"] {
        let path = status.field(side);
        let amounts = object.get("status").and_then(|s| get(s, side));
        for (name, amount) in amounts.into_iter().flat_map(fields) {
            let amount = quantity(amount).filter(|q| q.is_negative());
            if let Some(amount) = amount {
                let detail = "must be greater than or equal to 0";
                faults.invalid(&path.field(name), amount.to_string(), detail);
            }
        }
    }
}

fn unique_addresses(faults: &mut Faults, object: &Value) {
    let root = Path::root("status");
    let list = root.field("addresses");
    let mut seen: Vec<&Value> = Vec::new();
    for (index, address) in object.get("status").into_iter().flat_map(|s| items(s, "addresses")) {
        if seen.contains(&address) {
            faults.duplicate(&list.index(index), address.clone());
        }
        seen.push(address);
    }
}

fn readiness(object: &Value, status: &Value) -> String {
    let ready = items(status, "conditions").find(|(_, c)| text(c, "type") == "Ready");
    let word = match ready.map(|(_, c)| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if object.get("spec").is_some_and(|s| flag(s, "unschedulable")) {
        format!("{word},SchedulingDisabled")
    } else {
        word.into()
    }
}

fn roles(object: &Value) -> Value {
    let labels = object.get("metadata").and_then(|m| get(m, "labels"));
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flat_map(fields)
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == ROLE_LABEL => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}

fn address(status: &Value, kind: &str) -> Value {
    let found = items(status, "addresses").find(|(_, a)| text(a, "type") == kind);
    or_none(found.map_or("", |(_, a)| text(a, "address")))
}
