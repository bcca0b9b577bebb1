//! subPath: one entry of a volume mounted instead of the whole.
//!
//! A container may have put symbolic links into the volume, so the path is resolved, checked to
//! lie inside, and then opened part by part without following links. What was opened is bound to a
//! place of the kubelet's own: whatever is renamed afterwards, the runtime mounts what was checked.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Binds `sub_path` of `volume` to `target`, making missing folders; gives the path to mount.
///
/// # Errors
/// A path that leads out of the volume, or the disk's error.
pub fn mount_sub_path(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, String> {
    bind(volume, sub_path, target)
        .map_err(|error| format!("failed to prepare subPath {sub_path:?} of volume: {error}"))
}

fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    if is_bound(target) {
        return Ok(target.to_owned());
    }
    let relative = resolve(volume, sub_path)?;
    let opened = open_inside(volume, &relative)?;
    let is_dir = SFlag::from_bits_truncate(fstat(&opened)?.st_mode).contains(SFlag::S_IFDIR);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::write(target, "")?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(target.to_owned())
}

fn is_bound(target: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let target = target.to_string_lossy();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&target))
}

fn outside(path: &Path) -> io::Error {
    let text = format!("{} is not inside the volume", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// The path without links, relative to the volume; parts that don't exist yet are taken as given.
fn resolve(volume: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let wanted = Path::new(sub_path);
    if !wanted.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside(wanted));
    }
    let root = volume.canonicalize()?;
    let (mut there, mut missing) = (root.join(wanted), Vec::new());
    let resolved = loop {
        match there.canonicalize() {
            Ok(path) => break path,
            Err(error) if error.kind() == io::ErrorKind::NotFound && there != root => {
                // A link to nowhere is not a folder that may be made.
                if fs::symlink_metadata(&there).is_ok() {
                    return Err(outside(&there));
                }
                missing.extend(there.file_name().map(ToOwned::to_owned));
                there.pop();
            }
            Err(error) => return Err(error),
        }
    };
    let inside = resolved.strip_prefix(&root).map_err(|_| outside(&resolved))?;
    Ok(missing.into_iter().rev().fold(inside.to_owned(), |path, part| path.join(part)))
}

/// Opens each part from the one before it, never following a link.
fn open_inside(volume: &Path, relative: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mut at = open(&volume.canonicalize()?, flags, Mode::empty())?;
    for part in relative.components() {
        let Component::Normal(name) = part else { return Err(outside(relative)) };
        let next = match openat(&at, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
                openat(&at, name, flags, Mode::empty())?
            }
            other => other?,
        };
        if SFlag::from_bits_truncate(fstat(&next)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFLNK
        {
            return Err(outside(relative));
        }
        at = next;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_may_lead_around_inside_but_not_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("..1")).unwrap();
        fs::write(volume.join("..1/key"), "x").unwrap();
        symlink("..1", volume.join("..data")).unwrap();
        symlink("..data/key", volume.join("key")).unwrap();
        symlink("/etc", volume.join("out")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        assert_eq!(resolve(&volume, "key").unwrap(), Path::new("..1/key"));
        assert_eq!(resolve(&volume, "new/deep").unwrap(), Path::new("new/deep"));
        for bad in ["out", "out/passwd", "../x", "/etc", "dangling", "dangling/x"] {
            assert!(resolve(&volume, bad).is_err(), "{bad}");
        }
        assert!(open_inside(&volume, Path::new("new/deep")).is_ok());
        assert!(volume.join("new/deep").is_dir());
        assert!(open_inside(&volume, Path::new("out")).is_err());
    }
}
