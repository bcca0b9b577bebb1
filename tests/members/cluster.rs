//! Members of a control plane as processes, and the means to use and to hurt them.

use crate::net::Net;
use crate::run::{Ran, eventually, run};
use rkube_runtime::Endpoints;
use serde_json::Value;
use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

pub const RKUBE: &str = env!("CARGO_BIN_EXE_rkube");
pub const RKUBECTL: &str = env!("CARGO_BIN_EXE_rkubectl");

/// Longer than an election takes on a busy machine.
pub const PATIENCE: u64 = 20;

/// Machines for members m1, m2, … on a network of their own. Numbers of members begin at 0.
pub struct Cluster {
    dir: tempfile::TempDir,
    pub net: Net,
    processes: Vec<Mutex<Option<Child>>>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// Machines, and nothing on them.
    pub fn machines(count: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("rkube-members-").tempdir().expect("a folder");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build();
        Cluster {
            dir,
            net: Net::new(count),
            processes: (0..count).map(|_| Mutex::new(None)).collect(),
            runtime: runtime.expect("a runtime"),
        }
    }

    /// Members that all vote, the first one the founder.
    pub fn start(count: usize) -> Self {
        let cluster = Cluster::machines(count);
        cluster.found(0);
        cluster.join_all(1..count);
        cluster
    }

    /// Starts the first member of a new cluster.
    pub fn found(&self, member: usize) {
        self.spawn(member, &[]);
        self.await_ready(member);
    }

    /// Lets members join by the first one, one after the other, and waits until all vote.
    pub fn join_all(&self, members: std::ops::Range<usize>) {
        let voters = members.end;
        let token = self.token(0, &[]);
        for member in members {
            self.spawn(member, &["--join", &self.url(0), "--token", &token]);
            self.await_ready(member);
        }
        self.await_voters(voters);
    }

    pub fn count(&self) -> usize {
        self.processes.len()
    }

    pub fn name(&self, member: usize) -> String {
        format!("m{}", member + 1)
    }

    pub fn url(&self, member: usize) -> String {
        format!("https://{}:6443", self.net.address(member))
    }

    pub fn data_dir(&self, member: usize) -> PathBuf {
        self.dir.path().join(self.name(member))
    }

