//! Server-side apply and the bookkeeping of field managers in `metadata.managedFields`.
//!
//! Each write belongs to a manager. A manager that applies owns exactly the fields of what it
//! applied last; any other owns the fields that it last changed. An entry is identified by
//! manager, operation and subresource, and for updates also by API version. Invariant: a path is
//! in the sets of several managers only if all of them applied it with the same value, or nobody
//! changed it since the first of them set it. Objects come and go with packed fields
//! ([`super::managed`]).

use super::fieldset::FieldSet;
use super::structured::{self, Comparison};
use crate::error::{ApiError, Cause, Reason};
use crate::meta::GroupVersionKind;
use crate::schema::{Schema, TypeId};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// More entries of updates than this are folded into one (as upstream does).
const MAX_UPDATE_ENTRIES: usize = 10;
/// The manager into which they are folded.
const ANCIENT: &str = "ancient-changes";
/// The manager of what was there before anybody was recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Where client-side apply keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `fieldManager`, or the first part of the user agent.
    pub manager: &'a str,
    /// The version in which the object came.
    pub api_version: &'a str,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: &'a str,
    /// The time of the write.
    pub now: Timestamp,
}

/// Brings `managedFields` of `new` up to date after a create (`old` is None), update or patch
/// that is no apply. Nothing changes if no owned field does. A client resets all ownership by
/// sending `[{}]`.
pub fn track_update(
    schema: &Schema,
    ty: TypeId,
    old: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) {
    let sent = Sent::of(new, old);
    let diff = structured::compare(schema, ty, old, new);
    if diff.changed.is_empty() && diff.removed.is_empty() {
        match sent {
            Sent::Reset => set_managed_fields(new, Value::Null),
            Sent::Kept => set_managed_fields(new, raw_entries(old)),
            Sent::Same | Sent::Own => {}
        }
        return;
    }
    let mut entries = match sent {
        Sent::Reset => Vec::new(),
        Sent::Kept => Held::all(raw_entries(old)),
        Sent::Same | Sent::Own => Held::all(taken_entries(new)),
    };
    let own = entries.iter().position(|e| e.is_update_of(writer));
    for (i, entry) in entries.iter_mut().enumerate() {
        if Some(i) != own {
            entry.subtract(&diff.changed);
        }
        entry.subtract(&diff.removed);
    }
    if !diff.changed.is_empty() {
        let own = own.unwrap_or_else(|| {
            entries.push(Held::Read(Entry::of(writer, false)));
            entries.len() - 1
        });
        let entry = entries[own].read();
        entry.set.union(&diff.changed);
        entry.time = shown_time(writer.now);
    }
    set_managed_fields(new, encode(entries));
}

/// Applies `config` as `writer` to the live object (None creates it) and returns the whole new
/// object. Fields that this manager applied before and now leaves out go, unless another manager
/// owns them. Without `force`, fields that others own with other values are a 409 with one cause
/// each. If nothing changes, the live object comes back as it is.
///
/// Values that the server defaults are the caller's business, as are `uid` and
/// `resourceVersion` of the configuration, which come through as they were sent.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApiError> {
    check_config(config)?;
    let set = structured::field_set(schema, ty, config).map_err(|e| untyped(config, &e))?;
    let mut entries = decode(&raw_entries(live));
    if entries.is_empty() {
        entries.extend(live.and_then(|live| unmanaged(schema, ty, live, writer)));
    }
    let own = entries.iter().position(|e| e.is_apply_of(writer));
    let last = own.map(|i| entries.remove(i));
    let mut merged = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    structured::merge(schema, ty, &mut merged, &without_managed_fields(config));
    if let Some(last) = &last {
        let gone = abandoned(&last.set, &set, &entries);
        structured::remove(schema, ty, &mut merged, &gone);
    }
    let diff = structured::compare(schema, ty, live, &merged);
    let conflicts = conflicts(&entries, &diff);
    if !force && !conflicts.is_empty() {
        let conflicts = match migrated(schema, ty, live, writer) {
            Some(migrated) => without(conflicts, &migrated),
            None => conflicts,
        };
        if !conflicts.is_empty() {
            return Err(conflict_error(&conflicts));
        }
    }
    if last.as_ref().is_some_and(|last| last.set == set) && unchanged(live, &merged) {
        return Ok(merged);
    }
    for entry in &mut entries {
        entry.set.subtract(&diff.changed);
        entry.set.subtract(&diff.removed);
    }
    let time = match last {
        Some(last) if last.set == set && diff == Comparison::default() => last.time,
        _ => shown_time(writer.now),
    };
    entries.push(Entry { set, time, ..Entry::of(writer, true) });
    set_managed_fields(&mut merged, encode(entries.into_iter().map(Held::Read).collect()));
    Ok(merged)
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    manager: String,
    applies: bool,
    api_version: String,
    subresource: String,
    time: Option<String>,
    set: FieldSet,
}

