//! A `rkube up` and the means to use it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// What it wrote to standard error, if it failed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_ne!(self.code, 0, "{self:?}");
        self.stderr
    }
}

/// Runs a program to its end.
pub fn run(program: &str, args: &[&str]) -> Ran {
    finish(Command::new(program).args(args).stdin(Stdio::null()), program)
}

/// Runs a shell's line at a terminal of its own, whose keyboard nobody touches.
///
/// The shell is named, or `script` takes whatever the caller's environment calls one.
pub fn run_at_a_terminal(line: &str) -> Ran {
    let (input, _held_open) = std::io::pipe().expect("a pipe");
    let mut script = Command::new("script");
    script.args(["-qec", line, "/dev/null"]).env("SHELL", "/bin/sh").stdin(input);
    finish(&mut script, line)
}

fn finish(command: &mut Command, what: &str) -> Ran {
    let output = command.output().unwrap_or_else(|e| panic!("running {what}: {e}"));
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits until `condition` gives a value; panics with `what` when it takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The cluster that all tests share.
pub struct Cluster {
    dir: tempfile::TempDir,
    up: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts three nodes and a registry with the demo's images.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rkube-e2e-").tempdir().expect("a folder");
        let cluster = Cluster { dir, up: Mutex::new(None) };
        cluster.up();
        cluster
    }

    /// Starts `rkube up` and returns once it says that it is ready.
    pub fn up(&self) {
        let log = std::fs::File::create(self.dir.path().join("up.log")).expect("a log");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_rkube"), "up", "--nodes", "3"])
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--registry-images")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images"))
            .args(["--node-monitor-grace-period", "15", "--default-toleration-seconds", "5"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("rkube up");
        let started = Instant::now();
        while !self.up_log().contains("\nready:") {
            if let Some(status) = child.try_wait().expect("a child") {
                self.show_logs();
                panic!("rkube up ended ({status}):\n{}", self.up_log());
            }
            if started.elapsed() > Duration::from_secs(90) {
                self.show_logs();
                let _ = child.kill();
                panic!("rkube up is not ready:\n{}", self.up_log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.up.lock().unwrap() = Some(child);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn up_log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(self.dir.path().join("up.log")) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    pub fn kubeconfig(&self) -> String {
        self.data_dir().join("admin.kubeconfig").display().to_string()
    }

    /// Runs rkubectl.
    pub fn rkubectl(&self, args: &[&str]) -> Ran {
        self.kubectl(env!("CARGO_BIN_EXE_rkubectl"), args)
    }

    /// Runs a kubectl, whichever.
    pub fn kubectl(&self, program: &str, args: &[&str]) -> Ran {
        self.kubectl_with(program, args, "")
    }

    /// Runs a kubectl with this on its standard input.
    pub fn kubectl_with(&self, program: &str, args: &[&str], input: &str) -> Ran {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), input).expect("a file");
        let mut command = Command::new(program);
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .stdin(std::fs::File::open(file.path()).expect("a file"));
        finish(&mut command, program)
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(env!("CARGO_BIN_EXE_rkubectl"), &["apply", "-f", "-"], manifest).ok()
    }

    /// The value that a jsonpath finds, empty if the object is not there.
    pub fn get(&self, what: &[&str], jsonpath: &str) -> String {
        let output = format!("jsonpath={jsonpath}");
        let mut args = vec!["get"];
        args.extend(what);
        args.extend(["--ignore-not-found", "-o", &output]);
        self.rkubectl(&args).stdout
    }

    /// Runs `rkube node VERB NAME`.
    #[track_caller]
    pub fn node(&self, verb: &str, name: &str) -> String {
        let dir = self.data_dir().display().to_string();
        run(env!("CARGO_BIN_EXE_rkube"), &["node", verb, "--data-dir", &dir, name]).ok()
    }

    /// A namespace of the test's own, removed when it is dropped.
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        self.rkubectl(&["create", "namespace", name]).ok();
        Namespace { cluster: self, name: name.into() }
    }

    /// Ctrl-C, and what must be gone after it.
    pub fn stop_and_look(&self) {
        let Some(mut child) = self.up.lock().unwrap().take() else { return };
        run("kill", &["-INT", &child.id().to_string()]).ok();
        let status = eventually("rkube up ends", 60, || child.try_wait().expect("a child"));
        assert!(status.success(), "{status}: {}", self.up_log());
        self.assert_nothing_left();
    }

    /// kill -9 of the whole `rkube up`.
    pub fn kill_up(&self) {
        let mut child = self.up.lock().unwrap().take().expect("a running cluster");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// No process, mount, namespace, bridge, rule or cgroup of the cluster is left.
    pub fn assert_nothing_left(&self) {
        let dir = self.data_dir().display().to_string();
        let none = |what: &str, found: String| assert!(found.trim().is_empty(), "{what}: {found}");
        // Not those that are dead and wait for this program, their namespace's first, to reap them.
        let alive = ["-r", "DRSt", "-af", &format!("containerd|{dir}")];
        none("processes", run("pgrep", &alive).stdout);
        none("links", run("ip", &["-o", "link", "show", "type", "bridge"]).stdout);
        none("cables", run("ip", &["-o", "link", "show", "type", "veth"]).stdout);
        none("rules", run("nft", &["list", "ruleset"]).stdout);
        let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
        none("mounts", mounts.lines().filter(|l| l.contains(&dir)).collect());
        // The cgroups of this cluster: another may run beside it.
        let log = self.up_log();
        let id = log.split(" on rk-").nth(1).and_then(|rest| rest.split_whitespace().next());
        let path = format!("*/rkube-{}*", id.expect("the bridge's name"));
        none("cgroups", run("find", &["/sys/fs/cgroup", "-type", "d", "-path", &path]).stdout);
    }

    /// The ends of all logs, for a person who looks for the cause of a failure.
    pub fn show_logs(&self) {
        eprintln!("--- rkube up\n{}", self.up_log());
        let logs = std::fs::read_dir(self.data_dir().join("logs")).into_iter().flatten().flatten();
        for entry in logs {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().rev().take(40).collect();
            eprintln!("--- {}", entry.path().display());
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A namespace that goes when the test ends.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    pub name: String,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        self.cluster.rkubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
