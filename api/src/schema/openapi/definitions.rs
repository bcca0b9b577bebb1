//! The documents' schemas: one a type, those that are reached from the paths.

use super::descriptions::Descriptions;
use super::{Form, definition_name, reference};
use crate::registry::Kind;
use crate::schema::{Field, FieldType, ListKind, Scalar, Schema, TypeId};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const DURATION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Duration";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Collects the definitions that are referred to.
pub(super) struct Definitions<'a> {
    schema: &'a Schema,
    form: Form,
    texts: &'a Descriptions,
    kinds: HashMap<String, Vec<Value>>,
    wanted: Vec<TypeId>,
    seen: HashSet<TypeId>,
    out: Map<String, Value>,
}

impl<'a> Definitions<'a> {
    pub fn new(
        schema: &'a Schema,
        form: Form,
        texts: &'a Descriptions,
        kinds: &[Arc<Kind>],
    ) -> Self {
        Definitions {
            schema,
            form,
            texts,
            kinds: kind_names(kinds),
            wanted: Vec::new(),
            seen: HashSet::new(),
            out: Map::new(),
        }
    }

    /// A reference to a type, which is defined with all that it refers to.
    pub fn refer(&mut self, id: TypeId) -> Value {
        if self.seen.insert(id) {
            self.wanted.push(id);
        }
        reference(self.form, &definition_name(&self.schema.get(id).name))
    }

    /// A reference to the type with this name; any object if there is none.
    pub fn refer_name(&mut self, type_name: &str) -> Value {
        match self.schema.id(type_name) {
            Some(id) => self.refer(id),
            None => json!({"type": "object"}),
        }
    }

    /// A reference to the body of a patch.
    pub fn refer_patch(&mut self) -> Value {
        self.special(PATCH)
    }

    /// All definitions.
    pub fn finish(mut self) -> Value {
        while let Some(id) = self.wanted.pop() {
            let name = definition_name(&self.schema.get(id).name);
            let definition = self.structure(id, &name);
            self.out.insert(name, definition);
        }
        Value::Object(self.out)
    }

    fn special(&mut self, name: &str) -> Value {
        if !self.out.contains_key(name) {
            let definition = special_definition(name, self.form);
            self.out.insert(name.to_string(), definition);
        }
        reference(self.form, name)
    }

    fn structure(&mut self, id: TypeId, name: &str) -> Value {
        let def = self.schema.get(id);
        let mut out = Map::new();
        describe(&mut out, self.texts.of_type(name));
        out.insert("type".into(), "object".into());
        let required: Vec<&str> =
            def.fields.iter().filter(|(_, f)| f.required).map(|(name, _)| name).collect();
        if !required.is_empty() {
            out.insert("required".into(), required.into());
        }
        if !def.fields.is_empty() {
            let properties: Map<String, Value> = def
                .fields
                .iter()
                .map(|(field_name, field)| {
                    let text = self.texts.of_field(name, field_name);
                    (field_name.to_string(), self.property(field, text))
                })
                .collect();
            out.insert("properties".into(), properties.into());
        }
        if def.atomic {
            out.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if let Some(kinds) = self.kinds.get(&def.name) {
            out.insert("x-kubernetes-group-version-kind".into(), kinds.clone().into());
        }
        Value::Object(out)
    }

    fn property(&mut self, field: &Field, text: &str) -> Value {
        let zero = matches!(field.ty, FieldType::Struct(_)) && !field.keep_zero;
        let mut out = self.slot(&field.ty, zero);
        describe(&mut out, text);
        if let Some(default) = &field.default {
            out.insert("default".into(), default.clone());
        }
        extensions(field, &mut out);
        Value::Object(out)
    }

    /// A schema in a place that may hold a reference. Beside a reference version 3 allows nothing
    /// else, so it is wrapped; `zero` says that the value is never absent in Go.
    fn slot(&mut self, ty: &FieldType, zero: bool) -> Map<String, Value> {
        let Value::Object(inner) = self.type_schema(ty) else { return Map::new() };
        if self.form == Form::V2 || !inner.contains_key("$ref") {
            return inner;
        }
        let mut out = Map::new();
        out.insert("allOf".into(), json!([inner]));
        if zero {
            out.insert("default".into(), json!({}));
        }
        out
    }

    fn type_schema(&mut self, ty: &FieldType) -> Value {
        match ty {
            FieldType::Scalar(scalar) => self.scalar(*scalar),
            FieldType::Struct(id) => self.refer(*id),
            FieldType::List { item, .. } => {
                let zero = matches!(**item, FieldType::Struct(_));
                json!({"type": "array", "items": self.slot(item, zero)})
            }
            FieldType::Map { value, .. } => {
                let zero = matches!(**value, FieldType::Struct(_));
                json!({"type": "object", "additionalProperties": self.slot(value, zero)})
            }
            FieldType::Any => json!({"type": "object"}),
        }
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Time => self.special(TIME),
            Scalar::MicroTime => self.special(MICRO_TIME),
            Scalar::Duration => self.special(DURATION),
            Scalar::Quantity => self.special(QUANTITY),
            Scalar::IntOrString => self.special(INT_OR_STRING),
        }
    }
}