impl Entry {
    fn of(writer: &Writer<'_>, applies: bool) -> Self {
        Entry {
            manager: writer.manager.into(),
            applies,
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
            time: shown_time(writer.now),
            set: FieldSet::default(),
        }
    }

    fn is_apply_of(&self, writer: &Writer<'_>) -> bool {
        self.applies && self.manager == writer.manager && self.subresource == writer.subresource
    }

    /// How a conflict names the manager.
    fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }

    fn decode(value: &Value) -> Option<Entry> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        let applies = match value.get("operation")?.as_str()? {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        let set = match value.get("fieldsV1") {
            Some(fields) => serde_json::from_str(fields.as_str()?).ok()?,
            None => FieldSet::default(),
        };
        let time = value.get("time").and_then(Value::as_str).map(String::from);
        Some(Entry {
            manager: text("manager"),
            applies,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time,
            set,
        })
    }

    fn encode(&self) -> Value {
        let mut map = Map::new();
        map.insert("manager".into(), self.manager.clone().into());
        map.insert("operation".into(), if self.applies { "Apply" } else { "Update" }.into());
        map.insert("apiVersion".into(), self.api_version.clone().into());
        if let Some(time) = &self.time {
            map.insert("time".into(), time.clone().into());
        }
        map.insert("fieldsType".into(), "FieldsV1".into());
        // Writing a set to a text can't fail: its keys are texts and nothing else is in it.
        map.insert("fieldsV1".into(), serde_json::to_string(&self.set).unwrap_or_default().into());
        if !self.subresource.is_empty() {
            map.insert("subresource".into(), self.subresource.clone().into());
        }
        Value::Object(map)
    }
}

/// An entry of an object that is written. Most writes touch few of its entries, and reading one
/// costs more than the rest of the bookkeeping: what is not touched goes through as it is.
enum Held {
    /// As it stands in the object.
    Whole(Value),
    /// Read, to be changed.
    Read(Entry),
}

/// By what entries are told apart and sorted: what is applied first, then by time and name.
type HeldKey<'a> = (bool, Option<&'a str>, &'a str, &'a str, &'a str);

impl Held {
    /// All entries of a list; what is no entry is left out.
    fn all(entries: Value) -> Vec<Held> {
        let Value::Array(list) = entries else { return Vec::new() };
        let known = |e: &Value| matches!(text_of(e, "operation"), "Apply" | "Update");
        list.into_iter().filter(known).map(Held::Whole).collect()
    }

    fn key(&self) -> HeldKey<'_> {
        match self {
            Held::Whole(value) => (
                text_of(value, "operation") != "Apply",
                value.get("time").and_then(Value::as_str),
                text_of(value, "manager"),
                text_of(value, "apiVersion"),
                text_of(value, "subresource"),
            ),
            Held::Read(e) => {
                (!e.applies, e.time.as_deref(), &e.manager, &e.api_version, &e.subresource)
            }
        }
    }

    fn is_update_of(&self, writer: &Writer<'_>) -> bool {
        let (updates, _, manager, api_version, subresource) = self.key();
        updates
            && (manager, api_version, subresource)
                == (writer.manager, writer.api_version, writer.subresource)
    }

    fn is_empty(&self) -> bool {
        match self {
            Held::Whole(value) => {
                value.get("fieldsV1").and_then(Value::as_str).is_none_or(|text| text == "{}")
            }
            Held::Read(entry) => entry.set.is_empty(),
        }
    }

    fn subtract(&mut self, paths: &FieldSet) {
        match self {
            Held::Whole(value) if !meets(paths, text_of(value, "fieldsV1")) => {}
            _ => self.read().set.subtract(paths),
        }
    }

    fn read(&mut self) -> &mut Entry {
        loop {
            match self {
                Held::Read(entry) => return entry,
                Held::Whole(value) => {
                    *self = Held::Read(Entry::decode(value).unwrap_or_default());
                }
            }
        }
    }

    fn encode(self) -> Value {
        match self {
            Held::Whole(value) => value,
            Held::Read(entry) => entry.encode(),
        }
    }
}

