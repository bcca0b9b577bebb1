//! The measured processes: started, watched from outside, ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `rkube server --no-agent` with a data directory of its own.
pub struct Server {
    pub child: Child,
    pub dir: tempfile::TempDir,
}

pub fn rkube() -> &'static str {
    env!("CARGO_BIN_EXE_rkube")
}

/// A port nobody listens on.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its number").port()
}

impl Server {
    /// Starts a server and returns once it is ready, with the time that took.
    pub fn start() -> (Self, Duration) {
        let dir = tempfile::tempdir().expect("a folder");
        Self::start_in(dir)
    }

    /// The same on a data directory that may have been used before.
    pub fn start_in(dir: tempfile::TempDir) -> (Self, Duration) {
        let port = free_port();
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let began = Instant::now();
        let child = Command::new(rkube())
            .args(["server", "--no-agent", "--log", "warn", "--advertise-address", "127.0.0.1"])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &port.to_string()])
            .arg("--data-dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("rkube server");
        let server = Server { child, dir };
        let deadline = began + Duration::from_secs(20);
        while !server.is_ready() {
            assert!(Instant::now() < deadline, "the server is not ready: {}", server.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        (server, began.elapsed())
    }

    fn is_ready(&self) -> bool {
        let Ok(credentials) = crate::connection::Credentials::read(&self.kubeconfig()) else {
            return false;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let Ok(mut connection) = credentials.try_connect().await else { return false };
            connection.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
        })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and gives the data directory back.
    pub fn stop(mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// CPU that a process and all its threads have used, in microseconds.
pub fn cpu_us(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let nanoseconds: u64 = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    nanoseconds as f64 / 1000.0
}

/// The same with the threads that have ended, to a hundredth of a second.
pub fn cpu_all_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let after_name = stat.rsplit_once(") ").expect("a name").1;
    let ticks = |words: &mut std::str::SplitWhitespace<'_>| -> f64 {
        words.next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let mut words = after_name.split_whitespace();
    // What follows are user and system time.
    words.nth(10).expect("more words");
    (ticks(&mut words) + ticks(&mut words)) * 10_000.0
}

/// Resident memory of a process, in MB.
pub fn resident_mb(pid: u32) -> f64 {
    memory_mb(pid, "VmRSS:")
}

/// What a line of a process's status says, in MB.
pub fn memory_mb(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    let kilobytes = line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    kilobytes.unwrap_or_default() / 1000.0
}

/// Runs the load generator in a process of its own; gives what it printed as numbers.
pub fn load(kubeconfig: &Path, args: &[&str]) -> Vec<f64> {
    let own = std::env::current_exe().expect("a path of this program");
    let output = Command::new(own)
        .arg("load")
        .arg(kubeconfig)
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .expect("the load generator");
    assert!(output.status.success(), "the load generator failed: {args:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
