//! Environment variables, and `$(NAME)` in commands, arguments and values.

use crate::objects::{ObjectError, Objects};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod, Service};
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::resources::{limits, milli, requests, whole};

/// Variables in the order of the spec; a later one of a name replaces an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, String)>);

impl Env {
    /// The variables.
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

/// What is known of the pod on this node when a container starts.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Name of the node.
    pub node: String,
    /// Addresses of the node.
    pub host_ips: Vec<String>,
    /// Addresses of the pod.
    pub pod_ips: Vec<String>,
    /// Allocatable CPU of the node in thousandths of a core: what an unlimited container may use.
    pub node_cpu_milli: i64,
    /// Allocatable memory of the node in bytes.
    pub node_memory: i64,
}

/// All variables of a container: those of services, of `envFrom`, of `env`.
///
/// # Errors
/// Names the ConfigMap, Secret, key or field that is missing.
pub async fn environment(
    pod: &Pod,
    container: &Container,
    place: &Place,
    services: &[Service],
    objects: &Objects,
) -> Result<Env, String> {
    let mut env = Env::default();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for (name, value) in service_variables(services, &pod.namespace().unwrap_or_default(), links) {
        env.set(&name, value);
    }
    from_objects(&mut env, pod, container, objects).await?;
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => value_from(pod, container, source, place, objects).await?,
            (value, None) => Some(expand(value.as_deref().unwrap_or_default(), &env)),
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env)
}

