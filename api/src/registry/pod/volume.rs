//! Faults of volumes.

use super::container::{field_ref, resource_ref};
use crate::registry::access::{fields, get, int, items, text};
use crate::registry::fault::{Faults, Path};
use crate::registry::names;
use serde_json::Value;
use std::collections::HashSet;

/// The names of the sound volumes of a pod: what a mount may name.
pub(super) type Volumes<'a> = HashSet<&'a str>;

const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// Checks a pod's volumes and gives the names of those that have no fault.
pub(super) fn volumes<'a>(faults: &mut Faults, path: &Path<'_>, spec: &'a Value) -> Volumes<'a> {
    let mut sound = Volumes::new();
    for (index, volume) in items(spec, "volumes") {
        let path = path.index(index);
        let before = faults.0.len();
        source(faults, &path, volume);
        let name = text(volume, "name");
        if name.is_empty() {
            faults.required(&path.field("name"), "");
        } else {
            faults.each(&path.field("name"), name, names::dns_label(name));
        }
        if sound.contains(name) {
            faults.duplicate(&path.field("name"), name);
        }
        if faults.0.len() == before {
            sound.insert(name);
        }
    }
    sound
}

fn source(faults: &mut Faults, path: &Path<'_>, volume: &Value) {
    let mut seen = 0;
    // In the order of upstream's checks for the usual sources; the others come as they stand.
    const FIRST: [&str; 2] = ["emptyDir", "hostPath"];
    let early = FIRST.iter().filter_map(|kind| get(volume, kind).map(|s| (*kind, s)));
    let late = fields(volume)
        .filter(|(kind, source)| {
            *kind != "name" && !source.is_null() && !FIRST.contains(&kind.as_str())
        })
        .map(|(kind, source)| (kind.as_str(), source));
    for (kind, source) in early.chain(late) {
        seen += 1;
        let path = path.field(kind);
        if seen > 1 {
            faults.forbidden(&path, "may not specify more than 1 volume type");
        } else {
            one_source(faults, &path, kind, source);
        }
    }
    if seen == 0 {
        faults.required(path, "must specify a volume type");
    }
}

fn one_source(faults: &mut Faults, path: &Path<'_>, kind: &str, source: &Value) {
    match kind {
        "emptyDir" => empty_dir(faults, path, source),
        "hostPath" => host_path(faults, path, source),
        "configMap" => keyed(faults, path, source, "name"),
        "secret" => keyed(faults, path, source, "secretName"),
        "downwardAPI" => {
            mode(faults, &path.field("defaultMode"), int(source, "defaultMode"));
            downward(faults, path, source);
        }
        "projected" => projected(faults, path, source),
        "persistentVolumeClaim" if text(source, "claimName").is_empty() => {
            faults.required(&path.field("claimName"), "");
        }
        "nfs" => needed(faults, path, source, &["server", "path"]),
        "csi" => needed(faults, path, source, &["driver"]),
        "iscsi" => needed(faults, path, source, &["targetPortal", "iqn"]),
        "image" => faults.one_of(
            &path.field("pullPolicy"),
            text(source, "pullPolicy"),
            &["Always", "IfNotPresent", "Never"],
        ),
        _ => {}
    }
}

fn needed(faults: &mut Faults, path: &Path<'_>, source: &Value, keys: &[&str]) {
    for key in keys {
        if text(source, key).is_empty() {
            faults.required(&path.field(key), "");
        }
    }
}

