//! Files that change all at once.
//!
//! A volume holds `..<version>` folders with the files, `..data` pointing at the current one, and
//! links `name -> ..data/name` for what a user sees. A new version is complete before `..data` is
//! renamed onto it, so a reader sees one version or the other and never a mixture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFile {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, PayloadFile>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` show just the files of `payload`; nothing is written if it does so already.
///
/// # Errors
/// A path that leads out of the volume, or the disk's error; the old version stays.
pub fn write_atomically(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    if is_current(dir, payload)? {
        return Ok(());
    }
    let version = fresh_version(dir)?;
    let target = dir.join(&version);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&target, path, file, group)?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    match fs::remove_file(dir.join(DATA_NEW)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&version, dir.join(DATA_NEW))?;
    fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
    link_names(dir, payload)?;
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn check(path: &str) -> io::Result<()> {
    let mut parts = Path::new(path).components().peekable();
    let hidden = path.starts_with("..");
    let plain = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    match plain && !hidden {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}"))),
    }
}

fn top(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn fresh_version(dir: &Path) -> io::Result<String> {
    (1u64..)
        .map(|number| format!("..{number}"))
        .find(|name| !dir.join(name).exists())
        .ok_or_else(|| io::Error::other("no free version"))
}

fn write_file(root: &Path, path: &str, file: &PayloadFile, group: Option<u32>) -> io::Result<()> {
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&target, &file.data)?;
    let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
    chown(&target, None, group)?;
    fs::set_permissions(&target, Permissions::from_mode(mode))
}

fn is_current(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let data = dir.join(DATA);
    if !data.exists() {
        return Ok(false);
    }
    let mut paths = BTreeSet::new();
    collect(&data, "", &mut paths)?;
    Ok(paths.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            paths.contains(path) && fs::read(data.join(path)).is_ok_and(|data| data == file.data)
        }))
}

fn collect(dir: &Path, prefix: &str, into: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), &format!("{path}/"), into)?,
            false => {
                into.insert(path);
            }
        }
    }
    Ok(())
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().map(|path| top(path)).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| PayloadFile { data: data.into(), mode: 0o644 };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn versions_replace_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_atomically(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(names(dir), ["..1", "..data", "a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        write_atomically(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(names(dir), ["..1", "..data", "a", "sub"], "nothing has changed");
        write_atomically(dir, &payload(&[("a", "3")]), None).unwrap();
        assert_eq!(names(dir), ["..2", "..data", "a"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            let written = write_atomically(dir.path(), &payload(&[(path, "")]), None);
            assert!(written.is_err(), "{path}");
        }
        assert!(names(dir.path()).is_empty());
    }
}
