//! The pod network of this node, kept as the cluster's nodes say: its own pod range makes the CNI
//! configuration and the rules, the others' ranges make routes.

use anyhow::{Context, Result};
use futures::StreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rkube_net::{Local, Peer, Route, cni, nft, routes};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// How long after a failure the network is set up again, if no node has news before.
const RETRY: Duration = Duration::from_secs(5);

/// What does not change while the node runs.
pub struct NodeNetwork {
    pub name: String,
    pub ip: Ipv4Addr,
    pub cluster_cidr: Ipv4Net,
    /// Where containerd looks for the pod network's configuration.
    pub conf_dir: PathBuf,
    /// Where the address allocator keeps its leases.
    pub ipam_dir: PathBuf,
}

impl NodeNetwork {
    /// Follows the cluster's nodes for ever.
    pub async fn follow(self, client: Client) -> Result<()> {
        let mut peers: BTreeMap<String, Peer> = BTreeMap::new();
        let mut own: Option<Ipv4Net> = None;
        let mut made = BTreeSet::new();
        let nodes = watcher(Api::<Node>::all(client), watcher::Config::default());
        let mut events = nodes.default_backoff().boxed();
        let mut listing = BTreeMap::new();
        let mut patience = Duration::MAX;
        loop {
            match tokio::time::timeout(patience, events.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, "watching nodes for their pods' routes");
                    continue;
                }
                Ok(Some(Ok(watcher::Event::Init))) => listing.clear(),
                Ok(Some(Ok(watcher::Event::InitApply(node)))) => {
                    listing.extend(peer(&node));
                    continue;
                }
                Ok(Some(Ok(watcher::Event::InitDone))) => peers = std::mem::take(&mut listing),
                Ok(Some(Ok(watcher::Event::Apply(node)))) => peers.extend(peer(&node)),
                Ok(Some(Ok(watcher::Event::Delete(node)))) => {
                    peers.remove(node.metadata.name.as_deref().unwrap_or_default());
                }
                // What failed is tried again.
                Err(_) => {}
            }
            patience = match self.apply(&peers, &mut own, &mut made).await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::error!("the pod network of this node: {error:#}");
                    RETRY
                }
            };
        }
    }

    async fn apply(
        &self,
        peers: &BTreeMap<String, Peer>,
        own: &mut Option<Ipv4Net>,
        made: &mut BTreeSet<Route>,
    ) -> Result<()> {
        let Some(me) = peers.get(&self.name) else { return Ok(()) };
        if *own != Some(me.pod_cidr) {
            self.set_up(me.pod_cidr).await?;
            *own = Some(me.pod_cidr);
        }
        let local = Local {
            node_ip: self.ip,
            pod_cidr: me.pod_cidr,
            links: routes::links().await.context("reading this node's networks")?,
        };
        let others: Vec<Peer> = peers.values().cloned().collect();
        let changed = routes::sync(&local, &others, made).await;
        for action in changed.context("routes to other nodes' pods")? {
            tracing::info!(?action, "route");
        }
        Ok(())
    }

    async fn set_up(&self, pod_cidr: Ipv4Net) -> Result<()> {
        rkube_net::command::sysctl("net/ipv4/ip_forward", "1")?;
        rkube_net::command::nft(&nft::base_rules(pod_cidr, self.cluster_cidr)).await?;
        let list = cni::conflist(&self.name, pod_cidr, MTU, &self.ipam_dir);
        cni::write(&self.conf_dir, &list).context("writing the CNI configuration")
    }
}

/// The pods' MTU: an Ethernet frame less what VXLAN adds.
const MTU: u32 = 1450;

fn peer(node: &Node) -> Option<(String, Peer)> {
    let name = node.metadata.name.clone()?;
    let pod_cidr = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
    Some((name, Peer { node_ip: internal.address.parse().ok()?, pod_cidr }))
}
