//! The disk as the store uses it, behind traits: a real one, and one for tests that forgets,
//! tears and fails.

mod real;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;

pub(crate) use real::RealDisk;

use std::io::Result;
use std::path::Path;

/// Directories and names. What it does lasts through a power loss only after [`Disk::sync_dir`].
pub(crate) trait Disk: Send + Sync {
    /// Makes the directory and its parents.
    fn create_dir(&self, dir: &Path) -> Result<()>;
    /// The names of the files in a directory, in no order.
    fn list(&self, dir: &Path) -> Result<Vec<String>>;
    /// Opens a file that exists to read and write.
    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>>;
    /// Makes or empties a file and allocates `bytes` zeros for it.
    fn create(&self, path: &Path, bytes: u64) -> Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    fn remove(&self, path: &Path) -> Result<()>;
    /// Makes the names in the directory durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
}

/// An open file. What is written lasts only after [`DiskFile::sync`].
pub(crate) trait DiskFile: Send {
    fn len(&self) -> Result<u64>;
    /// All bytes from `offset` on.
    fn read(&self, offset: u64) -> Result<Vec<u8>>;
    /// Exactly `buffer.len()` bytes at `offset`.
    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes content and length durable. After an error nothing may be assumed of the file and
    /// the call must not be repeated.
    fn sync(&self) -> Result<()>;
}
