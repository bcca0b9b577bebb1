//! Faults of containers: names, images, ports, environment, mounts, probes, resources.

use super::volume::Volumes;
use crate::quantity::Quantity;
use crate::registry::access::{fields, flag, get, int, items, len, text};
use crate::registry::fault::{Faults, Path};
use crate::registry::names;
use serde_json::Value;
use std::collections::HashSet;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const ONE_HANDLER: &str = "may not specify more than 1 handler type";
const ONE_SOURCE: &str = "may not have more than one field specified at a time";

/// What all containers of a pod share while they are checked.
pub(super) struct Context<'a> {
    /// The names that mounts may use.
    pub volumes: &'a Volumes<'a>,
    /// Ports of containers are ports of the node.
    pub host_network: bool,
    /// Not a template: those keep host ports unset.
    pub is_pod: bool,
}

/// The pod's main containers.
pub(super) fn main_containers(
    faults: &mut Faults,
    context: &Context<'_>,
    path: &Path<'_>,
    spec: &Value,
) {
    if len(spec, "containers") == 0 {
        return faults.required(path, "");
    }
    let mut names = HashSet::new();
    for (index, container) in items(spec, "containers") {
        let path = path.index(index);
        common(faults, context, &path, container, true);
        let name = text(container, "name");
        if !name.is_empty() && !names.insert(name) {
            faults.duplicate(&path.field("name"), name);
        }
        handlers(faults, &path, container);
        if let Some(policy) = get(container, "restartPolicy")
            && !matches!(policy.as_str(), Some("Always" | "OnFailure" | "Never"))
        {
            let policy = policy.as_str().unwrap_or("");
            faults.not_supported(
                &path.field("restartPolicy"),
                policy,
                &["Always", "OnFailure", "Never"],
            );
        }
    }
    host_port_conflicts(faults, path, items(spec, "containers"));
}

/// Containers that run before the main ones; with `restartPolicy: Always` they stay (sidecars).
pub(super) fn init_containers(
    faults: &mut Faults,
    context: &Context<'_>,
    list: &Path<'_>,
    spec: &Value,
) {
    let mut names: HashSet<&str> =
        items(spec, "containers").map(|(_, c)| text(c, "name")).collect();
    for (index, container) in items(spec, "initContainers") {
        let path = list.index(index);
        common(faults, context, &path, container, true);
        let name = text(container, "name");
        if !name.is_empty() && !names.insert(name) {
            faults.duplicate(&path.field("name"), name);
        }
        // They run one after the other, so each may have the ports of another.
        host_port_conflicts(faults, list, std::iter::once((index, container)));
        if text(container, "restartPolicy") == "Always" {
            handlers(faults, &path, container);
        } else {
            init_only(faults, &path, container);
        }
    }
}

fn init_only(faults: &mut Faults, path: &Path<'_>, container: &Value) {
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if get(container, key).is_some() {
            let detail = "may not be set for init containers without restartPolicy=Always";
            faults.forbidden(&path.field(key), detail);
        }
    }
}

/// Containers that are added to a running pod.
pub(super) fn ephemeral_containers(
    faults: &mut Faults,
    context: &Context<'_>,
    path: &Path<'_>,
    spec: &Value,
) {
    let mut names: HashSet<&str> = items(spec, "containers")
        .chain(items(spec, "initContainers"))
        .map(|(_, c)| text(c, "name"))
        .collect();
    for (index, container) in items(spec, "ephemeralContainers") {
        let path = path.index(index);
        common(faults, context, &path, container, false);
        let name = text(container, "name");
        if !name.is_empty() && !names.insert(name) {
            faults.duplicate(&path.field("name"), name);
        }
        let target = text(container, "targetContainerName");
        let known = || items(spec, "containers").chain(items(spec, "initContainers"));
        if !target.is_empty() && !known().any(|(_, c)| text(c, "name") == target) {
            faults.not_found(&path.field("targetContainerName"), target);
        }
        for key in ["lifecycle", "livenessProbe", "ports", "readinessProbe", "startupProbe"] {
            if get(container, key).is_some() {
                let detail = "cannot be set for an Ephemeral Container";
                faults.forbidden(&path.field(key), detail);
            }
        }
        let list = path.field("volumeMounts");
        for (index, mount) in items(container, "volumeMounts") {
            let path = list.index(index);
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    let detail = "cannot be set for an Ephemeral Container";
                    faults.forbidden(&path.field(key), detail);
                }
            }
        }
        if get(container, "resources").is_some_and(|r| len(r, "limits") + len(r, "requests") > 0) {
            let detail = "cannot be set for an Ephemeral Container";
            faults.forbidden(&path.field("resources"), detail);
        }
    }
}