fn empty_dir(faults: &mut Faults, path: &Path<'_>, source: &Value) {
    let limit = get(source, "sizeLimit").and_then(super::container::quantity);
    if limit.is_some_and(|l| l.is_negative()) {
        faults.forbidden(
            &path.field("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        );
    }
    let medium = text(source, "medium");
    if !matches!(medium, "" | "Memory") && !medium.starts_with("HugePages") {
        faults.not_supported(&path.field("medium"), medium, &["", "HugePages", "Memory"]);
    }
}

fn host_path(faults: &mut Faults, path: &Path<'_>, source: &Value) {
    let at = text(source, "path");
    if at.is_empty() {
        return faults.required(&path.field("path"), "");
    }
    if at.split('/').any(|step| step == "..") {
        faults.invalid(&path.field("path"), at, "must not contain '..'");
    }
    let kind = text(source, "type");
    if !HOST_PATH_TYPES.contains(&kind) {
        faults.not_supported(&path.field("type"), kind, HOST_PATH_TYPES);
    }
}

fn keyed(faults: &mut Faults, path: &Path<'_>, source: &Value, name: &str) {
    if text(source, name).is_empty() {
        faults.required(&path.field(name), "");
    }
    mode(faults, &path.field("defaultMode"), int(source, "defaultMode"));
    key_paths(faults, path, source);
}

fn key_paths(faults: &mut Faults, path: &Path<'_>, source: &Value) {
    let list = path.field("items");
    for (index, item) in items(source, "items") {
        let path = list.index(index);
        if text(item, "key").is_empty() {
            faults.required(&path.field("key"), "");
        }
        let at = text(item, "path");
        if at.is_empty() {
            faults.required(&path.field("path"), "");
        } else {
            non_escaping(faults, &path.field("path"), at);
        }
        mode(faults, &path.field("mode"), int(item, "mode"));
    }
}

fn downward(faults: &mut Faults, path: &Path<'_>, source: &Value) {
    let list = path.field("items");
    for (index, item) in items(source, "items") {
        let path = list.index(index);
        let at = text(item, "path");
        if at.is_empty() {
            faults.required(&path.field("path"), "");
        } else {
            non_escaping(faults, &path.field("path"), at);
        }
        match (get(item, "fieldRef"), get(item, "resourceFieldRef")) {
            (Some(field), other) => {
                field_ref(faults, &path.field("fieldRef"), field, FILE_FIELDS);
                if other.is_some() {
                    let detail =
                        "fieldRef and resourceFieldRef can not be specified simultaneously";
                    faults.invalid(&path, "resource", detail);
                }
            }
            (None, Some(field)) => {
                resource_ref(faults, &path.field("resourceFieldRef"), field, true);
            }
            (None, None) => {
                faults.required(
                    &path.field("fieldRef"),
                    "one of fieldRef and resourceFieldRef is required",
                );
            }
        }
        mode(faults, &path.field("mode"), int(item, "mode"));
    }
}

fn projected(faults: &mut Faults, path: &Path<'_>, source: &Value) {
    mode(faults, &path.field("defaultMode"), int(source, "defaultMode"));
    let list = path.field("sources");
    for (index, one) in items(source, "sources") {
        let path = list.index(index);
        let mut seen = 0;
        for (kind, projection) in fields(one).filter(|(_, v)| !v.is_null()) {
            seen += 1;
            let path = path.field(kind);
            if seen > 1 {
                faults.forbidden(&path, "may not specify more than 1 volume type");
                continue;
            }
            match kind.as_str() {
                "configMap" | "secret" => {
                    needed(faults, &path, projection, &["name"]);
                    key_paths(faults, &path, projection);
                }
                "downwardAPI" => downward(faults, &path, projection),
                "serviceAccountToken" => token(faults, &path, projection),
                _ => {}
            }
        }
        if seen == 0 {
            faults.required(&path, "no supported sources found");
        }
    }
}

fn token(faults: &mut Faults, path: &Path<'_>, projection: &Value) {
    let seconds = int(projection, "expirationSeconds").unwrap_or(3600);
    let seconds_path = path.field("expirationSeconds");
    if seconds < 600 {
        faults.invalid(&seconds_path, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        faults.invalid(
            &seconds_path,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    let at = text(projection, "path");
    if at.is_empty() {
        faults.required(&path.field("path"), "");
    } else {
        non_escaping(faults, &path.field("path"), at);
    }
}

fn mode(faults: &mut Faults, path: &Path<'_>, mode: Option<i64>) {
    if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
        faults.invalid(path, mode, MODE);
    }
}

/// A path below some directory: relative, and without a step up. Empty is good.
pub(super) fn local_path(faults: &mut Faults, path: &Path<'_>, at: &str) {
    if at.starts_with('/') {
        faults.invalid(path, at, "must be a relative path");
    }
    if at.split('/').any(|step| step == "..") {
        faults.invalid(path, at, "must not contain '..'");
    }
}

/// A local path that also doesn't begin with two dots.
fn non_escaping(faults: &mut Faults, path: &Path<'_>, at: &str) {
    local_path(faults, path, at);
    if at.starts_with("..") && !at.starts_with("../") {
        faults.invalid(path, at, "must not start with '..'");
    }
}
