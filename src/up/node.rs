//! One node of a `rkube up`: namespaces, their first process, and the agent in them.

use super::host::Host;
use super::names::Names;
use super::process::{OnOurDeath, Process, own_program};
use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

/// What an agent is told beside its own name and address.
pub struct AgentSettings {
    pub server: String,
    pub token: String,
    pub mirrors: Vec<String>,
}

/// A node.
pub struct Node {
    pub name: String,
    pub ip: Ipv4Addr,
    index: u8,
    names: Names,
    /// `unshare`, which waits for the node's first process and takes it along when it dies.
    init: Option<Process>,
    /// The first process, as seen from the machine.
    init_pid: i32,
    agent: Option<Process>,
}

impl Node {
    pub fn new(names: &Names, index: u8) -> Self {
        Node {
            name: format!("node-{index}"),
            ip: names.node_ip(index),
            index,
            names: names.clone(),
            init: None,
            init_pid: 0,
            agent: None,
        }
    }

    /// Starts what of the node does not run.
    pub async fn start(&mut self, host: &Host, settings: &AgentSettings) -> Result<&'static str> {
        let running =
            |process: &mut Option<Process>| process.as_mut().is_some_and(|p| p.ended().is_none());
        if running(&mut self.init) && running(&mut self.agent) {
            return Ok("runs already");
        }
        if !running(&mut self.init) {
            self.boot(host).await.with_context(|| format!("starting {}", self.name))?;
        }
        self.start_agent(settings)?;
        Ok("started")
    }

    /// The namespaces and their first process; like a boot, with an empty /run.
    async fn boot(&mut self, host: &Host) -> Result<()> {
        super::leftovers::remove_cgroup(&self.names.cgroup(Some(&self.name))).await;
        let runtime_state = self.names.node_dir(&self.name).join("agent/containerd/run");
        if runtime_state.exists() {
            std::fs::remove_dir_all(&runtime_state)
                .with_context(|| format!("removing {}", runtime_state.display()))?;
        }
        let own = own_program().display().to_string();
        let flags = "--mount --uts --ipc --net --pid --fork --kill-child --mount-proc --propagation private";
        let mut command = vec!["unshare".to_string()];
        command.extend(flags.split(' ').map(String::from));
        command.extend([own, "node-init".into(), "--hostname".into(), self.name.clone()]);
        let log = self.names.log(&self.name);
        let mut init = Process::start(&self.name, OnOurDeath::Kill, &command, &[], &log, true)?;
        let stdout = init.stdout().context("the first process has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        if line.trim() != "ready" {
            bail!("its first process does not start:\n{}", init.last_words());
        }
        self.init_pid = init.id().and_then(|pid| only_child(pid.as_raw())).context("it died")?;
        self.init = Some(init);
        host.plug(self.index, self.init_pid).await
    }

    fn start_agent(&mut self, settings: &AgentSettings) -> Result<()> {
        let own = own_program().display().to_string();
        let pid = self.init_pid.to_string();
        let mut command: Vec<String> =
            ["nsenter", "--target", &pid, "--mount", "--uts", "--ipc", "--net", "--pid"]
                .map(String::from)
                .into();
        let dir = self.names.node_dir(&self.name);
        command.extend([own, "agent".into()]);
        for (flag, value) in [
            ("--server", settings.server.clone()),
            ("--node-name", self.name.clone()),
            ("--node-ip", self.ip.to_string()),
            ("--data-dir", dir.display().to_string()),
            ("--cgroup-root", self.names.cgroup(Some(&self.name))),
        ] {
            command.push(format!("{flag}={value}"));
        }
        command.extend(settings.mirrors.iter().map(|m| format!("--registry-mirror={m}")));
        let what = format!("the agent of {}", self.name);
        // It dies with the node's first process.
        let log = self.names.log(&self.name);
        let secrets = [("RKUBE_TOKEN", settings.token.as_str())];
        let agent = Process::start(&what, OnOurDeath::Nothing, &command, &secrets, &log, false)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Ends the node in good order: its processes are asked to end.
    pub async fn stop(&mut self) {
        if self.init_pid > 0 {
            let pid = nix::unistd::Pid::from_raw(self.init_pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        if let Some(init) = &mut self.init
            && tokio::time::timeout(Duration::from_secs(5), init.wait()).await.is_err()
        {
            tracing::warn!(node = self.name, "did not stop in time, killing it");
        }
        self.kill().await;
    }

    /// Ends the node at once, as if its power failed.
    pub async fn kill(&mut self) {
        // unshare takes the first process along, and that all others.
        if let Some(mut init) = self.init.take() {
            init.kill().await;
        }
        self.init_pid = 0;
        if let Some(mut agent) = self.agent.take() {
            agent.stop(Duration::from_secs(2)).await;
        }
        super::leftovers::remove_cgroup(&self.names.cgroup(Some(&self.name))).await;
    }

    /// A sentence about a process that has ended since the last call.
    pub fn news(&mut self) -> Option<String> {
        let name = &self.name;
        if let Some(status) = self.init.as_mut().and_then(Process::ended) {
            (self.init, self.agent, self.init_pid) = (None, None, 0);
            return Some(format!("{name} died ({status}); `rkube node start {name}` starts it"));
        }
        let agent = self.agent.as_mut()?;
        let status = agent.ended()?;
        let words = if status.success() { String::new() } else { agent.last_words() };
        self.agent = None;
        let advice = format!("its containers go on; `rkube node start {name}` starts it again");
        Some(format!("the agent of {name} ended ({status}); {advice}\n{words}"))
    }
}

/// The only child of a process.
fn only_child(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
