//! Faults of what decides where a pod may run: affinity, tolerations, taints, topology spread.

use crate::registry::access::{get, int, items, len, text};
use crate::registry::fault::{Faults, Path};
use crate::registry::{metadata, names};
use serde_json::Value;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Node and pod affinity, and pod anti-affinity.
pub(super) fn affinity(faults: &mut Faults, path: &Path<'_>, affinity: &Value) {
    if let Some(node) = get(affinity, "nodeAffinity") {
        node_affinity(faults, &path.field("nodeAffinity"), node);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(terms) = get(affinity, kind) else { continue };
        let path = path.field(kind);
        let list = path.field(REQUIRED);
        for (index, term) in items(terms, REQUIRED) {
            pod_term(faults, &list.index(index), term);
        }
        let list = path.field(PREFERRED);
        for (index, weighted) in items(terms, PREFERRED) {
            let path = list.index(index);
            weight(faults, &path, weighted);
            let term = weighted.get("podAffinityTerm").unwrap_or(&Value::Null);
            pod_term(faults, &path.field("podAffinityTerm"), term);
        }
    }
}

fn weight(faults: &mut Faults, path: &Path<'_>, weighted: &Value) {
    let weight = int(weighted, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        faults.invalid(&path.field("weight"), weight, "must be in the range 1-100");
    }
}

fn node_affinity(faults: &mut Faults, path: &Path<'_>, affinity: &Value) {
    if let Some(selector) = get(affinity, REQUIRED) {
        let path = path.field(REQUIRED);
        let list = path.field("nodeSelectorTerms");
        if len(selector, "nodeSelectorTerms") == 0 {
            faults.required(&list, "must have at least one node selector term");
        }
        for (index, term) in items(selector, "nodeSelectorTerms") {
            node_term(faults, &list.index(index), term);
        }
    }
    let list = path.field(PREFERRED);
    for (index, weighted) in items(affinity, PREFERRED) {
        let path = list.index(index);
        weight(faults, &path, weighted);
        let term = weighted.get("preference").unwrap_or(&Value::Null);
        node_term(faults, &path.field("preference"), term);
    }
}

fn node_term(faults: &mut Faults, path: &Path<'_>, term: &Value) {
    for key in ["matchExpressions", "matchFields"] {
        let list = path.field(key);
        for (index, requirement) in items(term, key) {
            node_requirement(faults, &list.index(index), requirement, key == "matchFields");
        }
    }
}

fn node_requirement(faults: &mut Faults, path: &Path<'_>, requirement: &Value, on_field: bool) {
    let values = len(requirement, "values");
    let key = text(requirement, "key");
    if on_field && key != "metadata.name" {
        faults.invalid(&path.field("key"), key, "not a valid field selector key");
    }
    match text(requirement, "operator") {
        "In" | "NotIn" if values == 0 => faults.required(
            &path.field("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
        "Exists" | "DoesNotExist" if values > 0 => faults.forbidden(
            &path.field("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "Gt" | "Lt" if values != 1 => faults.required(
            &path.field("values"),
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => faults.invalid(&path.field("operator"), other, "not a valid selector operator"),
    }
    if !on_field {
        faults.each(&path.field("key"), key, names::label_key(key));
    }
}

fn pod_term(faults: &mut Faults, path: &Path<'_>, term: &Value) {
    for key in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = get(term, key) {
            metadata::label_selector(faults, &path.field(key), selector);
        }
    }
    let list = path.field("namespaces");
    for (index, name) in items(term, "namespaces") {
        let name = name.as_str().unwrap_or("");
        faults.each(&list.index(index), name, names::dns_label(name));
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        faults.required(&path.field("topologyKey"), "can not be empty");
    }
    faults.each(&path.field("topologyKey"), key, names::label_key(key));
}

/// What a pod puts up with.
pub(super) fn tolerations(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    for (index, toleration) in items(spec, "tolerations") {
        self::toleration(faults, &path.index(index), toleration);
    }
}

fn toleration(faults: &mut Faults, path: &Path<'_>, toleration: &Value) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
    if !key.is_empty() {
        faults.each(&path.field("key"), key, names::label_key(key));
    } else if operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        faults.invalid(&path.field("operator"), operator, detail);
    }
    if int(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        faults.invalid(&path.field("effect"), effect, detail);
    }
    match operator {
        "Equal" | "" => {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                faults.invalid(&path.field("operator"), value, wrong.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            faults.invalid(&path.field("operator"), value, detail);
        }
        "Exists" => {}
        other => faults.not_supported(&path.field("operator"), other, &["Equal", "Exists"]),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        faults.not_supported(&path.field("effect"), effect, EFFECTS);
    }
}

/// What a node keeps pods away with.
pub(in crate::registry) fn taints(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    let mut seen = Vec::new();
    for (index, taint) in items(spec, "taints") {
        let path = path.index(index);
        let (key, value, effect) =
            (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        faults.each(&path.field("key"), key, names::label_key(key));
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            faults.invalid(&path.field("value"), value, wrong.join(";"));
        }
        faults.one_of(&path.field("effect"), effect, EFFECTS);
        if seen.contains(&(key, effect)) {
            faults.duplicate(&path, taint.clone());
        }
        seen.push((key, effect));
    }
}

/// How evenly pods are to be spread.
pub(super) fn topology_spread(faults: &mut Faults, path: &Path<'_>, spec: &Value) {
    let mut seen = Vec::new();
    for (index, constraint) in items(spec, "topologySpreadConstraints") {
        let path = path.index(index);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            faults.invalid(&path.field("maxSkew"), skew, "must be greater than zero");
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            faults.required(&path.field("topologyKey"), "can not be empty");
        } else {
            faults.each(&path.field("topologyKey"), key, names::label_key(key));
        }
        let action = text(constraint, "whenUnsatisfiable");
        let actions = &["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            faults.not_supported(&path.field("whenUnsatisfiable"), action, actions);
        }
        if seen.contains(&(key, action)) {
            faults.duplicate(
                &path.field("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {action}}}"),
            );
        }
        seen.push((key, action));
        if let Some(domains) = int(constraint, "minDomains") {
            let path = path.field("minDomains");
            if domains <= 0 {
                faults.invalid(&path, domains, "must be greater than zero");
            }
            if action == "ScheduleAnyway" {
                let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                faults.invalid(&path, domains, detail);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let value = text(constraint, policy);
            if !matches!(value, "" | "Ignore" | "Honor") {
                faults.not_supported(&path.field(policy), value, &["Honor", "Ignore"]);
            }
        }
        if let Some(selector) = get(constraint, "labelSelector") {
            metadata::label_selector(faults, &path.field("labelSelector"), selector);
        }
    }
}
