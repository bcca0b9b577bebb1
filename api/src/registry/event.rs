//! Event (core/v1; events.k8s.io/v1 is a view of the same objects) and Lease.

use super::access::{child, get, int, name_cell, text};
use super::age::{age_cell, since};
use super::builder::define;
use super::fault::{Faults, Path};
use super::{Conversion, Kind, Strategy, Target, metadata, names};
use crate::error::FieldError;
use crate::meta::{metadata_str, str_at};
use jiff::Timestamp;
use serde_json::{Map, Value};

const MAX_INSTANCE: usize = 128;
const MAX_NOTE: usize = 1024;

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    vec![core_event(), event_view(), lease()]
}

const COLUMNS: &[(&str, &str, i32)] = &[
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Subobject", "string", 1),
    ("Source", "string", 1),
    ("Message", "string", 0),
    ("First Seen", "string", 1),
    ("Count", "string", 1),
    ("Name", "string", 1),
];

fn core_event() -> Kind {
    define("", "v1", "Event", "events")
        .namespaced()
        .short_names(&["ev"])
        .columns(COLUMNS)
        .selectable(&[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ])
        .build(EventRules { view: false })
}

fn event_view() -> Kind {
    define("events.k8s.io", "v1", "Event", "events")
        .namespaced()
        .short_names(&["ev"])
        .columns(COLUMNS)
        .selectable(&[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ])
        .stored_as(Conversion {
            group: String::new(),
            version: "v1".into(),
            to_stored: to_core,
            from_stored: from_core,
        })
        .build(EventRules { view: true })
}

/// The two forms' names for the same fields: core/v1, events.k8s.io/v1.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn to_core(event: Value) -> Value {
    renamed(event, "v1", |name| {
        RENAMED.iter().find(|(_, view)| *view == name).map(|(core, _)| *core)
    })
}

fn from_core(event: Value) -> Value {
    renamed(event, "events.k8s.io/v1", |name| {
        RENAMED.iter().find(|(core, _)| *core == name).map(|(_, view)| *view)
    })
}

