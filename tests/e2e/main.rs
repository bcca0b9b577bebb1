//! The real binaries, a real containerd, a real registry, a real kubectl: a `rkube up` of three
//! nodes, used as a person would.
//!
//! The tests run in network, PID, mount and IPC namespaces that this program makes for itself, so
//! that they disturb nobody, can run side by side, and leave nothing behind whatever happens.

mod cluster;
mod control_plane;
mod failures;
mod kubectl;
mod node;
mod node_more;
mod subnets;
mod workloads;

use cluster::Cluster;
use libtest_mimic::{Arguments, Failed, Trial};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

/// A test: its name and what it does with the cluster.
pub type Test = (&'static str, fn(&Cluster));

/// What failed, to be told once more after the cluster's logs.
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

const INSIDE: &str = "RKUBE_E2E_INSIDE";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    if std::env::var_os(INSIDE).is_none() {
        return go_inside();
    }
    assert!(cluster::run("ip", &["link", "set", "lo", "up"]).code == 0, "no loopback");
    // They share one cluster, and some of them kill parts of it.
    arguments.test_threads = Some(1);
    let cluster = Arc::new(Cluster::start());
    let conclusion = libtest_mimic::run(&arguments, trials(Some(cluster.clone())));
    let clean = noted("what is left behind", || cluster.stop_and_look());
    if conclusion.has_failed() || clean.is_err() {
        cluster.show_logs();
        FAILURES.lock().unwrap().iter().for_each(|failure| eprintln!("FAILED {failure}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Does `what`; notes its panic under `name` and gives what it said.
fn noted(name: &str, what: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panicked");
        FAILURES.lock().unwrap().push(format!("{name}: {text}"));
        text.to_owned()
    })
}

/// Runs this program again as the first process of fresh namespaces.
fn go_inside() -> ExitCode {
    let flags = "--net --pid --mount --ipc --fork --kill-child --mount-proc --propagation private";
    let own = std::env::current_exe().expect("a path of this program");
    let error = Command::new("unshare")
        .args(flags.split(' '))
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!("these tests need root and util-linux's unshare: {error}");
    ExitCode::FAILURE
}

fn trials(cluster: Option<Arc<Cluster>>) -> Vec<Trial> {
    let groups = [
        ("control_plane", control_plane::TESTS),
        ("kubectl", kubectl::TESTS),
        ("workloads", workloads::TESTS),
        ("node", node::TESTS),
        ("node_more", node_more::TESTS),
        ("subnets", subnets::TESTS),
        ("failures", failures::TESTS),
    ];
    let tests = groups.iter().flat_map(|(group, tests)| tests.iter().map(move |t| (group, t)));
    tests
        .map(|(group, (name, test))| {
            let cluster = cluster.clone();
            let name = format!("{group}::{name}");
            Trial::test(name.clone(), move || {
                let cluster = cluster.ok_or_else(|| Failed::from("no cluster"))?;
                Ok(noted(&name, || test(&cluster))?)
            })
        })
        .collect()
}