fn common(
    faults: &mut Faults,
    context: &Context<'_>,
    path: &Path<'_>,
    container: &Value,
    with_ports: bool,
) {
    let name = text(container, "name");
    if name.is_empty() {
        faults.required(&path.field("name"), "");
    } else {
        faults.each(&path.field("name"), name, names::dns_label(name));
    }
    image(faults, &path.field("image"), text(container, "image"));
    let policy = text(container, "terminationMessagePolicy");
    if policy != "File" && policy != "FallbackToLogsOnError" {
        let path = path.field("terminationMessagePolicy");
        let supported = &["FallbackToLogsOnError", "File"];
        faults.one_of(&path, policy, supported);
    }
    if with_ports {
        ports(faults, context, &path.field("ports"), container);
    }
    env(faults, &path.field("env"), container);
    env_from(faults, &path.field("envFrom"), container);
    mounts(faults, context, path, container);
    faults.one_of(
        &path.field("imagePullPolicy"),
        text(container, "imagePullPolicy"),
        PULL_POLICIES,
    );
    if let Some(resources) = get(container, "resources") {
        self::resources(faults, &path.field("resources"), resources);
    }
    if let Some(security) = get(container, "securityContext") {
        security_context(faults, &path.field("securityContext"), security);
    }
}

fn image(faults: &mut Faults, path: &Path<'_>, image: &str) {
    if image.is_empty() {
        faults.required(path, "");
    } else if image.trim() != image {
        faults.invalid(path, image, "must not have leading or trailing whitespace");
    }
}

fn ports(faults: &mut Faults, context: &Context<'_>, path: &Path<'_>, container: &Value) {
    let mut names = HashSet::new();
    for (index, port) in items(container, "ports") {
        let path = path.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !names.insert(name) {
                faults.duplicate(&path.field("name"), name);
            }
            faults.each(&path.field("name"), name, wrong);
        }
        let number = int(port, "containerPort").unwrap_or(0);
        if number == 0 {
            faults.required(&path.field("containerPort"), "");
        } else {
            faults.within(&path.field("containerPort"), number, 1, 65535);
        }
        let host = int(port, "hostPort").unwrap_or(0);
        if host != 0 {
            faults.within(&path.field("hostPort"), host, 1, 65535);
        }
        if context.host_network && host != number && (context.is_pod || host != 0) {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            faults.invalid(&path.field("hostPort"), host, detail);
        }
        faults.one_of(&path.field("protocol"), text(port, "protocol"), PROTOCOLS);
        let ip = text(port, "hostIP");
        if !ip.is_empty() {
            faults.each(&path.field("hostIP"), ip, names::ip(ip));
        }
    }
}

fn host_port_conflicts<'a>(
    faults: &mut Faults,
    path: &Path<'_>,
    containers: impl Iterator<Item = (usize, &'a Value)>,
) {
    let mut taken = HashSet::new();
    for (c, container) in containers {
        for (p, port) in items(container, "ports") {
            let host = int(port, "hostPort").unwrap_or(0);
            if host == 0 {
                continue;
            }
            let key = format!("{}/{}/{host}", text(port, "protocol"), text(port, "hostIP"));
            if taken.contains(&key) {
                let path = path.index(c);
                let path = path.field("ports");
                let path = path.index(p);
                faults.duplicate(&path.field("hostPort"), key);
            } else {
                taken.insert(key);
            }
        }
    }
}

fn env(faults: &mut Faults, path: &Path<'_>, container: &Value) {
    for (index, variable) in items(container, "env") {
        let path = path.index(index);
        let name = text(variable, "name");
        if name.is_empty() {
            faults.required(&path.field("name"), "");
        } else {
            faults.each(&path.field("name"), name, names::env_name(name));
        }
        if let Some(source) = get(variable, "valueFrom") {
            value_from(faults, &path.field("valueFrom"), source, text(variable, "value"));
        }
    }
}

