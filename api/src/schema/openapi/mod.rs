//! OpenAPI documents, built on demand from the schema and the registry: version 3 a group and
//! version, version 2 for all in one. Nothing is kept; a server that caches them does so itself,
//! under the key that [`hash`] gives without building anything.

mod definitions;
mod descriptions;
mod paths;

use super::Schema;
use crate::registry::Kind;
use definitions::Definitions;
use descriptions::Descriptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// The version of the API that the documents name.
const API_VERSION: &str = "v1.36.0";

/// Which of the two forms is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

/// What `GET /openapi/v3` answers: where each group and version's document is.
pub fn v3_index(kinds: &[Arc<Kind>]) -> Value {
    let paths: Map<String, Value> = by_group_version(kinds)
        .into_iter()
        .map(|(path, kinds)| {
            let hash = hash(&kinds);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of one group and version (`api/v1`, `apis/apps/v1`), None if nothing is served
/// there.
pub fn v3(schema: &Schema, kinds: &[Arc<Kind>], path: &str) -> Option<Value> {
    let kinds = by_group_version(kinds).remove(path)?;
    let (paths, definitions) = parts(schema, &kinds, Form::V3);
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": API_VERSION},
        "paths": paths,
        "components": {"schemas": definitions},
    }))
}

/// The hash of the document of one group and version, None if nothing is served there.
pub fn v3_hash(kinds: &[Arc<Kind>], path: &str) -> Option<String> {
    by_group_version(kinds).get(path).map(|kinds| hash(kinds))
}

/// The one document of version 2, in JSON. For protobuf see [`super::gnostic`].
pub fn v2(schema: &Schema, kinds: &[Arc<Kind>]) -> Value {
    let (paths, definitions) = parts(schema, kinds, Form::V2);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": API_VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

/// Changes when a document of these kinds may change: an ETag.
pub fn hash(kinds: &[Arc<Kind>]) -> String {
    static TABLE: LazyLock<u64> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        (env!("CARGO_PKG_VERSION"), include_str!("../types.tbl")).hash(&mut hasher);
        hasher.finish()
    });
    let mut hasher = DefaultHasher::new();
    TABLE.hash(&mut hasher);
    for kind in kinds {
        (&kind.group, &kind.version, &kind.kind, &kind.plural, kind.namespaced, &kind.verbs)
            .hash(&mut hasher);
        for sub in &kind.subresources {
            (&sub.name, &sub.verbs, &sub.kind).hash(&mut hasher);
        }
    }
    format!("{:016X}", hasher.finish())
}

/// `api/v1` or `apis/apps/v1`.
pub fn path_of(kind: &Kind) -> String {
    match kind.group.as_str() {
        "" => format!("api/{}", kind.version),
        group => format!("apis/{group}/{}", kind.version),
    }
}

fn by_group_version(kinds: &[Arc<Kind>]) -> BTreeMap<String, Vec<Arc<Kind>>> {
    let mut out: BTreeMap<String, Vec<Arc<Kind>>> = BTreeMap::new();
    for kind in kinds {
        out.entry(path_of(kind)).or_default().push(kind.clone());
    }
    out
}

fn parts(schema: &Schema, kinds: &[Arc<Kind>], form: Form) -> (Value, Value) {
    let texts = Descriptions::of(kinds.iter().map(|k| k.type_name.as_str()));
    let mut definitions = Definitions::new(schema, form, &texts, kinds);
    let paths = paths::paths(schema, form, kinds, &mut definitions);
    (paths, definitions.finish())
}

/// The name of a type in the documents: `io.k8s.api.core.v1.Pod`.
fn definition_name(type_name: &str) -> String {
    let package = match type_name.split('.').next().unwrap_or_default() {
        "meta" => "apimachinery.pkg.apis",
        "version" => "apimachinery.pkg",
        "apiextensions" => "apiextensions-apiserver.pkg.apis",
        "apiregistration" => "kube-aggregator.pkg.apis",
        _ => "api",
    };
    format!("io.k8s.{package}.{type_name}")
}

fn reference(form: Form, definition: &str) -> Value {
    let root = match form {
        Form::V2 => "#/definitions",
        Form::V3 => "#/components/schemas",
    };
    json!({"$ref": format!("{root}/{definition}")})
}

#[cfg(test)]
mod tests;
