//! An API server alone, for trying things out: `serve DIR PORT`. Its kubeconfig is
//! `DIR/admin.kubeconfig`; Ctrl-C ends it.

use rkube_apiserver::{ApiServer, ApiServerConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("serve DIR PORT")?;
    let mut config = ApiServerConfig::new(dir);
    config.secure_port = arguments.next().ok_or("serve DIR PORT")?.parse()?;
    let server = ApiServer::start(config).await?;
    let listener = server.listen().await?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    server.serve(listener, shutdown).await;
    server.shutdown().await;
    Ok(())
}
