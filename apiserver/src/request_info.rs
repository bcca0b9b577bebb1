//! What a request is about, from its method, path and query alone.
//!
//! Authorization and storage both work on the result, so that no path can mean one thing to the
//! one and another to the other: a path with empty, dotted or slash-bearing segments is refused
//! before either sees it.

use crate::query::Query;
use http::Method;
use rkube_api::ApiError;

/// The parts of a request that routing and authorization look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Below `/api` or `/apis` and naming a resource.
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the
    /// method in small letters for what is no resource.
    pub verb: &'static str,
    /// Empty for the core group.
    pub group: String,
    /// `v1`
    pub version: String,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// The plural.
    pub resource: String,
    /// `status`, `log`, …; empty for the object itself.
    pub subresource: String,
    /// The object's name. For a list or watch the name that its field selector asks for.
    pub name: String,
    /// The name stands in the path.
    pub named: bool,
    /// What follows a `proxy` subresource, without the leading slash.
    pub rest: String,
}

impl RequestInfo {
    /// A watch, or a subresource that streams for as long as the client likes.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(
                self.subresource.as_str(),
                "log" | "exec" | "attach" | "portforward" | "proxy"
            )
    }

    /// `pods/log`, or `pods`.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Parses a request line.
///
/// # Errors
/// 400 for a path that is not canonical.
pub fn parse(method: &Method, path: &str, query: &Query) -> Result<RequestInfo, ApiError> {
    let segments = segments(path)?;
    let mut info = RequestInfo {
        path: format!("/{}", segments.join("/")),
        verb: plain_verb(method),
        ..RequestInfo::default()
    };
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let rest = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => {
            info.version = (*version).into();
            rest
        }
        ["apis", group, version, rest @ ..] if !rest.is_empty() => {
            info.group = (*group).into();
            info.version = (*version).into();
            rest
        }
        _ => return Ok(info),
    };
    info.is_resource = true;
    fill_resource(&mut info, rest);
    info.verb = resource_verb(method, &info, query);
    if !info.named
        && let Some(name) = name_in_selector(query)
    {
        info.name = name;
    }
    Ok(info)
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "unknown",
    }
}

fn resource_verb(method: &Method, info: &RequestInfo, query: &Query) -> &'static str {
    let watching = matches!(query.get("watch"), Some("true" | "1" | "True" | ""));
    match *method {
        Method::GET | Method::HEAD if !info.named && watching => "watch",
        Method::GET if info.named && watching && info.subresource.is_empty() => "watch",
        Method::GET | Method::HEAD if !info.named => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if !info.named => "deletecollection",
        Method::DELETE => "delete",
        _ => "unknown",
    }
}

/// What follows the version.
fn fill_resource(info: &mut RequestInfo, words: &[&str]) {
    let in_namespace = |word: &str| word != "status" && word != "finalize";
    let rest = match words {
        ["namespaces", namespace, resource, rest @ ..] if in_namespace(resource) => {
            info.namespace = (*namespace).into();
            info.resource = (*resource).into();
            rest
        }
        [resource, rest @ ..] => {
            info.resource = (*resource).into();
            rest
        }
        [] => return,
    };
    if let [name, rest @ ..] = rest {
        info.name = (*name).into();
        info.named = true;
        if info.resource == "namespaces" && info.group.is_empty() {
            info.namespace = info.name.clone();
        }
        if let [subresource, rest @ ..] = rest {
            info.subresource = (*subresource).into();
            info.rest = rest.join("/");
        }
    }
}

/// The name in a field selector `metadata.name=x`, which RBAC counts as the request's name.
fn name_in_selector(query: &Query) -> Option<String> {
    query.get("fieldSelector")?.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        Some(value.strip_prefix('=').unwrap_or(value).to_owned())
    })
}

/// The decoded segments of a canonical path.
fn segments(path: &str) -> Result<Vec<String>, ApiError> {
    let refuse = |why: &str| Err(ApiError::bad_request(format!("the request path {why}")));
    let Some(path) = path.strip_prefix('/') else {
        return refuse("must start with a slash");
    };
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    for raw in path.split('/') {
        let Some(segment) = crate::query::percent_decode(raw, false) else {
            return refuse("is not valid UTF-8");
        };
        match segment.as_str() {
            "" => return refuse("contains an empty segment"),
            "." | ".." => return refuse("contains a dot segment"),
            s if s.contains(['/', '\\', '\0']) => {
                return refuse("contains a segment with a slash or a NUL");
            }
            _ => list.push(segment),
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        parse(&method, path, &Query::parse(query)).unwrap()
    }

    #[test]
    fn resources_and_verbs() {
        let table = [
            (Method::GET, "/api/v1/pods", "list", "", "pods", "", ""),
            (Method::GET, "/api/v1/pods?watch=1", "watch", "", "pods", "", ""),
            (Method::GET, "/api/v1/namespaces/a/pods/b", "get", "a", "pods", "b", ""),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", "get", "a", "pods", "b", "log"),
            (Method::GET, "/api/v1/namespaces/a", "get", "a", "namespaces", "a", ""),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "update",
                "a",
                "namespaces",
                "a",
                "finalize",
            ),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "deletecollection", "a", "pods", "", ""),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments/d",
                "delete",
                "a",
                "deployments",
                "d",
                "",
            ),
            (Method::PATCH, "/api/v1/nodes/n/status", "patch", "", "nodes", "n", "status"),
            (Method::POST, "/api/v1/namespaces", "create", "", "namespaces", "", ""),
        ];
        for (method, uri, verb, namespace, resource, name, sub) in table {
            let i = info(method, uri);
            assert!(i.is_resource, "{uri}");
            assert_eq!(
                (i.verb, &*i.namespace, &*i.resource, &*i.name, &*i.subresource),
                (verb, namespace, resource, name, sub),
                "{uri}"
            );
        }
    }

    #[test]
    fn a_selector_names_the_object() {
        let i = info(Method::GET, "/api/v1/secrets?watch=true&fieldSelector=metadata.name%3Dx");
        assert_eq!((i.verb, &*i.name, i.named), ("watch", "x", false));
    }

    #[test]
    fn what_is_no_resource() {
        for path in ["/", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz/ping"] {
            assert!(!info(Method::GET, path).is_resource, "{path}");
        }
    }

    #[test]
    fn paths_that_are_not_canonical_are_refused() {
        for path in [
            "/api/v1/namespaces/../pods",
            "/api/v1/namespaces/%2e%2e/pods",
            "/api//v1",
            "/api/v1/namespaces/a%2fb/pods",
            "/api/v1/namespaces/a%00/pods",
            "/api/v1/namespaces/%ff/pods",
            "api",
        ] {
            assert!(parse(&Method::GET, path, &Query::parse("")).is_err(), "{path}");
        }
    }
}
