//! hostPath volumes: what the path has to be, and what may be made.

use std::fs::{self, FileType};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Checks that the path is of the wanted type; makes it for the types that say so.
pub fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("hostPath {}: {error}", path.display());
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        "FileOrCreate" if !path.exists() => {
            let mut options = fs::OpenOptions::new();
            options.create_new(true).write(true).mode(0o644).open(path).map_err(failed)?;
        }
        _ => {}
    }
    let is: fn(&FileType) -> bool = match kind {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => FileType::is_dir,
        "File" | "FileOrCreate" => FileType::is_file,
        "Socket" => FileType::is_socket,
        "CharDevice" => FileType::is_char_device,
        "BlockDevice" => FileType::is_block_device,
        other => return Err(format!("unknown hostPath type {other}")),
    };
    match fs::metadata(path) {
        Ok(found) if is(&found.file_type()) => Ok(()),
        Ok(_) => {
            Err(format!("hostPath type check failed: {} is not a {}", path.display(), word(kind)))
        }
        Err(_) => {
            Err(format!("hostPath type check failed: {} is not a {}", path.display(), word(kind)))
        }
    }
}

fn word(kind: &str) -> &str {
    match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        _ => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (made, file) = (dir.path().join("a/b"), dir.path().join("f"));
        assert!(prepare(&made, "Directory").is_err());
        assert!(prepare(&made, "DirectoryOrCreate").is_ok() && made.is_dir());
        assert!(prepare(&file, "FileOrCreate").is_ok() && file.is_file());
        assert!(prepare(&file, "Socket").unwrap_err().ends_with("f is not a socket file"));
        assert!(prepare(Path::new("/dev/null"), "CharDevice").is_ok());
        assert!(prepare(&dir.path().join("none"), "").is_ok());
    }
}
