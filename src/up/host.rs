//! The machine's side of the nodes' network: a bridge, a way out, routes to pods.

use super::names::Names;
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use rkube_net::command::{ip_batch, ip_json, nft, run, sysctl};
use std::net::Ipv4Addr;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What was changed on the machine and is put back at the end.
pub struct Host {
    names: Names,
    /// The value of `ip_forward` before us, if we changed it.
    forward_before: Option<String>,
}

impl Host {
    /// Makes the bridge and the rules.
    pub async fn set_up(names: &Names, cluster_cidr: Ipv4Net) -> Result<Self> {
        refuse_taken_subnet(names).await?;
        let mut host = Host { names: names.clone(), forward_before: None };
        let bridge = names.bridge();
        ip_batch(&format!(
            "link add {bridge} type bridge\n\
             addr add {}/{} dev {bridge}\n\
             link set {bridge} up\n",
            names.gateway(),
            names.subnet.prefix_len()
        ))
        .await
        .context("making the nodes' bridge")?;
        let forward = std::fs::read_to_string(FORWARD)?;
        if forward.trim() != "1" {
            sysctl("net/ipv4/ip_forward", "1")?;
            host.forward_before = Some(forward.trim().into());
        }
        nft(&rules(names, cluster_cidr)).await.context("making the rules of the nodes' network")?;
        Ok(host)
    }

    /// Leads a node's pod range through the node.
    pub async fn route(&self, pod_cidr: Ipv4Net, node_ip: Ipv4Addr) -> Result<()> {
        Ok(ip_batch(&format!("route replace {pod_cidr} via {node_ip}\n")).await?)
    }

    /// Puts a node's cable between the bridge and the namespace of process `pid`.
    pub async fn plug(&self, index: u8, pid: i32) -> Result<()> {
        let veth = self.names.veth(index);
        // That of a node killed a moment ago may still be there.
        super::leftovers::remove_link(&veth).await;
        ip_batch(&format!(
            "link add {veth} type veth peer name eth0 netns {pid}\n\
             link set {veth} master {} up\n",
            self.names.bridge()
        ))
        .await
        .context("making a node's cable")?;
        let inside = format!(
            "link set lo up\n\
             addr add {}/{} dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            self.names.node_ip(index),
            self.names.subnet.prefix_len(),
            self.names.gateway()
        );
        let pid = pid.to_string();
        run("nsenter", &["--net", "--target", &pid, "ip", "-batch", "-"], &inside)
            .await
            .context("setting up a node's network")?;
        Ok(())
    }

    /// Puts the machine back as it was.
    pub async fn tear_down(&self) {
        if let Some(before) = &self.forward_before
            && let Err(error) = sysctl("net/ipv4/ip_forward", before)
        {
            tracing::warn!(%error, "putting ip_forward back");
        }
        if let Err(error) = super::leftovers::remove(&self.names).await {
            tracing::warn!(%error, "taking the nodes' network down");
        }
    }
}

/// A way out for nodes and pods, and leave for their packets to pass.
fn rules(names: &Names, cluster_cidr: Ipv4Net) -> String {
    let (table, subnet, bridge) = (names.table(), names.subnet, names.bridge());
    format!(
        "table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {subnet} ip daddr != {{ {subnet}, {cluster_cidr} }} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
    iifname {bridge} accept
    oifname {bridge} accept
  }}
}}
"
    )
}

async fn refuse_taken_subnet(names: &Names) -> Result<()> {
    let answer = ip_json(&["-4", "route", "show"]).await?;
    for route in answer.as_array().into_iter().flatten() {
        let taken: Option<Ipv4Net> = route["dst"].as_str().and_then(|d| d.parse().ok());
        if let Some(taken) = taken
            && (taken.contains(&names.subnet) || names.subnet.contains(&taken))
        {
            bail!(
                "the nodes' network {} is in use on this machine ({taken} on {}): give another with --node-subnet",
                names.subnet,
                route["dev"].as_str().unwrap_or("?")
            );
        }
    }
    Ok(())
}
