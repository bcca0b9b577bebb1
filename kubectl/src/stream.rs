//! A process in a container, joined to our own streams.

use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use crate::resource::Info;
use crate::spdy::{self, Process, Wanted};
use crate::terminal::{self, RawTerminal};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// What to join.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// The container.
    pub container: String,
    /// Pass our stdin on.
    pub stdin: bool,
    /// With a terminal on both sides.
    pub tty: bool,
    /// Say nothing of our own.
    pub quiet: bool,
}

/// The kube API of a pod's namespace.
pub async fn api(ctx: &Context, pod: &Info) -> Result<Api<Pod>> {
    let client = ctx.http().await?.kube();
    Ok(Api::namespaced(client, pod.namespace.as_deref().unwrap_or("default")))
}

/// Runs a command in a container; None attaches to what runs there.
pub async fn start(
    ctx: &Context,
    pod: &Info,
    command: Option<&[String]>,
    streams: &Streams,
) -> Result<Process> {
    let sub = if command.is_some() { "exec" } else { "attach" };
    let mut pairs: Vec<(&str, String)> =
        command.into_iter().flatten().map(|c| ("command", c.clone())).collect();
    pairs.push(("container", streams.container.clone()));
    for (name, on) in [
        ("stdin", streams.stdin),
        ("stdout", true),
        // A terminal has one stream of output.
        ("stderr", !streams.tty),
        ("tty", streams.tty),
    ] {
        if on {
            pairs.push((name, "true".into()));
        }
    }
    let path = format!("{}/{sub}{}", pod.path(), crate::client::query(&pairs));
    let connection = ctx.http().await?.upgrade(&path, spdy::UPGRADE, spdy::PROTOCOL).await?;
    Ok(spdy::open(connection, Wanted { stdin: streams.stdin, tty: streams.tty }))
}

/// Joins the streams until the process ends; the error carries its exit code.
pub async fn join(ctx: &Context, mut process: Process, streams: &Streams) -> Result<()> {
    let raw = if streams.tty && streams.stdin { RawTerminal::enter() } else { None };
    let mut helpers = tokio::task::JoinSet::new();
    if let Some(sizes) = process.sizes.take() {
        helpers.spawn(follow_size(sizes));
    }
    if let Some(mut stdin) = process.stdin.take() {
        helpers.spawn(async move {
            // The end of our stdin is the end of the process's; a process that reads no more
            // ends the copying.
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut stdin).await;
            let _ = stdin.shutdown().await;
        });
    }
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let out = copy_out(stdout, |bytes| ctx.io.print(bytes));
    let err = copy_out(stderr, |bytes| ctx.io.print_err(bytes));
    let ((), (), status) = tokio::join!(out, err, process.status());
    drop(raw);
    outcome(ctx, &status, streams.quiet)
}

async fn copy_out(from: Option<impl AsyncRead + Unpin>, to: impl Fn(&[u8])) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 << 10];
    // A stream that breaks has nothing more to give; the status says what happened.
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        to(&buffer[..n]);
    }
}

async fn follow_size(sizes: mpsc::Sender<(u16, u16)>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some(size) = terminal::size()
            && sizes.send(size).await.is_err()
        {
            return;
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

fn outcome(ctx: &Context, status: &Value, quiet: bool) -> Result<()> {
    if status["status"] == "Success" {
        return Ok(());
    }
    if let Some(code) = exit_code(status) {
        if !quiet {
            ctx.io.note(format!("command terminated with exit code {code}"));
        }
        return Err(Error::Exit(code));
    }
    Err(Error::msg(failure(status)))
}

/// Why a process did not end by itself.
pub fn failure(status: &Value) -> String {
    match text(&status["message"]) {
        "" => "the connection to the container was lost before the process's end".into(),
        message => message.to_owned(),
    }
}

/// The exit code of a process that a status reports.
pub fn exit_code(status: &Value) -> Option<u8> {
    let cause = list(&status["details"]["causes"]).iter().find(|c| c["reason"] == "ExitCode")?;
    let code: i32 = text(&cause["message"]).parse().ok()?;
    Some(u8::try_from(code).unwrap_or(1))
}
