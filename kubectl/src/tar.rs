//! Just enough tar for `cp`: files and folders, long names, and nothing that could lead outside
//! the folder that is unpacked into.

use std::io;
use std::path::{Component, Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BLOCK: usize = 512;
/// No name is longer; a header that says so is broken.
const MAX_NAME: u64 = 64 << 10;

/// What an archive holds next.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// The name as it stands in the archive.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// Kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A link, which may point anywhere, or a device.
    Other,
}

/// The header of an entry, with a preceding one for a name that does not fit.
pub fn header(name: &str, kind: Kind, size: u64, mode: u32) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > 100 {
        out.extend(block("././@LongLink", b'L', name.len() as u64 + 1, 0));
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let flag = if kind == Kind::Folder { b'5' } else { b'0' };
    out.extend(block(name, flag, size, mode));
    out
}

fn block(name: &str, flag: u8, size: u64, mode: u32) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    put(108, b"0000000\x000000000\x00");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The zeros that fill the last block of `size` bytes.
pub fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// Packs a file or folder under `name`.
pub async fn pack(path: &Path, name: &str, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut stack = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = stack.pop() {
        pack_one(&path, &name, out, &mut stack).await?;
    }
    out.write_all(&[0; 2 * BLOCK]).await
}

async fn pack_one(
    path: &Path,
    name: &str,
    out: &mut (impl AsyncWrite + Unpin),
    stack: &mut Vec<(PathBuf, String)>,
) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path)?;
    let mode = metadata.permissions().mode();
    if metadata.is_dir() {
        out.write_all(&header(&format!("{name}/"), Kind::Folder, 0, mode)).await?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let inner = entry.file_name().to_string_lossy().into_owned();
            stack.push((entry.path(), format!("{name}/{inner}")));
        }
        return Ok(());
    }
    let size = metadata.len();
    out.write_all(&header(name, Kind::File, size, mode)).await?;
    let mut file = tokio::fs::File::open(path).await?.take(size);
    let copied = tokio::io::copy(&mut file, out).await?;
    if copied < size {
        return Err(io::Error::other(format!(
            "{} became shorter while it was read",
            path.display()
        )));
    }
    out.write_all(&vec![0; padding(size)]).await
}

/// Reads the next entry's header; None at the end of the archive.
pub async fn next(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Entry>> {
    let mut long_name = None;
    loop {
        let mut block = [0u8; BLOCK];
        match from.read_exact(&mut block).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let size = number(&block[124..136]).ok_or_else(|| broken("a size"))?;
        match block[156] {
            b'L' => long_name = Some(text(&body(from, size).await?)),
            b'x' => long_name = pax_path(&body(from, size).await?).or(long_name),
            b'g' => drop(body(from, size).await?),
            flag => return Ok(Some(entry(&block, flag, size, long_name))),
        }
    }
}

fn entry(block: &[u8; BLOCK], flag: u8, size: u64, long_name: Option<String>) -> Entry {
    let short = || {
        let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
        if prefix.is_empty() || &block[257..262] != b"ustar" {
            name
        } else {
            format!("{prefix}/{name}")
        }
    };
    let kind = match flag {
        b'0' | 0 | b'7' => Kind::File,
        b'5' => Kind::Folder,
        _ => Kind::Other,
    };
    let mode = number(&block[100..108]).unwrap_or(0o644) as u32;
    Entry { name: long_name.unwrap_or_else(short), kind, size, mode }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("broken archive: {what} is no number"))
}

async fn body(from: &mut (impl AsyncRead + Unpin), size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_NAME {
        return Err(broken("a name's length"));
    }
    let mut bytes = vec![0; size as usize + padding(size)];
    from.read_exact(&mut bytes).await?;
    bytes.truncate(size as usize);
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let low = field[field.len() - 8..].try_into().ok()?;
        return Some(u64::from_be_bytes(low));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).ok()
}

/// The `path` of a pax header: lines of `LENGTH key=value`.
fn pax_path(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix("path=").map(str::to_owned))
}

/// Where an entry goes below `root`; None if its name leads elsewhere.
pub fn destination(root: &Path, name: &str) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(150);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub").join(&long), vec![7; 1000]).unwrap();
        let mut archive = Vec::new();
        pack(dir.path(), "top", &mut archive).await.unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        let mut from = archive.as_slice();
        let mut names = Vec::new();
        while let Some(entry) = next(&mut from).await.unwrap() {
            from = &from[entry.size as usize + padding(entry.size)..];
            names.push((entry.name, entry.kind, entry.size));
        }
        assert_eq!(
            names,
            [
                ("top/".into(), Kind::Folder, 0),
                ("top/sub/".into(), Kind::Folder, 0),
                (format!("top/sub/{long}"), Kind::File, 1000)
            ]
        );
    }

    #[test]
    fn no_way_out() {
        let root = Path::new("/r");
        assert_eq!(destination(root, "a/./b"), Some("/r/a/b".into()));
        for name in ["../x", "/etc/passwd", "a/../../x"] {
            assert_eq!(destination(root, name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn garbage_is_no_archive() {
        let mut from = [b'x'; 1024].as_slice();
        assert!(next(&mut from).await.is_err());
    }
}
