//! `rkube agent`: one node. It joins, has a containerd, sets up the pod network, runs the kubelet.

use crate::cli::{AgentArgs, NodeArgs, ServerArgs};
use crate::containerd::Containerd;
use crate::join::{self, Membership, NodeFiles};
use crate::node_network::NodeNetwork;
use crate::{servers, shutdown};
use anyhow::{Context, Result, bail};
use rkube_apiserver::ApiServer;
use rkube_kubelet::KubeletConfig;
use rkube_runtime::Endpoints;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const TOKEN_LIFE: Duration = Duration::from_secs(600);
const TOKEN_RETRY: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. Containers go on without it.
pub async fn run(args: AgentArgs) -> Result<()> {
    let stop = shutdown::token()?;
    let first = args.server.first().context("--server names no API server")?;
    let node = Node::new(&args.node, &args.data.data_dir, first)?;
    // In this order: a containerd outlives us, and none must be left by a node that may not join.
    let membership = node.join(&args.server, args.token.as_deref()).await?;
    let endpoint = node.start_containerd().await?;
    let servers = servers::connect(&args.server, &node.files, &membership)?;
    node.run(endpoint, membership, servers, stop).await
}

/// The node of a server's own process; it joins like any other, with a token made here once the
/// control plane has a quorum.
pub fn beside_server(
    args: &ServerArgs,
    server: &Arc<ApiServer>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let url = format!("https://127.0.0.1:{}", args.secure_port);
    let server = Arc::clone(server);
    let node = args.node.clone();
    let data_dir = args.data.data_dir.clone();
    async move {
        let outcome = async {
            let node = Node::new(&node, &data_dir, &url)?;
            let token = match node.files.membership()? {
                Some(_) => None,
                None => tokio::select! {
                    token = own_token(&server) => Some(token),
                    () = stop.cancelled() => return Ok(()),
                },
            };
            let own = [url.clone()];
            let membership = node.join(&own, token.as_deref()).await?;
            let endpoint = node.start_containerd().await?;
            let servers = servers::connect(&own, &node.files, &membership)?;
            node.run(endpoint, membership, servers, stop).await
        };
        if let Err(error) = outcome.await {
            tracing::error!("the node of this server: {error:#}");
        }
    }
}

/// A token for this node; without a quorum it is tried again until there is one.
async fn own_token(server: &Arc<ApiServer>) -> String {
    loop {
        match server.create_token(TOKEN_LIFE).await {
            Ok(token) => return token,
            Err(error) => tracing::warn!(%error, "making a token for this node; it is tried again"),
        }
        tokio::time::sleep(TOKEN_RETRY).await;
    }
}

/// A node on its way up.
struct Node {
    args: NodeArgs,
    name: String,
    ip: Ipv4Addr,
    dir: PathBuf,
    files: NodeFiles,
}

impl Node {
    fn new(args: &NodeArgs, data_dir: &Path, server: &str) -> Result<Self> {
        let dir = data_dir.join("agent");
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let name = match args.kubelet.node_name.as_str() {
            "" => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
            name => name.into(),
        };
        let ip = match args.kubelet.node_ip {
            Some(IpAddr::V4(ip)) => ip,
            Some(ip) => bail!("--node-ip {ip}: nodes have IPv4 addresses"),
            None => address_towards(server)?,
        };
        let files = NodeFiles::new(&dir);
        Ok(Node { args: args.clone(), name, ip, dir, files })
    }

    async fn join(&self, servers: &[String], token: Option<&str>) -> Result<Membership> {
        join::ensure_member(&self.files, servers, token, &self.name, &[self.ip]).await
    }

    fn containerd(&self) -> Result<Containerd> {
        let mut mirrors = Vec::new();
        for mirror in &self.args.registry_mirrors {
            let Some((host, url)) = mirror.split_once('=') else {
                bail!("--registry-mirror {mirror:?}: the form is HOST=URL");
            };
            mirrors.push((host.into(), url.into()));
        }
        Ok(Containerd::new(self.dir.join("containerd"), mirrors))
    }

    /// The endpoint of the container runtime: the one that was named, or a containerd of our own.
    async fn start_containerd(&self) -> Result<PathBuf> {
        if let Some(endpoint) = &self.args.container_runtime_endpoint {
            return Ok(endpoint.strip_prefix("unix://").unwrap_or(endpoint).into());
        }
        let containerd = self.containerd()?;
        containerd.ensure().await?;
        containerd.import_pause().await?;
        Ok(containerd.socket())
    }

    async fn run(
        &self,
        endpoint: PathBuf,
        membership: Membership,
        servers: Endpoints,
        stop: CancellationToken,
    ) -> Result<()> {
        let client = servers.client();
        let containerd = self.containerd()?;
        let network = NodeNetwork {
            name: self.name.clone(),
            ip: self.ip,
            cluster_cidr: membership.cluster_cidr,
            conf_dir: containerd.cni_conf_dir(),
            ipam_dir: containerd.ipam_dir(),
        };
        let runtime = Arc::new(rkube_cri::Containerd::new(&endpoint.to_string_lossy()));
        let config = self.kubelet_config(&endpoint, &membership);
        let host_ports = Arc::new(rkube_net::HostPorts::default());
        let kubelet = rkube_kubelet::run(config, client.clone(), runtime, host_ports, stop.clone());
        let keep_runtime = async {
            match self.args.container_runtime_endpoint {
                // Somebody else's business.
                Some(_) => std::future::pending().await,
                None => containerd.keep().await,
            }
        };
        tokio::select! {
            outcome = kubelet => outcome.context("running the kubelet"),
            () = servers::follow(&servers, &self.files) => bail!("following the API servers ended"),
            outcome = network.follow(client) => outcome.context("keeping the pod network"),
            () = keep_runtime => Ok(()),
        }
    }

    fn kubelet_config(&self, endpoint: &Path, membership: &Membership) -> KubeletConfig {
        KubeletConfig {
            node_name: self.name.clone(),
            node_ip: Some(self.ip.into()),
            data_dir: self.dir.clone(),
            container_runtime_endpoint: endpoint.display().to_string(),
            tls_cert_file: Some(self.files.certificate()),
            tls_private_key_file: Some(self.files.key()),
            client_ca_file: Some(self.files.ca()),
            cluster_dns: vec![membership.cluster_dns.into()],
            cluster_domain: membership.cluster_domain.clone(),
            cluster_id: membership.cluster_id.clone(),
            ..self.args.kubelet.clone()
        }
    }
}

/// This machine's address on the way to a server.
fn address_towards(server: &str) -> Result<Ipv4Addr> {
    let uri: http::Uri = server.parse().with_context(|| format!("{server:?} is no URL"))?;
    let host = uri.host().with_context(|| format!("{server:?} names no host"))?;
    let port = uri.port_u16().unwrap_or(443);
    let addresses = (host.trim_matches(['[', ']']), port)
        .to_socket_addrs()
        .with_context(|| format!("looking up {host}"))?;
    let Some(target) = addresses.into_iter().find(SocketAddr::is_ipv4) else {
        bail!("{host} has no IPv4 address");
    };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    let own = match socket.local_addr()?.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        _ => None,
    };
    // Beside its server a node takes the address under which others find the machine.
    match (own, crate::server::own_address()) {
        (Some(ip), _) | (None, IpAddr::V4(ip)) => Ok(ip),
        (None, IpAddr::V6(_)) => bail!("this machine has no IPv4 address: give --node-ip"),
    }
}
