//! `rkube server`: the control plane in one process, and a node beside it unless told otherwise.
//!
//! Controllers and scheduler reach the API server by a call, through the same client that serves
//! them elsewhere over HTTPS ([`local_client`]).

use crate::cli::ServerArgs;
use crate::shutdown;
use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use rkube_apiserver::{ApiServer, ApiServerConfig, Identity};
use rkube_controller::{ControllersConfig, Parts};
use rkube_runtime::{AlwaysLeader, Caches, Health, Metrics, Recorder, SystemClock};
use rkube_scheduler::{Scheduler, SchedulerConfig};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: ServerArgs) -> Result<()> {
    let stop = shutdown::token()?;
    let server = ApiServer::start(api_config(&args)).await.context("starting the API server")?;
    let listener = server.listen().await?;
    tracing::info!(address = %listener.local_addr()?, "the API is served");

    // Components end before the API does, so that their last writes find it.
    let components = CancellationToken::new();
    let tasks = TaskTracker::new();
    start_components(&args, &server, &components, &tasks);
    if !args.no_agent {
        let agent = crate::agent::beside_server(&args, &server, components.clone()).await?;
        tasks.spawn(agent);
    }
    let serving = CancellationToken::new();
    let serve = tokio::spawn({
        let (server, serving) = (server.clone(), serving.clone());
        async move { server.serve(listener, serving).await }
    });
    stop.cancelled().await;
    tracing::info!("stopping");
    components.cancel();
    tasks.close();
    if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "components did not end in time");
    }
    serving.cancel();
    serve.await.context("the API server's accept loop")?;
    server.shutdown().await;
    Ok(())
}

fn api_config(args: &ServerArgs) -> ApiServerConfig {
    let mut config = ApiServerConfig::new(&args.data.data_dir);
    config.bind_address = args.bind_address;
    config.secure_port = args.secure_port;
    config.advertise_address = args.advertise_address.unwrap_or_else(own_address);
    config.extra_sans = args.tls_san.clone();
    config.default_not_ready_toleration_seconds =
        args.patience.default_not_ready_toleration_seconds;
    config.default_unreachable_toleration_seconds =
        args.patience.default_unreachable_toleration_seconds;
    config.cluster_cidr = args.network.cluster_cidr.to_string();
    config.service_cidr = args.network.service_cidr.to_string();
    config
}

/// The address that the way out of this machine begins with; loopback if there is none. Nothing
/// is sent.
pub fn own_address() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A client that acts as one of the control plane's components, in this process.
fn local_client(server: &Arc<ApiServer>, name: &str) -> kube::Client {
    kube::Client::new(server.local(Identity::component(name)), "default")
}

/// Names the components that are down.
fn down(health: Health) -> Box<dyn Fn() -> Option<String> + Send + Sync> {
    Box::new(move || {
        let down: Vec<String> =
            health.down().into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        (!down.is_empty()).then(|| down.join(", "))
    })
}

/// Starts controllers and scheduler over shared caches.
fn start_components(
    args: &ServerArgs,
    server: &Arc<ApiServer>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let scheduler_metrics = rkube_scheduler::Metrics::register(&mut registry);
    server.companions().add_metrics(registry);
    let health = Health::default();
    server.companions().add_check("components", down(health.clone()));
    let caches = Caches::new(local_client(server, "system:kube-controller-manager"));
    let parts = Parts {
        config: ControllersConfig {
            node_monitor_grace_period: Duration::from_secs(args.patience.node_monitor_grace_period),
            cluster_cidr: args.network.cluster_cidr.to_string(),
            ..ControllersConfig::default()
        },
        scope: Arc::new(AlwaysLeader { term: 1 }),
        health: health.clone(),
        metrics: metrics.clone(),
        clock: Arc::new(SystemClock),
    };
    let client = local_client(server, "system:kube-controller-manager");
    tasks.spawn(rkube_controller::run(client, caches.clone(), parts, stop.clone()));

    let client = local_client(server, "system:kube-scheduler");
    let client = rkube_runtime::Client::new(client, caches.clone(), "kube-scheduler");
    let config = SchedulerConfig::default();
    let scheduler = Scheduler {
        recorder: Recorder::new(client.clone(), &config.name, "", metrics.clone()),
        caches,
        client,
        metrics: scheduler_metrics,
        config,
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        let run = || scheduler.clone().run(CancellationToken::new());
        tokio::select! {
            () = rkube_runtime::supervise("scheduler", &health, &metrics, run) => {}
            () = stop.cancelled() => {}
        }
    });
}
