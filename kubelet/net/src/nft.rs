//! One nftables table a node: masquerading of what leaves the cluster, and host ports.
//!
//! The table is `ip rkube`. Host ports are elements of two maps, so that a pod's ports change
//! without a rule being touched. What is wanted is kept here and written whole in one transaction:
//! a node has at most some hundred ports, and a whole write can't drift.

use crate::command::{NetError, nft};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use tokio::sync::Mutex;

/// The table's family and name.
pub const TABLE: &str = "ip rkube";

/// A transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Only this address of the node; all but loopback if None.
    pub host_ip: Option<Ipv4Addr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
}

/// The table's chains and maps. The maps keep their elements if the table exists already.
///
/// Loopback is left out of host ports: to lead 127.0.0.1 elsewhere the kernel needs
/// `route_localnet`, which opens the node's own loopback services to its neighbours
/// (CVE-2020-8558).
pub fn base_rules(pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> String {
    let key = "meta l4proto . th dport";
    let nat = format!(
        "dnat ip to ip daddr . {key} map @hostports_ip\n\
         \x20   fib daddr type local dnat ip to {key} map @hostports"
    );
    format!(
        "table {TABLE} {{
  map hostports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map hostports_ip {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  chain prerouting {{ type nat hook prerouting priority dstnat; }}
  chain output {{ type nat hook output priority -100; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; }}
}}
flush chain {TABLE} prerouting
flush chain {TABLE} output
flush chain {TABLE} postrouting
table {TABLE} {{
  chain prerouting {{
    {nat}
  }}
  chain output {{
    ip daddr 127.0.0.0/8 return
    {nat}
  }}
  chain postrouting {{
    ip saddr {pod_cidr} ip daddr != {cluster_cidr} masquerade
    ct status dnat ip saddr {pod_cidr} ip daddr {pod_cidr} masquerade
  }}
}}
"
    )
}

type Wanted = BTreeMap<String, (Ipv4Addr, Vec<PortMapping>)>;

/// The script that makes the maps hold just what is wanted. Of two pods that want one port the
/// one with the lower uid gets it: the scheduler keeps that from happening.
fn element_script(wanted: &Wanted) -> String {
    let mut any = BTreeMap::new();
    let mut by_ip = BTreeMap::new();
    for (pod_ip, ports) in wanted.values() {
        for port in ports {
            let to = format!("{pod_ip} . {}", port.container_port);
            let key = format!("{} . {}", port.protocol.name(), port.host_port);
            match port.host_ip {
                None => any.entry(key).or_insert(to),
                Some(ip) => by_ip.entry(format!("{ip} . {key}")).or_insert(to),
            };
        }
    }
    let mut script = String::new();
    for (map, elements) in [("hostports", any), ("hostports_ip", by_ip)] {
        let _ = writeln!(script, "flush map {TABLE} {map}");
        if !elements.is_empty() {
            let list: Vec<String> = elements.iter().map(|(k, v)| format!("{k} : {v}")).collect();
            let _ = writeln!(script, "add element {TABLE} {map} {{ {} }}", list.join(", "));
        }
    }
    script
}

/// The host ports of a node's pods.
#[derive(Default)]
pub struct HostPorts {
    wanted: Mutex<Wanted>,
}

impl HostPorts {
    /// Leads these ports to the pod, instead of those it had.
    pub async fn set(
        &self,
        pod_uid: &str,
        pod_ip: Ipv4Addr,
        ports: Vec<PortMapping>,
    ) -> Result<(), NetError> {
        let mut wanted = self.wanted.lock().await;
        let new = (pod_ip, ports);
        if wanted.get(pod_uid) == Some(&new) || (new.1.is_empty() && !wanted.contains_key(pod_uid))
        {
            return Ok(());
        }
        wanted.insert(pod_uid.into(), new);
        nft(&element_script(&wanted)).await
    }

    /// Takes away what the pod had.
    pub async fn clear(&self, pod_uid: &str) -> Result<(), NetError> {
        let mut wanted = self.wanted.lock().await;
        match wanted.remove(pod_uid) {
            Some(_) => nft(&element_script(&wanted)).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, host_ip, host_port, container_port }
    }

    #[test]
    fn elements_are_written_whole() {
        let mut wanted = Wanted::new();
        assert_eq!(
            element_script(&wanted),
            "flush map ip rkube hostports\nflush map ip rkube hostports_ip\n"
        );
        let ip = "10.42.0.5".parse().unwrap();
        wanted.insert("b".into(), (ip, vec![mapping(None, 8080, 80)]));
        wanted.insert("a".into(), (ip, vec![mapping(Some("10.0.0.1"), 8080, 81)]));
        assert_eq!(
            element_script(&wanted),
            "flush map ip rkube hostports\n\
             add element ip rkube hostports { tcp . 8080 : 10.42.0.5 . 80 }\n\
             flush map ip rkube hostports_ip\n\
             add element ip rkube hostports_ip { 10.0.0.1 . tcp . 8080 : 10.42.0.5 . 81 }\n"
        );
    }

    #[test]
    fn the_first_of_two_pods_keeps_a_port() {
        let mut wanted = Wanted::new();
        wanted.insert("a".into(), ("10.42.0.5".parse().unwrap(), vec![mapping(None, 80, 1)]));
        wanted.insert("b".into(), ("10.42.0.6".parse().unwrap(), vec![mapping(None, 80, 2)]));
        let script = element_script(&wanted);
        assert!(script.contains("10.42.0.5 . 1") && !script.contains("10.42.0.6"));
    }
}
