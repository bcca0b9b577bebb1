//! The OpenAPI documents: what clients read of them.

use super::*;
use crate::registry;
use crate::schema::{builtin, gnostic};

fn kinds() -> &'static [Arc<Kind>] {
    &registry::builtin().kinds
}

/// Every `$ref` of a document, with what it must resolve to.
fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_string));
            map.values().for_each(|v| references(v, out));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

fn assert_closed(document: &Value) {
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn every_reference_resolves() {
    let index = v3_index(kinds());
    for path in index["paths"].as_object().unwrap().keys() {
        assert_closed(&v3(builtin(), kinds(), path).unwrap());
    }
    assert_closed(&v2(builtin(), kinds()));
    assert!(v3(builtin(), kinds(), "apis/none/v1").is_none());
}

#[test]
fn says_what_kubectl_reads() {
    let doc = v3(builtin(), kinds(), "apis/apps/v1").unwrap();
    let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert!(
        patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some()
    );
    let names: Vec<&Value> =
        patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let schemas = &doc["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"]["default"], json!({}));
    assert!(containers["description"].as_str().is_some_and(|d| d.contains("containers")));
    let meta = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"];
    assert_eq!(meta["finalizers"]["x-kubernetes-patch-strategy"], "merge");
}

#[test]
fn the_hash_follows_the_kinds() {
    let all = v3_index(kinds());
    let url = all["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_string();
    assert_eq!(url, format!("/openapi/v3/api/v1?hash={}", v3_hash(kinds(), "api/v1").unwrap()));
    assert_ne!(hash(kinds()), hash(&kinds()[1..]));
}

/// Writes the documents for a try with a real kubectl, where a folder for them is named.
#[test]
fn documents_for_a_try() {
    let v2 = v2(builtin(), kinds());
    let pb = gnostic::encode(&v2);
    assert!(pb.len() > 10_000);
    let Some(folder) = std::env::var_os("RKUBE_OPENAPI_FOLDER").map(std::path::PathBuf::from)
    else {
        return;
    };
    std::fs::write(folder.join("v2.pb"), pb).unwrap();
    std::fs::write(folder.join("v2.json"), v2.to_string()).unwrap();
    let index = v3_index(kinds());
    std::fs::write(folder.join("v3.json"), index.to_string()).unwrap();
    for path in index["paths"].as_object().unwrap().keys() {
        let name = format!("v3-{}.json", path.replace('/', "_"));
        std::fs::write(folder.join(name), v3(builtin(), kinds(), path).unwrap().to_string())
            .unwrap();
    }
}
