//! A disk in memory that can lose what was not synced, tear writes, fail and fill up.
//!
//! Each file has what is durable and the writes since its last sync; each directory has the
//! names that are durable and the changes since its last sync. A power loss keeps what is durable
//! and, of the rest, what a [`Chance`] keeps: whole writes, or single sectors of them, in any
//! order. Contents are shared between copies of a disk until they change.

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

/// A disk; clones mean the same one.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Clone, Default)]
struct Inner {
    /// All files ever made, by number; names point here.
    files: BTreeMap<u64, SimFile>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Since the directory's last sync.
    renamings: Vec<Renaming>,
    next: u64,
    /// Operations that change something, so far.
    operations: u64,
    /// Reads so far.
    reads: u64,
    fault: Option<(u64, Fault)>,
    failing_read: Option<u64>,
    crashed: bool,
    /// Most bytes of all files together.
    capacity: Option<u64>,
    /// The disk before each sync, if they are kept.
    before_syncs: Option<Vec<SimDisk>>,
}

#[derive(Clone, Default)]
struct SimFile {
    content: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// Allocated since the last sync: as many zeros.
    allocated: usize,
    /// Since the last sync: offset and bytes.
    pending: Vec<(usize, Arc<[u8]>)>,
}

/// A change of a directory: the file that a name has from now on, or none. A rename is one
/// change of two names.
#[derive(Clone)]
struct Renaming(Vec<(PathBuf, Option<u64>)>);

/// A part of what was not synced that a power loss may keep or lose by itself.
#[cfg(test)]
#[derive(Clone)]
enum Unsynced {
    Allocation(u64, usize),
    Sector(u64, usize, Arc<[u8]>),
    Renaming(Renaming),
}

impl SimDisk {
    /// Lets the operation with this number, counted from the making of the disk, go wrong.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        self.0.lock().fault = Some((operation, fault));
    }

    /// No operation goes wrong any more.
    pub(crate) fn no_fault(&self) {
        self.0.lock().fault = None;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    #[cfg(test)]
    /// Lets the read with this number, counted from the making of the disk, fail with EIO.
    pub(crate) fn fail_read(&self, read: u64) {
        self.0.lock().failing_read = Some(read);
    }

    #[cfg(test)]
    pub(crate) fn reads(&self) -> u64 {
        self.0.lock().reads
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
        inner.set_names(kept);
        for file in inner.files.values_mut() {
            file.lose(&mut random);
        }
    }

    #[cfg(test)]
    /// How many parts of what was not synced a power loss may keep or lose by itself: dirty
    /// sectors, and changes of directories.
    pub(crate) fn unsynced(&self) -> usize {
        self.0.lock().unsynced().len()
    }

    #[cfg(test)]
    /// An independent disk as the power loss leaves it that keeps the parts for which `keep`,
    /// asked with their number, says so.
    pub(crate) fn after_loss(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let inner = self.0.lock();
        let parts = inner.unsynced();
        let mut left = Inner { operations: 0, next: inner.next, ..Inner::default() };
        let file = |file: &SimFile| SimFile {
            content: file.durable.clone(),
            durable: file.durable.clone(),
            ..SimFile::default()
        };
        left.files = inner.files.iter().map(|(number, found)| (*number, file(found))).collect();
        let mut names = inner.durable_names.clone();
        for (place, part) in parts.into_iter().enumerate() {
            match part {
                _ if !keep(place) => {}
                Unsynced::Allocation(number, bytes) => left.file(number).allocate(bytes),
                Unsynced::Sector(number, offset, bytes) => {
                    apply(&mut left.file(number).content, &bytes, offset);
                }
                Unsynced::Renaming(renaming) => renaming.apply(&mut names),
            }
        }
        left.files.values_mut().for_each(SimFile::sync);
        left.set_names(names);
        Self(Arc::new(Mutex::new(left)))
    }

    #[cfg(test)]
    /// Keeps the disk as it is before each sync from now on.
    pub(crate) fn record(&self) {
        self.0.lock().before_syncs = Some(Vec::new());
    }

    #[cfg(test)]
    /// The disks kept so far: independent ones, with all that was not synced.
    pub(crate) fn recorded(&self) -> Vec<Self> {
        self.0.lock().before_syncs.clone().unwrap_or_default()
    }

    /// Flips one bit of a file.
    pub(crate) fn flip(&self, path: &Path, bit: usize) {
        let mut inner = self.0.lock();
        let number = inner.names[path];
        let file = inner.files.get_mut(&number).unwrap();
        Arc::make_mut(&mut file.content)[bit / 8] ^= 1 << (bit % 8);
        file.durable = file.content.clone();
    }

    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        let inner = self.0.lock();
        inner.files[&inner.names[path]].content.to_vec()
    }

    #[cfg(test)]
    /// Every file and its content.
    pub(crate) fn all(&self) -> BTreeMap<PathBuf, Arc<Vec<u8>>> {
        let inner = self.0.lock();
        let content = |number: &u64| inner.files[number].content.clone();
        inner.names.iter().map(|(path, number)| (path.clone(), content(number))).collect()
    }

    /// An independent disk with what is seen on this one.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        self.after_loss(|_| true)
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

    fn sync<T>(&self, sync: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        self.change(|inner| {
            if let Some(mut kept) = inner.before_syncs.take() {
                kept.push(Self(Arc::new(Mutex::new(inner.clone()))));
                inner.before_syncs = Some(kept);
            }
            sync(inner)
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Inner) -> Result<T>) -> Result<T> {
        let mut inner = self.0.lock();
        inner.reads += 1;
        let now = inner.reads;
        match inner.failing_read.take_if(|at| *at == now) {
            Some(_) => Err(Error::other("injected EIO")),
            None => read(&inner),
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

    fn set_names(&mut self, names: BTreeMap<PathBuf, u64>) {
        self.names.clone_from(&names);
        self.durable_names = names;
        self.renamings.clear();
        let named: std::collections::BTreeSet<_> = self.names.values().copied().collect();
        self.files.retain(|number, _| named.contains(number));
    }

    fn rename(&mut self, renaming: Renaming) {
        renaming.apply(&mut self.names);
        self.renamings.push(renaming);
    }

    #[cfg(test)]
    fn unsynced(&self) -> Vec<Unsynced> {
        let mut parts = Vec::new();
        for (number, file) in &self.files {
            if file.allocated > 0 {
                parts.push(Unsynced::Allocation(*number, file.allocated));
            }
            for (offset, bytes) in &file.pending {
                // A disk writes whole sectors, wherever a write begins.
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                    parts.push(Unsynced::Sector(*number, offset + at, bytes[at..end].into()));
                    at = end;
                }
            }
        }
        parts.extend(self.renamings.iter().cloned().map(Unsynced::Renaming));
        parts
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        for (path, number) in &self.0 {
            match number {
                Some(number) => drop(names.insert(path.clone(), *number)),
                None => drop(names.remove(path)),
            }
        }
    }
}

impl SimFile {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        apply(&mut self.content, bytes, offset);
        self.pending.push((offset, bytes.into()));
    }

    fn allocate(&mut self, bytes: usize) {
        if self.content.len() < bytes {
            Arc::make_mut(&mut self.content).resize(bytes, 0);
        }
        self.allocated = bytes;
    }

    fn sync(&mut self) {
        self.durable = self.content.clone();
        self.allocated = 0;
        self.pending.clear();
    }

    fn lose(&mut self, random: &mut StdRng) {
        if std::mem::take(&mut self.allocated) > self.durable.len() && random.random_bool(0.5) {
            let allocated = self.content.len();
            Arc::make_mut(&mut self.durable).resize(allocated, 0);
        }
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
        self.content = self.durable.clone();
    }
}

