//! What a member keeps beside its store in `server/member.json`: as whom it was added to a cluster,
//! the keys it was given until they lie in `pki/`, and that it was removed.
//!
//! The file is the one step of a join that counts: it is written whole, synced and renamed before
//! anything else is. A crash before leaves nothing, a crash after it a member that goes on. A
//! member that founded its cluster has none until it is removed.

use crate::pki::{self, Pair, PkiError};
use rkube_store::Identity;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::{Path, PathBuf};

/// An id as people and JSON see it: 16 hexadecimal digits, since JSON's numbers lose the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HexId(pub u64);

impl std::fmt::Display for HexId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for HexId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no id: 16 hexadecimal digits are expected");
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits {
            return Err(form());
        }
        u64::from_str_radix(text, 16).map(HexId).map_err(|_| form())
    }
}

impl Serialize for HexId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The keys that all members share.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedKeys {
    /// The CA's certificate, PEM.
    pub ca_certificate: String,
    /// The CA's key, PEM.
    pub ca_key: String,
    /// Signs service account tokens, PEM.
    pub service_account_key: String,
}

impl SharedKeys {
    /// The CA as a pair.
    pub fn ca(&self) -> Pair {
        Pair { certificate: self.ca_certificate.clone(), key: self.ca_key.clone() }
    }
}

/// A member as one that joins is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedMember {
    /// Its id.
    pub id: HexId,
    /// Its name.
    pub name: String,
    /// Host and port of its peer service.
    pub peer_address: String,
}

/// What became of the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It was added to a cluster.
    Joined,
    /// It was removed from it, for ever.
    Removed,
}

/// The content of `member.json`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberFile {
    /// The cluster.
    #[serde(rename = "clusterID")]
    pub cluster_id: HexId,
    /// The member.
    #[serde(rename = "memberID")]
    pub member_id: HexId,
    /// What became of it.
    pub state: State,
    /// What it was given, until that lies in `pki/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<SharedKeys>,
    /// Whom it can ask for the first time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<ListedMember>,
}

fn path(store_dir: &Path) -> PathBuf {
    store_dir.join("member.json")
}

impl MemberFile {
    /// Of a member that was just added.
    pub fn joined(identity: Identity, keys: SharedKeys, members: Vec<ListedMember>) -> Self {
        MemberFile {
            cluster_id: HexId(identity.cluster_id),
            member_id: HexId(identity.member_id),
            state: State::Joined,
            keys: Some(keys),
            members,
        }
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        Identity { cluster_id: self.cluster_id.0, member_id: self.member_id.0 }
    }

    /// Reads the file of a store's directory; None if there is none.
    ///
    /// # Errors
    /// If it can't be read or holds something else.
    pub fn load(store_dir: &Path) -> Result<Option<Self>, PkiError> {
        let path = path(store_dir);
        let file = |source| PkiError::File { action: "reading", path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| file(e.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file(e)),
        }
    }

    /// Writes the file so that a crash leaves the old one or the new one; makes the directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, store_dir: &Path) -> Result<(), PkiError> {
        let file = |source| PkiError::File { action: "writing", path: path(store_dir), source };
        make_durable_dir(store_dir).map_err(file)?;
        let text = serde_json::to_vec_pretty(self).map_err(|e| file(e.into()))?;
        pki::write_file(&path(store_dir), &text, true)
    }

    /// Removes the file. A member that has started has its keys in `pki/` and its id in the store.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget(store_dir: &Path) -> Result<(), PkiError> {
        let path = path(store_dir);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(PkiError::File { action: "removing", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Notes that this member was removed from its cluster.
    ///
    /// # Errors
    /// What the file system says.
    pub fn mark_removed(store_dir: &Path, identity: Identity) -> Result<(), PkiError> {
        let removed = MemberFile {
            cluster_id: HexId(identity.cluster_id),
            member_id: HexId(identity.member_id),
            state: State::Removed,
            keys: None,
            members: Vec::new(),
        };
        removed.save(store_dir)
    }
}

/// Makes a directory and those above it, and syncs what names them.
fn make_durable_dir(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_durable_dir(parent)?;
    }
    std::fs::create_dir(dir)?;
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> SharedKeys {
        SharedKeys {
            ca_certificate: "c".into(),
            ca_key: "k".into(),
            service_account_key: "s".into(),
        }
    }

    #[test]
    fn ids_are_sixteen_digits() {
        assert_eq!(HexId(255).to_string(), "00000000000000ff");
        assert_eq!("00000000000000fF".parse(), Ok(HexId(255)));
        for bad in ["", "ff", "+0000000000000ff", "g000000000000000", "00000000000000ff0"] {
            assert!(bad.parse::<HexId>().unwrap_err().contains("16 hexadecimal digits"), "{bad}");
        }
        let large = HexId(u64::MAX >> 1);
        let text = serde_json::to_string(&large).unwrap();
        assert_eq!(text, "\"7fffffffffffffff\"");
        assert_eq!(serde_json::from_str::<HexId>(&text).unwrap(), large);
    }

    #[test]
    fn whole_private_and_read_back() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("data/server");
        assert!(MemberFile::load(&store).unwrap().is_none());
        let identity = Identity { cluster_id: 7, member_id: u64::MAX >> 1 };
        MemberFile::joined(identity, keys(), Vec::new()).save(&store).unwrap();
        let read = MemberFile::load(&store).unwrap().unwrap();
        assert_eq!((read.identity(), read.state), (identity, State::Joined));
        assert!(read.keys == Some(keys()));
        let mode = std::fs::metadata(path(&store)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        MemberFile::mark_removed(&store, identity).unwrap();
        let read = MemberFile::load(&store).unwrap().unwrap();
        assert_eq!(read.state, State::Removed);
        assert!(read.keys.is_none());
    }

    #[test]
    fn a_crash_while_writing_leaves_nothing_and_rubbish_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("member.new"), "{\"clus").unwrap();
        assert!(MemberFile::load(dir.path()).unwrap().is_none());
        let identity = Identity { cluster_id: 1, member_id: 2 };
        MemberFile::joined(identity, keys(), Vec::new()).save(dir.path()).unwrap();
        assert!(MemberFile::load(dir.path()).unwrap().is_some());
        std::fs::write(path(dir.path()), "{\"clus").unwrap();
        assert!(MemberFile::load(dir.path()).err().unwrap().to_string().contains("member.json"));
    }
}