/// The kinds of each type, as `x-kubernetes-group-version-kind` lists them.
fn kind_names(kinds: &[Arc<Kind>]) -> HashMap<String, Vec<Value>> {
    let mut out: HashMap<String, Vec<Value>> = HashMap::new();
    let mut add = |ty: &str, group: &str, version: &str, kind: &str| {
        let name = json!({"group": group, "version": version, "kind": kind});
        let names = out.entry(ty.to_string()).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    };
    add("meta.v1.Status", "", "v1", "Status");
    for kind in kinds {
        let (group, version) = (&kind.group, &kind.version);
        let list = format!("{}List", kind.kind);
        add(&kind.type_name, group, version, &kind.kind);
        add(&format!("{}List", kind.type_name), group, version, &list);
        add("meta.v1.DeleteOptions", group, version, "DeleteOptions");
        for (group, version, kind) in kind.subresources.iter().filter_map(|s| s.kind.as_ref()) {
            let label = group.split('.').next().filter(|l| !l.is_empty()).unwrap_or("core");
            add(&format!("{label}.{version}.{kind}"), group, version, kind);
        }
    }
    out
}

fn describe(out: &mut Map<String, Value>, text: &str) {
    if !text.is_empty() {
        out.insert("description".into(), text.into());
    }
}

fn extensions(field: &Field, out: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| out.insert(format!("x-kubernetes-{name}"), value);
    match &field.ty {
        FieldType::List { kind, .. } => {
            let (name, keys) = match kind {
                ListKind::Atomic => ("atomic", None),
                ListKind::Set => ("set", None),
                ListKind::Map(keys) => ("map", Some(keys.clone())),
            };
            put("list-type", name.into());
            if let Some(keys) = keys {
                put("list-map-keys", keys.into());
            }
        }
        FieldType::Map { atomic: true, .. } => {
            put("map-type", "atomic".into());
        }
        _ => {}
    }
    let strategy = match (field.patch_merge, field.patch_retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return,
    };
    put("patch-strategy", strategy.into());
    if let Some(key) = &field.patch_merge_key {
        put("patch-merge-key", key.clone().into());
    }
}

fn special_definition(name: &str, form: Form) -> Value {
    let text = match name {
        TIME => "A moment, to the second, in RFC 3339 form.",
        MICRO_TIME => "A moment, to the microsecond, in RFC 3339 form.",
        DURATION => "A span of time, as in 1h30m.",
        QUANTITY => {
            "An exact amount: a decimal number with an SI or binary suffix, as in 500m or 1Gi."
        }
        INT_OR_STRING => "A number or a text.",
        _ => "The changes that a patch makes; their form follows from the content type.",
    };
    let mut out = match (name, form) {
        (TIME | MICRO_TIME, _) => json!({"type": "string", "format": "date-time"}),
        (PATCH, _) => json!({"type": "object"}),
        (INT_OR_STRING, Form::V2) => json!({"type": "string", "format": "int-or-string"}),
        (INT_OR_STRING, Form::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (QUANTITY, Form::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        _ => json!({"type": "string"}),
    };
    out["description"] = text.into();
    out
}
