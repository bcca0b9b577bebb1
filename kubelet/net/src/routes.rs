//! Routes to the pods of other nodes.
//!
//! A node on the same link is the next hop itself. Any other is reached through VXLAN: each node's
//! end has the network address of its pod range and a MAC made from the node's address, so that
//! every node can compute all others' and nothing is exchanged.

use crate::command::{NetError, ip_batch, ip_json};
use ipnet::Ipv4Net;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The VXLAN device.
pub const VXLAN: &str = "rkube.vxlan";
/// VXLAN network identifier and UDP port; the port is Linux' own default.
const VXLAN_ID: u32 = 42;
const VXLAN_PORT: u16 = 8472;
/// The routing protocol number that marks our routes (`ip route … proto 142`).
const PROTO: &str = "142";

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address.
    pub node_ip: Ipv4Addr,
    /// The range of its pods.
    pub pod_cidr: Ipv4Net,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its address.
    pub node_ip: Ipv4Addr,
    /// The range of its pods.
    pub pod_cidr: Ipv4Net,
    /// The networks it is directly on.
    pub links: Vec<Ipv4Net>,
}

/// A route of ours: where to, through whom, and the device if it is not the link's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub to: Ipv4Net,
    /// The next hop.
    pub via: Ipv4Addr,
    /// Through VXLAN to this node.
    pub tunnel_to: Option<Ipv4Addr>,
}

/// One change of the routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the VXLAN device.
    AddTunnel,
    /// Add or replace a route, and the tunnel's neighbour with it.
    Replace(Route),
    /// Remove the route to this range.
    Delete(Ipv4Net),
}

/// The routes that `local` needs to reach the pods of its peers.
pub fn wanted(local: &Local, peers: &[Peer]) -> BTreeSet<Route> {
    let others =
        peers.iter().filter(|p| p.node_ip != local.node_ip && p.pod_cidr != local.pod_cidr);
    others
        .map(|peer| {
            let on_link = local.links.iter().any(|link| link.contains(&peer.node_ip));
            Route {
                to: peer.pod_cidr,
                via: if on_link { peer.node_ip } else { peer.pod_cidr.network() },
                tunnel_to: (!on_link).then_some(peer.node_ip),
            }
        })
        .collect()
}

/// What leads from the routes that are there to those that are wanted.
///
/// Of a route that is there only range and next hop can be read back, and a tunnel's next hop does
/// not tell which node it leads to: a tunnel counts only if it is among those `made` before.
pub fn plan(
    wanted: &BTreeSet<Route>,
    have: &[(Ipv4Net, Ipv4Addr)],
    made: &BTreeSet<Route>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (to, _) in have {
        if !wanted.iter().any(|w| w.to == *to) {
            actions.push(Action::Delete(*to));
        }
    }
    let is_there =
        |w: &Route| have.contains(&(w.to, w.via)) && (w.tunnel_to.is_none() || made.contains(w));
    let new: Vec<&Route> = wanted.iter().filter(|w| !is_there(w)).collect();
    if new.iter().any(|r| r.tunnel_to.is_some()) {
        actions.push(Action::AddTunnel);
    }
    actions.extend(new.into_iter().cloned().map(Action::Replace));
    actions
}

