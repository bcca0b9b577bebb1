//! What holds for every object's metadata, and for labels and selectors wherever they stand.

use super::access::{fields, flag, get, items, text};
use super::fault::{Faults, Path};
use super::names;
use serde_json::Value;

/// The most that all annotations may weigh, keys and values together.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

const METADATA: Path<'static> = Path::root("metadata");

/// The rule for a kind's names.
pub(super) type NameRule = fn(&str) -> Vec<String>;

/// The faults of a new object's metadata. Whether a namespace is needed follows from the URL.
pub(super) fn validate(object: &Value, rule: NameRule) -> Faults {
    let mut faults = Faults::default();
    let unset = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&unset);
    name_faults(&mut faults, metadata, rule);
    common(&mut faults, metadata);
    faults
}

fn name_faults(faults: &mut Faults, metadata: &Value, rule: NameRule) {
    let (name, prefix) = (text(metadata, "name"), text(metadata, "generateName"));
    if !prefix.is_empty() {
        // What is appended makes a trailing dash good.
        let shown = prefix.strip_suffix('-').filter(|p| !p.is_empty()).unwrap_or(prefix);
        faults.each(&METADATA.field("generateName"), prefix, rule(shown));
    }
    if name.is_empty() {
        faults.required(&METADATA.field("name"), "name or generateName is required");
    } else {
        faults.each(&METADATA.field("name"), name, rule(name));
    }
    let generation = metadata.get("generation").and_then(Value::as_i64);
    faults.non_negative(&METADATA.field("generation"), generation);
}

fn common(faults: &mut Faults, metadata: &Value) {
    labels(faults, &METADATA.field("labels"), metadata.get("labels"));
    annotations(faults, &METADATA.field("annotations"), metadata);
    owners(faults, metadata);
    finalizers(faults, metadata);
}

/// A map of labels: keys and values.
pub(super) fn labels(faults: &mut Faults, path: &Path<'_>, labels: Option<&Value>) {
    for (key, value) in labels.into_iter().flat_map(fields) {
        let value = value.as_str().unwrap_or("");
        faults.each(path, key, names::label_key(key));
        faults.each(path, value, names::label_value(value));
    }
}

/// The annotations of some metadata: keys, and the size of all.
pub(super) fn annotations(faults: &mut Faults, path: &Path<'_>, metadata: &Value) {
    let mut bytes = 0;
    for (key, value) in metadata.get("annotations").into_iter().flat_map(fields) {
        // Annotations may be written in any case.
        let wrong = if key.bytes().any(|b| b.is_ascii_uppercase()) {
            names::label_key(&key.to_lowercase())
        } else {
            names::label_key(key)
        };
        faults.each(path, key, wrong);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_ANNOTATION_BYTES {
        faults.too_long(path, MAX_ANNOTATION_BYTES);
    }
}

fn owners(faults: &mut Faults, metadata: &Value) {
    let path = METADATA.field("ownerReferences");
    let mut controller = "";
    for (index, owner) in items(metadata, "ownerReferences") {
        let path = path.index(index);
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, key).is_empty() {
                faults.invalid(&path.field(key), text(owner, key), detail);
            }
        }
        if text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Event" {
            faults.invalid(
                &path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            );
        }
        if flag(owner, "controller") {
            let name = text(owner, "name");
            if !controller.is_empty() {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                );
                faults.invalid(&METADATA.field("ownerReferences"), owner.clone(), detail);
            }
            controller = name;
        }
    }
}

fn finalizers(faults: &mut Faults, metadata: &Value) {
    let path = METADATA.field("finalizers");
    let has = |name: &str| items(metadata, "finalizers").any(|(_, f)| f == name);
    for (index, finalizer) in items(metadata, "finalizers") {
        finalizer_name(faults, &path.index(index), finalizer.as_str().unwrap_or(""), &path);
    }
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        let all = metadata.get("finalizers").cloned().unwrap_or_default();
        faults.invalid(&path, all, detail);
    }
}

/// The name of a finalizer: a standard one or a qualified one.
pub(super) fn finalizer_name(faults: &mut Faults, item: &Path<'_>, name: &str, list: &Path<'_>) {
    faults.each(list, name, names::label_key(name));
    let standard = matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
    if !name.contains('/') && !standard {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        faults.invalid(item, name, detail);
    }
}

/// The faults of a change of metadata.
pub(super) fn validate_update(new: &Value, old: &Value) -> Faults {
    let mut faults = Faults::default();
    let unset = Value::Null;
    let new = new.get("metadata").unwrap_or(&unset);
    let old = old.get("metadata").unwrap_or(&unset);
    if get(old, "deletionTimestamp").is_some() {
        no_new_finalizers(&mut faults, new, old);
    }
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        faults.immutable(&METADATA.field(key), get(new, key), get(old, key));
    }
    common(&mut faults, new);
    faults
}

fn no_new_finalizers(faults: &mut Faults, new: &Value, old: &Value) {
    let before: Vec<&Value> = items(old, "finalizers").map(|(_, f)| f).collect();
    let added: Vec<&str> = items(new, "finalizers")
        .filter(|(_, f)| !before.contains(f))
        .filter_map(|(_, f)| f.as_str())
        .collect();
    if !added.is_empty() {
        let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            list.join(", ")
        );
        faults.forbidden(&METADATA.field("finalizers"), detail);
    }
}

/// A label selector: labels, and requirements with their operators.
pub(super) fn label_selector(faults: &mut Faults, path: &Path<'_>, selector: &Value) {
    labels(faults, &path.field("matchLabels"), selector.get("matchLabels"));
    let list = path.field("matchExpressions");
    for (index, requirement) in items(selector, "matchExpressions") {
        selector_requirement(faults, &list.index(index), requirement);
    }
}

fn selector_requirement(faults: &mut Faults, path: &Path<'_>, requirement: &Value) {
    let values = items(requirement, "values").count();
    match text(requirement, "operator") {
        "In" | "NotIn" if values == 0 => faults.required(
            &path.field("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
        "Exists" | "DoesNotExist" if values > 0 => faults.forbidden(
            &path.field("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => {
            faults.invalid(&path.field("operator"), other, "not a valid selector operator");
        }
    }
    let key = text(requirement, "key");
    faults.each(&path.field("key"), key, names::label_key(key));
    for (index, value) in items(requirement, "values") {
        let value = value.as_str().unwrap_or("");
        let list = path.field("values");
        faults.each(&list.index(index), value, names::label_value(value));
    }
}
