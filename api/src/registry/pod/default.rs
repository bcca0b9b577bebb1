//! What a pod's or pod template's unset fields become.

use crate::registry::access::{
    child, default_to, existing, fields, flag, get, int, items, items_mut, text, unset,
};
use serde_json::{Map, Value};

/// `0644`.
const FILE_MODE: i64 = 420;

/// The fields of a pod's spec that hold containers.
pub(super) const CONTAINER_LISTS: [&str; 3] =
    ["initContainers", "containers", "ephemeralContainers"];

/// Fills a pod's spec; beside the template's fields those that only a pod has.
pub(super) fn pod(spec: &mut Value) {
    template(spec);
    default_to(spec, "enableServiceLinks", true);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    let on_host = flag(spec, "hostNetwork");
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
            if on_host {
                host_ports(container);
            }
        }
    }
}

/// Fills the spec of a pod or of a pod template.
pub(in crate::registry) fn template(spec: &mut Value) {
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "schedulerName", "default-scheduler");
    default_to(spec, "securityContext", Map::new());
    default_to(spec, "terminationGracePeriodSeconds", 30);
    same_account(spec);
    for list in CONTAINER_LISTS {
        for one in items_mut(spec, list) {
            container(one);
        }
    }
    for one in items_mut(spec, "volumes") {
        volume(one);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
fn same_account(spec: &mut Value) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    };
    if !name.is_empty() {
        let name = name.to_owned();
        spec["serviceAccount"] = name.clone().into();
        spec["serviceAccountName"] = name.into();
    }
}

fn container(container: &mut Value) {
    let policy = match tag(text(container, "image")) {
        Some("latest") | None => "Always",
        Some(_) => "IfNotPresent",
    };
    default_to(container, "imagePullPolicy", policy);
    default_to(container, "resources", Map::new());
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    for port in items_mut(container, "ports") {
        default_to(port, "protocol", "TCP");
    }
    for env in items_mut(container, "env") {
        field_version(env.get_mut("valueFrom"));
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(one) = existing(container, name) {
            probe(one);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(one) = existing(container, "lifecycle").and_then(|l| existing(l, hook)) {
            http_get(one);
        }
    }
}

/// An image's tag or digest; `latest` if it has neither.
fn tag(image: &str) -> Option<&str> {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains('@') {
        return Some("");
    }
    name.split_once(':').map(|(_, tag)| tag)
}

fn probe(probe: &mut Value) {
    for (key, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if int(probe, key).unwrap_or(0) == 0 {
            probe[key] = value.into();
        }
    }
    if let Some(grpc) = existing(probe, "grpc")
        && grpc.get("service").is_none_or(Value::is_null)
    {
        grpc["service"] = "".into();
    }
    http_get(probe);
}

fn http_get(handler: &mut Value) {
    if let Some(http) = existing(handler, "httpGet") {
        default_to(http, "path", "/");
        default_to(http, "scheme", "HTTP");
    }
}

fn field_version(source: Option<&mut Value>) {
    if let Some(field) = source.and_then(|s| existing(s, "fieldRef")) {
        default_to(field, "apiVersion", "v1");
    }
}

fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if int(port, "hostPort").unwrap_or(0) == 0
            && let Some(number) = get(port, "containerPort").cloned()
        {
            port["hostPort"] = number;
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits: Vec<(String, Value)> = get(container, "resources")
        .and_then(|r| get(r, "limits"))
        .into_iter()
        .flat_map(fields)
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    if limits.is_empty() {
        return;
    }
    let requests = child(container, "resources").and_then(|r| child(r, "requests"));
    if let Some(requests) = requests {
        for (name, amount) in limits {
            default_to(requests, &name, amount);
        }
    }
}

fn volume(volume: &mut Value) {
    let sources = fields(volume).filter(|(key, v)| *key != "name" && !v.is_null()).count();
    if sources == 0
        && let Some(map) = volume.as_object_mut()
    {
        map.insert("emptyDir".into(), Map::new().into());
    }
    for (key, field, default) in [
        ("configMap", "defaultMode", Value::from(FILE_MODE)),
        ("secret", "defaultMode", FILE_MODE.into()),
        ("projected", "defaultMode", FILE_MODE.into()),
        ("downwardAPI", "defaultMode", FILE_MODE.into()),
        ("iscsi", "iscsiInterface", "default".into()),
    ] {
        if let Some(source) = existing(volume, key) {
            default_to(source, field, default);
        }
    }
    if let Some(path) = existing(volume, "hostPath")
        && path.get("type").is_none_or(Value::is_null)
    {
        path["type"] = "".into();
    }
    if let Some(api) = existing(volume, "downwardAPI") {
        downward_items(api);
    }
    if let Some(projected) = existing(volume, "projected") {
        for source in items_mut(projected, "sources") {
            projection(source);
        }
    }
    if let Some(image) = existing(volume, "image") {
        let always = matches!(tag(text(image, "reference")), Some("latest") | None);
        default_to(image, "pullPolicy", if always { "Always" } else { "IfNotPresent" });
    }
    if let Some(claim) =
        existing(volume, "ephemeral").and_then(|e| existing(e, "volumeClaimTemplate"))
    {
        default_to(claim, "metadata", Map::new());
        if let Some(spec) = child(claim, "spec") {
            default_to(spec, "volumeMode", "Filesystem");
        }
    }
}

fn downward_items(source: &mut Value) {
    for item in items_mut(source, "items") {
        field_version(Some(item));
    }
}

fn projection(source: &mut Value) {
    if let Some(token) = existing(source, "serviceAccountToken")
        && unset(token, "expirationSeconds")
    {
        token["expirationSeconds"] = 3600.into();
    }
    if let Some(api) = existing(source, "downwardAPI") {
        downward_items(api);
    }
}

/// The quality of service class that follows from the containers' requests and limits.
pub(super) fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let zero = |amount: &Value| matches!(amount, Value::String(s) if s == "0") || amount == 0;
    for list in ["containers", "initContainers"] {
        for (_, container) in items(spec, list) {
            let resources = get(container, "resources").unwrap_or(&Value::Null);
            let amount = |side: &str, name: &str| {
                get(resources, side).and_then(|s| s.get(name)).filter(|a| !zero(a))
            };
            for name in ["cpu", "memory"] {
                let (request, limit) = (amount("requests", name), amount("limits", name));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