/// Whether an entry's packed fields have any of the paths; what can't be read has none.
fn meets(paths: &FieldSet, fields: &str) -> bool {
    paths.meets(&mut serde_json::Deserializer::from_str(fields)).unwrap_or(false)
}

fn text_of<'v>(entry: &'v Value, key: &str) -> &'v str {
    entry.get(key).and_then(Value::as_str).unwrap_or("")
}

/// What a client sent as `managedFields`.
enum Sent {
    /// What is stored, as it came.
    Same,
    /// Nothing, an empty list, or something that can't be read: what is stored holds.
    Kept,
    /// `[{}]`
    Reset,
    /// Entries of its own.
    Own,
}

impl Sent {
    fn of(new: &Value, old: Option<&Value>) -> Sent {
        let sent = new.pointer("/metadata/managedFields");
        if old.is_some_and(|old| old.pointer("/metadata/managedFields") == sent) {
            return Sent::Same;
        }
        match sent {
            Some(Value::Array(list)) if list.len() == 1 && list[0] == json!({}) => Sent::Reset,
            Some(Value::Array(list)) if list.is_empty() => Sent::Kept,
            Some(Value::Array(_)) if old.is_none() => Sent::Reset,
            Some(Value::Array(list)) if list.iter().all(|e| Entry::decode(e).is_some()) => {
                Sent::Own
            }
            _ => Sent::Kept,
        }
    }
}

fn raw_entries(object: Option<&Value>) -> Value {
    object.and_then(|o| o.pointer("/metadata/managedFields")).cloned().unwrap_or(Value::Null)
}

/// The entries, which are about to be replaced.
fn taken_entries(object: &mut Value) -> Value {
    object.pointer_mut("/metadata/managedFields").map_or(Value::Null, Value::take)
}

fn decode(entries: &Value) -> Vec<Entry> {
    entries.as_array().into_iter().flatten().filter_map(Entry::decode).collect()
}

/// Drops entries that own nothing, folds too many, and sorts as upstream does.
fn encode(mut entries: Vec<Held>) -> Value {
    entries.retain(|e| !e.is_empty());
    fold_ancient(&mut entries);
    entries.sort_by(|a, b| a.key().cmp(&b.key()));
    match entries.is_empty() {
        true => Value::Null,
        false => entries.into_iter().map(Held::encode).collect::<Vec<_>>().into(),
    }
}

fn fold_ancient(entries: &mut Vec<Held>) {
    let is_update = |e: &Held| e.key().0;
    while entries.iter().filter(|e| is_update(e)).count() > MAX_UPDATE_ENTRIES {
        let mut oldest: Vec<usize> =
            (0..entries.len()).filter(|i| is_update(&entries[*i])).collect();
        oldest.sort_by(|a, b| entries[*a].key().1.cmp(&entries[*b].key().1));
        let (a, b) = (oldest[0].min(oldest[1]), oldest[0].max(oldest[1]));
        let mut gone = entries.remove(b);
        let gone = gone.read();
        let into = entries[a].read();
        into.set.union(&gone.set);
        into.time = into.time.take().max(gone.time.take());
        into.manager = ANCIENT.into();
        into.subresource = String::new();
    }
}

fn set_managed_fields(object: &mut Value, entries: Value) {
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    match entries {
        Value::Null => metadata.remove("managedFields"),
        entries => metadata.insert("managedFields".into(), entries),
    };
}

