//! What may change of a pod once it exists.

use super::default::CONTAINER_LISTS;
use crate::registry::access::{
    equivalent, fields, get, int, items, items_mut, len, remove, same_field, text,
};
use crate::registry::fault::{Faults, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::root("spec");
const OTHER_FIELDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// The faults of a change of a pod's spec.
pub(super) fn spec(faults: &mut Faults, new: &Value, old: &Value) {
    for list in ["containers", "initContainers"] {
        let path = SPEC.field(list);
        if len(new, list) != len(old, list) {
            return faults.forbidden(&path, "pod updates may not add or remove containers");
        }
    }
    deadline(faults, new, old);
    tolerations(faults, new, old);
    let gates_only_removed = gates(faults, new, old);
    let (mut compared, mut before) = (new.clone(), old.clone());
    for spec in [&mut compared, &mut before] {
        blank(spec);
    }
    if gates_only_removed {
        remove(&mut compared, "schedulingGates");
        remove(&mut before, "schedulingGates");
    }
    if !text(old, "nodeName").is_empty() || len(old, "schedulingGates") == 0 {
        if !equivalent(&compared, &before) {
            let detail = format!("{OTHER_FIELDS}\n{}", difference(&compared, &before));
            faults.forbidden(&SPEC, detail);
        }
    } else {
        gated(faults, compared, before);
    }
}

/// Takes away what may change.
fn blank(spec: &mut Value) {
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            remove(container, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations"] {
        remove(spec, key);
    }
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

/// A pod that no scheduler may place yet may still be confined further.
fn gated(faults: &mut Faults, mut new: Value, mut old: Value) {
    for (key, value) in old.get("nodeSelector").into_iter().flat_map(fields) {
        if new.get("nodeSelector").and_then(|n| n.get(key)) != Some(value) {
            let detail = "may only be extended while the pod has scheduling gates";
            faults.invalid(&SPEC.field("nodeSelector"), new["nodeSelector"].clone(), detail);
            break;
        }
    }
    for spec in [&mut new, &mut old] {
        remove(spec, "nodeSelector");
        remove(spec, "affinity");
    }
    if !equivalent(&new, &old) {
        let detail = format!("{OTHER_FIELDS}\n{}", difference(&new, &old));
        faults.forbidden(&SPEC, detail);
    }
}

fn deadline(faults: &mut Faults, new: &Value, old: &Value) {
    let path = SPEC.field("activeDeadlineSeconds");
    match (int(new, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(now), Some(before)) if now > before => {
            faults.invalid(&path, now, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            faults.invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

fn tolerations(faults: &mut Faults, new: &Value, old: &Value) {
    let without_time = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let now: Vec<Value> = items(new, "tolerations").map(|(_, t)| without_time(t)).collect();
    if items(old, "tolerations").any(|(_, t)| !now.contains(&without_time(t))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        faults.forbidden(&SPEC.field("tolerations"), detail);
    }
}

/// Gates may only go; true if that is all that happened to them.
fn gates(faults: &mut Faults, new: &Value, old: &Value) -> bool {
    let before: Vec<&Value> = items(old, "schedulingGates").map(|(_, g)| g).collect();
    let added: Vec<&str> = items(new, "schedulingGates")
        .filter(|(_, g)| !before.contains(g))
        .map(|(_, g)| text(g, "name"))
        .collect();
    for name in &added {
        let list = SPEC.field("schedulingGates");
        let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
        faults.forbidden(&list, detail);
    }
    added.is_empty()
}

/// The fields that differ, one a line: what was and what is wanted.
fn difference(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    let unset = Value::Null;
    for (key, value) in fields(new) {
        let before = old.get(key).unwrap_or(&unset);
        if !same_field(new, old, key) {
            lines.push(format!("- {key}: {before}\n+ {key}: {value}"));
        }
    }
    let gone = fields(old).filter(|(key, _)| new.get(*key).is_none());
    lines.extend(gone.map(|(key, value)| format!("- {key}: {value}")));
    lines.join("\n")
}

/// The faults of a change of a pod's ephemeral containers: those that are there stay as they are.
pub(super) fn ephemeral(faults: &mut Faults, new: &Value, old: &Value) {
    let path = SPEC.field("ephemeralContainers");
    for (_, before) in items(old, "ephemeralContainers") {
        let name = text(before, "name");
        let found = items(new, "ephemeralContainers").find(|(_, c)| text(c, "name") == name);
        match found {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                faults.forbidden(&path, detail);
            }
            Some((_, now)) if !equivalent(now, before) => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                faults.forbidden(&path, detail);
            }
            Some(_) => {}
        }
    }
}

/// The faults of a change of a pod's status.
pub(super) fn status(faults: &mut Faults, new: &Value, old: &Value) {
    let none = Value::Null;
    let policy = old.get("spec").map_or("", |s| text(s, "restartPolicy"));
    let new = new.get("status").unwrap_or(&none);
    let old = old.get("status").unwrap_or(&none);
    if policy == "Always" {
        return;
    }
    let root = Path::root("status");
    let list = root.field("containerStatuses");
    for (index, before) in items(old, "containerStatuses") {
        let Some(ended) = get(before, "state").and_then(|s| get(s, "terminated")) else { continue };
        if int(ended, "exitCode").unwrap_or(0) != 0 && policy == "OnFailure" {
            continue;
        }
        let revived = items(new, "containerStatuses").any(|(_, now)| {
            text(now, "name") == text(before, "name")
                && get(now, "state").and_then(|s| get(s, "terminated")).is_none()
        });
        if revived {
            let path = list.index(index);
            let detail = "may not be transitioned to non-terminated state";
            faults.forbidden(&path.field("state"), detail);
        }
    }
}
