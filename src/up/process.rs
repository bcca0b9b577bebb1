//! Children: started with a log file and a tie to this process, ended in good order.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// A child process and what it is for.
pub struct Process {
    pub what: String,
    pub log: PathBuf,
    child: Child,
}

/// The signal that a child gets when we die.
pub enum OnOurDeath {
    /// SIGTERM: it ends in good order.
    Terminate,
    /// SIGKILL.
    Kill,
    /// None: something else ends it.
    Nothing,
}

/// The path of this very program, also after it was replaced on disk.
pub fn own_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(stripped) => stripped.into(),
        None => path,
    }
}

impl Process {
    /// Starts `command`, its output appended to `log`, in a process group of its own so that the
    /// terminal's Ctrl-C reaches us alone. `secrets` go into its environment, where `ps` does not
    /// show them.
    pub fn start(
        what: &str,
        on_our_death: OnOurDeath,
        command: &[String],
        secrets: &[(&str, &str)],
        log: &Path,
        piped_stdout: bool,
    ) -> Result<Self> {
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let tie: &[&str] = match on_our_death {
            OnOurDeath::Terminate => &["setpriv", "--pdeathsig", "TERM"],
            OnOurDeath::Kill => &["setpriv", "--pdeathsig", "KILL"],
            OnOurDeath::Nothing => &[],
        };
        let mut words = tie.iter().map(ToString::to_string).chain(command.iter().cloned());
        let program = words.next().context("an empty command")?;
        let mut start = Command::new(&program);
        start.args(words).envs(secrets.iter().copied()).stdin(Stdio::null()).process_group(0);
        start.stdout(if piped_stdout { Stdio::piped() } else { file.try_clone()?.into() });
        start.stderr(file);
        let child = start.spawn().with_context(|| format!("starting {what} ({program})"))?;
        Ok(Process { what: what.into(), log: log.into(), child })
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<Pid> {
        self.child.id().map(|id| Pid::from_raw(id as i32))
    }

    /// Its standard output, if it was piped and not taken yet.
    pub fn stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("waiting for {}", self.what))
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends SIGTERM, and SIGKILL if that does not end it in time.
    pub async fn stop(&mut self, patience: Duration) {
        if let Some(pid) = self.id() {
            let _ = kill(pid, Signal::SIGTERM);
        }
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// The end of its log, for a message about its death.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().map(|line| format!("    {line}\n")).collect()
    }
}
