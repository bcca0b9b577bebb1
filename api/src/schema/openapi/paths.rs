//! The documents' operations: which URL takes which method, with which parameters and bodies.

use super::definitions::Definitions;
use super::{Form, path_of};
use crate::registry::{Kind, Subresource};
use crate::schema::Schema;
use serde_json::{Map, Value, json};
use std::sync::Arc;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Strategic merge is offered for compiled-in types only: clients take it as a promise.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What a verb of discovery is in HTTP.
struct Method {
    verb: &'static str,
    http: &'static str,
    action: &'static str,
    word: &'static str,
    text: &'static str,
}

const COLLECTION: [Method; 3] = [
    method("list", "get", "list", "list", "list or watch objects of kind"),
    method("create", "post", "post", "create", "create a"),
    method("deletecollection", "delete", "deletecollection", "delete", "delete collection of"),
];
const ITEM: [Method; 5] = [
    method("get", "get", "get", "read", "read the specified"),
    method("update", "put", "put", "replace", "replace the specified"),
    method("patch", "patch", "patch", "patch", "partially update the specified"),
    method("delete", "delete", "delete", "delete", "delete a"),
    method("create", "post", "post", "create", "create"),
];

const fn method(
    verb: &'static str,
    http: &'static str,
    action: &'static str,
    word: &'static str,
    text: &'static str,
) -> Method {
    Method { verb, http, action, word, text }
}

/// All paths of the kinds.
pub(super) fn paths(
    schema: &Schema,
    form: Form,
    kinds: &[Arc<Kind>],
    definitions: &mut Definitions<'_>,
) -> Value {
    let mut out = Map::new();
    for kind in kinds {
        let mut builder = Builder { schema, form, kind, definitions };
        builder.resource(&mut out);
    }
    Value::Object(out)
}

/// What an operation takes and gives.
struct Target<'a> {
    gvk: (&'a str, &'a str, &'a str),
    ty: String,
    /// Ends the operation's id: `NamespacedPodStatus`.
    suffix: String,
}

struct Builder<'a, 'd> {
    schema: &'a Schema,
    form: Form,
    kind: &'a Kind,
    definitions: &'a mut Definitions<'d>,
}

impl Builder<'_, '_> {
    fn resource(&mut self, out: &mut Map<String, Value>) {
        let kind = self.kind;
        let base = format!("/{}", path_of(kind));
        let (middle, scope) = match kind.namespaced {
            true => ("/namespaces/{namespace}", "Namespaced"),
            false => ("", ""),
        };
        let collection = format!("{base}{middle}/{}", kind.plural);
        let item = format!("{collection}/{{name}}");
        let own = |suffix: String| Target {
            gvk: (&kind.group, &kind.version, &kind.kind),
            ty: kind.type_name.clone(),
            suffix,
        };
        let main = own(format!("{scope}{}", kind.kind));
        self.path(out, &collection, &COLLECTION, &kind.verbs, &main);
        // `create` of a main resource belongs to the collection.
        self.path(out, &item, &ITEM[..4], &kind.verbs, &main);
        if kind.namespaced && kind.verbs.iter().any(|v| v == "list") {
            let all = own(format!("{}ForAllNamespaces", kind.kind));
            self.path(out, &format!("{base}/{}", kind.plural), &COLLECTION[..1], &kind.verbs, &all);
        }
        for sub in &kind.subresources {
            let target = self.sub_target(sub, &main.suffix);
            self.path(out, &format!("{item}/{}", sub.name), &ITEM, &sub.verbs, &target);
        }
    }