fn renamed(event: Value, version: &str, other: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(fields) = event else { return event };
    fields
        .into_iter()
        .map(|(name, value)| match other(&name) {
            _ if name == "apiVersion" => (name, Value::from(version)),
            Some(other) => (other.to_owned(), value),
            None => (name, value),
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn lease() -> Kind {
    define("coordination.k8s.io", "v1", "Lease", "leases")
        .namespaced()
        .columns(&[("Name", "string", 0), ("Holder", "string", 0), ("Age", "string", 0)])
        .build(LeaseRules)
}

/// Rules of both forms of an event; `view` is the one of events.k8s.io.
struct EventRules {
    view: bool,
}

impl EventRules {
    /// The name that a field of core/v1 has in this form.
    fn name(&self, core: &'static str) -> &'static str {
        let other = RENAMED.iter().find(|(name, _)| self.view && *name == core);
        other.map_or(core, |(_, view)| view)
    }

    fn get<'a>(&self, event: &'a Value, core: &'static str) -> &'a Value {
        event.get(self.name(core)).unwrap_or(&Value::Null)
    }

    fn text<'a>(&self, event: &'a Value, core: &'static str) -> &'a str {
        text(event, self.name(core))
    }

    fn body(&self, faults: &mut Faults, event: &Value) {
        self.namespaces_agree(faults, event);
        if get(event, "eventTime").is_none() {
            if self.view {
                faults.required(&Path::root("eventTime"), "");
            }
            return;
        }
        let controller = self.text(event, "reportingComponent");
        let path = Path::root(self.name("reportingComponent"));
        if controller.is_empty() {
            faults.required(&path, "");
        }
        faults.each(&path, controller, names::label_key(controller));
        let instance = text(event, "reportingInstance");
        for (key, value) in [
            ("reportingInstance", instance),
            ("action", text(event, "action")),
            ("reason", text(event, "reason")),
        ] {
            if value.is_empty() {
                faults.required(&Path::root(key), "");
            } else if value.len() > MAX_INSTANCE {
                let detail = format!("can have at most {MAX_INSTANCE} characters");
                faults.invalid(&Path::root(key), value, detail);
            }
        }
        if self.text(event, "message").len() > MAX_NOTE {
            let detail = format!("can have at most {MAX_NOTE} characters");
            faults.invalid(&Path::root(self.name("message")), "", detail);
        }
        let kind = text(event, "type");
        if self.view && !matches!(kind, "Normal" | "Warning") {
            faults.invalid(&Path::root("type"), kind, "has invalid value: ");
        }
    }

    /// An event lives where the object lives; one about the cluster in `default` or `kube-system`.
    fn namespaces_agree(&self, faults: &mut Faults, event: &Value) {
        let own = metadata_str(event, "namespace");
        let about = text(self.get(event, "involvedObject"), "namespace");
        let agree = match about {
            "" => matches!(own, "" | "default" | "kube-system"),
            about => about == own,
        };
        if !agree {
            let root = Path::root(self.name("involvedObject"));
            faults.invalid(&root.field("namespace"), about, "does not match event.namespace");
        }
    }
}

impl Strategy for EventRules {
    /// Fields that stand in every event, empty or not.
    fn default(&self, object: &mut Value) {
        let Some(event) = object.as_object_mut() else { return };
        let mut fill = |core, value: Value| {
            event.entry(self.name(core)).or_insert(value);
        };
        fill("firstTimestamp", Value::Null);
        fill("lastTimestamp", Value::Null);
        fill("source", Map::new().into());
        fill("eventTime", Value::Null);
        if !self.view {
            fill("reportingComponent", "".into());
            fill("reportingInstance", "".into());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        // Upstream takes any name of an event that a path can hold.
        let mut faults = metadata::validate(object, |_| Vec::new());
        self.body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        self.body(&mut faults, new);
        faults.0
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        let involved = self.get(object, "involvedObject");
        let about =
            ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
        let mut values: Vec<String> = about.iter().map(|key| text(involved, key).into()).collect();
        values.push(text(object, "reason").into());
        values.push(self.text(object, "reportingComponent").into());
        if !self.view {
            let component = text(self.get(object, "source"), "component");
            let reporter = self.text(object, "reportingComponent");
            values.push(if component.is_empty() { reporter } else { component }.into());
        }
        values.push(text(object, "type").into());
        values
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let involved = self.get(object, "involvedObject");
        let first = match self.text(object, "firstTimestamp") {
            "" => since(text(object, "eventTime"), now),
            first => since(first, now),
        };
        let mut last = match self.text(object, "lastTimestamp") {
            "" => first.clone(),
            last => since(last, now),
        };
        let mut count = int(object, self.name("count")).filter(|c| *c > 0).unwrap_or(1);
        if let Some(series) = get(object, "series") {
            last = since(text(series, "lastObservedTime"), now);
            count = int(series, "count").unwrap_or(count);
        }
        let kind = text(involved, "kind").to_lowercase();
        let target = match text(involved, "name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        vec![
            last.into(),
            text(object, "type").into(),
            text(object, "reason").into(),
            target.into(),
            text(involved, "fieldPath").into(),
            self.source(object).into(),
            self.text(object, "message").trim().into(),
            first.into(),
            count.into(),
            name_cell(object),
        ]
    }
}

impl EventRules {
    /// Who saw it, and where.
    fn source(&self, event: &Value) -> String {
        let source = self.get(event, "source");
        let first = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
        let component = first(text(source, "component"), self.text(event, "reportingComponent"));
        match first(text(source, "host"), text(event, "reportingInstance")) {
            host if host.is_empty() => component,
            host => format!("{component}, {host}"),
        }
    }
}

struct LeaseRules;

impl LeaseRules {
    fn body(faults: &mut Faults, object: &Value) {
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let root = Path::root("spec");
        if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
            faults.invalid(&root.field("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        faults.non_negative(&root.field("leaseTransitions"), int(spec, "leaseTransitions"));
        if get(spec, "preferredHolder").is_some() && text(spec, "strategy").is_empty() {
            let detail = "must be specified when `preferredHolder` is set";
            faults.required(&root.field("strategy"), detail);
        }
    }
}

impl Strategy for LeaseRules {
    fn default(&self, object: &mut Value) {
        child(object, "spec");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        Self::body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        Self::body(&mut faults, new);
        faults.0
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let holder = str_at(object, &["spec", "holderIdentity"]);
        vec![name_cell(object), holder.into(), age_cell(object, now)]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_forms_convert_both_ways() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"},
            "message": "m", "reportingComponent": "c", "source": {"host": "h"}, "count": 2});
        let view = from_core(core.clone());
        assert_eq!(
            view,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "regarding": {"kind": "Pod"}, "note": "m", "reportingController": "c",
            "deprecatedSource": {"host": "h"}, "deprecatedCount": 2})
        );
        assert_eq!(to_core(view), core);
    }
}