fn value_from(faults: &mut Faults, path: &Path<'_>, source: &Value, value: &str) {
    let mut sources = 0;
    for (kind, detail) in fields(source).filter(|(_, v)| !v.is_null()) {
        sources += 1;
        let path = path.field(kind);
        match kind.as_str() {
            "fieldRef" => field_ref(faults, &path, detail, ENV_FIELDS),
            "resourceFieldRef" => resource_ref(faults, &path, detail, false),
            "configMapKeyRef" | "secretKeyRef" => key_ref(faults, &path, detail),
            _ => {}
        }
    }
    if sources == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        faults.invalid(path, "", detail);
    } else if !value.is_empty() {
        faults.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        faults.invalid(path, "", ONE_SOURCE);
    }
}

/// A field of the pod itself, with `metadata.labels['x']` and `metadata.annotations['x']`.
pub(super) fn field_ref(faults: &mut Faults, path: &Path<'_>, field: &Value, known: &[&str]) {
    let name = text(field, "fieldPath");
    if text(field, "apiVersion").is_empty() {
        return faults.required(&path.field("apiVersion"), "");
    }
    if name.is_empty() {
        return faults.required(&path.field("fieldPath"), "");
    }
    let subscripted = name.strip_suffix("']").and_then(|n| n.split_once("['"));
    match subscripted {
        Some(("metadata.annotations", key)) => {
            faults.each(path, key, names::label_key(&key.to_lowercase()));
        }
        Some(("metadata.labels", key)) => faults.each(path, key, names::label_key(key)),
        Some((other, _)) => faults.invalid(path, other, "does not support subscript"),
        None if known.contains(&name) => {}
        None if KNOWN_LABELS.contains(&name) => {
            faults.not_supported(&path.field("fieldPath"), name, known);
        }
        None => {
            let detail = format!("error converting fieldPath: field label not supported: {name}");
            faults.invalid(&path.field("fieldPath"), name, detail);
        }
    }
}

/// Fields of a pod that have a name for clients, though not everywhere.
const KNOWN_LABELS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A request or limit of a container.
pub(super) fn resource_ref(faults: &mut Faults, path: &Path<'_>, field: &Value, in_volume: bool) {
    let resource = text(field, "resource");
    if in_volume && text(field, "containerName").is_empty() {
        faults.required(&path.field("containerName"), "");
    } else if resource.is_empty() {
        faults.required(&path.field("resource"), "");
    } else if !RESOURCE_FIELDS.contains(&resource) && !resource.contains(".hugepages-") {
        faults.not_supported(&path.field("resource"), resource, RESOURCE_FIELDS);
    }
}

fn key_ref(faults: &mut Faults, path: &Path<'_>, reference: &Value) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    faults.each(&path.field("name"), name, names::dns_subdomain(name));
    if key.is_empty() {
        faults.required(&path.field("key"), "");
    } else {
        faults.each(&path.field("key"), key, names::config_key(key));
    }
}

fn env_from(faults: &mut Faults, list: &Path<'_>, container: &Value) {
    for (index, source) in items(container, "envFrom") {
        let path = list.index(index);
        let prefix = text(source, "prefix");
        faults.each(&path.field("prefix"), prefix, names::env_name(prefix));
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"] {
            let Some(reference) = get(source, key) else { continue };
            sources += 1;
            let (path, name) = (path.field(key), text(reference, "name"));
            if name.is_empty() {
                faults.required(&path.field("name"), "");
            } else {
                faults.each(&path.field("name"), name, names::dns_subdomain(name));
            }
        }
        match sources {
            0 => faults.invalid(list, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => faults.invalid(list, "", ONE_SOURCE),
        }
    }
}

