//! `rkube hollow`: simulated nodes in one process.

use crate::cli::HollowArgs;
use crate::{client, shutdown};
use anyhow::{Context, Result};
use rkube_hollow::HollowConfig;

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: HollowArgs) -> Result<()> {
    let stop = shutdown::token()?;
    let client = match &args.kubeconfig {
        Some(path) => client::of_members(path, None).await?,
        None => kube::Client::try_default().await.context("finding the API server")?,
    };
    let config = HollowConfig::new(args.nodes, args.prefix);
    rkube_hollow::run(config, client, stop).await.context("simulating nodes")
}
