//! Which resources there are: those that everybody knows, at once; all others by asking.

use crate::client::Http;
use crate::error::{Error, Result};
use serde_json::Value;

/// A resource that a server serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiResource {
    /// Empty for the core group.
    pub group: String,
    /// `v1`
    pub version: String,
    /// `deployments`
    pub plural: String,
    /// `deployment`
    pub singular: String,
    /// `Deployment`
    pub kind: String,
    /// `deploy`
    pub short_names: Vec<String>,
    /// `all`
    pub categories: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl ApiResource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        rkube_api::meta::api_version(&self.group, &self.version)
    }

    /// `/api/v1` or `/apis/apps/v1`.
    pub fn base(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`, or `pods` in the core group.
    pub fn qualified(&self) -> String {
        dotted(&self.plural, &self.group)
    }

    /// `deployment.apps/web`, as verbs report what they did.
    pub fn named(&self, name: &str) -> String {
        format!("{}/{name}", dotted(&self.kind.to_lowercase(), &self.group))
    }

    /// The collection's path; every namespace if None.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(ns) if self.namespaced => {
                format!("{}/namespaces/{}/{}", self.base(), crate::client::escape(ns), self.plural)
            }
            _ => format!("{}/{}", self.base(), self.plural),
        }
    }

    /// One object's path.
    pub fn path(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), crate::client::escape(name))
    }

    fn answers_to(&self, name: &str) -> bool {
        self.plural == name || self.singular == name || self.short_names.iter().any(|s| s == name)
    }
}

fn dotted(name: &str, group: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{name}.{group}") }
}

/// The kinds that rkube itself serves: no question to the server is needed for them.
pub fn well_known() -> impl Iterator<Item = ApiResource> {
    rkube_api::registry::builtin().kinds.iter().map(|k| ApiResource {
        group: k.group.clone(),
        version: k.version.clone(),
        plural: k.plural.clone(),
        singular: k.singular.clone(),
        kind: k.kind.clone(),
        short_names: k.short_names.clone(),
        categories: k.categories.clone(),
        namespaced: k.namespaced,
        verbs: k.verbs.clone(),
    })
}

/// Finds a resource by what a user typed: `pods`, `po`, `deployments.apps`, `deploy.v1.apps`, `Pod`.
pub fn find(resources: &[ApiResource], typed: &str) -> Option<ApiResource> {
    let typed = typed.to_lowercase();
    let exact = resources.iter().find(|r| r.answers_to(&typed));
    if let Some(found) = exact {
        return Some(found.clone());
    }
    let (name, rest) = typed.split_once('.')?;
    let fits = |r: &&ApiResource| {
        let with_version = format!("{}.{}", r.version, r.group);
        r.answers_to(name)
            && (rest == r.group
                || rest == with_version.trim_end_matches('.')
                || r.group.starts_with(&format!("{rest}.")))
    };
    resources.iter().find(fits).cloned()
}

/// All resources of a server, the preferred version of each first.
pub async fn discover(http: &Http) -> Result<Vec<ApiResource>> {
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    let mut found = Vec::new();
    for root in ["/api", "/apis"] {
        let answer = http.get_as(root, AGGREGATED).await?;
        if answer["kind"] == "APIGroupDiscoveryList" {
            for group in list(&answer["items"]) {
                aggregated_group(group, &mut found);
            }
        } else {
            for (group, version) in group_versions(&answer) {
                one_by_one(http, &group, &version, &mut found).await?;
            }
        }
    }
    Ok(found)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or(&[])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(text).collect()
}

fn aggregated_group(group: &Value, found: &mut Vec<ApiResource>) {
    for version in list(&group["versions"]) {
        for r in list(&version["resources"]) {
            found.push(ApiResource {
                group: text(&group["metadata"]["name"]),
                version: text(&version["version"]),
                plural: text(&r["resource"]),
                singular: text(&r["singularResource"]),
                kind: text(&r["responseKind"]["kind"]),
                short_names: texts(&r["shortNames"]),
                categories: texts(&r["categories"]),
                namespaced: r["scope"] == "Namespaced",
                verbs: texts(&r["verbs"]),
            });
        }
    }
}

/// Group and version of an `APIVersions` or `APIGroupList`, preferred versions first.
fn group_versions(answer: &Value) -> Vec<(String, String)> {
    if answer["kind"] == "APIVersions" {
        return texts(&answer["versions"]).into_iter().map(|v| (String::new(), v)).collect();
    }
    let mut all = Vec::new();
    for group in list(&answer["groups"]) {
        let name = text(&group["name"]);
        let preferred = text(&group["preferredVersion"]["version"]);
        all.push((name.clone(), preferred.clone()));
        for v in list(&group["versions"]).iter().map(|v| text(&v["version"])) {
            if v != preferred {
                all.push((name.clone(), v));
            }
        }
    }
    all
}

async fn one_by_one(
    http: &Http,
    group: &str,
    version: &str,
    found: &mut Vec<ApiResource>,
) -> Result<()> {
    let at = ApiResource { group: group.into(), version: version.into(), ..Default::default() };
    let answer = match http.get(&at.base()).await {
        Ok(answer) => answer,
        // One broken aggregated API must not hide the others.
        Err(Error::Status(_)) => return Ok(()),
        Err(other) => return Err(other),
    };
    for r in list(&answer["resources"]) {
        let name = text(&r["name"]);
        if name.contains('/') {
            continue;
        }
        let singular = match text(&r["singularName"]) {
            s if s.is_empty() => text(&r["kind"]).to_lowercase(),
            s => s,
        };
        found.push(ApiResource {
            plural: name,
            singular,
            kind: text(&r["kind"]),
            short_names: texts(&r["shortNames"]),
            categories: texts(&r["categories"]),
            namespaced: r["namespaced"] == true,
            verbs: texts(&r["verbs"]),
            ..at.clone()
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployments() -> ApiResource {
        ApiResource {
            group: "apps".into(),
            version: "v1".into(),
            plural: "deployments".into(),
            singular: "deployment".into(),
            kind: "Deployment".into(),
            short_names: vec!["deploy".into()],
            namespaced: true,
            ..Default::default()
        }
    }

    #[test]
    fn names_that_users_type() {
        let all = [deployments()];
        for typed in ["deploy", "deployment", "Deployments", "deployments.apps", "deploy.v1.apps"] {
            assert!(find(&all, typed).is_some(), "{typed}");
        }
        for typed in ["dep", "deployments.batch", "deployments.v2.apps"] {
            assert!(find(&all, typed).is_none(), "{typed}");
        }
    }

    #[test]
    fn paths() {
        let d = deployments();
        assert_eq!(d.path(Some("t"), "web"), "/apis/apps/v1/namespaces/t/deployments/web");
        assert_eq!(d.collection(None), "/apis/apps/v1/deployments");
        assert_eq!(d.named("web"), "deployment.apps/web");
    }
}
