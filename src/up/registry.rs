//! A registry on the nodes' network, for images that were made on this machine.

use super::names::Names;
use super::process::{OnOurDeath, Process};
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;

/// The host name under which nodes know it; it is no name of the network's, each node's
/// containerd is told where it leads.
pub const HOST: &str = "registry.rkube.local";

/// A registry process and where it listens.
pub struct Registry {
    pub process: Process,
    address: String,
}

impl Registry {
    /// Starts it and puts the images of `images` into it: OCI layouts in folders `NAME_TAG`.
    pub async fn start(names: &Names, data_dir: &Path, images: &Path) -> Result<Self> {
        let address = free_address(names)?;
        let dir = data_dir.join("registry");
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let config = dir.join("config.yml");
        std::fs::write(&config, configuration(&dir, &address))?;
        let command = ["docker-registry", "serve", &config.display().to_string()].map(String::from);
        let log = names.log("registry");
        let process = Process::start("the registry", OnOurDeath::Kill, &command, &[], &log, false)?;
        let mut registry = Registry { process, address };
        registry.wait().await?;
        registry.fill(images).await?;
        Ok(registry)
    }

    /// The mirror that a node's containerd needs for it: `HOST=URL`.
    pub fn mirror(&self) -> String {
        format!("{HOST}=http://{}", self.address)
    }

    async fn wait(&mut self) -> Result<()> {
        while TcpStream::connect(&self.address).await.is_err() {
            if let Some(status) = self.process.ended() {
                bail!("the registry ended at its start ({status}):\n{}", self.process.last_words());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn fill(&self, images: &Path) -> Result<()> {
        let entries = std::fs::read_dir(images)
            .with_context(|| format!("reading the folder of images {}", images.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((image, tag)) = name.rsplit_once('_') else { continue };
            let target = format!("docker://{}/{image}:{tag}", self.address);
            let output = tokio::process::Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", path.display()))
                .arg(&target)
                .output()
                .await
                .context("running skopeo")?;
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr);
                bail!("copying {} to the registry: {}", path.display(), why.trim());
            }
        }
        Ok(())
    }
}

/// Port 5000, or any other if that is taken.
fn free_address(names: &Names) -> Result<String> {
    let gateway = names.gateway();
    let listener =
        TcpListener::bind((gateway, 5000)).or_else(|_| TcpListener::bind((gateway, 0)))?;
    Ok(listener.local_addr()?.to_string())
}

fn configuration(dir: &Path, address: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: {address}\n",
        dir.join("data").display()
    )
}
