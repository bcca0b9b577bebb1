//! `rkube up`: a cluster on this machine.
//!
//! One control-plane child and, for each node, a first process ([`crate::node_init`]) in mount,
//! PID, UTS and network namespaces of its own with an agent in them. All of a node dies with its
//! first process, and that with us, so nothing outlives a `rkube up` that was killed but empty
//! cgroups, a bridge and a table of rules: the next start removes those ([`leftovers`]).
//!
//! Everything runs on one thread: the kernel's parent-death signal is tied to the thread that
//! started a child, and a pool's threads come and go.

mod cluster;
mod control;
mod host;
mod leftovers;
mod names;
mod node;
mod process;
mod progress;
mod registry;

pub use control::command as node_command;

use crate::cli::UpArgs;
use anyhow::{Context, Result, bail, ensure};
use cluster::Cluster;
use names::Names;
use nix::fcntl::{Flock, FlockArg};
use progress::Progress;
use std::fs::File;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the cluster until it is told to end.
pub async fn run(mut args: UpArgs) -> Result<()> {
    preflight(&args)?;
    std::fs::create_dir_all(&args.data.data_dir)
        .with_context(|| format!("creating {}", args.data.data_dir.display()))?;
    args.data.data_dir = args.data.data_dir.canonicalize()?;
    let _lock = lock(&args.data.data_dir)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    tokio::pin!(stop);

    let names = Names::new(&args);
    leftovers::remove(&names).await?;
    if args.fresh {
        forget(&args.data.data_dir)?;
    }
    let mut progress = Progress::new();
    let mut cluster = Cluster::new(args, names);
    let outcome = tokio::select! {
        outcome = cluster.start(&mut progress) => outcome,
        () = &mut stop => Err(anyhow::anyhow!("interrupted")),
    };
    let outcome = match outcome {
        Ok(()) => {
            cluster.print_welcome();
            cluster.supervise(stop).await
        }
        Err(error) => Err(error),
    };
    println!("\nstopping: the data directory stays, the next `rkube up` continues with it");
    cluster.stop().await;
    outcome
}

/// Refuses early what could only fail later.
fn preflight(args: &UpArgs) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "rkube up makes namespaces and containers: run it as root"
    );
    let mut needed = vec![
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("setpriv", "util-linux"),
    ];
    if args.registry_images.is_some() {
        needed.extend([("docker-registry", "docker-registry"), ("skopeo", "skopeo")]);
    }
    let mut missing: Vec<&str> =
        needed.iter().filter(|(tool, _)| !in_path(tool)).map(|(_, package)| *package).collect();
    if !Path::new("/usr/lib/cni/bridge").exists() {
        missing.push("containernetworking-plugins");
    }
    missing.dedup();
    ensure!(
        missing.is_empty(),
        "missing on this machine: {}; `apt-get install {}` brings them",
        missing.join(", "),
        missing.join(" ")
    );
    Ok(())
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// One `rkube up` for a data directory.
fn lock(data_dir: &Path) -> Result<Flock<File>> {
    let path = data_dir.join("up.lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("another `rkube up` runs with the data directory {}", data_dir.display()),
    }
}

/// Removes what an earlier run left, and nothing else that may be in the folder.
fn forget(data_dir: &Path) -> Result<()> {
    for name in ["server", "nodes", "registry", "logs", "admin.kubeconfig"] {
        let path = data_dir.join(name);
        let removed = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(_) => Ok(()),
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
