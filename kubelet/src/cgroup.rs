//! The cgroup of each pod, on v1, hybrid and v2 alike.
//!
//! The runtime puts containers below the pod's cgroup but sets no limits on it and never removes
//! it; both are done here.

use crate::pod::resources::{PERIOD, PodLimits};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A killed process leaves its cgroup a moment after its end is known.
const REMOVE_ATTEMPTS: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// The mounted hierarchies.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    /// v1 hierarchies with their controllers.
    v1: Vec<(Vec<String>, PathBuf)>,
    /// The v2 hierarchy; in a hybrid it has no controllers.
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// The hierarchies that are mounted here.
    pub fn detect() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
    }

    fn parse(mounts: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let [_, path, kind, options, ..] = fields.as_slice() else { continue };
            match *kind {
                "cgroup" => {
                    let controllers = options.split(',').map(str::to_owned).collect();
                    found.v1.push((controllers, PathBuf::from(path)));
                }
                "cgroup2" => found.v2 = Some(PathBuf::from(path)),
                _ => {}
            }
        }
        found
    }

    /// Makes a pod's cgroup with its limits. Shares come later, see [`Cgroups::share`].
    pub fn create(&self, cgroup: &str, limits: &PodLimits) -> io::Result<()> {
        if self.v1.is_empty() {
            return self.v2.as_deref().map_or(Ok(()), |root| create_v2(root, cgroup, limits));
        }
        if let Some(dir) = self.v1_dir("cpu", cgroup) {
            fs::create_dir_all(&dir)?;
            if let Some(quota) = limits.quota {
                fs::write(dir.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string())?;
            }
        }
        if let Some(dir) = self.v1_dir("memory", cgroup) {
            fs::create_dir_all(&dir)?;
            if let Some(memory) = limits.memory {
                fs::write(dir.join("memory.limit_in_bytes"), memory.to_string())?;
            }
        }
        Ok(())
    }

    /// Gives a pod its share of the CPU. Not before its containers have started: what the runtime
    /// does for them runs in this cgroup, and a pod that asks for nothing would start last of all
    /// on a busy node.
    pub fn share(&self, cgroup: &str, shares: i64) -> io::Result<()> {
        if let Some(dir) = self.v1_dir("cpu", cgroup) {
            return fs::write(dir.join("cpu.shares"), shares.to_string());
        }
        match self.v2.as_ref().filter(|_| self.v1.is_empty()) {
            Some(root) => {
                fs::write(below(root, cgroup).join("cpu.weight"), weight(shares).to_string())
            }
            None => Ok(()),
        }
    }

    /// Removes a pod's cgroup in every hierarchy.
    ///
    /// # Errors
    /// When processes are still in it after a while.
    pub fn remove(&self, cgroup: &str) -> io::Result<()> {
        let mut result = Ok(());
        for root in self.roots() {
            let dir = below(root, cgroup);
            for attempt in 1..=REMOVE_ATTEMPTS {
                match remove_tree(&dir) {
                    Ok(()) => break,
                    Err(error) if attempt == REMOVE_ATTEMPTS => result = Err(error),
                    Err(_) => std::thread::sleep(REMOVE_PAUSE),
                }
            }
        }
        result
    }

    /// Uids of all pods that have a cgroup below `root`.
    pub fn pods(&self, root: &str) -> Vec<String> {
        let mut uids: Vec<String> = self
            .roots()
            .filter_map(|mount| fs::read_dir(below(mount, root)).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("pod")?.to_owned()))
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|(_, path)| path.as_path()).chain(self.v2.as_deref())
    }

    fn v1_dir(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let has = |list: &[String]| list.iter().any(|name| name == controller);
        self.v1.iter().find(|(list, _)| has(list)).map(|(_, root)| below(root, cgroup))
    }
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

fn create_v2(root: &Path, cgroup: &str, limits: &PodLimits) -> io::Result<()> {
    let mut dir = root.to_owned();
    for part in Path::new(cgroup.trim_start_matches('/')) {
        // A controller that the parent lacks can't be handed on; limits then fail below.
        for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io"] {
            let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
        }
        dir.push(part);
        fs::create_dir_all(&dir)?;
    }
    if let Some(quota) = limits.quota {
        fs::write(dir.join("cpu.max"), format!("{quota} {PERIOD}"))?;
    }
    if let Some(memory) = limits.memory {
        fs::write(dir.join("memory.max"), memory.to_string())?;
    }
    Ok(())
}

/// v1 shares as a v2 weight, as runtimes convert them.
fn weight(shares: i64) -> i64 {
    1 + ((shares - 2) * 9999) / 262_142
}

/// Removes a cgroup with those below it; files in it can't be removed and needn't be.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_mounts() {
        let found = Cgroups::parse(
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        );
        let dir = found.v1_dir("cpu", "/rkube/pod1");
        assert_eq!(dir, Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/rkube/pod1")));
        assert_eq!(found.roots().count(), 3);
    }

    #[test]
    fn v2_gets_controllers_and_limits() {
        let root = tempfile::tempdir().unwrap();
        let found = Cgroups { v1: Vec::new(), v2: Some(root.path().to_owned()) };
        let limits = PodLimits { shares: 1024, quota: Some(50_000), memory: Some(1 << 20) };
        found.create("/rkube/podx", &limits).unwrap();
        found.share("/rkube/podx", limits.shares).unwrap();
        let read =
            |name: &str| fs::read_to_string(root.path().join("rkube/podx").join(name)).unwrap();
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(found.pods("/rkube"), ["x"]);
    }
}
