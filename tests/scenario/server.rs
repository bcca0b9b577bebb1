//! A `rkube server --no-agent` on a free port, with a folder of its own.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const RKUBE: &str = env!("CARGO_BIN_EXE_rkube");
const RKUBECTL: &str = env!("CARGO_BIN_EXE_rkubectl");

/// A running server; it ends when this is dropped.
pub struct Server {
    dir: tempfile::TempDir,
    child: Child,
    pub port: u16,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// `rkube server` on this data directory and port, not yet started.
pub fn command(data: &Path, port: u16) -> Command {
    let mut command = Command::new(RKUBE);
    command
        .args(["server", "--no-agent", "--bind-address", "127.0.0.1"])
        .args(["--advertise-address", "127.0.0.1", "--secure-port", &port.to_string()])
        .args(["--node-name", "m1", "--peer-port", &free_port().to_string()])
        .arg("--data-dir")
        .arg(data);
    command
}

/// Runs a command to its end; kills it and panics when it takes longer.
pub fn within(patience: Duration, command: &mut Command) -> Output {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let errors = tempfile::NamedTempFile::new().expect("a file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.reopen().expect("a file"))
        .stderr(errors.reopen().expect("a file"))
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path()).expect("a log");
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return Output { status, stdout: read(&log), stderr: read(&errors) };
        }
        if started.elapsed() > patience {
            let _ = child.kill();
            panic!(
                "{command:?}: not within {patience:?}: {}",
                String::from_utf8_lossy(&read(&log))
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Server {
    /// Starts a server and waits until it is ready and its first objects are there.
    pub fn start() -> Self {
        Self::start_with(command)
    }

    /// The same with another way to start it; `make` is given the data directory and the port.
    pub fn start_with(make: impl FnOnce(&Path, u16) -> Command) -> Self {
        let dir = tempfile::Builder::new().prefix("rkube-scenario-").tempdir().expect("a folder");
        for name in ["work", "bin", "data"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        let kubectl = std::env::var_os("SCENARIO_KUBECTL").unwrap_or_else(|| RKUBECTL.into());
        symlink(kubectl, dir.path().join("bin/rkubectl")).expect("a link");
        symlink(RKUBE, dir.path().join("bin/rkube")).expect("a link");
        let port = free_port();
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = make(&dir.path().join("data"), port)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("rkube server");
        let mut server = Self { dir, child, port };
        server.wait_until_ready();
        server
    }

    /// Waits until the API answers with the first objects.
    pub fn wait_until_ready(&mut self) {
        let first =
            ["get", "serviceaccount/default", "configmap/kube-root-ca.crt", "service/kubernetes"];
        let started = Instant::now();
        while !self.kubeconfig().exists() || !self.rkubectl(&first).status.success() {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "rkube server ended: {}", self.log());
            assert!(started.elapsed() < Duration::from_secs(30), "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The data directory as this process sees it.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// As the server's process sees it, whatever is mounted there.
    pub fn data_inside(&self) -> PathBuf {
        let inside = format!("/proc/{}/root{}", self.pid(), self.data().display());
        PathBuf::from(inside)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data_inside().join("admin.kubeconfig")
    }

    /// `https://127.0.0.1:PORT`
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The folder that commands run in.
    pub fn folder(&self) -> String {
        self.dir.path().join("work").display().to_string()
    }

    /// Lets a command find rkubectl, rkube and the server.
    pub fn equip(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(self.dir.path().join("work"))
            .env_clear()
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("HOME", self.dir.path().join("work"))
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("KUBECONFIG", self.kubeconfig());
    }

    /// Runs rkubectl to its end.
    pub fn rkubectl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(RKUBECTL);
        command.args(args);
        self.equip(&mut command);
        within(Duration::from_secs(60), &mut command)
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let file = std::fs::File::open(self.dir.path().join("log"));
        file.and_then(|mut f| f.read_to_string(&mut text)).expect("the server's log");
        text
    }

    /// Panics unless the process is still the one that was started.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("a child");
        assert!(ended.is_none(), "the server ended ({ended:?}): {}", self.log());
    }

    /// Kills the process, as a power cut would, and starts it again the usual way.
    pub fn kill_and_start(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = command(&self.data(), self.port)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rkube server");
        self.wait_until_ready();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
