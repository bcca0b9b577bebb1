//! A disk in memory that can lose what was not synced, tear writes, fail and fill up.
//!
//! Each file has what is durable and the writes since its last sync; each directory has the
//! names that are durable and those that are seen. A power loss keeps what is durable and, of
//! the rest, what a seeded choice keeps: whole writes, or single sectors of them, in any order.

use super::{Disk, DiskFile};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SECTOR: usize = 512;

/// What is to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation does nothing and says so, and every later one as well: the process is dead.
    Crash,
    /// The operation fails with EIO, once.
    Io,
}

/// A disk; copies mean the same one.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// All files ever made, by number; names point here.
    files: BTreeMap<u64, SimFile>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    next: u64,
    /// Operations that change something, so far.
    operations: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    /// Most bytes of all files together.
    capacity: Option<u64>,
}

#[derive(Default)]
struct SimFile {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync: offset and bytes.
    pending: Vec<(usize, Vec<u8>)>,
}

impl SimDisk {
    /// Lets the operation with this number, counted from the making of the disk, go wrong.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        self.0.lock().fault = Some((operation, fault));
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Most bytes of all files together; None for no bound.
    pub(crate) fn limit(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    pub(crate) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// The process dies and the machine goes on: everything written is there.
    pub(crate) fn restart(&self) {
        let mut inner = self.0.lock();
        (inner.crashed, inner.fault) = (false, None);
    }

    /// The power fails: what was not synced is there, or not, or in part, as the seed says.
    pub(crate) fn power_loss(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut inner = self.0.lock();
        (inner.crashed, inner.fault) = (false, None);
        let seen = std::mem::take(&mut inner.names);
        // A directory that was not synced has its old names, or the new ones.
        let kept = if random.random_bool(0.5) { inner.durable_names.clone() } else { seen };
        inner.names = kept.clone();
        inner.durable_names = kept;
        for file in inner.files.values_mut() {
            file.lose(&mut random);
        }
    }

    /// Flips one bit of a file.
    pub(crate) fn flip(&self, path: &Path, bit: usize) {
        let mut inner = self.0.lock();
        let number = inner.names[path];
        let file = inner.files.get_mut(&number).unwrap();
        file.content[bit / 8] ^= 1 << (bit % 8);
        file.durable.clone_from(&file.content);
    }

    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        let inner = self.0.lock();
        inner.files[&inner.names[path]].content.clone()
    }

    /// An independent disk with what is seen on this one.
    pub(crate) fn copy(&self) -> Self {
        let inner = self.0.lock();
        let files = inner.files.iter().map(|(number, file)| {
            let content = file.content.clone();
            (*number, SimFile { durable: content.clone(), content, pending: Vec::new() })
        });
        Self(Arc::new(Mutex::new(Inner {
            files: files.collect(),
            names: inner.names.clone(),
            durable_names: inner.names.clone(),
            next: inner.next,
            ..Inner::default()
        })))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        let mut inner = self.0.lock();
        if inner.crashed {
            return Err(Error::other("the process is dead"));
        }
        inner.operations += 1;
        let now = inner.operations;
        match inner.fault.take_if(|(at, _)| *at == now) {
            Some((_, Fault::Crash)) => {
                inner.crashed = true;
                Err(Error::other("the process dies here"))
            }
            Some((_, Fault::Io)) => Err(Error::other("injected EIO")),
            None => change(&mut inner),
        }
    }
}

impl Inner {
    fn used(&self) -> u64 {
        self.names.values().map(|number| self.files[number].content.len() as u64).sum()
    }

    fn number(&self, path: &Path) -> Result<u64> {
        self.names.get(path).copied().ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn file(&mut self, number: u64) -> &mut SimFile {
        self.files.entry(number).or_default()
    }
}

impl SimFile {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        apply(&mut self.content, bytes, offset);
        self.pending.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.content);
        self.pending.clear();
    }

    fn lose(&mut self, random: &mut StdRng) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            match random.random_range(0..3) {
                0 => {}
                1 => apply(&mut self.durable, &bytes, offset),
                _ => {
                    for (place, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.random_bool(0.5) {
                            apply(&mut self.durable, sector, offset + place * SECTOR);
                        }
                    }
                }
            }
        }
        self.content.clone_from(&self.durable);
    }
}

fn apply(content: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> Result<()> {
        self.change(|_| Ok(()))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let inner = self.0.lock();
        let within = inner.names.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
        Ok(within.filter_map(name).collect())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        let number = self.0.lock().number(path)?;
        Ok(Box::new(Open { disk: self.clone(), number }))
    }

    fn create(&self, path: &Path, bytes: u64) -> Result<Box<dyn DiskFile>> {
        let number = self.change(|inner| {
            if inner.capacity.is_some_and(|most| inner.used() + bytes > most) {
                return Err(ErrorKind::StorageFull.into());
            }
            inner.next += 1;
            let number = inner.next;
            inner.names.insert(path.to_owned(), number);
            inner.file(number).write(&vec![0; bytes as usize], 0);
            Ok(number)
        })?;
        Ok(Box::new(Open { disk: self.clone(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(|inner| {
            let number = inner.number(from)?;
            inner.names.remove(from);
            inner.names.insert(to.to_owned(), number);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.change(|inner| {
            inner.number(path)?;
            inner.names.remove(path);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.change(|inner| {
            let within = |path: &PathBuf| path.parent() == Some(dir);
            inner.durable_names.retain(|path, _| !within(path));
            let seen = inner.names.iter().filter(|(path, _)| within(path));
            let seen: Vec<_> = seen.map(|(path, number)| (path.clone(), *number)).collect();
            inner.durable_names.extend(seen);
            Ok(())
        })
    }
}

struct Open {
    disk: SimDisk,
    number: u64,
}

impl DiskFile for Open {
    fn len(&self) -> Result<u64> {
        Ok(self.disk.0.lock().file(self.number).content.len() as u64)
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>> {
        Ok(self.disk.0.lock().file(self.number).content[offset as usize..].to_vec())
    }

    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut inner = self.disk.0.lock();
        let content = &inner.file(self.number).content;
        let end = offset as usize + buffer.len();
        let bytes = content.get(offset as usize..end).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.disk.change(|inner| {
            let number = self.number;
            let grows = (offset + bytes.len() as u64)
                .saturating_sub(inner.file(number).content.len() as u64);
            if grows > 0 && inner.capacity.is_some_and(|most| inner.used() + grows > most) {
                return Err(ErrorKind::StorageFull.into());
            }
            inner.file(number).write(bytes, offset as usize);
            Ok(())
        })
    }

    fn sync(&self) -> Result<()> {
        self.disk.change(|inner| {
            inner.file(self.number).sync();
            Ok(())
        })
    }
}
