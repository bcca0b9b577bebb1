//! A whole control plane in one process under a seeded schedule of user actions and faults.
//!
//! API server and store are real and on a real directory; controllers and scheduler are wired as
//! `rkube server` wires them; nodes are simulated. Users create, scale, change, pause, roll back
//! and delete; components are dropped and started anew, the API server is shut down and opened
//! again, answers are lost, nodes die and come back. Then all faults end, the cluster has to come
//! to rest, a calm phase of rollouts follows, and what the watches told is checked as a whole
//! ([`check`]).
//!
//! A seed fixes what is drawn, not when tokio runs whom, and what is drawn depends on what there
//! is at that moment. So a seed is a neighbourhood, not a replay: a failure repeats often, not
//! always. What replays bit for bit is the store's own simulation.
//!
//! `SIM_SEED=7` runs one seed, `SIM_SEEDS=100` the seeds 1 to 100, `SIM_SECONDS` sets how long the
//! faults last.

mod check;
mod control;
mod history;
mod nodes;
mod rest;
mod user;
mod wire;

use control::ControlPlane;
use history::History;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Wire;

/// Run by default.
const FIXED_SEEDS: [u64; 4] = [1, 2, 3, 4];
/// Seeds at a time: they mostly wait.
const AT_ONCE: usize = 4;
/// How long the cluster may take to come to rest. Far more than it needs on a busy machine.
const REST_WITHIN: Duration = Duration::from_secs(60);

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (1..=count).collect(),
        (None, None) => FIXED_SEEDS.to_vec(),
    }
}

fn chaos_for() -> Duration {
    let seconds = std::env::var("SIM_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

#[test]
fn a_cluster_survives_what_happens_to_it() {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut failed = Vec::new();
        for some in seeds().chunks(AT_ONCE) {
            let runs = some.iter().map(|seed| tokio::spawn(simulate(*seed)));
            for (seed, ended) in some.iter().zip(futures::future::join_all(runs).await) {
                let faults = ended.unwrap_or_else(|panic| vec![format!("panicked: {panic}")]);
                failed.extend(faults.into_iter().map(|fault| format!("seed {seed}: {fault}")));
            }
        }
        assert!(failed.is_empty(), "run with SIM_SEED=<seed>:\n{}", failed.join("\n"));
    });
}

/// What one seed's run was, from its start to its end.
struct Sim {
    wire: Arc<Wire>,
    history: Arc<History>,
    control: ControlPlane,
    nodes: nodes::Nodes,
    user: user::User,
    rng: StdRng,
}

/// Runs one seed; gives what was wrong.
async fn simulate(seed: u64) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let wire = Wire::new(rng.random());
    let mut control = ControlPlane::new(dir.path(), wire.clone());
    control.start_api().await;
    let history = History::follow(wire.client("sim-watcher")).await;
    control.start_controllers();
    control.start_scheduler();
    let nodes = nodes::Nodes::new(wire.clone(), history.clone(), rng.random());
    let user = user::User::new(wire.client("sim-user"), history.clone(), rng.random());
    let mut sim = Sim { wire, history, control, nodes, user, rng };
    let mut faults = sim.run(seed).await;
    sim.control.stop().await;
    if !faults.is_empty() {
        faults.extend(sim.user.journal.iter().map(|line| format!("  did: {line}")));
    }
    faults
}

impl Sim {
    async fn run(&mut self, seed: u64) -> Vec<String> {
        self.user.found().await;
        self.chaos().await;
        let chaos_actions = self.user.journal.len();
        self.end_faults().await;
        if let Err(why) = self.rest_refurnished().await {
            let why = why.into_iter().map(|w| format!("no rest: {w}"));
            return why.chain(check::check(&self.record(None))).collect();
        }
        let calm = (self.history.revision(), self.wire.client("sim-user"));
        let (rollouts, mut faults) = self.calm().await;
        let upto = self.history.revision();
        faults.extend(self.history.compare(&calm.1).await);
        faults.extend(check::check(&self.record(Some((calm.0, upto)))));
        let events = self.history.merged().len();
        println!(
            "seed {seed}: {chaos_actions} actions, {rollouts} calm changes, {events} events, {} \
             acknowledged writes",
            self.wire.acknowledged().len()
        );
        faults
    }

    fn record(&self, calm: Option<(u64, u64)>) -> check::Record {
        check::Record {
            events: self.history.merged(),
            acknowledged: self.wire.acknowledged(),
            let_go: self.user.let_go.clone(),
            calm,
            stream_faults: self.history.faults(),
        }
    }

    /// User actions and faults, each when the seed says.
    async fn chaos(&mut self) {
        let end = Instant::now() + chaos_for();
        self.wire.set_faulty(true);
        while Instant::now() < end {
            match self.rng.random_range(0..100) {
                0..3 => self.control.restart_controllers(self.rng.random()).await,
                3..6 => self.control.restart_scheduler(self.rng.random()).await,
                6..8 => {
                    let down = Duration::from_millis(self.rng.random_range(0..300));
                    self.control.restart_api(down).await;
                }
                8..14 => self.nodes.disturb(&mut self.rng).await,
                _ => self.user.act().await,
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..50))).await;
        }
    }

    async fn end_faults(&mut self) {
        self.wire.set_faulty(false);
        self.nodes.heal().await;
        self.user.tidy_up().await;
    }

    /// At rest, and what users had deleted is there again, at rest too.
    async fn rest_refurnished(&mut self) -> Result<(), Vec<String>> {
        rest::wait(&self.history, REST_WITHIN).await?;
        self.user.found().await;
        rest::wait(&self.history, REST_WITHIN).await
    }

    /// Changes that must keep every promise: no fault, and one change of a Deployment at a time.
    async fn calm(&mut self) -> (usize, Vec<String>) {
        let mut changes = 0;
        for _ in 0..2 {
            changes += self.user.roll_all().await;
            if let Err(why) = rest::wait(&self.history, REST_WITHIN).await {
                return (changes, why.iter().map(|w| format!("no rest in calm: {w}")).collect());
            }
        }
        (changes, Vec::new())
    }
}
