//! The node agent: pod workers, probes, volumes, node status, and the log/exec/port-forward server.
//!
//! [`run`] is one node's kubelet. It needs a client of any Kubernetes API server and a container
//! runtime; it ends with its shutdown token and leaves all containers running.

mod cgroup;
pub mod config;
pub mod context;
mod gc;
mod images;
pub mod node;
mod objects;
pub mod pod;
mod pods;
mod recorder;
pub mod server;
mod watch;

pub use config::KubeletConfig;
pub use context::{HostPorts, NoHostPorts};
pub use node::status::VERSION;

use context::Context;
use kube::Client;
use node::machine::Machine;
use objects::Objects;
use pod::env::Place;
use rkube_cri::Runtime;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Keys of changed objects; each is only passed on.
const CHANGES: usize = 64;
/// How often a runtime that is still starting is asked whether it is there.
const RUNTIME_POLL: Duration = Duration::from_millis(5);

/// Why a kubelet could not start.
#[derive(Debug, Error)]
pub enum KubeletError {
    /// A folder or file of the node can't be used.
    #[error("{what}: {source}")]
    Io {
        /// The path and what it is for.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The server's certificate can't be used.
    #[error("kubelet server: {0}")]
    Tls(String),
}

/// Runs a node's kubelet until `shutdown`. The runtime may come up later; containers outlive it.
///
/// # Errors
/// When its folders can't be made or its server can't listen.
pub async fn run(
    config: KubeletConfig,
    client: Client,
    runtime: Arc<dyn Runtime>,
    host_ports: Arc<dyn HostPorts>,
    shutdown: CancellationToken,
) -> Result<(), KubeletError> {
    let config = config.with_defaults_of_host();
    for dir in [config.data_dir.join("pods"), config.log_root()] {
        std::fs::create_dir_all(&dir)
            .map_err(|source| KubeletError::Io { what: dir.display().to_string(), source })?;
    }
    let machine = Machine::look(&config);
    let place = Place {
        node: config.node_name.clone(),
        host_ips: config.node_ip.iter().map(IpAddr::to_string).collect(),
        pod_ips: Vec::new(),
        node_cpu_milli: machine.cpu_milli,
        node_memory: machine.memory,
    };
    let (changed, changes) = mpsc::channel(CHANGES);
    let objects = Objects::start(client.clone(), changed);
    let context = Arc::new(Context::new(
        config.clone(),
        client.clone(),
        runtime.clone(),
        objects,
        host_ports,
        place,
    ));
    let known = Arc::new(pods::Known::default());
    let served = server::start(context.clone(), known.clone(), shutdown.clone()).await?;
    let recorder = context.recorder.clone();
    let node = node::register::keep(client, config, runtime.clone(), machine, recorder);
    let node = tokio::spawn(node);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = await_runtime(runtime.as_ref()) => {
            let housekeeping = tokio::spawn(gc::run(context.clone(), known.clone()));
            pods::run(context, known, changes, shutdown.clone()).await;
            housekeeping.abort();
        }
    }
    node.abort();
    drop(served);
    Ok(())
}

async fn await_runtime(runtime: &dyn Runtime) {
    while runtime.version().await.is_err() {
        tokio::time::sleep(RUNTIME_POLL).await;
    }
}