/// The MAC of a node's end of the tunnel: locally administered, the node's address in it.
fn tunnel_mac(node_ip: Ipv4Addr) -> String {
    let [a, b, c, d] = node_ip.octets();
    format!("0a:52:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The tunnel's device, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnel {
    Missing,
    Ours,
    /// Made when the node had another address.
    Outdated,
}

/// The commands of `ip` for these actions.
fn script(local: &Local, actions: &[Action], tunnel: Tunnel) -> String {
    let mut out = String::new();
    for action in actions {
        match action {
            Action::AddTunnel if tunnel == Tunnel::Ours => {}
            Action::AddTunnel => {
                if tunnel == Tunnel::Outdated {
                    let _ = writeln!(out, "link del {VXLAN}");
                }
                let _ = writeln!(
                    out,
                    "link add {VXLAN} address {} type vxlan id {VXLAN_ID} dstport {VXLAN_PORT} \
                     local {} nolearning\n\
                     addr add {}/32 dev {VXLAN}\n\
                     link set {VXLAN} up",
                    tunnel_mac(local.node_ip),
                    local.node_ip,
                    local.pod_cidr.network(),
                );
            }
            Action::Replace(Route { to, via, tunnel_to: None }) => {
                let _ = writeln!(out, "route replace {to} via {via} proto {PROTO}");
            }
            Action::Replace(Route { to, via, tunnel_to: Some(node_ip) }) => {
                let mac = tunnel_mac(*node_ip);
                let _ = writeln!(
                    out,
                    "neigh replace {via} lladdr {mac} dev {VXLAN} nud permanent\n\
                     route replace {to} via {via} dev {VXLAN} onlink proto {PROTO}",
                );
            }
            Action::Delete(to) => {
                let _ = writeln!(out, "route del {to} proto {PROTO}");
            }
        }
    }
    out
}

/// The forwarding entries of the tunnel, as commands of `bridge`.
fn forwarding_script(actions: &[Action]) -> String {
    let mut out = String::new();
    for action in actions {
        if let Action::Replace(Route { tunnel_to: Some(node_ip), .. }) = action {
            let mac = tunnel_mac(*node_ip);
            let _ = writeln!(out, "fdb replace {mac} dev {VXLAN} dst {node_ip}");
        }
    }
    out
}

/// The networks that this machine is directly on, loopback and our own devices left out.
pub async fn links() -> Result<Vec<Ipv4Net>, NetError> {
    let answer = ip_json(&["-4", "addr", "show", "up"]).await?;
    let mut links = Vec::new();
    for device in answer.as_array().into_iter().flatten() {
        let name = device["ifname"].as_str().unwrap_or("");
        if name == "lo" || name == VXLAN || name == crate::cni::BRIDGE {
            continue;
        }
        links.extend(device["addr_info"].as_array().into_iter().flatten().filter_map(network));
    }
    Ok(links)
}

/// The network of one address of `ip -json addr`; none for a single address.
fn network(address: &Value) -> Option<Ipv4Net> {
    let local: Ipv4Addr = address["local"].as_str()?.parse().ok()?;
    let length = u8::try_from(address["prefixlen"].as_u64()?).ok()?;
    Ipv4Net::new(local, length).ok().filter(|net| net.prefix_len() < 32).map(|net| net.trunc())
}

/// Our routes that are there.
async fn existing() -> Result<Vec<(Ipv4Net, Ipv4Addr)>, NetError> {
    let answer = ip_json(&["-4", "route", "show", "proto", PROTO]).await?;
    let routes = answer.as_array().into_iter().flatten().filter_map(|route| {
        let to = route["dst"].as_str()?.parse().ok()?;
        let via = route["gateway"].as_str()?.parse().ok()?;
        Some((to, via))
    });
    Ok(routes.collect())
}

/// What there is of the tunnel.
async fn tunnel(local: &Local) -> Tunnel {
    // Not /sys/class/net: a node's namespace may see another network's /sys.
    let Ok(answer) = ip_json(&["-details", "link", "show", "dev", VXLAN]).await else {
        return Tunnel::Missing;
    };
    match answer[0]["linkinfo"]["info_data"]["local"].as_str() {
        Some(address) if address == local.node_ip.to_string() => Tunnel::Ours,
        _ => Tunnel::Outdated,
    }
}

/// Makes the routes to the peers' pods what they should be. `made` is what earlier calls of this
/// process have made; empty at its start, so that tunnels are made anew then.
pub async fn sync(
    local: &Local,
    peers: &[Peer],
    made: &mut BTreeSet<Route>,
) -> Result<Vec<Action>, NetError> {
    let wanted = wanted(local, peers);
    let actions = plan(&wanted, &existing().await?, made);
    if actions.is_empty() {
        return Ok(actions);
    }
    ip_batch(&script(local, &actions, tunnel(local).await)).await?;
    let forwarding = forwarding_script(&actions);
    if !forwarding.is_empty() {
        crate::command::run("bridge", &["-batch", "-"], &forwarding).await?;
    }
    *made = wanted;
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Local {
        Local {
            node_ip: "10.0.0.1".parse().unwrap(),
            pod_cidr: "10.42.0.0/24".parse().unwrap(),
            links: vec!["10.0.0.0/24".parse().unwrap()],
        }
    }

    fn peer(ip: &str, cidr: &str) -> Peer {
        Peer { node_ip: ip.parse().unwrap(), pod_cidr: cidr.parse().unwrap() }
    }

    #[test]
    fn a_neighbour_is_the_next_hop_and_others_are_tunnelled() {
        let peers = [
            peer("10.0.0.1", "10.42.0.0/24"),
            peer("10.0.0.2", "10.42.1.0/24"),
            peer("10.9.0.3", "10.42.2.0/24"),
        ];
        let routes: Vec<Route> = wanted(&local(), &peers).into_iter().collect();
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0].via.to_string(), "10.0.0.2");
        assert_eq!(routes[0].tunnel_to, None);
        assert_eq!(routes[1].via.to_string(), "10.42.2.0");
        assert_eq!(routes[1].tunnel_to, Some("10.9.0.3".parse().unwrap()));
    }

    #[test]
    fn a_plan_changes_only_what_differs() {
        let peers = [peer("10.0.0.2", "10.42.1.0/24"), peer("10.0.0.3", "10.42.2.0/24")];
        let wanted = wanted(&local(), &peers);
        let have = [
            ("10.42.1.0/24".parse().unwrap(), "10.0.0.2".parse().unwrap()),
            ("10.42.7.0/24".parse().unwrap(), "10.0.0.7".parse().unwrap()),
        ];
        let actions = plan(&wanted, &have, &BTreeSet::new());
        assert_eq!(actions[0], Action::Delete("10.42.7.0/24".parse().unwrap()));
        assert!(matches!(&actions[1], Action::Replace(r) if r.to.to_string() == "10.42.2.0/24"));
        assert_eq!(actions.len(), 2);
    }

    #[test]
    fn a_tunnel_is_made_with_its_first_route() {
        let wanted = wanted(&local(), &[peer("10.9.0.3", "10.42.2.0/24")]);
        let actions = plan(&wanted, &[], &BTreeSet::new());
        assert_eq!(actions[0], Action::AddTunnel);
        let text = script(&local(), &actions, Tunnel::Missing);
        assert!(text.contains("link add rkube.vxlan address 0a:52:0a:00:00:01 type vxlan id 42"));
        assert!(text.contains("route replace 10.42.2.0/24 via 10.42.2.0 dev rkube.vxlan onlink"));
        assert_eq!(
            forwarding_script(&actions),
            "fdb replace 0a:52:0a:09:00:03 dev rkube.vxlan dst 10.9.0.3\n"
        );
        assert!(!script(&local(), &actions, Tunnel::Ours).contains("link add"));
        let anew = script(&local(), &actions, Tunnel::Outdated);
        assert!(anew.starts_with("link del rkube.vxlan\nlink add rkube.vxlan"), "{anew}");
    }

    #[test]
    fn a_tunnel_follows_a_node_that_moved() {
        let have = [("10.42.2.0/24".parse().unwrap(), "10.42.2.0".parse().unwrap())];
        let before = wanted(&local(), &[peer("10.9.0.3", "10.42.2.0/24")]);
        assert!(plan(&before, &have, &before).is_empty());
        let after = wanted(&local(), &[peer("10.9.0.4", "10.42.2.0/24")]);
        let actions = plan(&after, &have, &before);
        assert!(forwarding_script(&actions).ends_with("dst 10.9.0.4\n"));
    }
}
