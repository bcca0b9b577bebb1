//! A pod's sandbox as the runtime takes it: names, DNS, namespaces, cgroup; and the pod's hosts file.

use super::security::of_sandbox;
use super::state::{CLUSTER, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::config::KubeletConfig;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;
use rkube_cri::Map;
use rkube_cri::config::{DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};
use rkube_net::{PortMapping, Protocol};
use std::fmt::Write as _;
use std::net::IpAddr;

/// Linux takes no longer host names.
const MAX_HOSTNAME: usize = 63;

/// The sandbox of a pod.
pub fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    config: &KubeletConfig,
    host_resolv_conf: &str,
) -> PodSandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let mut labels = pod.labels().clone();
    labels.extend(pod_labels(pod));
    labels.insert(CLUSTER.to_owned(), config.cluster_id.clone());
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.clone());
    PodSandboxConfig {
        // On the node's network the sandbox shares the node's names too; runc refuses to set one.
        hostname: match spec.host_network {
            Some(true) => String::new(),
            _ => hostname(&spec, &name, config),
        },
        log_directory: config.log_dir(&namespace, &name, &uid).to_string_lossy().into_owned(),
        dns_config: Some(dns(&spec, &namespace, config, host_resolv_conf)),
        labels,
        annotations: pod.annotations().clone(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: config.cgroup_of(&uid),
            security_context: Some(of_sandbox(&spec)),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name, s.value)).collect(),
            ..LinuxPodSandboxConfig::default()
        }),
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt }),
        // Host ports are the node's own rules: the portmap plugin costs 40 ms up and 180 ms down.
        port_mappings: Vec::new(),
    }
}

/// Labels that tell which pod something belongs to.
pub fn pod_labels(pod: &Pod) -> Map {
    let entries = [
        (POD_NAME, pod.name_any()),
        (POD_NAMESPACE, pod.namespace().unwrap_or_default()),
        (POD_UID, pod.uid().unwrap_or_default()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into()
}

fn hostname(spec: &PodSpec, name: &str, config: &KubeletConfig) -> String {
    if spec.host_network == Some(true) {
        return config.node_name.clone();
    }
    let wanted = spec.hostname_override.as_ref().or(spec.hostname.as_ref());
    let mut hostname = wanted.filter(|h| !h.is_empty()).cloned().unwrap_or_else(|| name.to_owned());
    hostname.truncate(MAX_HOSTNAME);
    hostname.trim_end_matches(['-', '.']).to_owned()
}

fn dns(spec: &PodSpec, namespace: &str, config: &KubeletConfig, host: &str) -> DnsConfig {
    let host_network = spec.host_network == Some(true);
    let mut dns = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => DnsConfig::default(),
        "Default" => parse_resolv_conf(host),
        "ClusterFirst" if host_network => parse_resolv_conf(host),
        _ => cluster_dns(namespace, config, host),
    };
    if let Some(own) = &spec.dns_config {
        extend(&mut dns.servers, own.nameservers.iter().flatten());
        extend(&mut dns.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            let full =
                option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}"));
            dns.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            dns.options.push(full);
        }
    }
    dns
}

fn extend<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn cluster_dns(namespace: &str, config: &KubeletConfig, host: &str) -> DnsConfig {
    let domain = &config.cluster_domain;
    let mut searches =
        vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    extend(&mut searches, parse_resolv_conf(host).searches.iter());
    DnsConfig {
        servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// The pod's own `/etc/hosts`; pods on the node's network get the node's with their aliases.
pub fn hosts_file(pod: &Pod, ips: &[String], config: &KubeletConfig, node_hosts: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    if spec.host_network == Some(true) {
        text = format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}\n");
    } else {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n");
        text.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let name = hostname(&spec, &pod.name_any(), config);
        let namespace = pod.namespace().unwrap_or_default();
        let full = spec.subdomain.as_ref().filter(|s| !s.is_empty()).map(|subdomain| {
            format!("{name}.{subdomain}.{namespace}.svc.{}\t", config.cluster_domain)
        });
        for ip in ips {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{ip}\t{}{name}", full.as_deref().unwrap_or_default());
        }
    }
    let aliases = spec.host_aliases.unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ =
                writeln!(text, "{}\t{}", alias.ip, alias.hostnames.unwrap_or_default().join("\t"));
        }
    }
    text
}

/// Ports of the node that lead to the pod.
pub fn host_ports(pod: &Pod) -> Vec<PortMapping> {
    let spec = pod.spec.as_ref();
    if spec.is_none_or(|s| s.host_network == Some(true)) {
        return Vec::new();
    }
    let ports =
        super::state::specs(pod).flat_map(|(container, _)| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
            Some(PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                host_ip: match host_ip {
                    Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
                    _ => None,
                },
                host_port: port.host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let meta = json!({"name": "web-1", "namespace": "team", "uid": "u1"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    #[test]
    fn dns_follows_the_policy() {
        let config = KubeletConfig::default();
        let host = "nameserver 9.9.9.9\nsearch corp.example\noptions timeout:1\n";
        let dns = |spec| {
            let pod = pod(spec);
            dns(&pod.spec.unwrap(), "team", &config, host)
        };
        let cluster = dns(json!({"containers": []}));
        assert_eq!(cluster.servers, ["10.43.0.10"]);
        assert_eq!(
            cluster.searches,
            ["team.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]
        );
        assert_eq!(cluster.options, ["ndots:5"]);
        let on_host = dns(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(on_host.servers, ["9.9.9.9"]);
        let own = dns(json!({"containers": [], "dnsPolicy": "None", "dnsConfig":
            {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!((own.servers, own.options), (vec!["1.1.1.1".into()], vec!["ndots:2".into()]));
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "subdomain": "db",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&pod, &["10.42.0.9".into()], &KubeletConfig::default(), "");
        assert!(text.contains("10.42.0.9\tweb-1.db.team.svc.cluster.local\tweb-1\n"), "{text}");
        assert!(text.contains("1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn host_ports_of_all_containers() {
        let pod = pod(json!({"containers": [{"name": "a", "ports": [
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.2"},
            {"containerPort": 81}]}]}));
        let ports = host_ports(&pod);
        assert_eq!(ports.len(), 2);
        assert_eq!(
            (ports[0].host_port, ports[0].container_port, ports[0].host_ip),
            (8080, 80, None)
        );
        assert_eq!(ports[1].protocol, Protocol::Udp);
        assert_eq!(ports[1].host_ip, Some("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn the_cgroup_and_namespaces_are_the_pods() {
        let config =
            sandbox_config(&pod(json!({"containers": []})), 2, &KubeletConfig::default(), "");
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/rkube/podu1");
        let options = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!((options.network, options.pid), (0, 1));
        assert_eq!(config.metadata.unwrap().attempt, 2);
        assert_eq!(config.hostname, "web-1");
    }

    #[test]
    fn a_pod_on_the_nodes_network_sets_no_hostname() {
        let pod = pod(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(sandbox_config(&pod, 0, &KubeletConfig::default(), "").hostname, "");
    }
}