    fn sub_target<'s>(&self, sub: &'s Subresource, suffix: &str) -> Target<'s>
    where
        Self: 's,
    {
        let (group, version, kind) = match &sub.kind {
            Some((group, version, kind)) => (group.as_str(), version.as_str(), kind.as_str()),
            None => ("", "", ""),
        };
        let ty = self.schema.id_of_kind(group, version, kind);
        Target {
            gvk: (group, version, kind),
            ty: match &sub.kind {
                None => self.kind.type_name.clone(),
                Some(_) => ty.map(|id| self.schema.get(id).name.clone()).unwrap_or_default(),
            },
            suffix: format!("{suffix}{}", capital(&sub.name)),
        }
    }

    fn path(
        &mut self,
        out: &mut Map<String, Value>,
        path: &str,
        methods: &[Method],
        verbs: &[String],
        target: &Target<'_>,
    ) {
        let mut item = Map::new();
        for method in methods.iter().filter(|m| verbs.iter().any(|v| v == m.verb)) {
            item.insert(method.http.into(), self.operation(method, target));
        }
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        for (name, text) in
            [("name", "name of the object"), ("namespace", "the object's namespace")]
        {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(self.parameter("path", name, "string", text));
            }
        }
        parameters.push(self.parameter(
            "query",
            "pretty",
            "string",
            "indents the answer if \"true\"",
        ));
        item.insert("parameters".into(), parameters.into());
        out.insert(path.to_string(), item.into());
    }

    fn operation(&mut self, method: &Method, target: &Target<'_>) -> Value {
        let (group, version) = match target.gvk.2 {
            "" => (self.kind.group.as_str(), self.kind.version.as_str()),
            _ => (target.gvk.0, target.gvk.1),
        };
        let kind = if target.gvk.2.is_empty() { &self.kind.kind } else { target.gvk.2 };
        let label = self.kind.group.split('.').next().filter(|l| !l.is_empty()).unwrap_or("core");
        let place = format!("{}{}", capital(label), capital(&self.kind.version));
        let collection = if method.verb == "deletecollection" { "Collection" } else { "" };
        let mut out = json!({
            "tags": [format!("{label}_{}", self.kind.version)],
            "description": format!("{} {}", method.text, self.kind.kind),
            "operationId": format!("{}{place}{collection}{}", method.word, target.suffix),
            "x-kubernetes-action": method.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut parameters: Vec<Value> = query(method.verb)
            .map(|(name, ty, text)| self.parameter("query", name, ty, text))
            .collect();
        self.body(method, target, &mut out, &mut parameters);
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out["responses"] = self.responses(method, target);
        if self.form == Form::V2 {
            out["produces"] = json!([JSON, YAML, PROTOBUF]);
        }
        out
    }

    fn body(
        &mut self,
        method: &Method,
        target: &Target<'_>,
        out: &mut Value,
        parameters: &mut Vec<Value>,
    ) {
        let (schema, types, required): (Value, &[&str], bool) = match method.verb {
            "create" | "update" => (self.definitions.refer_name(&target.ty), &["*/*"], true),
            "patch" => (self.definitions.refer_patch(), &PATCHES, true),
            "delete" | "deletecollection" => {
                (self.definitions.refer_name("meta.v1.DeleteOptions"), &["*/*"], false)
            }
            _ => return,
        };
        match self.form {
            Form::V2 => {
                out["consumes"] = json!(types);
                let mut body = json!({"name": "body", "in": "body", "schema": schema});
                if required {
                    body["required"] = true.into();
                }
                parameters.push(body);
            }
            Form::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|ty| (ty.to_string(), json!({"schema": schema}))).collect();
                out["requestBody"] = json!({"content": content});
                if required {
                    out["requestBody"]["required"] = true.into();
                }
            }
        }
    }

    fn responses(&mut self, method: &Method, target: &Target<'_>) -> Value {
        let ty = match method.verb {
            "list" => format!("{}List", self.kind.type_name),
            "deletecollection" | "delete" => "meta.v1.Status".to_string(),
            _ => target.ty.clone(),
        };
        let schema = self.definitions.refer_name(&ty);
        let codes: &[(&str, &str)] = match method.verb {
            "create" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "update" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let mut out: Map<String, Value> = codes
            .iter()
            .map(|(code, text)| {
                let answer = match self.form {
                    Form::V2 => json!({"description": text, "schema": schema}),
                    Form::V3 => {
                        let content: Map<String, Value> = [JSON, YAML, PROTOBUF]
                            .iter()
                            .map(|ty| (ty.to_string(), json!({"schema": schema})))
                            .collect();
                        json!({"description": text, "content": content})
                    }
                };
                (code.to_string(), answer)
            })
            .collect();
        out.insert("401".into(), json!({"description": "Unauthorized"}));
        Value::Object(out)
    }

    fn parameter(&self, place: &str, name: &str, ty: &str, text: &str) -> Value {
        let mut out = json!({"name": name, "in": place, "description": text});
        if place == "path" {
            out["required"] = true.into();
        }
        match self.form {
            Form::V2 => (out["type"], out["uniqueItems"]) = (ty.into(), true.into()),
            Form::V3 => out["schema"] = json!({"type": ty, "uniqueItems": true}),
        }
        out
    }
}

type Query = (&'static str, &'static str, &'static str);

const WRITE: [Query; 3] = [
    ("dryRun", "string", "\"All\" runs every stage of the request but keeps nothing"),
    ("fieldManager", "string", "the name of who or what makes the change"),
    (
        "fieldValidation",
        "string",
        "what happens with unknown and duplicate fields: Ignore, Warn or Strict",
    ),
];
const FORCE: [Query; 1] = [("force", "boolean", "an apply takes fields over from other managers")];
const DELETE: [Query; 4] = [
    ("dryRun", "string", "\"All\" runs every stage of the request but keeps nothing"),
    ("gracePeriodSeconds", "integer", "how long the object may take to end; 0 ends it at once"),
    ("orphanDependents", "boolean", "old form of propagationPolicy"),
    (
        "propagationPolicy",
        "string",
        "what happens with dependents: Orphan, Background or Foreground",
    ),
];
const LIST: [Query; 10] = [
    ("allowWatchBookmarks", "boolean", "the watch may send bookmarks"),
    ("continue", "string", "where the last part of the list ended"),
    ("fieldSelector", "string", "restricts the list by fields"),
    ("labelSelector", "string", "restricts the list by labels"),
    ("limit", "integer", "the largest number of items in one answer"),
    ("resourceVersion", "string", "which state of the data to read, or where a watch begins"),
    ("resourceVersionMatch", "string", "how resourceVersion is meant"),
    ("sendInitialEvents", "boolean", "a watch begins with the present state"),
    ("timeoutSeconds", "integer", "how long the call may last"),
    ("watch", "boolean", "follow the changes instead of listing"),
];

fn query(verb: &str) -> impl Iterator<Item = &'static Query> {
    let (first, second): (&[Query], &[Query]) = match verb {
        "create" | "update" => (&WRITE, &[]),
        "patch" => (&WRITE, &FORCE),
        "delete" => (&DELETE, &[]),
        "deletecollection" => (&DELETE, &LIST),
        "list" => (&LIST, &[]),
        _ => (&[], &[]),
    };
    first.iter().chain(second.iter().filter(|q| first.is_empty() || q.0 != "watch"))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
