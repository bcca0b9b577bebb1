//! A pod as an endpoint of a Service.

use crate::common::{is_ready, is_terminal};
use k8s_openapi::{
    api::{
        core::v1::{Node, ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::net::IpAddr;

/// Whether the pod can be an endpoint: it has an address and has not ended.
pub(super) fn is_candidate(pod: &Pod) -> bool {
    !is_terminal(pod) && !addresses(pod).is_empty()
}

fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    match all.is_empty() {
        true => status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect(),
        false => all,
    }
}

/// The pod's endpoint in one address family (`IPv4`, `IPv6`); none if it has no address of it.
pub(super) fn endpoint(
    pod: &Pod,
    service: &Service,
    node: Option<&Node>,
    family: &str,
) -> Option<Endpoint> {
    let of_family =
        |ip: &&str| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"));
    let address = addresses(pod).into_iter().find(of_family)?;
    let spec = pod.spec.as_ref()?;
    let publish =
        service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let (serving, terminating) = (is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let labels = node.and_then(|n| n.metadata.labels.as_ref());
    let in_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    Some(Endpoint {
        addresses: vec![address.into()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.hostname.clone().filter(|_| in_subdomain),
        node_name: spec.node_name.clone(),
        zone: labels.and_then(|l| l.get("topology.kubernetes.io/zone").cloned()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The Service's ports as this pod has them; a named port that it lacks is left out.
pub(super) fn ports(pod: &Pod, service: &Service) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number(pod, port)?),
                protocol: Some(protocol(&port.protocol).into()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn protocol(protocol: &Option<String>) -> &str {
    protocol.as_deref().unwrap_or("TCP")
}

fn number(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let named = ports.find(|p| {
        p.name.as_deref() == Some(name) && protocol(&p.protocol) == protocol(&port.protocol)
    })?;
    Some(named.container_port)
}
