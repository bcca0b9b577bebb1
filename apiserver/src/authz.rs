//! Who may do what: a fixed set of rules.
//!
//! `system:masters` may do everything. A node may do what its kubelet and its proxy need, on its
//! own objects only. Everybody authenticated may ask about himself. Nobody may do anything else.

use crate::authn::{Identity, MASTERS};
use crate::request_info::RequestInfo;
use rkube_api::{ApiError, Reason};

/// Paths that everybody may read, known or not (upstream's `system:public-info-viewer`).
pub const PUBLIC_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// What is asked for; the parts of a request that rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Names a resource; otherwise only `path` and `verb` mean something.
    pub is_resource: bool,
    /// The path.
    pub path: &'a str,
    /// The verb.
    pub verb: &'a str,
    /// The group.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace, or empty.
    pub namespace: &'a str,
    /// The name, or empty.
    pub name: &'a str,
    /// The field selector of a list or watch, or empty.
    pub field_selector: &'a str,
}

impl<'a> Attributes<'a> {
    /// The attributes of a request.
    pub fn of(info: &'a RequestInfo, field_selector: &'a str) -> Self {
        Attributes {
            is_resource: info.is_resource,
            path: &info.path,
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            field_selector,
        }
    }
}

/// What the rules for nodes need to know of the cluster.
pub trait NodeGraph {
    /// Whether this pod is bound to the node.
    fn is_bound(&self, node: &str, namespace: &str, pod: &str) -> bool;

