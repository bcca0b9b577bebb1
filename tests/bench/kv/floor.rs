//! What the disk alone allows: records written in batches to a file that is allocated before, one
//! batch synced at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const BYTES: u64 = 16 << 20;
const RECORD: u64 = super::VALUE_BYTES as u64;

/// The file.
pub struct Floor {
    file: File,
    next: u64,
}

impl Floor {
    /// Makes it in this folder, every block of it written once.
    pub fn new(dir: &Path) -> std::io::Result<Self> {
        let file = File::create(dir.join("floor"))?;
        file.write_all_at(&vec![1; BYTES as usize], 0)?;
        file.sync_all()?;
        Ok(Floor { file, next: 0 })
    }

    /// Syncs batches of so many records for a time; gives what each took, in microseconds.
    pub fn batches(&mut self, records: usize, time: Duration) -> std::io::Result<Vec<f64>> {
        let batch = vec![2; records * RECORD as usize];
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < time {
            if self.next + batch.len() as u64 > BYTES {
                self.next = 0;
            }
            let begin = Instant::now();
            self.file.write_all_at(&batch, self.next)?;
            self.file.sync_data()?;
            took.push(begin.elapsed().as_secs_f64() * 1e6);
            self.next += batch.len() as u64;
        }
        Ok(took)
    }
}
