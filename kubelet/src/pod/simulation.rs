//! Plans tried out: single plans as tables, and whole lives under random outcomes.

use super::plan::{Action, Plan, plan};
use super::probes::Kind;
use super::state::{Ending, ImageState, Role, State, Volumes, after, find};
use super::status::{Node, is_terminal};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use rkube_cri::{Container, ContainerState, Sandbox};
use serde_json::{Value, json};
use std::sync::Arc;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pod(spec: Value) -> Arc<Pod> {
    let meta = json!({"name": "web", "namespace": "default", "uid": "u1", "generation": 1});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
}

fn one_container() -> State {
    let pod = pod(json!({"containers": [{"name": "app", "image": "web:1"}]}));
    State::adopt(pod, Vec::new(), Vec::new(), at(0))
}

fn sandbox(attempt: u32) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        ready: true,
        ips: vec!["10.0.0.2".into()],
        ..Sandbox::default()
    }
}

fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap()
}

fn container(name: &str, attempt: u32, state: ContainerState) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        state,
        started_at: nanoseconds(at(0)),
        ..Container::default()
    }
}

fn exited(name: &str, attempt: u32, exit_code: i32) -> Container {
    let finished_at = nanoseconds(at(1));
    Container { exit_code, finished_at, ..container(name, attempt, ContainerState::Exited) }
}

/// Keys of a plan's actions, without reports.
fn keys(state: &State, second: i64) -> Vec<String> {
    let plan: Plan = plan(state, &Node::default(), at(second));
    plan.actions.iter().map(Action::key).filter(|key| key != "report").collect()
}

fn running() -> State {
    let mut state = one_container();
    state.volumes = Volumes::Ready;
    state.on_sandbox(sandbox(0));
    state.on_container(container("app", 0, ContainerState::Running), at(0));
    state
}

#[test]
fn a_new_pod_begins_with_everything_at_once() {
    assert_eq!(keys(&one_container(), 0), ["prepare", "sandbox/run", "pull/app"]);
}

#[test]
fn what_is_in_flight_is_not_planned_again() {
    let mut state = one_container();
    state.in_flight = ["prepare", "sandbox/run"].map(String::from).into();
    assert_eq!(keys(&state, 0), ["pull/app"]);
}

#[test]
fn a_container_waits_for_sandbox_image_and_volumes() {
    let mut state = one_container();
    state.on_sandbox(sandbox(0));
    state.images.insert("app".into(), ImageState::Present("sha256:1".into()));
    assert_eq!(keys(&state, 0), ["prepare"]);
    state.volumes = Volumes::Ready;
    let start = Action::Start { container: "app".into(), attempt: 0, image: "sha256:1".into() };
    assert_eq!(plan(&state, &Node::default(), at(0)).actions, [start]);
}

#[test]
fn nothing_is_to_do_while_all_runs() {
    assert_eq!(keys(&running(), 0), Vec::<String>::new());
}

#[test]
fn ends_are_followed_by_the_policy() {
    let next = |policy: &str, code: i32| {
        let pod = pod(
            json!({"restartPolicy": policy, "containers": [{"name": "app", "image": "web:1"}]}),
        );
        let mut state = State { pod, ..running() };
        state.on_container(exited("app", 0, code), at(1));
        keys(&state, 1)
    };
    assert_eq!(next("Always", 0), ["pull/app"]);
    assert_eq!(next("OnFailure", 1), ["pull/app"]);
    assert_eq!(next("OnFailure", 0), ["sandbox/stop/s0"]);
    assert_eq!(next("Never", 1), ["sandbox/stop/s0"]);
}

#[test]
fn a_second_end_waits_ten_seconds() {
    let mut state = running();
    state.on_container(exited("app", 0, 1), at(1));
    state.on_container(exited("app", 1, 1), at(1));
    assert_eq!(keys(&state, 1), Vec::<String>::new());
    let wait = plan(&state, &Node::default(), at(1)).recheck_after.unwrap();
    assert!(wait.as_secs() <= 10, "{wait:?}");
    assert_eq!(keys(&state, 11), ["pull/app"]);
}

#[test]
fn a_dead_sandbox_is_stopped_and_followed_by_the_next_attempt() {
    let mut state = running();
    state.on_container(exited("app", 0, 137), at(1));
    state.on_sandbox(Sandbox { ready: false, ..sandbox(0) });
    assert_eq!(keys(&state, 1), ["sandbox/stop/s0", "pull/app"]);
    state.stopped.insert("s0".into());
    let actions = plan(&state, &Node::default(), at(1)).actions;
    assert!(actions.contains(&Action::RunSandbox { attempt: 1 }), "{actions:?}");
}

#[test]
fn what_started_in_a_dying_sandbox_is_stopped_before_it() {
    let mut state = running();
    let sandbox = sandbox(0);
    let started = container("app", 0, ContainerState::Running);
    state.on_container(Container { sandbox: sandbox.id.clone(), ..started }, at(1));
    state.on_sandbox(Sandbox { ready: false, ..sandbox });
    assert_eq!(keys(&state, 1), [format!("stop/app0/{}", at(31).as_second())]);
    state.on_container(exited("app", 0, 143), at(2));
    assert_eq!(keys(&state, 2), ["sandbox/stop/s0", "pull/app"]);
}

