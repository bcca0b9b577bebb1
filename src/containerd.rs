//! A containerd of the node's own: its configuration, its start, the pause image.
//!
//! It is started detached and outlives the agent: containers must not notice that an agent is
//! restarted. An agent that finds its socket answered uses what is there, and while it runs it
//! starts a containerd that died again: containers go on without one.

use crate::pause;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;

/// How long a containerd may take to answer; here it takes 0.1 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to start one that ends again at once; doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that has run for this long is started again without a pause.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// A containerd below one folder.
pub struct Containerd {
    dir: PathBuf,
    /// Images of `host` come from `url` instead (`[(host, url)]`); plain http is allowed.
    mirrors: Vec<(String, String)>,
}

impl Containerd {
    /// A containerd that keeps all it has below `dir`.
    pub fn new(dir: PathBuf, mirrors: Vec<(String, String)>) -> Self {
        Containerd { dir, mirrors }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Where it reads the pod network's configuration.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// Where the address allocator of the pod network keeps its leases.
    pub fn ipam_dir(&self) -> PathBuf {
        self.dir.join("ipam")
    }

    /// Starts it unless it runs already, and returns once it listens.
    pub async fn ensure(&self) -> Result<()> {
        self.write_config()?;
        if UnixStream::connect(self.socket()).await.is_ok() {
            return Ok(());
        }
        let log = self.dir.join("containerd.log");
        if log.exists() {
            // The last words of the one before.
            std::fs::rename(&log, self.dir.join("containerd.log.1"))?;
        }
        let out = std::fs::File::create(&log)
            .with_context(|| format!("creating containerd's log {}", log.display()))?;
        let mut child = Command::new("containerd")
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .context("starting containerd (is the package containerd installed?)")?;
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        while UnixStream::connect(self.socket()).await.is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("containerd ended at its start ({status}); see {}", log.display());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("containerd does not listen; see {}", log.display());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts it again whenever it has died, for as long as this is polled.
    pub async fn keep(&self) {
        let mut last = None;
        loop {
            let ran = self.ended().await;
            let pause = next_pause(last, ran);
            last = Some(pause);
            tracing::warn!(?ran, ?pause, "containerd has ended, starting it again");
            tokio::time::sleep(pause).await;
            if let Err(error) = self.ensure().await {
                tracing::error!("starting containerd again: {error:#}");
            }
        }
    }

    /// Returns once nothing listens; how long something has.
    ///
    /// An open connection tells of a death at once, whoever started it. containerd also closes one
    /// on which nothing is asked, after two minutes, so that a new one has to fail as well.
    async fn ended(&self) -> Duration {
        let began = tokio::time::Instant::now();
        while let Ok(mut connection) = UnixStream::connect(self.socket()).await {
            let mut greeting = [0; 256];
            while connection.read(&mut greeting).await.is_ok_and(|read| read > 0) {}
        }
        began.elapsed()
    }

    /// Imports the pause image if this containerd has never had it.
    pub async fn import_pause(&self) -> Result<()> {
        let marker = self.dir.join("root").join("pause-image");
        if std::fs::read_to_string(&marker).is_ok_and(|name| name == pause::IMAGE) {
            return Ok(());
        }
        let archive = self.dir.join("pause.tar");
        std::fs::write(&archive, pause::oci_archive())
            .with_context(|| format!("writing {}", archive.display()))?;
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .await
            .context("running ctr (it comes with containerd)")?;
        if !output.status.success() {
            bail!("importing the pause image: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::remove_file(&archive)?;
        Ok(std::fs::write(&marker, pause::IMAGE)?)
    }

    fn write_config(&self) -> Result<()> {
        let write = |path: PathBuf, text: &str| -> Result<()> {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("creating {}", parent.display()))?;
            }
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        std::fs::create_dir_all(self.cni_conf_dir())?;
        std::fs::create_dir_all(self.dir.join("root"))?;
        write(self.dir.join("config.toml"), &config(&self.dir))?;
        for (host, url) in &self.mirrors {
            let text = format!(
                "server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            );
            write(self.dir.join("certs.d").join(host).join("hosts.toml"), &text)?;
        }
        Ok(())
    }
}

/// How long to wait with the next start: the last pause, and how long that start has run.
fn next_pause(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < GOOD_RUN => (last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
        _ => Duration::ZERO,
    }
}

/// The configuration file. Nothing is shared with another containerd on the machine.
///
/// `restrict_oom_score_adj`: a machine that is itself a container may not lower a score.
fn config(dir: &Path) -> String {
    let d = dir.display();
    let pause = pause::IMAGE;
    format!(
        r#"version = 2
root = "{d}/root"
state = "{d}/run"
[grpc]
  address = "{d}/containerd.sock"
[ttrpc]
  address = "{d}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{d}/root/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{d}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{d}/run/runc"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_good_run() {
        let second = Duration::from_secs(1);
        let mut last = None;
        let mut pause = || {
            last = Some(next_pause(last, second));
            last.unwrap().as_millis()
        };
        let pauses: Vec<u128> = (0..10).map(|_| pause()).collect();
        assert_eq!(pauses, [0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        assert_eq!(next_pause(Some(second), GOOD_RUN + second), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_end_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let containerd = Containerd::new(dir.path().to_owned(), Vec::new());
        let listener = tokio::net::UnixListener::bind(containerd.socket()).unwrap();
        let watching = tokio::spawn(async move { containerd.ended().await });
        let (connection, _) = listener.accept().await.unwrap();
        assert!(!watching.is_finished());
        drop(listener);
        drop(connection);
        watching.await.unwrap();
    }
}
