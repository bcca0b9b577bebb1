//! Nodes on different networks: `rkube server` and `rkube agent` as a person would start them on
//! three machines, with a router between the two nodes.

use crate::Test;
use crate::cluster::{Cluster, Ran, eventually, run};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub const TESTS: &[Test] = &[("pods_of_nodes_on_different_networks_meet", meet)];

/// The machines; all ends with it.
struct Machines {
    dir: tempfile::TempDir,
    outer: Child,
    init: String,
}

impl Machines {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rkube-subnets-").tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let image = format!("oci:{}:1", root.join("target/images/web_1").display());
        let flags = "--net --pid --mount --ipc --fork --kill-child --mount-proc";
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let outer = Command::new("unshare")
            .args(flags.split(' '))
            .args(["--propagation", "private"])
            .arg(root.join("tests/e2e/subnets.sh"))
            .arg(dir.path())
            .args([env!("CARGO_BIN_EXE_rkube"), &image])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machines = Machines { dir, outer, init: String::new() };
        let parent = machines.outer.id().to_string();
        machines.init = eventually("the first process", 10, || {
            let found = run("pgrep", &["-P", &parent]).stdout.trim().to_owned();
            (!found.is_empty()).then_some(found)
        });
        eventually("the machines are up", 60, || machines.path("up").exists().then_some(()));
        machines
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn rkubectl(&self, args: &[&str]) -> Ran {
        let config = format!("--kubeconfig={}", self.path("server/admin.kubeconfig").display());
        let enter = ["-t", &self.init, "-n", env!("CARGO_BIN_EXE_rkubectl"), &config];
        run("nsenter", &[&enter[..], args].concat())
    }

    fn pod(&self, name: &str, node: &str) {
        let manifest = self.path("pod.yaml");
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  \
             containers: [{{name: c, image: 'registry.rkube.local/web:1', \
             ports: [{{containerPort: 8080, hostPort: 8099}}]}}]\n"
        );
        std::fs::write(&manifest, text).unwrap();
        self.rkubectl(&["apply", "-f", &manifest.display().to_string()]).ok();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["log", "server.log", "n1.log", "n2.log"] {
                let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
                eprintln!("--- {name}\n{text}");
            }
        }
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        // Named after the folder: another run may be beside this one.
        let own = self.dir.path().file_name().expect("a name").to_string_lossy();
        let find = format!("find /sys/fs/cgroup -depth -type d -path '*/{own}*'");
        let remove = format!("{find} -exec rmdir {{}} + 2>/dev/null; {find}");
        eventually("its cgroups go", 20, || {
            run("sh", &["-c", &remove]).stdout.is_empty().then_some(())
        });
    }
}

fn meet(_: &Cluster) {
    let machines = Machines::start();
    eventually("both nodes are Ready", 60, || {
        let path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        let ran = machines.rkubectl(&["get", "nodes", "-o", path]);
        (ran.stdout.trim() == "True True").then_some(())
    });
    machines.pod("p1", "n1");
    machines.pod("p2", "n2");
    machines.rkubectl(&["wait", "--for=condition=Ready", "pod/p1", "pod/p2", "--timeout=60s"]).ok();
    let ip =
        |pod: &str| machines.rkubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]).ok();
    let ask =
        |from: &str, url: &str| machines.rkubectl(&["exec", from, "--", "wget", "-qO-", url]).ok();
    for (from, to) in [("p1", "p2"), ("p2", "p1")] {
        let answer = ask(from, &format!("http://{}:8080/", ip(to)));
        assert!(answer.starts_with(&format!("Hello from {to}")), "{answer}");
        // It sees the pod and not its node.
        let seen = machines.rkubectl(&["logs", to]).ok();
        assert!(seen.contains(&format!("{}]", ip(from))), "{seen}");
    }
    // More than fits in a packet, so that one too large for the tunnel would be missed.
    machines.rkubectl(&["exec", "p2", "--", "sh", "-c", "yes | head -c 2000000 >/www/big"]).ok();
    let url = format!("http://{}:8080/big", ip("p2"));
    assert_eq!(ask("p1", &url).len(), 2_000_000);
    assert!(ask("p1", "http://10.2.0.2:8099/").starts_with("Hello from p2"));
}
