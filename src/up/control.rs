//! How `rkube node` reaches a running `rkube up`: a request and an answer, a JSON line each, over
//! a socket in the data directory.

use super::names::control_socket;
use crate::cli::NodeCommand;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What is to be done with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Stop,
    Start,
    Kill,
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub verb: Verb,
    pub name: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ok: bool,
    message: String,
}

/// `rkube node …`
pub async fn command(command: NodeCommand) -> Result<()> {
    let (verb, target) = match command {
        NodeCommand::Stop(target) => (Verb::Stop, target),
        NodeCommand::Start(target) => (Verb::Start, target),
        NodeCommand::Kill(target) => (Verb::Kill, target),
    };
    let socket = control_socket(&target.data.data_dir);
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "no `rkube up` runs with {} (tried {})",
            target.data.data_dir.display(),
            socket.display()
        )
    })?;
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_string(&Request { verb, name: target.name })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_line(&mut reply).await?;
    let answer: Answer = serde_json::from_str(&reply).context("`rkube up` ended meanwhile")?;
    if !answer.ok {
        bail!("{}", answer.message);
    }
    println!("{}", answer.message);
    Ok(())
}

/// The end that listens.
pub struct Control {
    listener: UnixListener,
}

/// A request with its line back.
pub struct Call {
    pub request: Request,
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Listens; only root may connect, since the data directory is root's.
    pub fn listen(socket: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        Ok(Control { listener })
    }

    /// The next request that makes sense.
    pub async fn next(&self) -> Result<Call> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if stream.read_line(&mut line).await.is_err() {
                continue;
            }
            match serde_json::from_str(&line) {
                Ok(request) => return Ok(Call { request, stream }),
                Err(error) => {
                    tracing::warn!(%error, "a request that makes no sense");
                }
            }
        }
    }
}

impl Call {
    /// Answers; a caller that has left is no matter.
    pub async fn answer(mut self, outcome: Result<String>) {
        let answer = match outcome {
            Ok(message) => Answer { ok: true, message },
            Err(error) => Answer { ok: false, message: format!("{error:#}") },
        };
        if let Ok(mut line) = serde_json::to_string(&answer) {
            line.push('\n');
            let _ = self.stream.write_all(line.as_bytes()).await;
        }
    }
}
