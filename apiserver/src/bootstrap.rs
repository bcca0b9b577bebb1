//! What every cluster and every namespace has.
//!
//! The first objects are made at start, before the server says that it is ready; each is made
//! only if it is missing, so a restart changes nothing. A task watches namespaces and what
//! belongs into each, and makes again what somebody deleted.

use crate::admission::FIRST_NAMESPACES;
use crate::authn::Identity;
use crate::context::Cx;
use crate::endpoints;
use crate::query::Query;
use crate::request_info::RequestInfo;
use crate::rest;
use crate::server::ApiServer;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use rkube_api::{ApiError, Reason};
use rkube_store::{Event, EventKind, Key, Scope, View, Watch};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const ROOT_CA: &str = "kube-root-ca.crt";
const RETRY: Duration = Duration::from_secs(1);

/// The context of a write by this server itself.
///
/// # Errors
/// Never, but for the shape of [`Cx::new`].
pub fn own_context(resource: (&str, &str, &str), namespace: &str) -> Result<Cx, ApiError> {
    let (group, version, plural) = resource;
    let info = RequestInfo {
        is_resource: true,
        verb: "create",
        group: group.into(),
        version: version.into(),
        resource: plural.into(),
        namespace: namespace.into(),
        ..RequestInfo::default()
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static("rkube-apiserver"));
    Cx::new(
        info,
        Identity::component("rkube-apiserver"),
        Query::default(),
        headers,
        Timestamp::now(),
    )
}

/// Makes what every cluster has and lacks still.
///
/// # Errors
/// What refused one of the objects.
pub async fn make_first_objects(api: &Arc<ApiServer>, term: u64) -> Result<(), ApiError> {
    for name in FIRST_NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(api, term, ("", "v1", "namespaces"), "", object).await?;
    }
    for name in FIRST_NAMESPACES {
        furnish(api, term, name).await?;
    }
    let service = kubernetes_service(api);
    ensure(api, term, ("", "v1", "services"), "default", service).await?;
    endpoints::publish(api, term, &api.storage.members()).await
}

/// Creates an object unless it is there.
///
/// # Errors
/// What refused it.
pub async fn ensure(
    api: &Arc<ApiServer>,
    term: u64,
    resource: (&str, &str, &str),
    namespace: &str,
    object: Value,
) -> Result<(), ApiError> {
    let (group, version, plural) = resource;
    let kind = api.registry.resource(group, version, plural).ok_or_else(ApiError::no_route)?;
    let name = rkube_api::meta::metadata_str(&object, "name");
    if api.storage.view().get(&rest::key_of(kind, namespace, name)).is_some() {
        return Ok(());
    }
    let cx = own_context(resource, namespace)?.in_term(Some(term));
    match rest::create_value(api, &cx, kind, object, false, false).await {
        Err(error) if error.reason != Reason::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes what every namespace has.
async fn furnish(api: &Arc<ApiServer>, term: u64, namespace: &str) -> Result<(), ApiError> {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    ensure(api, term, ("", "v1", "serviceaccounts"), namespace, account).await?;
    let ca = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": ROOT_CA, "annotations": {
            "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc."}},
        "data": {"ca.crt": api.ca_pem()},
    });
    ensure(api, term, ("", "v1", "configmaps"), namespace, ca).await
}

fn kubernetes_service(api: &ApiServer) -> Value {
    let config = api.config();
    let address = crate::admission::services::first_address(&config.service_cidr)
        .map_or_else(String::new, |a| a.to_string());
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.secure_port}],
        },
    })
}

/// Makes again, as long as the term lasts, what belongs into every namespace.
pub async fn keep_namespaces_furnished(api: &Arc<ApiServer>, term: u64) {
    let mut pending: BTreeSet<String> = BTreeSet::new();
    let mut sources: Option<Vec<Watch>> = None;
    loop {
        if sources.is_none() {
            let view = api.storage.view();
            sources = watches(api, &view);
            pending.extend(all_namespaces(&view));
        }
        let stuck = furnish_all(api, term, &mut pending).await;
        let Some(watches) = &mut sources else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let [namespaces, accounts, maps] = watches.as_mut_slice() else { return };
        let batch = tokio::select! {
            () = tokio::time::sleep(RETRY), if stuck => continue,
            batch = namespaces.next_batch() => batch,
            batch = accounts.next_batch() => batch,
            batch = maps.next_batch() => batch,
        };
        match batch {
            Ok(events) => pending.extend(events.iter().filter_map(|e| namespace_to_furnish(e))),
            // Events were missed: look at everything again.
            Err(_) => sources = None,
        }
    }
}

fn watches(api: &ApiServer, view: &View) -> Option<Vec<Watch>> {
    let watch = |resource: &str, name: Option<&str>| {
        let mut scope = Scope::all(resource);
        scope.name = name.map(Into::into);
        api.storage.watch(scope, view.revision()).ok()
    };
    Some(vec![
        watch("namespaces", None)?,
        watch("serviceaccounts", Some("default"))?,
        watch("configmaps", Some(ROOT_CA))?,
    ])
}

fn all_namespaces(view: &View) -> Vec<String> {
    view.range(&Scope::all("namespaces"), None).map(|o| o.key.name.to_string()).collect()
}

/// The namespace in which an event leaves something to be made.
fn namespace_to_furnish(event: &Event) -> Option<String> {
    let key = &event.object.key;
    match (&*key.resource, event.kind) {
        ("namespaces", EventKind::Put) if event.previous.is_none() => Some(key.name.to_string()),
        ("serviceaccounts" | "configmaps", EventKind::Delete) => Some(key.namespace.to_string()),
        _ => None,
    }
}

/// Works through the namespaces; says whether some are left to be tried again.
async fn furnish_all(api: &Arc<ApiServer>, term: u64, pending: &mut BTreeSet<String>) -> bool {
    for namespace in std::mem::take(pending) {
        let object = api.storage.view().get(&Key::new("namespaces", "", &namespace));
        if object.is_none_or(|o| o.header.terminating) {
            continue;
        }
        if let Err(error) = furnish(api, term, &namespace).await
            && !matches!(error.reason, Reason::Forbidden | Reason::NotFound)
        {
            tracing::warn!(namespace, %error, "furnishing a namespace failed");
            pending.insert(namespace);
        }
    }
    !pending.is_empty()
}
