//! The administrator's client of this machine's own API server.

use crate::cli::{AdminArgs, TokenRole};
use crate::join;
use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use rkube_runtime::Endpoints;
use serde::Deserialize;
use std::path::Path;

/// A client that speaks as the administrator of a kubeconfig.
pub async fn from_kubeconfig(path: &Path) -> Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// The administrator's client that a command line means: of the server that it names, or of
/// whichever member of the kubeconfig answers.
pub async fn admin(args: &AdminArgs) -> Result<Client> {
    let own = args.data.data_dir.join("admin.kubeconfig");
    let path = args.kubeconfig.as_deref().unwrap_or(&own);
    if let Some(server) = &args.server {
        join::https_url(server)?;
    }
    of_members(path, args.server.as_deref()).await
}

/// A client that speaks as the user of a kubeconfig, to `server` or else to whichever member that
/// the kubeconfig names answers.
pub async fn of_members(path: &Path, server: Option<&str>) -> Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let others = members(&kubeconfig);
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using {}", path.display()))?;
    let urls = match server {
        Some(server) => vec![server.to_owned()],
        None => [vec![config.cluster_url.to_string()], others].concat(),
    };
    let endpoints = Endpoints::new(config, &urls);
    Ok(endpoints.with_context(|| format!("using {}", path.display()))?.client())
}

/// The members that a kubeconfig names beside its server, as rkubectl reads them.
fn members(kubeconfig: &Kubeconfig) -> Vec<String> {
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let extensions = clusters.filter_map(|cluster| cluster.extensions.as_ref()).flatten();
    let found = extensions.filter(|e| e.name == "rkube.dev/members");
    let servers = found.filter_map(|e| e.extension["servers"].as_array()).flatten();
    servers.filter_map(|s| s.as_str()).map(str::to_owned).collect()
}

/// The client of a kubeconfig, if its API server is ready.
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

/// Makes a token with which those of the role join.
pub async fn create_token(client: &Client, role: TokenRole) -> Result<String> {
    let body = serde_json::json!({"role": role.name()});
    let request = http::Request::post("/rkube/v1/tokens")
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body)?)?;
    let created: CreatedToken = client.request(request).await.context("creating a join token")?;
    Ok(created.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_in_an_extension() {
        let text = "clusters:\n- name: rkube\n  cluster:\n    server: https://a:1\n    extensions:\n    \
                    - name: other\n      extension: {servers: [x]}\n    \
                    - name: rkube.dev/members\n      extension: {servers: ['https://b:1']}\n";
        let kubeconfig = Kubeconfig::from_yaml(text).unwrap();
        assert_eq!(members(&kubeconfig), ["https://b:1"]);
        assert!(members(&Kubeconfig::default()).is_empty());
    }
}
