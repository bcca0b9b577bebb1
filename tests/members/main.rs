//! A control plane of several members, as real processes: each in a network namespace of its own,
//! joined by a bridge, killed, paused and cut off under load from real clients.
//!
//! The tests run in network, PID and mount namespaces that this program makes for itself, so that
//! they disturb nobody, can run side by side, and leave nothing behind whatever happens. They need
//! root, util-linux and iproute2, no container runtime. `RKUBE_FAULTS=n` makes `failover` do n
//! faults of each kind instead of two; `make soak-members` goes on for long. `RKUBE_KEEP=1` keeps the
//! folder of a test that failed.

mod checks;
mod cluster;
mod controllers;
mod failover;
mod load;
mod membership;
mod net;
mod quorum;
mod recovery;
mod run;

use libtest_mimic::{Arguments, Failed, Trial};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

/// A test: its name and what it does.
pub type Test = (&'static str, fn());

const INSIDE: &str = "RKUBE_MEMBERS_INSIDE";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials()).exit_code();
    }
    if std::env::var_os(INSIDE).is_none() {
        return go_inside();
    }
    net::prepare();
    // As rkube does: without it the first handshake panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // They measure, so they take turns.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials()).exit_code()
}

/// Runs this program again as the first process of fresh namespaces: when it ends, however it ends,
/// the kernel ends all others in them.
fn go_inside() -> ExitCode {
    let flags = "--net --pid --mount --fork --kill-child --mount-proc --propagation private";
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

fn trials() -> Vec<Trial> {
    let groups: [(&str, &[Test]); 5] = [
        ("membership", membership::TESTS),
        ("quorum", quorum::TESTS),
        ("failover", failover::TESTS),
        ("controllers", controllers::TESTS),
        ("recovery", recovery::TESTS),
    ];
    let tests = groups.into_iter().flat_map(|(group, tests)| tests.iter().map(move |t| (group, t)));
    tests
        .map(|(group, (name, test))| {
            Trial::test(format!("{group}::{name}"), move || {
                let began = std::time::Instant::now();
                let outcome = catch_unwind(AssertUnwindSafe(test));
                eprintln!("{group}::{name}: {:.1} s", began.elapsed().as_secs_f64());
                outcome.map_err(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    Failed::from(text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panic"))
                })
            })
        })
        .collect()
}