#[test]
fn a_condemned_container_is_stopped_with_its_grace() {
    let probe = json!({"exec": {"command": ["x"]}, "failureThreshold": 1});
    let pod = pod(json!({"terminationGracePeriodSeconds": 7, "containers": [
        {"name": "app", "image": "web:1", "livenessProbe": probe}]}));
    let mut state = State { pod, ..running() };
    state.on_probe("app", "app0", Kind::Liveness, false);
    let stop = Action::Stop {
        container: "app".into(),
        id: "app0".into(),
        deadline: at(12),
        hook: true,
        message: "Container app failed liveness probe, will be restarted".into(),
    };
    assert!(plan(&state, &Node::default(), at(5)).actions.contains(&stop));
}

#[test]
fn a_deleted_pod_ends_step_by_step() {
    let mut state = running();
    let mut deleted = (*state.pod).clone();
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(30)));
    deleted.metadata.deletion_grace_period_seconds = Some(30);
    state.on_pod(Arc::new(deleted), at(0));
    state.in_flight.insert("pull/app".into());
    assert_eq!(
        keys(&state, 0),
        ["cancel/pull/app".to_owned(), format!("stop/app0/{}", at(30).as_second())]
    );
    state.in_flight.clear();
    state.on_container(exited("app", 0, 0), at(1));
    assert_eq!(keys(&state, 1), ["sandbox/stop/s0"]);
    state.stopped.insert("s0".into());
    // The last report goes before the object.
    assert_eq!(keys(&state, 1), ["sandbox/remove/s0"]);
    let reported =
        plan(&state, &Node::default(), at(1)).actions.into_iter().find_map(|a| match a {
            Action::Report(status) => Some(*status),
            _ => None,
        });
    state.reported = reported;
    assert_eq!(keys(&state, 1), ["sandbox/remove/s0", "finalize"]);
    state.sandbox = None;
    state.finalized = true;
    assert_eq!(keys(&state, 1), ["clean"]);
}

// --- whole lives ---

/// A pod with an init container, a sidecar and two applications, under outcomes drawn from `dice`.
struct Life {
    state: State,
    /// With the sandbox that they were planned for.
    flying: Vec<(Action, String)>,
    second: i64,
    failures_left: u32,
}