    /// Whether a pod bound to the node refers to this object (`secrets`, `configmaps`,
    /// `serviceaccounts`).
    fn is_referenced(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool;
}

/// Decides a request.
///
/// # Errors
/// Why not, to follow the `cannot …` of the refusal; empty if there is nothing more to say.
pub fn authorize(
    identity: &Identity,
    asked: &Attributes<'_>,
    graph: &dyn NodeGraph,
) -> Result<(), String> {
    if identity.is_in(MASTERS) {
        return Ok(());
    }
    if !asked.is_resource {
        return authorize_path(identity, asked);
    }
    if identity.is_authenticated() && is_self_review(asked) {
        return Ok(());
    }
    match identity.node_name() {
        Some(node) => authorize_node(node, asked, graph),
        None => Err(String::new()),
    }
}

fn authorize_path(identity: &Identity, asked: &Attributes<'_>) -> Result<(), String> {
    let reads = matches!(asked.verb, "get" | "head");
    let below = |root: &str| {
        asked.path.strip_prefix(root).is_some_and(|r| r.is_empty() || r.starts_with('/'))
    };
    let public = PUBLIC_PATHS.iter().any(|p| below(p));
    let discovery = asked.path == "/" || ["/api", "/apis", "/openapi"].iter().any(|p| below(p));
    if reads && (public || (discovery && identity.is_authenticated())) {
        Ok(())
    } else {
        Err(String::new())
    }
}

fn is_self_review(asked: &Attributes<'_>) -> bool {
    asked.verb == "create"
        && matches!(
            (asked.group, asked.resource),
            ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
                | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

fn authorize_node(node: &str, asked: &Attributes<'_>, graph: &dyn NodeGraph) -> Result<(), String> {
    let reads = matches!(asked.verb, "get" | "list" | "watch");
    let allowed = match (asked.group, asked.resource) {
        ("", "nodes") => return own_node(node, asked),
        ("", "pods") => return own_pods(node, asked, graph),
        ("", "secrets" | "configmaps" | "serviceaccounts") => {
            return referenced(node, asked, graph);
        }
        ("coordination.k8s.io", "leases") => return own_lease(node, asked),
        ("" | "events.k8s.io", "events") => matches!(asked.verb, "create" | "patch" | "update"),
        ("", "services") | ("discovery.k8s.io", "endpointslices") => reads,
        ("", "namespaces") | ("rkube.dev", "members") => reads,
        _ => false,
    };
    if allowed { Ok(()) } else { Err(String::new()) }
}

fn own_node(node: &str, asked: &Attributes<'_>) -> Result<(), String> {
    let verb_fits = match asked.subresource {
        "" => matches!(asked.verb, "get" | "list" | "watch" | "create" | "update" | "patch"),
        "status" => matches!(asked.verb, "get" | "update" | "patch"),
        _ => false,
    };
    if !verb_fits {
        return Err(String::new());
    }
    // Addresses and pod ranges of all nodes make a node's routes. The name of a create stands in
    // the body; admission holds it against the node's own.
    let reads = asked.subresource.is_empty() && matches!(asked.verb, "get" | "list" | "watch");
    if asked.name == node || reads || asked.verb == "create" {
        Ok(())
    } else {
        Err(format!("node {node:?} can only change its own Node object"))
    }
}

fn own_pods(node: &str, asked: &Attributes<'_>, graph: &dyn NodeGraph) -> Result<(), String> {
    match (asked.verb, asked.subresource) {
        ("list" | "watch", "") => {
            let own = format!("spec.nodeName={node}");
            if asked.field_selector.split(',').any(|t| t.replace("==", "=") == own) {
                Ok(())
            } else {
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
        }
        ("get" | "delete", "") | ("get" | "update" | "patch", "status") => {
            if graph.is_bound(node, asked.namespace, asked.name) {
                Ok(())
            } else {
                Err(format!("no relationship found between node {node:?} and this object"))
            }
        }
        _ => Err(String::new()),
    }
}

fn referenced(node: &str, asked: &Attributes<'_>, graph: &dyn NodeGraph) -> Result<(), String> {
    let verb_fits = matches!(asked.verb, "get" | "list" | "watch") && asked.subresource.is_empty();
    if !verb_fits {
        return Err("can only read resources of this type".into());
    }
    if asked.name.is_empty() || asked.namespace.is_empty() {
        return Err("can only read namespaced object of this type".into());
    }
    if asked.resource == "configmaps" && asked.name == "kube-root-ca.crt" {
        return Ok(());
    }
    if graph.is_referenced(node, asked.resource, asked.namespace, asked.name) {
        Ok(())
    } else {
        Err(format!("no relationship found between node {node:?} and this object"))
    }
}

fn own_lease(node: &str, asked: &Attributes<'_>) -> Result<(), String> {
    let verb_fits =
        matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete" | "list" | "watch");
    if !verb_fits || asked.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    // The name of a create stands in the body; admission holds it against the node's own.
    if asked.name == node || asked.verb == "create" {
        Ok(())
    } else {
        Err("can only access node lease with the same name as the requesting node".into())
    }
}

/// 403, worded as upstream.
pub fn forbidden(identity: &Identity, asked: &Attributes<'_>, why: &str) -> ApiError {
    let tail = if why.is_empty() { String::new() } else { format!(": {why}") };
    if !asked.is_resource {
        return ApiError::new(
            Reason::Forbidden,
            format!(
                "forbidden: User {:?} cannot {} path {:?}{tail}",
                identity.user, asked.verb, asked.path
            ),
        );
    }
    let resource = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}{tail}",
        identity.user, asked.verb, asked.group
    );
    ApiError::forbidden(asked.group, asked.resource, asked.name, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;
    use crate::request_info::parse;
    use http::Method;

    /// Node n1 runs pod a/p, which refers to a/x of each kind.
    struct Fake;

    impl NodeGraph for Fake {
        fn is_bound(&self, node: &str, namespace: &str, pod: &str) -> bool {
            (node, namespace, pod) == ("n1", "a", "p")
        }

        fn is_referenced(&self, node: &str, _: &str, namespace: &str, name: &str) -> bool {
            (node, namespace, name) == ("n1", "a", "x")
        }
    }

    fn allowed(identity: &Identity, method: Method, uri: &str) -> bool {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let query = Query::parse(query);
        let info = parse(&method, path, &query).unwrap();
        let selector = query.get("fieldSelector").unwrap_or("");
        authorize(identity, &Attributes::of(&info, selector), &Fake).is_ok()
    }

    #[test]
    fn a_node_reaches_its_own_only() {
        let node = Identity::node("n1");
        let yes = [
            (Method::GET, "/api/v1/nodes/n1"),
            (Method::PATCH, "/api/v1/nodes/n1/status"),
            (Method::POST, "/api/v1/nodes"),
            (Method::GET, "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dn1"),
            (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1"),
            (Method::GET, "/api/v1/namespaces/a/pods/p"),
            (Method::DELETE, "/api/v1/namespaces/a/pods/p"),
            (Method::PATCH, "/api/v1/namespaces/a/pods/p/status"),
            (Method::GET, "/api/v1/namespaces/a/secrets/x"),
            (Method::GET, "/api/v1/namespaces/a/configmaps/kube-root-ca.crt"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"),
            (Method::POST, "/api/v1/namespaces/a/events"),
            (Method::GET, "/api/v1/services?watch=1"),
            (Method::GET, "/api/v1/nodes?watch=1"),
            (Method::GET, "/apis/rkube.dev/v1/members"),
            (Method::GET, "/apis"),
        ];
        for (method, uri) in yes {
            assert!(allowed(&node, method, uri), "{uri}");
        }
        let no = [
            (Method::PATCH, "/api/v1/nodes/n2"),
            (Method::GET, "/api/v1/nodes/n2/proxy/pods"),
            (Method::DELETE, "/api/v1/nodes/n1"),
            (Method::DELETE, "/apis/rkube.dev/v1/members/m1"),
            (Method::PATCH, "/api/v1/nodes/n2/status"),
            (Method::GET, "/api/v1/pods"),
            (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2"),
            (Method::GET, "/api/v1/namespaces/a/pods/q"),
            (Method::POST, "/api/v1/namespaces/a/pods"),
            (Method::PATCH, "/api/v1/namespaces/a/pods/p"),
            (Method::POST, "/api/v1/namespaces/a/pods/p/exec"),
            (Method::GET, "/api/v1/namespaces/a/secrets"),
            (Method::GET, "/api/v1/secrets"),
            (Method::GET, "/api/v1/namespaces/a/secrets/y"),
            (Method::PUT, "/api/v1/namespaces/a/secrets/x"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/default/leases/n1"),
            (Method::POST, "/apis/apps/v1/namespaces/a/deployments"),
            (Method::POST, "/rkube/v1/tokens"),
            (Method::GET, "/metrics"),
        ];
        for (method, uri) in no {
            assert!(!allowed(&node, method, uri), "{uri}");
        }
    }

    #[test]
    fn masters_strangers_and_users() {
        let admin = Identity::new("kubernetes-admin", [MASTERS.to_owned()]);
        let user = Identity::new("jane", []);
        let nobody = Identity::anonymous();
        assert!(allowed(&admin, Method::DELETE, "/api/v1/namespaces/a/secrets"));
        assert!(!allowed(&user, Method::GET, "/api/v1/pods"));
        assert!(allowed(
            &user,
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        ));
        assert!(!allowed(
            &nobody,
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        ));
        assert!(allowed(&nobody, Method::GET, "/readyz/ping"));
        assert!(!allowed(&nobody, Method::GET, "/api"));
        assert!(!allowed(&nobody, Method::GET, "/readyzz"));
    }

    #[test]
    fn refusals_are_worded_as_upstream() {
        let user = Identity::new("x", []);
        let info =
            parse(&Method::GET, "/api/v1/namespaces/default/pods", &Query::default()).unwrap();
        let error = forbidden(&user, &Attributes::of(&info, ""), "");
        assert_eq!(
            error.message,
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
    }
}
