//! Namespace.

use super::access::{carry_over, child, existing, get, items, name_cell, text};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::{Kind, Strategy, Target, metadata, names};
use crate::error::FieldError;
use crate::meta::{metadata_str, str_at};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The label by which a selector can mean a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    let namespace = define("", "v1", "Namespace", "namespaces")
        .short_names(&["ns"])
        .without_verbs(&["deletecollection"])
        .columns(&[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)])
        .selectable(&["status.phase"])
        .subresource("finalize", &["update"])
        .status()
        .build(NamespaceRules);
    vec![namespace]
}

fn finalizer_names(faults: &mut Faults, object: &Value) {
    let root = Path::root("spec");
    let path = root.field("finalizers");
    for (_, name) in object.get("spec").into_iter().flat_map(|s| items(s, "finalizers")) {
        metadata::finalizer_name(faults, &path, name.as_str().unwrap_or(""), &path);
    }
}

struct NamespaceRules;

impl Strategy for NamespaceRules {
    fn default(&self, object: &mut Value) {
        let name = metadata_str(object, "name").to_owned();
        if name.is_empty() {
            return;
        }
        let metadata = existing(object, "metadata");
        if let Some(labels) = metadata.and_then(|m| child(m, "labels")) {
            labels[NAME_LABEL] = name.into();
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        let Some(spec) = child(object, "spec") else { return };
        let mut finalizers: Vec<Value> =
            items(spec, "finalizers").map(|(_, f)| f.clone()).collect();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        spec["finalizers"] = finalizers.into();
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        if target != Target::Finalize {
            carry_over(new, old, "spec");
        }
        if target != Target::Status {
            carry_over(new, old, "status");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_label);
        finalizer_names(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        if target == Target::Finalize {
            finalizer_names(&mut faults, new);
        }
        if target == Target::Status {
            let root = Path::root("status");
            let path = root.field("Phase");
            let phase = str_at(new, &["status", "phase"]);
            let deleted =
                new.get("metadata").is_some_and(|m| get(m, "deletionTimestamp").is_some());
            if !deleted && phase != "Active" {
                let detail = "may only be 'Active' if `deletionTimestamp` is empty";
                faults.invalid(&path, phase, detail);
            } else if deleted && phase != "Terminating" {
                let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                faults.invalid(&path, phase, detail);
            }
        }
        faults.0
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        vec![str_at(object, &["status", "phase"]).into()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let phase = object.get("status").map_or("", |s| text(s, "phase"));
        vec![name_cell(object), phase.into(), age_cell(object, now)]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_label(name))
    }
}