impl Life {
    fn new(policy: &str, failures_left: u32) -> Self {
        let pod = pod(json!({"restartPolicy": policy,
            "initContainers": [{"name": "i", "image": "x:1"},
                {"name": "side", "image": "x:1", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}]}));
        let state = State::adopt(pod, Vec::new(), Vec::new(), at(0));
        Self { state, flying: Vec::new(), second: 0, failures_left }
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    /// Plans, checks what must never be planned, and starts everything.
    fn plan(&mut self) {
        let plan = plan(&self.state, &Node::default(), self.now());
        for action in plan.actions {
            self.check(&action);
            if let Action::Cancel(key) = &action {
                self.flying.retain(|(flying, _)| flying.key() != *key);
                self.state.in_flight.remove(key);
                continue;
            }
            assert!(self.state.in_flight.insert(action.key()), "planned twice: {action:?}");
            let sandbox = self.state.sandbox.as_ref().map(|s| s.id.clone());
            self.flying.push((action, sandbox.unwrap_or_default()));
        }
    }

    fn check(&self, action: &Action) {
        let state = &self.state;
        match action {
            Action::Start { container, .. } => {
                assert!(state.ending.is_none(), "a start of an ending pod");
                assert!(
                    state.sandbox.as_ref().is_some_and(|s| s.ready),
                    "a start without a sandbox"
                );
                let alive = state
                    .current_here(container)
                    .is_some_and(|c| c.state == ContainerState::Running);
                assert!(!alive, "a second instance of {container}");
                let (_, role) = find(&state.pod, container).unwrap();
                let init_done = state
                    .current_here("i")
                    .is_some_and(|c| c.exit_code == 0 && c.state == ContainerState::Exited);
                assert!(role != Role::Main || init_done, "{container} before its init container");
            }
            Action::Finalize | Action::Clean => {
                assert_eq!(state.running().count(), 0, "{action:?} while something runs");
            }
            Action::StopSandbox { id } => {
                let inside = state.running().filter(|c| c.sandbox == *id).count();
                assert_eq!(inside, 0, "a sandbox is stopped with containers in it");
            }
            _ => {}
        }
    }

    /// Lands one of the flying actions.
    fn land(&mut self, dice: usize) {
        if self.flying.is_empty() {
            self.second += 1;
            return;
        }
        let (action, sandbox) = self.flying.remove(dice % self.flying.len());
        self.state.in_flight.remove(&action.key());
        let fails = dice.is_multiple_of(3) && self.failures_left > 0;
        self.failures_left -= u32::from(fails);
        if fails { self.fail(&action) } else { self.succeed(&action, sandbox) }
    }

    fn fail(&mut self, action: &Action) {
        let now = self.now();
        match action {
            Action::Prepare => {
                self.state.volumes = Volumes::Failed { message: "x".into(), due: after(now, 1) };
            }
            Action::Pull { container } => {
                self.state.on_image_error(container, "ErrImagePull", "x", now)
            }
            Action::RunSandbox { .. } => self.state.on_sandbox_error("x", now),
            Action::Start { container, .. } => {
                self.state.on_start_error(container, "CreateContainerError", "x", now)
            }
            // Everything else is simply tried again.
            _ => {}
        }
    }

    fn succeed(&mut self, action: &Action, in_sandbox: String) {
        let now = self.now();
        match action {
            Action::Prepare => self.state.volumes = Volumes::Ready,
            Action::Pull { container } => {
                self.state.images.insert(container.clone(), ImageState::Present("x".into()));
            }
            Action::RunSandbox { attempt } => self.state.on_sandbox(sandbox(*attempt)),
            Action::Start { container: name, attempt, .. } => {
                self.state.start_errors.remove(name);
                self.state.images.remove(name);
                let state =
                    if name == "i" { ContainerState::Exited } else { ContainerState::Running };
                let started = Container {
                    sandbox: in_sandbox,
                    finished_at: nanoseconds(now),
                    ..container(name, *attempt, state)
                };
                self.state.on_container(started, now);
            }
            Action::Stop { id, .. } => self.end(id, 143),
            Action::Remove { id, .. } => {
                for list in self.state.containers.values_mut() {
                    list.retain(|c| c.id != *id);
                }
            }
            Action::StopSandbox { id } => {
                self.state.stopped.insert(id.clone());
                if let Some(sandbox) = self.state.sandbox.as_mut().filter(|s| s.id == *id) {
                    sandbox.ready = false;
                }
            }
            Action::RemoveSandbox { id } => {
                self.state.old_sandboxes.remove(id);
                if self.state.sandbox.as_ref().is_some_and(|s| s.id == *id) {
                    self.state.sandbox = None;
                }
            }
            Action::Report(status) => self.state.reported = Some((**status).clone()),
            Action::Finalize => self.state.finalized = true,
            Action::Clean => self.state.cleaned = true,
            Action::Cancel(_) => {}
        }
    }

    fn end(&mut self, id: &str, code: i32) {
        let found = self.state.containers.values().flatten().find(|c| c.id == id).cloned();
        let Some(found) = found.filter(|c| c.state == ContainerState::Running) else { return };
        let now = self.now();
        let finished_at = nanoseconds(now);
        let ended =
            Container { state: ContainerState::Exited, exit_code: code, finished_at, ..found };
        self.state.on_container(ended, now);
    }

    /// Something of the world: a crash, or the end of the whole sandbox.
    fn disturb(&mut self, dice: usize) {
        let ids: Vec<String> = self.state.running().map(|c| c.id.clone()).collect();
        if dice.is_multiple_of(5) {
            for id in ids {
                self.end(&id, 137);
            }
            if let Some(dead) = self.state.sandbox.clone() {
                self.state.on_sandbox(Sandbox { ready: false, ..dead });
            }
        } else if !ids.is_empty() {
            let id = ids[dice % ids.len()].clone();
            self.end(&id, i32::from(dice.is_multiple_of(2)));
        }
    }

    fn settle(&mut self, what: &str, done: impl Fn(&State) -> bool) {
        for step in 0..5_000 {
            self.plan();
            if self.flying.is_empty() && done(&self.state) {
                return;
            }
            self.land(step * 7 + 1);
        }
        panic!("never {what}: {:#?}\nflying {:?}", self.state, self.flying);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever fails in between and in whatever order outcomes come: a pod ends up running, or
    /// ended for good, and a deleted one ends up gone.
    #[test]
    fn every_life_reaches_its_aim(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        dice in prop::collection::vec(any::<u16>(), 0..120),
        failures in 0u32..8,
    ) {
        let mut life = Life::new(policy, failures);
        for roll in dice {
            life.plan();
            match roll % 8 {
                0 => life.disturb(usize::from(roll / 8)),
                1 => life.second += 3,
                _ => life.land(usize::from(roll / 8)),
            }
        }
        life.failures_left = 0;
        let runs = |state: &State, name: &str| {
            state.current_here(name).is_some_and(|c| c.state == ContainerState::Running)
        };
        life.settle("settled", |state| {
            is_terminal(state) || ["side", "a", "b"].iter().all(|name| {
                runs(state, name) || (*name != "side" && state.current_here(name).is_some_and(|c| c.exit_code == 0))
                    || (*name != "side" && policy == "Never" && state.current_here(name).is_some())
            })
        });
        life.state.ending = Some(Ending::Deleted);
        life.state.deadline = Some(after(life.now(), 30));
        life.settle("gone", State::finished);
    }
}