fn mounts(faults: &mut Faults, context: &Context<'_>, path: &Path<'_>, container: &Value) {
    let list = path.field("volumeMounts");
    let mut taken = HashSet::new();
    for (index, mount) in items(container, "volumeMounts") {
        let path = list.index(index);
        let (name, at) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            faults.required(&path.field("name"), "");
        } else if !context.volumes.contains(name) {
            faults.not_found(&path.field("name"), name);
        }
        if at.is_empty() {
            faults.required(&path.field("mountPath"), "");
        } else if !taken.insert(at) {
            faults.invalid(&path.field("mountPath"), at, "must be unique");
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() && !expression.is_empty() {
            faults.invalid(
                &path.field("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        for (key, value) in [("subPath", sub), ("subPathExpr", expression)] {
            // Upstream names the list, not the item.
            super::volume::local_path(faults, &list.field(key), value);
        }
        propagation(faults, &path.field("mountPropagation"), mount, container);
    }
    let list = path.field("volumeDevices");
    for (index, device) in items(container, "volumeDevices") {
        let path = list.index(index);
        let (name, at) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            faults.required(&path.field("name"), "");
        } else if !context.volumes.contains(name) {
            faults.not_found(&path.field("name"), name);
        }
        if at.is_empty() {
            faults.required(&path.field("devicePath"), "");
        } else if !taken.insert(at) {
            faults.invalid(&path.field("devicePath"), at, "must not already exist in volumeMounts");
        }
    }
}

fn propagation(faults: &mut Faults, path: &Path<'_>, mount: &Value, container: &Value) {
    let value = text(mount, "mountPropagation");
    match value {
        "" | "None" | "HostToContainer" => {}
        "Bidirectional" => {
            let privileged =
                get(container, "securityContext").is_some_and(|s| flag(s, "privileged"));
            if !privileged {
                let detail =
                    "Bidirectional mount propagation is available only to privileged containers";
                faults.forbidden(path, detail);
            }
        }
        other => {
            faults.not_supported(path, other, &["Bidirectional", "HostToContainer", "None"]);
        }
    }
}

fn handlers(faults: &mut Faults, path: &Path<'_>, container: &Value) {
    if let Some(lifecycle) = get(container, "lifecycle") {
        let path = path.field("lifecycle");
        for hook in ["postStart", "preStop"] {
            if let Some(one) = get(lifecycle, hook) {
                handler(faults, &path.field(hook), one, &["exec", "httpGet", "tcpSocket", "sleep"]);
            }
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(one) = get(container, kind) {
            probe(faults, &path.field(kind), one, kind);
        }
    }
}

fn probe(faults: &mut Faults, path: &Path<'_>, probe: &Value, kind: &str) {
    handler(faults, path, probe, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        faults.non_negative(&path.field(key), int(probe, key));
    }
    match (int(probe, "terminationGracePeriodSeconds"), kind) {
        (Some(seconds), "readinessProbe") => {
            let detail = "must not be set for readinessProbes";
            faults.invalid(&path.field("terminationGracePeriodSeconds"), seconds, detail);
        }
        (Some(seconds), _) if seconds <= 0 => {
            let path = path.field("terminationGracePeriodSeconds");
            faults.invalid(&path, seconds, "must be greater than 0");
        }
        _ => {}
    }
    let successes = int(probe, "successThreshold").unwrap_or(1);
    if kind != "readinessProbe" && successes != 1 {
        faults.invalid(&path.field("successThreshold"), successes, "must be 1");
    }
}

fn handler(faults: &mut Faults, path: &Path<'_>, handler: &Value, kinds: &[&str]) {
    let mut seen = 0;
    for kind in kinds {
        let Some(action) = get(handler, kind) else { continue };
        let path = path.field(kind);
        seen += 1;
        if seen > 1 {
            faults.forbidden(&path, ONE_HANDLER);
            continue;
        }
        match *kind {
            "exec" if len(action, "command") == 0 => faults.required(&path.field("command"), ""),
            "httpGet" => http_get(faults, &path, action),
            "tcpSocket" => port(faults, &path.field("port"), get(action, "port")),
            "grpc" => {
                faults.within(&path.field("port"), int(action, "port").unwrap_or(0), 1, 65535);
            }
            "sleep" => {
                faults.non_negative(&path.field("seconds"), int(action, "seconds"));
            }
            _ => {}
        }
    }
    if seen == 0 {
        faults.required(path, "must specify a handler type");
    }
}

fn http_get(faults: &mut Faults, path: &Path<'_>, action: &Value) {
    if text(action, "path").is_empty() {
        faults.required(&path.field("path"), "");
    }
    port(faults, &path.field("port"), get(action, "port"));
    let scheme = text(action, "scheme");
    if scheme != "HTTP" && scheme != "HTTPS" {
        faults.not_supported(&path.field("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for (_, header) in items(action, "httpHeaders") {
        let name = text(header, "name");
        faults.each(&path.field("httpHeaders"), name, names::http_header(name));
    }
}

/// A port by number or by name.
pub(in crate::registry) fn port(faults: &mut Faults, path: &Path<'_>, port: Option<&Value>) {
    match port {
        Some(Value::String(name)) => faults.each(path, name, names::port_name(name)),
        Some(number) => {
            let number = number.as_i64().unwrap_or(0);
            for wrong in names::port_number(number) {
                faults.invalid(path, number, wrong);
            }
        }
        None => faults.within(path, 0, 1, 65535),
    }
}

/// Requests and limits: names, signs, and requests within limits.
pub(super) fn resources(faults: &mut Faults, path: &Path<'_>, resources: &Value) {
    let none = Value::Null;
    let limits = get(resources, "limits").unwrap_or(&none);
    for (side, amounts) in
        [("limits", limits), ("requests", get(resources, "requests").unwrap_or(&none))]
    {
        let side_path = path.field(side);
        for (name, amount) in fields(amounts) {
            amount_faults(faults, &side_path.key(name), name, amount);
        }
    }
    let names =
        || [limits, get(resources, "requests").unwrap_or(&none)].into_iter().flat_map(fields);
    let any = |wanted: fn(&str) -> bool| names().any(|(name, _)| wanted(name));
    if any(|name| name.starts_with("hugepages-")) && !any(|name| matches!(name, "cpu" | "memory")) {
        faults.forbidden(path, "HugePages require cpu or memory");
    }
    let requests_path = path.field("requests");
    for (name, request) in get(resources, "requests").into_iter().flat_map(fields) {
        let limit = limits.get(name);
        let fixed = name.contains('/') || name.starts_with("hugepages-");
        match (quantity(request), limit.and_then(quantity)) {
            (Some(wanted), Some(limit)) if fixed && wanted != limit => {
                let detail = format!("must be equal to {name} limit of {limit}");
                faults.invalid(&requests_path, wanted.to_string(), detail);
            }
            (Some(wanted), Some(limit)) if wanted > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                faults.invalid(&requests_path, wanted.to_string(), detail);
            }
            (Some(_), None) if fixed => {
                faults.required(
                    &path.field("limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
            _ => {}
        }
    }
}

fn amount_faults(faults: &mut Faults, path: &Path<'_>, name: &str, amount: &Value) {
    faults.each(path, name, names::label_key(name));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage")
        || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        faults.invalid(path, name, "must be a standard resource type or fully qualified");
        faults.invalid(path, name, "must be a standard resource for containers");
    }
    let Some(parsed) = quantity(amount) else { return };
    if parsed.is_negative() {
        faults.invalid(path, parsed.to_string(), "must be greater than or equal to 0");
    }
    if name.contains('/') && !parsed.is_integer() {
        faults.invalid(path, parsed.to_string(), "must be an integer");
    }
}

/// A quantity as it stands in JSON; what is none was refused by the schema already.
pub(in crate::registry) fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

fn security_context(faults: &mut Faults, path: &Path<'_>, security: &Value) {
    for key in ["runAsUser", "runAsGroup"] {
        id(faults, &path.field(key), int(security, key));
    }
    if let Some(kind) = get(security, "procMount").and_then(Value::as_str)
        && !matches!(kind, "Default" | "Unmasked")
    {
        faults.not_supported(&path.field("procMount"), kind, &["Default", "Unmasked"]);
    }
    if get(security, "allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if flag(security, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            faults.invalid(path, security.clone(), detail);
        }
        let added = get(security, "capabilities").into_iter().flat_map(|c| items(c, "add"));
        if added.into_iter().any(|(_, c)| c == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            faults.invalid(path, security.clone(), detail);
        }
    }
    if let Some(profile) = get(security, "seccompProfile") {
        super::validate::seccomp(faults, &path.field("seccompProfile"), profile);
    }
}

/// A user's or group's number.
pub(super) fn id(faults: &mut Faults, path: &Path<'_>, id: Option<i64>) {
    if let Some(id) = id.filter(|id| !(0..=2_147_483_647).contains(id)) {
        faults.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}
