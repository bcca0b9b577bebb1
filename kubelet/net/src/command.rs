//! Running `ip` and `nft` with a script on standard input.

use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A change of the node's network that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The tool is missing or could not be started.
    #[error("cannot run {tool}: {source}; install the package that has it (iproute2, nftables)")]
    Start {
        /// `ip` or `nft`
        tool: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tool refused.
    #[error("{tool} failed: {message} (script: {script})")]
    Refused {
        /// `ip` or `nft`
        tool: &'static str,
        /// What it wrote to standard error.
        message: String,
        /// What it was told.
        script: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tool's answer is not what it should be.
    #[error("cannot read the answer of {tool}: {message}")]
    Answer {
        /// `ip` or `nft`
        tool: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// Runs `tool args` with `script` on standard input and gives back its standard output.
pub async fn run(tool: &'static str, args: &[&str], script: &str) -> Result<String, NetError> {
    let start = |source| NetError::Start { tool, source };
    let mut child = Command::new(tool)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends early closes the pipe; its exit status tells why.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetError::Refused {
        tool,
        message: String::from_utf8_lossy(&output.stderr).trim().into(),
        script: script.into(),
    })
}

/// Applies an nftables script in one transaction.
pub async fn nft(script: &str) -> Result<(), NetError> {
    run("nft", &["-f", "-"], script).await.map(drop)
}

/// Runs commands of `ip`, one a line; stops at the first that fails.
pub async fn ip_batch(script: &str) -> Result<(), NetError> {
    run("ip", &["-batch", "-"], script).await.map(drop)
}

/// The answer of `ip -json args`.
pub async fn ip_json(args: &[&str]) -> Result<serde_json::Value, NetError> {
    let mut all = vec!["-json"];
    all.extend(args);
    let text = run("ip", &all, "").await?;
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).map_err(|e| NetError::Answer { tool: "ip", message: e.to_string() })
}

/// Writes a kernel setting, `net/ipv4/ip_forward` for example.
pub fn sysctl(name: &str, value: &str) -> Result<(), NetError> {
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, value).map_err(|source| NetError::File { path, source })
}
