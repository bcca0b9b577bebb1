//! A pod's volumes: folders of the node that are mounted into its containers.
//!
//! Everything lies below `<pod dir>/volumes/<name>`. Making volumes is safe to repeat: what is
//! there stays, and files from objects are replaced all at once when the objects have changed.

mod host_path;
mod payload;
mod subpath;
mod writer;

use super::env::Place;
use crate::objects::{Key, Objects};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use kube::ResourceExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

pub use payload::token_seconds;
pub use subpath::mount_sub_path;
pub use writer::{Payload, PayloadFile, write_atomically};

/// Where a volume is to be found on the node.
pub fn source_path(pod_dir: &Path, volume: &Volume) -> PathBuf {
    match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => pod_dir.join("volumes").join(&volume.name),
    }
}

/// Objects that the pod's volumes are made from.
pub fn objects_of(pod: &Pod) -> BTreeSet<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
    volumes.flat_map(|volume| payload::objects_of(volume, &namespace)).collect()
}

/// Makes all volumes, or brings them up to date.
///
/// # Errors
/// Names the volume and what is missing.
pub async fn prepare(
    pod: &Pod,
    pod_dir: &Path,
    place: &Place,
    objects: &Objects,
) -> Result<(), String> {
    let group = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref()?.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    for volume in pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
        let made = prepare_one(pod, volume, pod_dir, place, objects, group).await;
        made.map_err(|error| {
            format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name)
        })?;
    }
    Ok(())
}

async fn prepare_one(
    pod: &Pod,
    volume: &Volume,
    pod_dir: &Path,
    place: &Place,
    objects: &Objects,
    group: Option<u32>,
) -> Result<(), String> {
    let path = source_path(pod_dir, volume);
    if let Some(host) = &volume.host_path {
        return host_path::prepare(&path, host.type_.as_deref().unwrap_or_default());
    }
    if let Some(empty) = &volume.empty_dir {
        return empty_dir(&path, empty, group).map_err(|error| error.to_string());
    }
    let Some(files) = payload::collect(pod, volume, place, objects).await? else {
        return Err("this kind of volume is not supported".to_owned());
    };
    let in_memory = payload::is_secret(volume);
    let write = move || -> io::Result<()> {
        fs::create_dir_all(&path)?;
        if in_memory && !is_mount(&path)? {
            mount_tmpfs(&path, None)?;
        }
        write_atomically(&path, &files, group)
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    let is_new = !path.exists();
    fs::create_dir_all(path)?;
    if source.medium.as_deref() == Some("Memory") && !is_mount(path)? {
        let limit = source.size_limit.as_ref().and_then(|q| super::resources::whole(&q.0));
        mount_tmpfs(path, limit.filter(|bytes| *bytes > 0))?;
    } else if !is_new {
        return Ok(());
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    chown(path, None, group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn mount_tmpfs(path: &Path, size_bytes: Option<i64>) -> io::Result<()> {
    let options = size_bytes.map(|bytes| format!("size={bytes}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref())?;
    Ok(())
}

/// Whether something is mounted on the folder itself.
fn is_mount(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Unmounts everything below a pod's folder and removes the folder.
///
/// # Errors
/// When something can't be unmounted: nothing below a mount is ever removed.
pub fn remove(pod_dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // The last mounted first: mounts may lie on each other.
    for line in mounts.lines().rev() {
        let Some(target) = line.split(' ').nth(4).map(unescape) else { continue };
        if target.starts_with(pod_dir) {
            umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        }
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The kernel writes blanks and the like as octal escapes.
fn unescape(text: &str) -> PathBuf {
    let text = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    PathBuf::from(text.replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_dirs_are_open_to_all_users() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes/x");
        empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("kept"), "1").unwrap();
        empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        assert!(path.join("kept").exists());
        remove(dir.path()).unwrap();
        assert!(!dir.path().exists());
    }
}
