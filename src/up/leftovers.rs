//! What a `rkube up` leaves on the machine when it could not clean up after itself: the bridge,
//! the rules and the pods' cgroups. Processes, mounts and namespaces end with it.

use super::names::Names;
use anyhow::Result;
use rkube_net::command::{ip_json, run};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Removes whatever there is.
pub async fn remove(names: &Names) -> Result<()> {
    remove_links(names).await?;
    let _ = std::fs::remove_file(names.control_socket());
    // A table that is not there makes no error this way.
    let table = names.table();
    run("nft", &["-f", "-"], &format!("add table ip {table}\ndelete table ip {table}\n")).await?;
    remove_cgroup(&names.cgroup(None)).await;
    Ok(())
}

/// Removes the bridge and the nodes' cables. A cable goes with its node's namespace, but the
/// kernel takes its time over that.
async fn remove_links(names: &Names) -> Result<()> {
    // Not /sys/class/net: it may show another network's devices.
    let links = ip_json(&["link", "show"]).await?;
    let ours = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    for link in ours.filter(|link| link.starts_with(&names.bridge())) {
        remove_link(link).await;
    }
    Ok(())
}

/// Removes a link; one that has gone by itself meanwhile is no fault.
pub async fn remove_link(link: &str) {
    if let Err(error) = run("ip", &["link", "delete", link], "").await {
        tracing::debug!(%error, link, "removing a link");
    }
}

/// Removes a cgroup in every hierarchy, with what is below it. The kernel lets go of the last
/// process a moment after it died.
pub async fn remove_cgroup(cgroup: &str) {
    for attempt in 0..100 {
        let left = hierarchies().into_iter().map(|h| h.join(&cgroup[1..])).filter(|d| d.exists());
        let left: Vec<PathBuf> = left.filter(|dir| !remove_tree(dir)).collect();
        if left.is_empty() {
            return;
        }
        if attempt == 99 {
            tracing::warn!(?left, "cgroups are still in use");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The roots of all cgroup hierarchies: one for v2, one a controller for v1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.into()];
    }
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// Removes a cgroup and those below it; says whether it is gone.
fn remove_tree(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    std::fs::remove_dir(dir).is_ok() || !dir.exists()
}
