//! The first process of a node of `rkube up`.
//!
//! It sets up the node's mounts, says so on standard output, and then reaps what is left to it.
//! SIGTERM ends the node in good order; its own end, however it comes, ends all of the node.

use crate::cli::NodeInitArgs;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use std::io::Write;
use std::time::{Duration, Instant};

/// How long the node's processes get to end by themselves.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs until SIGTERM.
pub fn run(args: &NodeInitArgs) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    sethostname(&args.hostname).context("setting the host name")?;
    for dir in ["/run/containerd", "/var/lib/cni"] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {dir}"))?;
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0711"))
            .with_context(|| format!("mounting {dir}"))?;
    }
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        match signals.wait().context("waiting for signals")? {
            Signal::SIGCHLD => {
                reap();
            }
            _ => return end(),
        }
    }
}

/// Reaps all that has died; says whether any child is left.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Asks every process of the node to end, and leaves when they have or time is up: the kernel
/// then kills the rest.
fn end() -> Result<()> {
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
    let began = Instant::now();
    while reap() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
