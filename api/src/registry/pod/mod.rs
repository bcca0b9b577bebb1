//! Pod.

mod container;
mod default;
mod print;
mod schedule;
mod update;
mod validate;
mod volume;

pub(in crate::registry) use container::{port, quantity};
pub(in crate::registry) use default::template as default_template;
pub(in crate::registry) use schedule::taints;

use super::access::{carry_over, child, default_to, existing, flag, text};
use super::builder::define;
use super::fault::{Faults, Path};
use super::{Kind, Strategy, Target, metadata, names};
use crate::error::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    let stream = &["create", "get"];
    let pod = define("", "v1", "Pod", "pods")
        .namespaced()
        .short_names(&["po"])
        .categories(&["all"])
        .columns(&[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ])
        .selectable(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
            "spec.host",
        ])
        .generation()
        .subresource_of("attach", stream, ("", "v1", "PodAttachOptions"))
        .subresource_of("binding", &["create"], ("", "v1", "Binding"))
        .subresource("ephemeralcontainers", &["get", "patch", "update"])
        .subresource_of("eviction", &["create"], ("policy", "v1", "Eviction"))
        .subresource_of("exec", stream, ("", "v1", "PodExecOptions"))
        .subresource("log", &["get"])
        .subresource_of("portforward", stream, ("", "v1", "PodPortForwardOptions"))
        .subresource_of(
            "proxy",
            &["create", "delete", "get", "patch", "update"],
            ("", "v1", "PodProxyOptions"),
        )
        .subresource("resize", &["get", "patch", "update"])
        .status()
        .build(PodRules);
    vec![pod]
}

struct PodRules;

impl Strategy for PodRules {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            default::pod(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = default::qos_class(object.get("spec").unwrap_or(&Value::Null));
        object["status"] = json!({"phase": "Pending", "qosClass": class});
        if let Some(spec) = existing(object, "spec") {
            // What admission leaves unset: no priority class, and the namespace's own account.
            default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
            default_to(spec, "priority", 0);
            default_to(spec, "serviceAccountName", "default");
            let account = text(spec, "serviceAccountName").to_owned();
            spec["serviceAccount"] = account.into();
        }
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        match target {
            Target::EphemeralContainers => {
                let added = new.pointer("/spec/ephemeralContainers").cloned();
                for half in ["metadata", "spec", "status"] {
                    carry_over(new, old, half);
                }
                if let (Some(spec), Some(added)) = (existing(new, "spec"), added) {
                    spec["ephemeralContainers"] = added;
                }
            }
            Target::Main | Target::Finalize => {
                carry_over(new, old, "status");
                if let (Some(spec), Some(old)) = (existing(new, "spec"), old.get("spec")) {
                    // Containers are added to a running pod by their own subresource only.
                    carry_over(spec, old, "ephemeralContainers");
                }
            }
            Target::Status => {
                carry_over(new, old, "spec");
                let class = old.get("status").map_or("", |s| text(s, "qosClass")).to_owned();
                if let Some(status) = existing(new, "status")
                    && !class.is_empty()
                {
                    status["qosClass"] = class.into();
                }
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        let spec = object.get("spec").unwrap_or(&Value::Null);
        validate::spec(&mut faults, &Path::root("spec"), spec, true);
        validate::pod_only(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        let none = Value::Null;
        let (now, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
        match target {
            Target::Status => update::status(&mut faults, new, old),
            Target::EphemeralContainers => {
                update::ephemeral(&mut faults, now, before);
                validate::spec(&mut faults, &Path::root("spec"), now, true);
            }
            _ if now == before => {}
            Target::Main | Target::Finalize => {
                update::spec(&mut faults, now, before);
                if faults.0.is_empty() {
                    validate::spec(&mut faults, &Path::root("spec"), now, true);
                }
            }
        }
        faults.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let mut warnings = Vec::new();
        template_warnings(&mut warnings, "spec", spec);
        warnings
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let status = object.get("status").unwrap_or(&none);
        let node = text(spec, "nodeName");
        let first_ip = status.pointer("/podIPs/0/ip").and_then(Value::as_str).unwrap_or("");
        let ip = if first_ip.is_empty() { text(status, "podIP") } else { first_ip };
        vec![
            node.into(),
            text(spec, "restartPolicy").into(),
            text(spec, "schedulerName").into(),
            text(spec, "serviceAccountName").into(),
            flag(spec, "hostNetwork").to_string(),
            text(status, "phase").into(),
            ip.into(),
            ip.into(),
            text(status, "nominatedNodeName").into(),
            node.into(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        print::cells(object, now)
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

/// What upstream warns of in the spec of a pod or template at `path`.
pub(super) fn template_warnings(warnings: &mut Vec<String>, path: &str, spec: &Value) {
    use super::access::{get, int, items};
    if get(spec, "serviceAccount").is_some() && get(spec, "serviceAccountName").is_none() {
        warnings.push(format!(
            "{path}.serviceAccount: deprecated in v1.8+, use spec.serviceAccountName instead"
        ));
    }
    for (index, container) in items(spec, "containers") {
        let mut seen = Vec::new();
        for (at, variable) in items(container, "env") {
            let name = text(variable, "name");
            if seen.contains(&name) {
                warnings.push(format!(
                    "{path}.containers[{index}].env[{at}]: hides previous definition of {name:?}, which may be dropped when using apply"
                ));
            }
            seen.push(name);
        }
        let mut ports = Vec::new();
        for (at, port) in items(container, "ports") {
            let key = (int(port, "containerPort"), text(port, "protocol"));
            if ports.contains(&key) {
                warnings.push(format!(
                    "{path}.containers[{index}].ports[{at}]: duplicate port definition with {path}.containers[{index}].ports[{}]",
                    ports.iter().position(|p| *p == key).unwrap_or(0)
                ));
            }
            ports.push(key);
        }
    }
    for (index, volume) in items(spec, "volumes") {
        if get(volume, "gitRepo").is_some() {
            warnings.push(format!("{path}.volumes[{index}].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"));
        }
    }
}

/// The faults of a pod template: its metadata and its spec, which must restart always.
pub(super) fn validate_template(faults: &mut Faults, path: &Path<'_>, template: &Value) {
    let none = Value::Null;
    let meta = template.get("metadata").unwrap_or(&none);
    let meta_path = path.field("metadata");
    metadata::labels(faults, &meta_path.field("labels"), meta.get("labels"));
    metadata::annotations(faults, &meta_path.field("annotations"), meta);
    let spec = template.get("spec").unwrap_or(&none);
    let spec_path = path.field("spec");
    validate::spec(faults, &spec_path, spec, false);
    if super::access::len(spec, "ephemeralContainers") > 0 {
        let detail = "ephemeral containers not allowed in pod template";
        faults.forbidden(&spec_path.field("ephemeralContainers"), detail);
    }
    let policy = text(spec, "restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        faults.not_supported(&spec_path.field("restartPolicy"), policy, &["Always"]);
    }
}