fn without_managed_fields(config: &Value) -> Value {
    let mut config = config.clone();
    set_managed_fields(&mut config, Value::Null);
    config
}

fn shown_time(now: Timestamp) -> Option<String> {
    Some(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn check_config(config: &Value) -> Result<(), ApiError> {
    if !config.is_object() {
        return Err(ApiError::bad_request("an applied configuration must be an object"));
    }
    match config.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(_) => Err(ApiError::bad_request("metadata.managedFields must be nil")),
    }
}

/// The configuration does not fit its type.
fn untyped(config: &Value, why: &str) -> ApiError {
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("");
    let gvk = GroupVersionKind::new(text("apiVersion"), text("kind"));
    let name = crate::meta::metadata_str(config, "name");
    let namespace = crate::meta::metadata_str(config, "namespace");
    let full = match gvk.group.is_empty() {
        true => format!("{}, Kind={}", gvk.version, gvk.kind),
        false => format!("{}/{}, Kind={}", gvk.group, gvk.version, gvk.kind),
    };
    ApiError::new(
        Reason::InternalError,
        format!("failed to create typed patch object ({namespace}/{name}; {full}): {why}"),
    )
}

/// The manager of all that is in an object which nobody manages yet, so that a first apply does
/// not silently take other people's values over.
fn unmanaged(schema: &Schema, ty: TypeId, live: &Value, writer: &Writer<'_>) -> Option<Entry> {
    let set = structured::compare(schema, ty, None, live).changed;
    let writer = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..*writer };
    let entry = Entry { set, ..Entry::of(&writer, false) };
    (!entry.set.is_empty()).then_some(entry)
}

/// What the manager applied before, leaves out now, and nobody else owns.
fn abandoned(last: &FieldSet, now: &FieldSet, others: &[Entry]) -> FieldSet {
    let mut gone = last.clone();
    gone.subtract(now);
    for other in others {
        gone.subtract(&other.set);
    }
    gone
}

/// Each manager with those of its fields that this write changes.
fn conflicts(entries: &[Entry], diff: &Comparison) -> Vec<(String, FieldSet)> {
    entries
        .iter()
        .map(|e| (e.shown(), e.set.intersection(&diff.changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect()
}

/// Fields that `kubectl apply` owns by its annotation: server-side apply by `kubectl` takes them
/// over without a conflict.
fn migrated(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    writer: &Writer<'_>,
) -> Option<FieldSet> {
    if writer.manager != "kubectl" {
        return None;
    }
    let annotations = live?.pointer("/metadata/annotations")?;
    let last: Value = serde_json::from_str(annotations.get(LAST_APPLIED)?.as_str()?).ok()?;
    structured::field_set(schema, ty, &last).ok()
}

fn without(conflicts: Vec<(String, FieldSet)>, allowed: &FieldSet) -> Vec<(String, FieldSet)> {
    let mut rest = conflicts;
    for (_, set) in &mut rest {
        set.subtract(allowed);
    }
    rest.retain(|(_, set)| !set.is_empty());
    rest
}

fn conflict_error(conflicts: &[(String, FieldSet)]) -> ApiError {
    let mut managers: Vec<(&String, Vec<String>)> =
        conflicts.iter().map(|(manager, set)| (manager, set.paths())).collect();
    managers.sort();
    let cause = |manager: &str, path: &String| Cause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {manager}"),
        field: path.clone(),
    };
    let causes: Vec<Cause> = managers
        .iter()
        .flat_map(|(manager, paths)| paths.iter().map(|path| cause(manager, path)))
        .collect();
    let message = match &causes[..] {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        _ => {
            let mut lines = Vec::new();
            for (manager, paths) in &managers {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(paths.iter().map(|path| format!("- {path}")));
            }
            format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
        }
    };
    let mut error = ApiError::new(Reason::Conflict, message);
    error.causes = causes;
    error
}

/// The merged object is the live one. Its `managedFields` came through the merge untouched.
fn unchanged(live: Option<&Value>, merged: &Value) -> bool {
    live == Some(merged)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
