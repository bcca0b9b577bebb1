//! What lies on the disk is encrypted: XChaCha20-Poly1305 with a key from a file beside it.
//!
//! A nonce is 16 bytes drawn at each open and a counter, so none comes twice under a key. The
//! file guards against a disk that is read elsewhere if the key is kept elsewhere; beside the
//! data it still lets a disk be wiped by wiping 64 bytes.

use crate::disk::Disk;
use crate::error::StoreError;
use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const KEY_BYTES: usize = 32;
const NONCE: usize = 24;
const PREFIX: usize = 16;
const TAG: usize = 16;
/// Bytes that sealing adds.
pub(crate) const SEAL: usize = NONCE + TAG;
/// What [`Cipher::check`] authenticates.
const CHECK: &[u8] = b"rkube store key";

/// Where the key comes from.
#[derive(Clone)]
pub(crate) struct KeySource {
    /// A file that somebody else keeps and that must be there; None: `key` in the store's
    /// directory, made if the store is new.
    pub(crate) file: Option<PathBuf>,
    /// Different and not to be guessed at each open: a new key, and the beginning of the nonces.
    pub(crate) random: [u8; KEY_BYTES + PREFIX],
}

impl KeySource {
    fn path(&self, dir: &Path) -> PathBuf {
        self.file.clone().unwrap_or_else(|| dir.join("key"))
    }

    /// The key that is there. None if there is none and one may be made. Changes nothing.
    pub(crate) fn find(&self, disk: &dyn Disk, dir: &Path) -> Result<Found, StoreError> {
        let path = self.path(dir);
        let file = match disk.open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match self.file {
                    None => Ok(Found { path, cipher: None }),
                    Some(_) => Err(key_error(&path, "the file is missing")),
                };
            }
            opened => opened.map_err(|source| StoreError::io("open", &path, source))?,
        };
        let text = file.read(0).map_err(|source| StoreError::io("read", &path, source))?;
        let key = parse(&text).ok_or_else(|| {
            key_error(&path, "the file does not hold 32 bytes as 64 hexadecimal digits")
        })?;
        Ok(Found { path, cipher: Some(self.cipher(&key)) })
    }

    /// Makes the key; on return it is durable.
    pub(crate) fn make(&self, disk: &dyn Disk, dir: &Path) -> Result<Arc<Cipher>, StoreError> {
        let path = self.path(dir);
        let temporary = path.with_extension("tmp");
        let io = |operation| {
            let path = temporary.clone();
            move |source| StoreError::io(operation, path, source)
        };
        let (key, _) = self.random.split_at(KEY_BYTES);
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = disk.create(&temporary, 0).map_err(io("create"))?;
        file.write(format!("{text}\n").as_bytes(), 0).map_err(io("write"))?;
        file.sync().map_err(io("sync"))?;
        disk.rename(&temporary, &path).map_err(io("rename"))?;
        disk.sync_dir(dir).map_err(|source| StoreError::io("sync directory", dir, source))?;
        Ok(self.cipher(key))
    }

    fn cipher(&self, key: &[u8]) -> Arc<Cipher> {
        let mut prefix = [0; PREFIX];
        prefix.copy_from_slice(&self.random[KEY_BYTES..]);
        Arc::new(Cipher {
            aead: XChaCha20Poly1305::new(Key::from_slice(key)),
            prefix,
            sealed: AtomicU64::new(0),
        })
    }
}

/// A key file, and what it holds if it is there.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) cipher: Option<Arc<Cipher>>,
}

impl Found {
    /// That the key is needed and is not the right one.
    pub(crate) fn refuse(&self) -> StoreError {
        key_error(
            &self.path,
            match self.cipher {
                Some(_) => "the data were encrypted with another key",
                None => "the file is missing, and the data are encrypted",
            },
        )
    }
}

fn key_error(file: &Path, reason: &str) -> StoreError {
    StoreError::Key { file: file.to_owned(), reason: reason.to_owned() }
}

fn parse(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    let mut key = [0; KEY_BYTES];
    if text.len() != 2 * KEY_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(key)
}