fn apply(content: &mut Arc<Vec<u8>>, bytes: &[u8], offset: usize) {
    let content = Arc::make_mut(content);
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
        self.read(|inner| {
            let within = inner.names.keys().filter(|path| path.parent() == Some(dir));
            let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
            Ok(within.filter_map(name).collect())
        })
    }

    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        let number = self.read(|inner| inner.number(path))?;
        Ok(Box::new(Open { disk: self.clone(), number }))
    }

    fn create(&self, path: &Path, bytes: u64) -> Result<Box<dyn DiskFile>> {
        let number = self.change(|inner| {
            if inner.capacity.is_some_and(|most| inner.used() + bytes > most) {
                return Err(ErrorKind::StorageFull.into());
            }
            inner.next += 1;
            let number = inner.next;
            inner.rename(Renaming(vec![(path.to_owned(), Some(number))]));
            inner.file(number).allocate(bytes as usize);
            Ok(number)
        })?;
        Ok(Box::new(Open { disk: self.clone(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(|inner| {
            let number = inner.number(from)?;
            let names = vec![(from.to_owned(), None), (to.to_owned(), Some(number))];
            inner.rename(Renaming(names));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.change(|inner| {
            inner.number(path)?;
            inner.rename(Renaming(vec![(path.to_owned(), None)]));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.sync(|inner| {
            let within = |path: &PathBuf| path.parent() == Some(dir);
            inner.durable_names.retain(|path, _| !within(path));
            let seen = inner.names.iter().filter(|(path, _)| within(path));
            let seen: Vec<_> = seen.map(|(path, number)| (path.clone(), *number)).collect();
            inner.durable_names.extend(seen);
            inner.renamings.retain(|Renaming(names)| !names.iter().all(|(path, _)| within(path)));
            let (now, before) = (&inner.names, &inner.durable_names);
            let named: std::collections::BTreeSet<_> =
                now.values().chain(before.values()).copied().collect();
            inner.files.retain(|number, _| named.contains(number));
            Ok(())
        })
    }
}

struct Open {
    disk: SimDisk,
    number: u64,
}

impl Open {
    fn read<T>(&self, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        self.disk.read(|inner| read(inner.files.get(&self.number).map_or(&[], |f| &f.content)))
    }
}

impl DiskFile for Open {
    fn len(&self) -> Result<u64> {
        self.read(|content| Ok(content.len() as u64))
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>> {
        self.read(|content| Ok(content[offset as usize..].to_vec()))
    }

    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.read(|content| {
            let end = offset as usize + buffer.len();
            let bytes = content.get(offset as usize..end).ok_or(ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
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
        self.disk.sync(|inner| {
            inner.file(self.number).sync();
            Ok(())
        })
    }
}
