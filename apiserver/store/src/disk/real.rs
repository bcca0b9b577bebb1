//! The real disk.

use super::{Disk, DiskFile};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The file system of this machine. Files are readable by their owner alone: they hold Secrets.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path, bytes: u64) -> Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path)?;
        if bytes > 0 {
            allocate(&file, bytes)?;
        }
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        File::open(dir)?.sync_all()
    }
}

fn allocate(file: &File, bytes: u64) -> Result<()> {
    // posix_fallocate writes zeros itself where the file system can't allocate.
    nix::fcntl::posix_fallocate(file, 0, bytes as i64).map_err(io::Error::from)
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>> {
        let len = self.len()?.saturating_sub(offset);
        let mut bytes = vec![0; len as usize];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> Result<()> {
        self.0.sync_data()
    }
}