/// Seals and opens. One is shared by all that write under its key.
pub(crate) struct Cipher {
    aead: XChaCha20Poly1305,
    prefix: [u8; PREFIX],
    sealed: AtomicU64,
}

impl Cipher {
    /// Appends nonce, ciphertext and tag of what `fill` writes. `head` is handed the bytes
    /// written before and the length of all that is appended, and answers with what is
    /// authenticated besides.
    pub(crate) fn seal(
        &self,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut Vec<u8>),
        head: impl FnOnce(&mut [u8], usize) -> Vec<u8>,
    ) {
        let start = out.len();
        let number = self.sealed.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; NONCE];
        nonce[..PREFIX].copy_from_slice(&self.prefix);
        nonce[PREFIX..].copy_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&nonce);
        fill(out);
        let length = out.len() - start + TAG;
        let (before, sealed) = out.split_at_mut(start);
        let head = head(before, length);
        let tag = self
            .aead
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &head, &mut sealed[NONCE..])
            // Only beyond 256 GiB, and a record's length has 32 bits.
            .unwrap_or_default();
        out.extend_from_slice(&tag);
    }

    /// The text of what [`Cipher::seal`] appended; None if key, bytes or `head` are others.
    pub(crate) fn open(&self, sealed: &[u8], head: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE)?;
        let (text, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
        let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
        let mut text = text.to_vec();
        self.aead.decrypt_in_place_detached(nonce, head, &mut text, tag).ok()?;
        Some(text)
    }

    /// [`SEAL`] bytes by which [`Cipher::knows`] tells this key from others.
    pub(crate) fn check(&self) -> Vec<u8> {
        let mut check = Vec::with_capacity(SEAL);
        self.seal(&mut check, |_| (), |_, _| CHECK.to_vec());
        check
    }

    /// True if `check` was made with this key.
    pub(crate) fn knows(&self, check: &[u8]) -> bool {
        self.open(check, CHECK).is_some()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    /// A source whose key and nonces follow from a number.
    pub(crate) fn source(number: u8) -> KeySource {
        KeySource { file: None, random: [number; KEY_BYTES + PREFIX] }
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_head_alone() {
        let cipher = source(1).cipher(&[1; KEY_BYTES]);
        let mut sealed = b"before".to_vec();
        let head = |_: &mut [u8], _| b"head".to_vec();
        cipher.seal(&mut sealed, |out| out.extend_from_slice(b"text"), head);
        let bytes = &sealed[6..];
        assert_eq!(cipher.open(bytes, b"head").as_deref(), Some(&b"text"[..]));
        assert_eq!(bytes.len(), SEAL + 4);
        assert!(cipher.open(bytes, b"tail").is_none());
        assert!(source(1).cipher(&[2; KEY_BYTES]).open(bytes, b"head").is_none());
        for cut in 0..bytes.len() {
            assert!(cipher.open(&bytes[..cut], b"head").is_none(), "cut {cut}");
        }
        assert!(cipher.knows(&cipher.check()));
        assert_ne!(cipher.check(), cipher.check(), "no nonce comes twice");
    }

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let (disk, dir) = (SimDisk::default(), Path::new("/store"));
        assert!(source(1).find(&disk, dir).unwrap().cipher.is_none());
        let made = source(1).make(&disk, dir).unwrap();
        disk.power_loss(0);
        let found = source(2).find(&disk, dir).unwrap().cipher.unwrap();
        assert!(found.knows(&made.check()));
        assert_ne!(found.prefix, made.prefix);
        assert_eq!(disk.content(&dir.join("key")).len(), 65);
    }

    #[test]
    fn a_bad_key_file_is_refused_by_name() {
        let (disk, dir) = (SimDisk::default(), Path::new("/store"));
        let foreign = KeySource { file: Some("/elsewhere/key".into()), ..source(1) };
        let missing = foreign.find(&disk, dir).err().unwrap().to_string();
        assert!(missing.contains("/elsewhere/key"), "{missing}");
        disk.create(&dir.join("key"), 0).unwrap().write(b"short", 0).unwrap();
        assert!(matches!(source(1).find(&disk, dir).err(), Some(StoreError::Key { .. })));
    }
}
