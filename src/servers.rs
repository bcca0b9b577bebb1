//! The API servers that a node knows: those it was told, those it learns from the endpoints of the
//! Service `kubernetes`, which are all members of the control plane, and those it learned before it
//! was started again.

use crate::join::{self, Membership, NodeFiles};
use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use rkube_runtime::Endpoints;
use std::collections::BTreeMap;

/// The slices of the Service `kubernetes`.
const OF_KUBERNETES: &str = "kubernetes.io/service-name=kubernetes";

/// The way to whichever member of the control plane answers. `given` comes first.
pub fn connect(given: &[String], files: &NodeFiles, member: &Membership) -> Result<Endpoints> {
    for server in given {
        join::https_url(server)?;
    }
    let config = join::node_config(files, member)?;
    let endpoints = Endpoints::new(config, given).context("making a client")?;
    match files.servers() {
        Ok(learned) => endpoints.learn(&learned),
        Err(error) => tracing::warn!("{error:#}"),
    }
    Ok(endpoints)
}

/// Follows the members and keeps them for the next start.
pub async fn follow(endpoints: &Endpoints, files: &NodeFiles) {
    let api = Api::<EndpointSlice>::namespaced(endpoints.client(), "default");
    let events = watcher(api, Config::default().labels(OF_KUBERNETES)).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut known = Known::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let Some(urls) = known.take(event) else { continue };
                tracing::info!(?urls, "the API servers of the cluster");
                endpoints.learn(&urls);
                // It only helps the next start; the node must go on.
                if let Err(error) = files.save_servers(&urls) {
                    tracing::warn!("keeping the API servers: {error:#}");
                }
            }
            Err(error) => tracing::warn!(%error, "watching for API servers"),
        }
    }
}

/// The URLs of each slice, and what was said of them last.
#[derive(Default)]
struct Known {
    slices: BTreeMap<String, Vec<String>>,
    listed: BTreeMap<String, Vec<String>>,
    told: Vec<String>,
}

impl Known {
    /// Takes an event in; all URLs if they have changed. Nothing at all is no news: somewhere there
    /// is a server, or nobody could have said so.
    fn take(&mut self, event: Event<EndpointSlice>) -> Option<Vec<String>> {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(slice) => {
                self.listed.insert(name(&slice), urls(&slice));
                return None;
            }
            Event::InitDone => self.slices = std::mem::take(&mut self.listed),
            Event::Apply(slice) => {
                self.slices.insert(name(&slice), urls(&slice));
            }
            Event::Delete(slice) => {
                self.slices.remove(&name(&slice));
            }
        }
        let urls: Vec<String> = self.slices.values().flatten().cloned().collect();
        let news = !urls.is_empty() && urls != self.told;
        news.then(|| self.told.clone_from(&urls)).map(|()| urls)
    }
}

/// The API servers of a slice.
fn urls(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.iter().flatten();
    let Some(port) = ports.filter(|p| p.name.as_deref() == Some("https")).find_map(|p| p.port)
    else {
        return Vec::new();
    };
    let host = |address: &String| match slice.address_type.as_str() {
        "IPv6" => format!("[{address}]"),
        _ => address.clone(),
    };
    let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
    addresses.map(|address| format!("https://{}:{port}", host(address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use kube::api::ListParams;
    use rkube_apiserver::{ApiServer, ApiServerConfig};
    use serde_json::json;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    fn slice(name: &str, family: &str, port: u16, addresses: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name}, "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "https", "port": port}],
        }))
        .unwrap()
    }

    #[test]
    fn members_are_learned_from_all_slices() {
        let mut known = Known::default();
        assert_eq!(known.take(Event::Init), None);
        let first = slice("kubernetes", "IPv4", 6443, &["192.0.2.1", "192.0.2.2"]);
        assert_eq!(known.take(Event::InitApply(first.clone())), None);
        let both = ["https://192.0.2.1:6443", "https://192.0.2.2:6443"].map(String::from).to_vec();
        assert_eq!(known.take(Event::InitDone), Some(both.clone()));
        assert_eq!(known.take(Event::Apply(first.clone())), None, "no news");
        let other = slice("kubernetes-ipv6-1", "IPv6", 1, &["2001:db8::1"]);
        let mut all = both.clone();
        all.push("https://[2001:db8::1]:1".into());
        assert_eq!(known.take(Event::Apply(other.clone())), Some(all));
        assert_eq!(known.take(Event::Delete(other)), Some(both));
        assert_eq!(known.take(Event::Delete(first)), None, "nobody left to ask is no news");
    }

    /// An API server with one member, and its URL.
    async fn serve(dir: &std::path::Path) -> (Arc<ApiServer>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut config = ApiServerConfig::new(dir);
        config.secure_port = port;
        config.advertise_address = IpAddr::from([192, 0, 2, 1]);
        let server = ApiServer::start(config).await.unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener, CancellationToken::new()).await });
        (server, format!("https://127.0.0.1:{port}"))
    }

    #[tokio::test]
    async fn a_node_goes_on_past_a_dead_and_a_silent_server_and_learns_the_members() {
        let (cluster, node) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (server, live) = serve(cluster.path()).await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = format!("https://{}", closed.local_addr().unwrap());
        drop(closed);
        // It takes connections and never says a word.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mute = format!("https://{}", silent.local_addr().unwrap());

        let token = server.create_token(Duration::from_secs(60)).await.unwrap();
        let files = NodeFiles::new(node.path());
        let (ways, at) = ([dead.clone(), live.clone()], [Ipv4Addr::LOCALHOST]);
        let member = join::ensure_member(&files, &ways, Some(&token), "n1", &at).await.unwrap();

        let endpoints = connect(&[dead, mute, live], &files, &member).unwrap();
        let nodes = Api::<Node>::all(endpoints.client());
        assert!(nodes.list(&ListParams::default()).await.unwrap().items.is_empty());
        let follower = follow(&endpoints, &files);
        let learned = async {
            while files.servers().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = follower => panic!("following ended"),
            () = learned => {}
        }
        let port = server.config().secure_port;
        assert_eq!(files.servers().unwrap(), [format!("https://192.0.2.1:{port}")]);
        assert_eq!(endpoints.urls().len(), 4);
        server.shutdown().await;
    }
}
