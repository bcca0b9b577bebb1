//! A scheduler alone, against the API server of the current kubeconfig (`$KUBECONFIG`), ours or any
//! other: `schedule [NAME]`, where NAME is the `schedulerName` of the pods that it places. Ctrl-C
//! ends it.

use rkube_scheduler::SchedulerConfig;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = kube::Client::try_default().await?;
    let mut config = SchedulerConfig::default();
    if let Some(name) = std::env::args().nth(1) {
        config.name = name;
    }
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    rkube_scheduler::run(client, config, shutdown).await;
    Ok(())
}
