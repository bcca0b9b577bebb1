//! A `rkube up` of one node, in namespaces of its own.

use crate::connection::Credentials;
use crate::process::{free_port, rkube};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "RKUBE_BENCH_INSIDE";

/// Whether this process is the first of namespaces that [`isolate`] made.
pub fn is_isolated() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs one group of figures in a process of its own with namespaces of its own; whatever happens
/// there, nothing is left behind.
pub fn isolate(group: &str) {
    let flags = "--net --pid --mount --ipc --fork --kill-child --mount-proc --propagation private";
    let status = Command::new("unshare")
        .args(flags.split(' '))
        .arg(std::env::current_exe().expect("a path of this program"))
        .arg(group)
        .env(INSIDE, "1")
        .status()
        .expect("unshare (it needs root)");
    assert!(status.success(), "{group}: {status}");
}

/// A cluster.
pub struct Up {
    child: Child,
    dir: tempfile::TempDir,
    /// Seconds from the start of the agent until its node was Ready.
    pub ready_seconds: f64,
}

impl Up {
    /// Starts it and returns once its node is Ready.
    pub fn start() -> Self {
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(status.expect("ip").success(), "no loopback");
        let dir = tempfile::Builder::new().prefix("rkube-bench-").tempdir().expect("a folder");
        let log = std::fs::File::create(dir.path().join("up.log")).expect("a log");
        let child = Command::new(rkube())
            .args(["up", "--nodes", "1", "--secure-port", &free_port().to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg("--registry-images")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("rkube up");
        let mut up = Up { child, dir, ready_seconds: 0.0 };
        up.ready_seconds = up.wait();
        up
    }

    fn wait(&mut self) -> f64 {
        let deadline = Instant::now() + Duration::from_secs(60);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut ready_at = None;
        while ready_at.is_none() || !self.log().contains("\nready:") {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("rkube up ended ({status}):\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "rkube up is not ready:\n{}", self.log());
            if ready_at.is_none() && runtime.block_on(self.node_is_ready()) {
                ready_at = Some(uptime());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        ready_at.expect("just seen") - started_at(self.agent())
    }

    async fn node_is_ready(&self) -> bool {
        let Ok(credentials) = Credentials::read(&self.kubeconfig()) else { return false };
        let Ok(mut connection) = credentials.try_connect().await else { return false };
        let Ok((200, body)) = connection.get("/api/v1/nodes/node-1").await else { return false };
        let node: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("data/admin.kubeconfig")
    }

    /// The folder of the node's data.
    fn node_dir(&self) -> PathBuf {
        self.dir.path().join("data/nodes/node-1/agent")
    }

    /// Where the node's containerd listens.
    pub fn containerd(&self) -> PathBuf {
        self.node_dir().join("containerd/containerd.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// The agent's process.
    pub fn agent(&self) -> u32 {
        find(&["agent", "--node-name=node-1"])
    }

    /// The cgroup of the node's pods; it goes when the cluster is stopped.
    pub fn cgroup(&self) -> String {
        let arguments = arguments(self.agent());
        let given = arguments.iter().find_map(|word| word.strip_prefix("--cgroup-root="));
        given.expect("the agent's --cgroup-root").to_owned()
    }

    /// The control plane's process.
    pub fn server(&self) -> u32 {
        find(&["server", "--no-agent"])
    }

    /// Ends it as Ctrl-C does.
    pub fn stop(mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// The process of rkube itself (not of what starts it) with these arguments.
fn find(wanted: &[&str]) -> u32 {
    let matches = |pid: u32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let words = arguments(pid);
        program.ends_with("rkube") && wanted.iter().all(|w| words.iter().any(|word| word == w))
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| matches(*pid)).unwrap_or_else(|| panic!("no rkube {wanted:?} runs"))
}

/// What a process was started with; nothing if it is gone.
fn arguments(pid: u32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Seconds since the machine's start.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("/proc/uptime");
    text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

/// When a process was started, in seconds since the machine's start; the kernel counts in
/// hundredths.
fn started_at(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let after_name = stat.rsplit_once(") ").expect("a name").1;
    let ticks: f64 = after_name.split(' ').nth(19).and_then(|n| n.parse().ok()).expect("a number");
    ticks / 100.0
}
