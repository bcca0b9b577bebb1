//! The administrator's client of this machine's own API server.

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use std::path::Path;

/// A client that speaks as the administrator of a kubeconfig.
pub async fn from_kubeconfig(path: &Path) -> Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The same, if the API server is ready.
pub async fn ready(path: &Path) -> Result<Client> {
    let client = from_kubeconfig(path).await?;
    let request = http::Request::get("/readyz").body(Vec::new())?;
    match client.request_text(request).await?.as_str() {
        "ok" => Ok(client),
        other => bail!("the API server is not ready: {other}"),
    }
}

#[derive(Deserialize)]
struct CreatedToken {
    token: String,
}

/// Makes a token with which nodes join.
pub async fn create_token(client: &Client) -> Result<String> {
    let request = http::Request::post("/rkube/v1/tokens")
        .header("content-type", "application/json")
        .body(b"{}".to_vec())?;
    let created: CreatedToken = client.request(request).await.context("creating a join token")?;
    Ok(created.token)
}
