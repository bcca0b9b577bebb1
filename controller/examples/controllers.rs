//! The controllers alone against any API server: `controllers KUBECONFIG [GRACE_SECONDS]`. They lead
//! while they hold the Lease kube-system/rkube-controllers; Ctrl-C ends them.

use kube::config::{KubeConfigOptions, Kubeconfig};
use rkube_controller::{ControllersConfig, Parts};
use rkube_runtime::{
    Caches, Client, Health, LeaseScope, Metrics, ObjectKey, SystemClock, leader::LeaseTimes,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let path = std::env::args().nth(1).ok_or("controllers KUBECONFIG")?;
    let kubeconfig = Kubeconfig::read_from(path)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    let client = kube::Client::try_from(config)?;
    let caches = Caches::new(client.clone());
    let writer = Client::new(client.clone(), caches.clone(), "rkube-controllers");
    let lease = ObjectKey::new("kube-system", "rkube-controllers");
    let identity = format!("rkube-{}", std::process::id());
    let mut settings = ControllersConfig::default();
    if let Some(seconds) = std::env::args().nth(2) {
        settings.node_monitor_grace_period = Duration::from_secs(seconds.parse()?);
    }
    let parts = Parts {
        config: settings,
        scope: Arc::new(LeaseScope::new(writer, lease, &identity, LeaseTimes::default())),
        health: Health::default(),
        metrics: Metrics::default(),
        clock: Arc::new(SystemClock),
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    rkube_controller::run(client, caches, parts, shutdown).await;
    Ok(())
}
