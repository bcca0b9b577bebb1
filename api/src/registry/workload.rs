//! Deployment and ReplicaSet.

use super::access::{carry_over, child, default_to, get, int, len, name_cell, same_field, text};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::print::{containers, selector as shown_selector};
use super::{Kind, Strategy, Target, index, metadata, names, pod};
use crate::error::FieldError;
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

const SPEC: Path<'static> = Path::root("spec");
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    vec![deployment(), replica_set()]
}

fn deployment() -> Kind {
    define("apps", "v1", "Deployment", "deployments")
        .namespaced()
        .short_names(&["deploy"])
        .categories(&["all"])
        .columns(&[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Up-to-date", "string", 0),
            ("Available", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .generation()
        .scale()
        .status()
        .build(DeploymentRules)
}

fn replica_set() -> Kind {
    define("apps", "v1", "ReplicaSet", "replicasets")
        .namespaced()
        .short_names(&["rs"])
        .categories(&["all"])
        .columns(&[
            ("Name", "string", 0),
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .generation()
        .scale()
        .status()
        .build(ReplicaSetRules)
}

/// Fills the pod template.
fn default_template(spec: &mut Value) {
    let Some(template) = child(spec, "template") else { return };
    child(template, "metadata");
    if let Some(spec) = child(template, "spec") {
        pod::default_template(spec);
    }
}

/// Each writer keeps what the other one wrote.
fn keep_other_half(target: Target, new: &mut Value, old: &Value) {
    carry_over(new, old, if target == Target::Status { "spec" } else { "status" });
}

/// What holds for the spec of both kinds, up to the pod template.
fn common(faults: &mut Faults, spec: &Value) {
    faults.non_negative(&SPEC.field("replicas"), int(spec, "replicas"));
    let none = Value::Null;
    let selector = get(spec, "selector").unwrap_or(&none);
    let path = SPEC.field("selector");
    if selector.is_null() {
        faults.required(&path, "");
    } else {
        metadata::label_selector(faults, &path, selector);
        if len(selector, "matchLabels") + len(selector, "matchExpressions") == 0 {
            faults.invalid(&path, selector.clone(), "empty selector is invalid for deployment");
        }
    }
    match LabelSelector::from_value(selector) {
        Err(_) => faults.invalid(&path, selector.clone(), "invalid label selector"),
        Ok(parsed) => {
            let template_path = SPEC.field("template");
            let template = get(spec, "template").unwrap_or(&none);
            if !parsed.selects_everything() {
                selects_template(faults, &template_path, &parsed, template);
            }
            pod::validate_template(faults, &template_path, template);
            let pod_spec = template.get("spec").unwrap_or(&none);
            if get(pod_spec, "activeDeadlineSeconds").is_some() {
                let path = template_path.field("spec");
                let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
                faults.forbidden(&path.field("activeDeadlineSeconds"), detail);
            }
        }
    }
}

fn selects_template(
    faults: &mut Faults,
    path: &Path<'_>,
    selector: &LabelSelector,
    template: &Value,
) {
    let labels = template.get("metadata").and_then(|m| get(m, "labels"));
    let empty = Value::Object(Map::new());
    if !selector.matches(labels.unwrap_or(&empty)) {
        let path = path.field("metadata");
        let shown = labels.cloned().unwrap_or_default();
        let detail = "`selector` does not match template `labels`";
        faults.invalid(&path.field("labels"), shown, detail);
    }
}

/// Numbers of a status that can't be negative, nor above others.
fn status_faults(
    faults: &mut Faults,
    object: &Value,
    counts: &[&str],
    bounds: &[(&str, &str, &str)],
) {
    let none = Value::Null;
    let status = object.get("status").unwrap_or(&none);
    let root = Path::root("status");
    for key in counts {
        faults.non_negative(&root.field(key), int(status, key));
    }
    for (key, bound, detail) in bounds {
        let value = int(status, key).unwrap_or(0);
        if value > int(status, bound).unwrap_or(0) {
            faults.invalid(&root.field(key), value, *detail);
        }
    }
}

const OVER_REPLICAS: &str = "cannot be greater than status.replicas";
const OVER_READY: &str = "cannot be greater than readyReplicas";

struct DeploymentRules;

impl DeploymentRules {
    fn body(faults: &mut Faults, object: &Value) {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        common(faults, spec);
        strategy(faults, &SPEC.field("strategy"), spec.get("strategy").unwrap_or(&none));
        for key in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            faults.non_negative(&SPEC.field(key), int(spec, key));
        }
        let ready = int(spec, "minReadySeconds").unwrap_or(0);
        if let Some(deadline) = int(spec, "progressDeadlineSeconds").filter(|d| *d <= ready) {
            let detail = "must be greater than minReadySeconds";
            faults.invalid(&SPEC.field("progressDeadlineSeconds"), deadline, detail);
        }
    }
}

fn strategy(faults: &mut Faults, path: &Path<'_>, strategy: &Value) {
    let rolling = get(strategy, "rollingUpdate");
    let rolling_path = path.field("rollingUpdate");
    match (text(strategy, "type"), rolling) {
        ("Recreate", Some(_)) => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            faults.forbidden(&rolling_path, detail);
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => {
            faults.required(&rolling_path, "this should be defaulted and never be nil");
        }
        ("RollingUpdate", Some(rolling)) => rolling_update(faults, &rolling_path, rolling),
        (other, _) => {
            faults.not_supported(&path.field("type"), other, &["Recreate", "RollingUpdate"])
        }
    }
}

fn rolling_update(faults: &mut Faults, path: &Path<'_>, rolling: &Value) {
    let none = Value::Null;
    for key in ["maxUnavailable", "maxSurge"] {
        count_or_percent(faults, &path.field(key), rolling.get(key).unwrap_or(&none));
    }
    let unavailable = rolling.get("maxUnavailable").unwrap_or(&none);
    let number = |value: &Value| match value {
        Value::String(percent) => percent.strip_suffix('%').and_then(|p| p.parse().ok()),
        other => other.as_i64(),
    };
    let path = path.field("maxUnavailable");
    if number(unavailable) == Some(0) && rolling.get("maxSurge").and_then(number) == Some(0) {
        faults.invalid(&path, unavailable.clone(), "may not be 0 when `maxSurge` is 0");
    }
    if unavailable.is_string() && number(unavailable).is_some_and(|n| n > 100) {
        faults.invalid(&path, unavailable.clone(), "must not be greater than 100%");
    }
}

fn count_or_percent(faults: &mut Faults, path: &Path<'_>, value: &Value) {
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%').unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                faults.invalid(path, text.as_str(), PERCENT);
            }
        }
        number => faults.non_negative(path, number.as_i64()),
    }
}

impl Strategy for DeploymentRules {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = child(spec, "strategy") {
            default_to(strategy, "type", "RollingUpdate");
            let rolls = text(strategy, "type") == "RollingUpdate";
            if rolls && let Some(rolling) = child(strategy, "rollingUpdate") {
                default_to(rolling, "maxUnavailable", "25%");
                default_to(rolling, "maxSurge", "25%");
            }
        }
        default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        keep_other_half(target, new, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        Self::body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        match target {
            Target::Status => status_faults(
                &mut faults,
                new,
                &[
                    "replicas",
                    "updatedReplicas",
                    "readyReplicas",
                    "availableReplicas",
                    "unavailableReplicas",
                ],
                &[
                    ("updatedReplicas", "replicas", OVER_REPLICAS),
                    ("readyReplicas", "replicas", OVER_REPLICAS),
                    ("availableReplicas", "replicas", OVER_REPLICAS),
                    ("availableReplicas", "readyReplicas", OVER_READY),
                ],
            ),
            _ => {
                Self::body(&mut faults, new);
                immutable_selector(&mut faults, new, old);
            }
        }
        faults.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template_warnings(object)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let status = object.get("status").unwrap_or(&none);
        let count = |key: &str| int(status, key).unwrap_or(0);
        let wanted = int(spec, "replicas").unwrap_or(0);
        let mut cells = vec![
            name_cell(object),
            format!("{}/{wanted}", count("readyReplicas")).into(),
            count("updatedReplicas").into(),
            count("availableReplicas").into(),
            age_cell(object, now),
        ];
        cells.extend(template_cells(spec));
        cells
    }

    /// Upstream counts changes of the annotations too: they are carried on to the replica sets.
    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        let none = &Value::Null;
        let (now, before) =
            (new.get("metadata").unwrap_or(none), old.get("metadata").unwrap_or(none));
        index::differ_beside_status(new, old) || !same_field(now, before, "annotations")
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

fn immutable_selector(faults: &mut Faults, new: &Value, old: &Value) {
    let selector = |object: &Value| object.pointer("/spec/selector").cloned();
    faults.immutable(&SPEC.field("selector"), selector(new).as_ref(), selector(old).as_ref());
}

fn template_warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(spec) = object.pointer("/spec/template/spec") {
        pod::template_warnings(&mut warnings, "spec.template.spec", spec);
    }
    warnings
}

/// Containers, images and selector.
fn template_cells(spec: &Value) -> [Value; 3] {
    let none = Value::Null;
    let (names, images) = containers(spec.pointer("/template/spec").unwrap_or(&none));
    let selector = shown_selector(spec.get("selector").unwrap_or(&none));
    [names.into(), images.into(), selector.into()]
}

struct ReplicaSetRules;

impl ReplicaSetRules {
    fn body(faults: &mut Faults, object: &Value) {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        faults.non_negative(&SPEC.field("minReadySeconds"), int(spec, "minReadySeconds"));
        common(faults, spec);
    }
}

impl Strategy for ReplicaSetRules {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        default_to(spec, "replicas", 1);
        default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn prepare_update(&self, target: Target, new: &mut Value, old: &Value) {
        keep_other_half(target, new, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        Self::body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        match target {
            Target::Status => status_faults(
                &mut faults,
                new,
                &[
                    "replicas",
                    "fullyLabeledReplicas",
                    "readyReplicas",
                    "availableReplicas",
                    "observedGeneration",
                ],
                &[
                    ("fullyLabeledReplicas", "replicas", OVER_REPLICAS),
                    ("readyReplicas", "replicas", OVER_REPLICAS),
                    ("availableReplicas", "replicas", OVER_REPLICAS),
                    ("availableReplicas", "readyReplicas", OVER_READY),
                ],
            ),
            _ => {
                Self::body(&mut faults, new);
                immutable_selector(&mut faults, new, old);
            }
        }
        faults.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template_warnings(object)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let status = object.get("status").unwrap_or(&none);
        let mut cells = vec![
            name_cell(object),
            int(spec, "replicas").unwrap_or(0).into(),
            int(status, "replicas").unwrap_or(0).into(),
            int(status, "readyReplicas").unwrap_or(0).into(),
            age_cell(object, now),
        ];
        cells.extend(template_cells(spec));
        cells
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}
