//! What the machine has, and how much of it is free.

use crate::config::KubeletConfig;
use crate::pod::resources::{milli, whole};
use std::fs;
use std::path::Path;

/// What doesn't change while the kubelet runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// CPUs in thousandths.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of the filesystem that pods write to.
    pub storage: i64,
    /// `amd64` and the like, as images name it.
    pub architecture: String,
    /// The running kernel.
    pub kernel: String,
    /// The distribution.
    pub os_image: String,
    /// Of the installation.
    pub machine_id: String,
    /// Of this boot.
    pub boot_id: String,
}

/// What is free now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Free {
    /// Bytes of memory.
    pub memory: u64,
    /// Percent of the filesystem.
    pub disk_percent: u8,
    /// Processes that may still be started.
    pub pids: u64,
}

impl Machine {
    /// Looks at this machine; settings may offer less than there is.
    pub fn look(config: &KubeletConfig) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpu = config.node_cpu.as_deref().and_then(milli);
        let memory = config.node_memory.as_deref().and_then(whole);
        Self {
            cpu_milli: cpu.unwrap_or(i64::try_from(cpus).unwrap_or(1) * 1000),
            memory: memory.unwrap_or_else(|| i64::try_from(meminfo("MemTotal")).unwrap_or(0)),
            storage: storage(&config.data_dir)
                .map_or(0, |(total, _)| i64::try_from(total).unwrap_or(0)),
            architecture: architecture(std::env::consts::ARCH).to_owned(),
            kernel: first_line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            machine_id: first_line("/etc/machine-id"),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

impl Free {
    /// Looks at this machine.
    pub fn look(dir: &Path) -> Self {
        let (total, free) = storage(dir).unwrap_or((1, 1));
        let number = |path: &str| first_line(path).parse::<u64>().unwrap_or(u64::from(u32::MAX));
        let tasks = first_line("/proc/loadavg");
        let tasks = tasks.split(' ').nth(3).and_then(|word| word.split('/').nth(1)?.parse().ok());
        Self {
            memory: meminfo("MemAvailable"),
            disk_percent: u8::try_from(free.saturating_mul(100) / total.max(1)).unwrap_or(100),
            pids: number("/proc/sys/kernel/pid_max").saturating_sub(tasks.unwrap_or(0)),
        }
    }
}

/// Bytes of a filesystem: all, and those that are free.
pub fn storage(dir: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    let unit = stat.fragment_size();
    Some((stat.blocks() * unit, stat.blocks_available() * unit))
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A line of `/proc/meminfo` in bytes.
pub fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image(os_release: &str) -> String {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches('"').to_owned()
}