async fn from_objects(
    env: &mut Env,
    pod: &Pod,
    container: &Container,
    objects: &Objects,
) -> Result<(), String> {
    let namespace = pod.namespace().unwrap_or_default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(from) = &source.config_map_ref {
            let found = objects.config_map(&namespace, &from.name).await;
            for (key, value) in
                optional(found, from.optional)?.iter().flat_map(|m| m.data.iter().flatten())
            {
                env.set(&format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(from) = &source.secret_ref {
            let found = objects.secret(&namespace, &from.name).await;
            for (key, value) in
                optional(found, from.optional)?.iter().flat_map(|s| s.data.iter().flatten())
            {
                env.set(&format!("{prefix}{key}"), text(&value.0));
            }
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is missing but optional is no error.
pub fn optional<T>(
    found: Result<T, ObjectError>,
    is_optional: Option<bool>,
) -> Result<Option<T>, String> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(ObjectError::NotFound(_)) if is_optional == Some(true) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    place: &Place,
    objects: &Objects,
) -> Result<Option<String>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return field_value(pod, field, place).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        let divisor = field.divisor.as_ref().map(|q| q.0.as_str());
        return resource_value(
            pod,
            container,
            field.container_name.as_deref(),
            &field.resource,
            divisor,
            place,
        )
        .map(Some);
    }
    if let Some(from) = &source.config_map_key_ref {
        let map = optional(objects.config_map(&namespace, &from.name).await, from.optional)?;
        let Some(map) = map else { return Ok(None) };
        let value = map.data.as_ref().and_then(|data| data.get(&from.key)).cloned();
        return key_value(value, from.optional, &from.key, "ConfigMap", &namespace, &from.name);
    }
    if let Some(from) = &source.secret_key_ref {
        let secret = optional(objects.secret(&namespace, &from.name).await, from.optional)?;
        let Some(secret) = secret else { return Ok(None) };
        let value = secret.data.as_ref().and_then(|data| data.get(&from.key)).map(|v| text(&v.0));
        return key_value(value, from.optional, &from.key, "Secret", &namespace, &from.name);
    }
    Err("an environment variable has a valueFrom of an unknown kind".to_owned())
}

fn key_value(
    value: Option<String>,
    is_optional: Option<bool>,
    key: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, String> {
    match value {
        None if is_optional != Some(true) => {
            Err(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
        }
        value => Ok(value),
    }
}

/// The value of a field of the pod.
pub fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    place: &Place,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Ok(match field.field_path.as_str() {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => pairs(pod.labels()),
        "metadata.annotations" => pairs(pod.annotations()),
        "spec.nodeName" => place.node.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into())
        }
        "status.hostIP" => first(&place.host_ips),
        "status.hostIPs" => place.host_ips.join(","),
        "status.podIP" => first(&place.pod_ips),
        "status.podIPs" => place.pod_ips.join(","),
        path => one_of(pod, path).ok_or_else(|| format!("unsupported fieldPath: {path}"))?,
    })
}

/// `metadata.labels['x']` and the like.
fn one_of(pod: &Pod, path: &str) -> Option<String> {
    let key = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    let map = |map: &BTreeMap<String, String>, key| map.get(key).cloned().unwrap_or_default();
    key("metadata.labels['")
        .map(|k| map(pod.labels(), k))
        .or_else(|| key("metadata.annotations['").map(|k| map(pod.annotations(), k)))
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<_> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A container's request or limit in units of `divisor`, rounded up.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    other: Option<&str>,
    resource: &str,
    divisor: Option<&str>,
    place: &Place,
) -> Result<String, String> {
    let container = match other.filter(|name| !name.is_empty()) {
        None => container,
        Some(name) => super::state::find(pod, name)
            .map(|(found, _)| found)
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let (limit, request) = (limits(container), requests(container));
    let divisor = divisor.filter(|d| *d != "0" && !d.is_empty()).unwrap_or("1");
    let (value, unit) = match resource {
        "limits.cpu" => (limit.cpu_milli.unwrap_or(place.node_cpu_milli), milli(divisor)),
        "requests.cpu" => (request.cpu_milli.unwrap_or(0), milli(divisor)),
        "limits.memory" => (limit.memory.unwrap_or(place.node_memory), whole(divisor)),
        "requests.memory" => (request.memory.unwrap_or(0), whole(divisor)),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (0, Some(1)),
        other => return Err(format!("unsupported container resource: {other}")),
    };
    let unit = unit.filter(|u| *u > 0).ok_or_else(|| format!("bad divisor {divisor}"))?;
    Ok((value / unit + i64::from(value % unit != 0)).to_string())
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar sign, an unknown name stays.
pub fn expand(text: &str, env: &Env) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let closed = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = match (after.strip_prefix('$'), closed) {
            (Some(after), _) => {
                result.push('$');
                after
            }
            (None, Some((name, after))) => {
                match env.get(name) {
                    Some(value) => result.push_str(value),
                    None => result.push_str(&format!("$({name})")),
                }
                after
            }
            (None, None) => {
                result.push('$');
                after
            }
        };
    }
    result.push_str(rest);
    result
}

/// Where services are, for those who look for them in the environment.
pub fn service_variables(
    services: &[Service],
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in services {
        let is_api =
            service.namespace().as_deref() == Some("default") && service.name_any() == "kubernetes";
        let linked = links && service.namespace().as_deref() == Some(namespace);
        if is_api || linked {
            variables.extend(variables_of(service));
        }
    }
    variables
}

fn variables_of(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None");
    let (Some(ip), Some(ports)) = (ip, &spec.ports) else { return Vec::new() };
    let Some(first) = ports.first() else { return Vec::new() };
    let prefix = variable_name(&service.name_any());
    let mut list = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let name = format!("{prefix}_SERVICE_PORT_{}", variable_name(name));
            list.push((name, port.port.to_string()));
        }
    }
    let url = |protocol: &str, port: i32| format!("{}://{ip}:{port}", protocol.to_lowercase());
    let protocol = |p: &k8s_openapi::api::core::v1::ServicePort| {
        p.protocol.clone().unwrap_or_else(|| "TCP".into())
    };
    list.push((format!("{prefix}_PORT"), url(&protocol(first), first.port)));
    for port in ports {
        let protocol = protocol(port);
        let one = format!("{prefix}_PORT_{}_{protocol}", port.port);
        list.push((one.clone(), url(&protocol, port.port)));
        list.push((format!("{one}_PROTO"), protocol.to_lowercase()));
        list.push((format!("{one}_PORT"), port.port.to_string()));
        list.push((format!("{one}_ADDR"), ip.clone()));
    }
    list
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let env = Env(vec![("A".into(), "1".into()), ("B".into(), "$(A)".into())]);
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn services_of_the_namespace_and_the_api() {
        let service = |namespace: &str, name: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": "10.43.0.7", "ports": [{"name": "web-ui", "port": 80}]}
            }))
            .unwrap()
        };
        let all = [service("default", "kubernetes"), service("team", "my-db"), service("x", "y")];
        let names = |links| -> Vec<String> {
            let list = service_variables(&all, "team", links);
            list.into_iter().filter(|(n, _)| n.ends_with("HOST")).map(|(n, _)| n).collect()
        };
        assert_eq!(names(true), ["KUBERNETES_SERVICE_HOST", "MY_DB_SERVICE_HOST"]);
        assert_eq!(names(false), ["KUBERNETES_SERVICE_HOST"]);
        let list = service_variables(&all, "team", true);
        assert!(list.contains(&("MY_DB_SERVICE_PORT_WEB_UI".into(), "80".into())));
        assert!(list.contains(&("MY_DB_PORT_80_TCP".into(), "tcp://10.43.0.7:80".into())));
    }

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a/b": "c"}},
            "spec": {"containers": [
                {"name": "x", "resources": {"limits": {"cpu": "250m", "memory": "1Mi"}}}]}
        }))
        .unwrap();
        let place = Place { pod_ips: vec!["10.0.0.1".into()], ..Place::default() };
        let field = |path: &str| {
            let field = ObjectFieldSelector { field_path: path.into(), api_version: None };
            field_value(&pod, &field, &place)
        };
        assert_eq!(field("metadata.labels['a/b']"), Ok("c".into()));
        assert_eq!(field("status.podIP"), Ok("10.0.0.1".into()));
        assert_eq!(field("metadata.labels"), Ok("a/b=\"c\"".into()));
        assert!(field("spec.hostname").is_err());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let value =
            |resource, divisor| resource_value(&pod, container, None, resource, divisor, &place);
        assert_eq!(value("limits.cpu", None), Ok("1".into()));
        assert_eq!(value("limits.cpu", Some("1m")), Ok("250".into()));
        assert_eq!(value("limits.memory", Some("1Ki")), Ok("1024".into()));
    }
}
