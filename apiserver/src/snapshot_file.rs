//! The file that `rkube snapshot save` writes: two lines that say what it is, then the state as the
//! store writes it.
//!
//! ```text
//! rkube-snapshot 1 <SHA-256 of "rkube-snapshot 1", a newline and the second line>
//! {"clusterID":…,"revision":…,"objects":…,"bytes":…,"sha256":…,"version":…,"created":…}
//! <bytes of state>
//! ```
//!
//! So it is checked to its last byte before anything is done with it. It is not encrypted: it holds
//! Secrets in plain, and is written for its owner alone. It holds no keys of the cluster.

use crate::member_file::HexId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

const MAGIC: &str = "rkube-snapshot";
const FORMAT: u32 = 1;
/// The two lines are shorter than this; what is longer is something else.
const LONGEST_LINE: u64 = 4096;

/// Why a file is no good snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be read or written.
    #[error("{action} {path}")]
    File {
        /// `reading`, `writing`
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no snapshot: {why}")]
    Other {
        /// The file.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// It was a snapshot once.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// A newer program wrote it.
    #[error("{path} has format {found}; this program knows formats up to {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The cluster that it is of.
    #[serde(rename = "clusterID")]
    pub cluster_id: HexId,
    /// The revision of its last change.
    pub revision: u64,
    /// How many objects it holds.
    pub objects: u64,
    /// Bytes of the state.
    pub bytes: u64,
    /// SHA-256 of the state, in hexadecimal.
    pub sha256: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// When, as RFC 3339.
    pub created: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Summary {
    /// The two lines before the state.
    ///
    /// # Errors
    /// Never, but for the shape of the encoder.
    pub fn head(&self) -> Result<String, serde_json::Error> {
        let line = serde_json::to_string(self)?;
        Ok(format!("{MAGIC} {FORMAT} {}\n{line}\n", hash_of_head(FORMAT, &line)))
    }
}

fn hash_of_head(format: u32, line: &str) -> String {
    hex(&Sha256::digest(format!("{MAGIC} {format}\n{line}")))
}

/// Writes on, and knows the length and hash of what it wrote.
pub struct Hashed<W> {
    out: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Hashed<W> {
    /// Nothing written yet.
    pub fn new(out: W) -> Self {
        Hashed { out, hash: Sha256::new(), length: 0 }
    }

    /// Length and SHA-256 of all that was written.
    pub fn finish(self) -> (u64, String) {
        (self.length, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Reads a snapshot to its end and checks it.
///
/// # Errors
/// If it is damaged, cut off, of a newer format, or no snapshot.
pub fn check(path: &Path) -> Result<Summary, SnapshotError> {
    extract(path, &mut std::io::sink())
}

/// The same; the state goes to `out` while it is checked, so it counts only on success.
///
/// # Errors
/// The same, and what `out` says.
pub fn extract(path: &Path, out: &mut dyn Write) -> Result<Summary, SnapshotError> {
    let io = |source| SnapshotError::File { action: "reading", path: path.into(), source };
    let damaged = |why: String| SnapshotError::Damaged { path: path.into(), why };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(io)?);
    let summary = read_head(path, &mut file)?;
    let mut out = Hashed::new(out);
    std::io::copy(&mut file, &mut out).map_err(io)?;
    let (bytes, sha256) = out.finish();
    match bytes.cmp(&summary.bytes) {
        std::cmp::Ordering::Less => {
            Err(damaged(format!("it is cut off: {bytes} of {} bytes are there", summary.bytes)))
        }
        std::cmp::Ordering::Greater => {
            Err(damaged(format!("{} bytes too many", bytes - summary.bytes)))
        }
        std::cmp::Ordering::Equal if sha256 != summary.sha256 => {
            Err(damaged("its hash is not the one that it names".into()))
        }
        std::cmp::Ordering::Equal => Ok(summary),
    }
}

fn read_head(path: &Path, file: &mut impl BufRead) -> Result<Summary, SnapshotError> {
    let first = read_line(path, file)?;
    let other = |why: &str| SnapshotError::Other { path: path.into(), why: why.into() };
    let mut words = first.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(other("it does not begin like one"));
    }
    let format = match words.next().and_then(|w| w.parse::<u32>().ok()) {
        None => return Err(other("its first line is not understood")),
        Some(found) if found > FORMAT => {
            return Err(SnapshotError::Newer { path: path.into(), found });
        }
        Some(format) => format,
    };
    let second = read_line(path, file)?;
    if words.next() != Some(&*hash_of_head(format, &second)) {
        let why = "its head is not what its hash says".into();
        return Err(SnapshotError::Damaged { path: path.into(), why });
    }
    serde_json::from_str(&second).map_err(|e| other(&format!("its head is not understood: {e}")))
}

fn read_line(path: &Path, file: &mut impl BufRead) -> Result<String, SnapshotError> {
    let mut line = Vec::new();
    file.take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|source| SnapshotError::File {
        action: "reading",
        path: path.into(),
        source,
    })?;
    let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
    text.map(str::to_owned).ok_or_else(|| SnapshotError::Other {
        path: path.into(),
        why: "it does not begin like one, or is cut off there".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let state = b"some state\nof two lines".to_vec();
        let summary = Summary {
            cluster_id: HexId(7),
            revision: 42,
            objects: 3,
            bytes: state.len() as u64,
            sha256: hex(&Sha256::digest(&state)),
            version: "0.1.0".into(),
            created: "2026-01-01T00:00:00Z".into(),
        };
        let mut bytes = summary.head().unwrap().into_bytes();
        bytes.extend_from_slice(&state);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, &bytes).unwrap();
        (dir, path, bytes)
    }

    #[test]
    fn a_good_file_gives_back_its_state() {
        let (_dir, path, _) = file();
        let mut state = Vec::new();
        let summary = extract(&path, &mut state).unwrap();
        assert_eq!((summary.revision, summary.objects), (42, 3));
        assert_eq!(state, b"some state\nof two lines");
        assert_eq!(check(&path).unwrap(), summary);
    }

    #[test]
    fn no_changed_bit_and_no_cut_passes() {
        let (_dir, path, good) = file();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(check(&path).is_err(), "a flip at {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(check(&path).is_err(), "a cut at {at}");
        }
        let longer = [&good[..], b"x"].concat();
        std::fs::write(&path, longer).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("1 bytes too many"));
    }

    #[test]
    fn errors_say_what_is_there_instead() {
        let (dir, path, good) = file();
        let said = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            check(&path).unwrap_err().to_string()
        };
        assert!(said(b"").contains("no snapshot"));
        assert!(said(&[0; 10_000]).contains("no snapshot"));
        assert!(said(&good[..good.len() - 1]).contains("cut off: 22 of 23 bytes"));
        let newer = String::from_utf8(good).unwrap().replacen("snapshot 1", "snapshot 2", 1);
        assert!(said(newer.as_bytes()).contains("format 2"));
        assert!(check(&dir.path().join("none")).unwrap_err().to_string().contains("reading"));
    }
}
