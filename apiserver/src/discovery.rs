//! What is served: the documents below `/api` and `/apis`, made once from the registry.

use crate::body::Body;
use crate::negotiate::{Clause, clauses};
use crate::response;
use crate::rest::served;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use rkube_api::meta::api_version;
use rkube_api::registry::{Kind, Registry};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A resource that has no objects: what is posted to it is answered, not kept.
pub struct Virtual {
    /// The group.
    pub group: &'static str,
    /// The plural.
    pub plural: &'static str,
    /// The singular.
    pub singular: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Below a namespace.
    pub namespaced: bool,
}

/// The virtual resources, all of version v1.
pub const VIRTUALS: [Virtual; 5] = [
    Virtual {
        group: "",
        plural: "bindings",
        singular: "binding",
        kind: "Binding",
        namespaced: true,
    },
    Virtual {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        namespaced: false,
    },
    Virtual {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        namespaced: false,
    },
    Virtual {
        group: "authorization.k8s.io",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        kind: "SubjectAccessReview",
        namespaced: false,
    },
    Virtual {
        group: "authorization.k8s.io",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        kind: "LocalSubjectAccessReview",
        namespaced: true,
    },
];

/// A document and its tag.
struct Document {
    body: Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(value: &Value) -> Self {
        let text = value.to_string();
        let digest: String =
            Sha256::digest(&text).iter().take(16).map(|b| format!("{b:02X}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{digest}\""))
            .unwrap_or(HeaderValue::from_static("\"0\""));
        Document { body: text.into(), etag }
    }
}

/// All discovery documents.
pub struct Discovery {
    plain: BTreeMap<String, Document>,
    /// By path and version of `apidiscovery.k8s.io`.
    aggregated: BTreeMap<(String, &'static str), Document>,
}

const AGGREGATED: [(&str, &str); 2] = [
    ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
];

impl Discovery {
    /// The documents of a registry's kinds.
    pub fn new(registry: &Registry, server_address: &str) -> Self {
        let groups = groups(registry);
        let mut plain = BTreeMap::new();
        plain.insert("/api".to_owned(), Document::new(&core_versions(server_address)));
        let named: Vec<_> = groups.iter().filter(|g| !g.name.is_empty()).collect();
        let list: Vec<Value> = named.iter().map(|g| g.summary(false)).collect();
        plain.insert(
            "/apis".to_owned(),
            Document::new(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})),
        );
        for group in &groups {
            if !group.name.is_empty() {
                plain.insert(format!("/apis/{}", group.name), Document::new(&group.summary(true)));
            }
            for version in &group.versions {
                let root = if group.name.is_empty() {
                    "/api".into()
                } else {
                    format!("/apis/{}", group.name)
                };
                let list = json!({
                    "kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": api_version(&group.name, &version.name),
                    "resources": version.resources.iter().flat_map(Resource::plain).collect::<Vec<_>>(),
                });
                plain.insert(format!("{root}/{}", version.name), Document::new(&list));
            }
        }
        let mut aggregated = BTreeMap::new();
        for (version, _) in AGGREGATED {
            for (path, core) in [("/api", true), ("/apis", false)] {
                let items: Vec<Value> = groups
                    .iter()
                    .filter(|g| g.name.is_empty() == core)
                    .map(Group::aggregated)
                    .collect();
                let document = json!({
                    "kind": "APIGroupDiscoveryList",
                    "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                    "metadata": {}, "items": items,
                });
                aggregated.insert((path.to_owned(), version), Document::new(&document));
            }
        }
        Discovery { plain, aggregated }
    }

    /// The document at a path in the form that the client prefers; None if there is none.
    pub fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
        let wanted = clauses(accept);
        let (document, content_type) = wanted
            .iter()
            .find_map(|clause| self.form(path, clause))
            .or_else(|| self.plain.get(path).map(|d| (d, "application/json")))?;
        let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|tags| {
            tags.as_bytes().windows(document.etag.len()).any(|w| w == document.etag.as_bytes())
        });
        let mut response = if unchanged {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            response::bytes(StatusCode::OK, content_type, document.body.clone())
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, document.etag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        Some(response)
    }

    fn form(&self, path: &str, clause: &Clause<'_>) -> Option<(&Document, &'static str)> {
        if !matches!(clause.media_type, "application/json" | "*/*" | "application/*") {
            return None;
        }
        if clause.param("as").is_empty() {
            return self.plain.get(path).map(|d| (d, "application/json"));
        }
        let fits = clause.param("as") == "APIGroupDiscoveryList"
            && clause.param("g") == "apidiscovery.k8s.io"
            // A profile that is not known must not be answered with the plain document.
            && matches!(clause.param("profile"), "" | "nopeer");
        let (version, content_type) = AGGREGATED.iter().find(|(v, _)| *v == clause.param("v"))?;
        let document = self.aggregated.get(&(path.to_owned(), *version))?;
        fits.then_some((document, *content_type))
    }
}

fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

struct Group {
    name: String,
    versions: Vec<Version>,
}

struct Version {
    name: String,
    resources: Vec<Resource>,
}

struct Resource {
    group: String,
    version: String,
    plural: String,
    singular: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
    short_names: Vec<String>,
    categories: Vec<String>,
    subresources: Vec<Sub>,
}

struct Sub {
    name: String,
    verbs: Vec<String>,
    kind: (String, String, String),
}

fn groups(registry: &Registry) -> Vec<Group> {
    let mut map: BTreeMap<(String, String), Vec<Resource>> = BTreeMap::new();
    let mut add =
        |r: Resource| map.entry((r.group.clone(), r.version.clone())).or_default().push(r);
    registry.kinds.iter().map(|k| Resource::of(k)).for_each(&mut add);
    VIRTUALS.iter().map(Resource::of_virtual).for_each(&mut add);
    let mut groups: Vec<Group> = Vec::new();
    for ((group, version), mut resources) in map {
        resources.sort_by(|a, b| a.plural.cmp(&b.plural));
        let version = Version { name: version, resources };
        match groups.last_mut() {
            Some(last) if last.name == group => last.versions.push(version),
            _ => groups.push(Group { name: group, versions: vec![version] }),
        }
    }
    groups
}

impl Group {
    fn summary(&self, alone: bool) -> Value {
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|v| json!({"groupVersion": api_version(&self.name, &v.name), "version": v.name}))
            .collect();
        let mut group =
            json!({"name": self.name, "preferredVersion": versions[0], "versions": versions});
        if alone {
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
        }
        group
    }

    fn aggregated(&self) -> Value {
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|v| {
                let resources: Vec<Value> = v.resources.iter().map(Resource::aggregated).collect();
                json!({"version": v.name, "freshness": "Current", "resources": resources})
            })
            .collect();
        let metadata = if self.name.is_empty() { json!({}) } else { json!({"name": self.name}) };
        json!({"metadata": metadata, "versions": versions})
    }
}

impl Resource {
    fn of(kind: &Kind) -> Self {
        let own = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
        Resource {
            group: kind.group.clone(),
            version: kind.version.clone(),
            plural: kind.plural.clone(),
            singular: kind.singular.clone(),
            kind: kind.kind.clone(),
            namespaced: kind.namespaced,
            verbs: kind.verbs.clone(),
            short_names: kind.short_names.clone(),
            categories: kind.categories.clone(),
            subresources: kind
                .subresources
                .iter()
                .map(|s| Sub {
                    name: s.name.clone(),
                    verbs: served(kind, &s.name, &s.verbs).into_iter().map(str::to_owned).collect(),
                    kind: s.kind.clone().unwrap_or_else(|| own.clone()),
                })
                .filter(|s| !s.verbs.is_empty())
                .collect(),
        }
    }

    fn of_virtual(entry: &Virtual) -> Self {
        Resource {
            group: entry.group.into(),
            version: "v1".into(),
            plural: entry.plural.into(),
            singular: entry.singular.into(),
            kind: entry.kind.into(),
            namespaced: entry.namespaced,
            verbs: vec!["create".into()],
            short_names: Vec::new(),
            categories: Vec::new(),
            subresources: Vec::new(),
        }
    }

    /// The entries of an `APIResourceList`: the resource, then what hangs below it.
    fn plain(&self) -> Vec<Value> {
        let mut main = json!({
            "name": self.plural, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": self.verbs,
        });
        if !self.short_names.is_empty() {
            main["shortNames"] = json!(self.short_names);
        }
        if !self.categories.is_empty() {
            main["categories"] = json!(self.categories);
        }
        let mut list = vec![main];
        for sub in &self.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", self.plural, sub.name), "singularName": "",
                "namespaced": self.namespaced, "kind": sub.kind.2, "verbs": sub.verbs,
            });
            if (&sub.kind.0, &sub.kind.1) != (&self.group, &self.version) {
                entry["group"] = sub.kind.0.clone().into();
                entry["version"] = sub.kind.1.clone().into();
            }
            list.push(entry);
        }
        list
    }

    fn aggregated(&self) -> Value {
        let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
        let mut entry = json!({
            "resource": self.plural,
            "responseKind": kind((&self.group, &self.version, &self.kind)),
            "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": self.singular, "verbs": self.verbs,
        });
        if !self.short_names.is_empty() {
            entry["shortNames"] = json!(self.short_names);
        }
        if !self.categories.is_empty() {
            entry["categories"] = json!(self.categories);
        }
        if !self.subresources.is_empty() {
            let list = self.subresources.iter().map(|s| {
                json!({
                    "subresource": s.name,
                    "responseKind": kind((&s.kind.0, &s.kind.1, &s.kind.2)),
                    "verbs": s.verbs,
                })
            });
            entry["subresources"] = list.collect();
        }
        entry
    }
}