    /// A path in the folder of this cluster.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn kubeconfig(&self, member: usize) -> String {
        self.data_dir(member).join("admin.kubeconfig").display().to_string()
    }

    /// `rkube` with these arguments on the machine of a member.
    fn command(&self, member: usize, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.namespace(member), RKUBE]).args(args);
        command
    }

    fn server(&self, member: usize, more: &[&str]) -> Command {
        let (address, dir) = (self.net.address(member), self.data_dir(member));
        let mut command = self.command(member, &["server", "--no-agent"]);
        command.args(["--node-name", &self.name(member), "--bind-address", &address]);
        command.args(["--advertise-address", &address]).arg("--data-dir").arg(dir).args(more);
        command
    }

    /// Starts a member; its log goes on from its last one.
    pub fn spawn(&self, member: usize, more: &[&str]) {
        let log = self.log_file(&self.name(member));
        let mut command = self.server(member, more);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("rkube server");
        let former = self.processes[member].lock().unwrap().replace(child);
        assert!(former.is_none(), "member {member} runs already");
    }

    /// A file `<name>.log` that is shown when a test fails.
    pub fn log_file(&self, name: &str) -> File {
        let path = self.dir.path().join(format!("{name}.log"));
        OpenOptions::new().create(true).append(true).open(path).expect("a log")
    }

    /// Starts a server that is expected to end by itself, and waits for that.
    pub fn server_ends(&self, member: usize, more: &[&str]) -> Ran {
        let before = self.log(member).len();
        self.spawn(member, more);
        let status = self.await_end(member);
        let log = self.log(member);
        let stderr = log[before..].to_owned();
        Ran { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }

    /// All that a member has said.
    pub fn log(&self, member: usize) -> String {
        let path = self.dir.path().join(format!("{}.log", self.name(member)));
        std::fs::read(path).map(|l| String::from_utf8_lossy(&l).into_owned()).unwrap_or_default()
    }

    /// Waits until a member's process has ended by itself.
    #[track_caller]
    pub fn await_end(&self, member: usize) -> ExitStatus {
        let mut process = self.processes[member].lock().unwrap();
        let child = process.as_mut().expect("a running member");
        let status = eventually("a member ends", PATIENCE, || child.try_wait().expect("a child"));
        *process = None;
        status
    }

    pub fn runs(&self, member: usize) -> bool {
        let mut process = self.processes[member].lock().unwrap();
        process.as_mut().is_some_and(|child| child.try_wait().expect("a child").is_none())
    }

    pub fn signal(&self, member: usize, signal: &str) {
        let process = self.processes[member].lock().unwrap();
        let pid = process.as_ref().expect("a running member").id().to_string();
        run("kill", &[&format!("-{signal}"), &pid]).ok();
    }

    /// kill -9.
    pub fn kill(&self, member: usize) {
        let child = self.processes[member].lock().unwrap().take();
        let mut child = child.expect("a running member");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Ends a member cleanly.
    #[track_caller]
    pub fn stop(&self, member: usize) {
        self.signal(member, "TERM");
        let status = self.await_end(member);
        assert!(status.success(), "{status}: {}", self.log(member));
    }

    /// Runs `rkube` for a member's data directory.
    pub fn rkube(&self, member: usize, args: &[&str]) -> Ran {
        let dir = self.data_dir(member).display().to_string();
        run(RKUBE, &[args, &["--data-dir", &dir]].concat())
    }

    /// Runs rkubectl against one member alone.
    pub fn rkubectl(&self, member: usize, args: &[&str]) -> Ran {
        self.kubectl(RKUBECTL, member, args)
    }

    /// Runs a kubectl against one member, which it believes by the founder's kubeconfig.
    pub fn kubectl(&self, program: &str, member: usize, args: &[&str]) -> Ran {
        let kubeconfig = self.kubeconfig(member);
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(args);
        run(program, &all)
    }

    pub fn token(&self, member: usize, args: &[&str]) -> String {
        self.rkube(member, &[&["token", "create"], args].concat()).ok().trim().to_owned()
    }

    /// Does something of tokio.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    /// A client that goes on from one to the next of these members, with the keys of `owner`.
    pub fn client(&self, owner: usize, members: &[usize]) -> kube::Client {
        let _context = self.runtime.enter();
        let urls: Vec<String> = members.iter().map(|&member| self.url(member)).collect();
        let text = std::fs::read_to_string(self.kubeconfig(owner)).expect("a kubeconfig");
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
        let config = self.runtime.block_on(config).expect("a configuration");
        Endpoints::new(config, &urls).expect("a client").client()
    }

    /// What a GET answers within `patience`: status, Warning, body. None without an answer.
    pub fn get(&self, client: &kube::Client, path: &str, patience: Duration) -> Option<Answer> {
        self.block_on(async { tokio::time::timeout(patience, get(client, path)).await.ok()? })
    }

    /// What one member says of all, with the keys of `owner`.
    pub fn members_by(&self, client: &kube::Client) -> Vec<Value> {
        let answer = self.get(client, "/apis/rkube.dev/v1/members", Duration::from_secs(3));
        let answer = answer.filter(|a| a.code == 200);
        answer.and_then(|a| a.body["items"].as_array().cloned()).unwrap_or_default()
    }

    /// Waits until a member serves.
    #[track_caller]
    pub fn await_ready(&self, member: usize) {
        let ready = || {
            assert!(self.runs(member), "{} ended:\n{}", self.name(member), self.log(member));
            let ran = std::path::Path::new(&self.kubeconfig(member)).exists();
            let answer = ran.then(|| {
                let client = self.client(member, &[member]);
                self.get(&client, "/readyz", Duration::from_secs(1))
            });
            answer.flatten().filter(|a| a.code == 200)
        };
        eventually("a member serves", PATIENCE, ready);
    }

    /// Waits until so many vote, one leads and none lags; says who leads.
    #[track_caller]
    pub fn await_voters(&self, voters: usize) -> usize {
        let running: Vec<usize> = (0..self.count()).filter(|&m| self.runs(m)).collect();
        self.await_members(voters, &running, 0)
    }

    /// The same under load, where a member is always a little behind what is asked a moment later.
    #[track_caller]
    pub fn await_health(&self, voters: usize) -> usize {
        let running: Vec<usize> = (0..self.count()).filter(|&m| self.runs(m)).collect();
        self.await_members(voters, &running, 100)
    }

    #[track_caller]
    fn await_members(&self, voters: usize, asked: &[usize], lag: u64) -> usize {
        let clients: Vec<kube::Client> = asked.iter().map(|&m| self.client(m, &[m])).collect();
        let mut tries = 0;
        eventually(&format!("{voters} members vote and none lags"), PATIENCE, || {
            tries += 1;
            settled(&self.members_by(&clients[tries % clients.len()]), voters, lag)
        })
    }

    /// The ends of all logs, for a person who looks for the cause of a failure.
    fn show_logs(&self) {
        let entries = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
        logs.sort();
        let mut shown = String::new();
        for path in logs {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().rev().take(60).collect();
            let _ = writeln!(shown, "--- {}", path.display());
            lines.iter().rev().for_each(|line| {
                let _ = writeln!(shown, "{line}");
            });
        }
        eprint!("{shown}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            if std::env::var_os("RKUBE_KEEP").is_some() {
                self.dir.disable_cleanup(true);
            }
        }
        for process in &self.processes {
            let child = process.lock().map(|mut process| process.take()).unwrap_or_default();
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub warning: Option<String>,
    pub body: Value,
}

async fn get(client: &kube::Client, path: &str) -> Option<Answer> {
    use http_body_util::BodyExt;
    let request = http::Request::get(path).body(kube::client::Body::empty()).expect("a request");
    let answer = client.send(request).await.ok()?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let warning = head.headers.get("warning").and_then(|w| w.to_str().ok()).map(str::to_owned);
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Answer { code: head.status.as_u16(), warning, body })
}

/// The leader, if these are so many members, all voters in good health, none behind by more.
fn settled(members: &[Value], voters: usize, lag: u64) -> Option<usize> {
    let good = |m: &Value| {
        let lags = m["status"]["lag"].as_u64().is_none_or(|behind| behind > lag);
        m["spec"]["voter"] == true && m["status"]["health"] == "Ok" && !lags
    };
    (members.len() == voters && members.iter().all(good)).then(|| leader_in(members)).flatten()
}

fn leader_in(members: &[Value]) -> Option<usize> {
    let leader = members.iter().find(|m| m["status"]["role"] == "leader")?;
    let number: usize = leader["metadata"]["name"].as_str()?.strip_prefix('m')?.parse().ok()?;
    number.checked_sub(1)
}
