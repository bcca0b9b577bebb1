//! What a worker knows of its pod: what is desired, what was observed, and what is in flight.
//!
//! The state changes only by folding in news ([`State::fold`] and the `on_…` methods); plans and
//! statuses are pure functions of it. Invariants:
//! - instances of a container are ordered by attempt, and the last one is the current one;
//! - an action that was handed out stays in `in_flight` until its outcome is folded in;
//! - `ending` never goes back to `None`.

use super::backoff::{BackOff, delay};
use super::probes::{Count, Kind};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::ResourceExt;
use rkube_cri::{self as cri, ContainerState, Sandbox};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Annotation of a container: which spec it was made from.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Label of sandboxes and containers: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label of sandboxes and containers: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label of sandboxes and containers: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label of containers: the name in the spec.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Label of sandboxes: the cluster that the pod belongs to.
pub const CLUSTER: &str = "rkube.io/cluster-id";
/// Annotation of containers: seconds of grace, for when the pod's spec is no longer known.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Why the pod's containers have to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Someone deleted the pod; the object waits for us.
    Deleted,
    /// The object is gone already.
    Gone,
    /// It ran longer than `activeDeadlineSeconds`.
    Deadline,
}

/// An image that a container is about to be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// On the node under this reference.
    Present(String),
    /// Not to be had.
    Failed {
        /// `ErrImagePull` and the like.
        reason: String,
        /// The registry's or the runtime's words.
        message: String,
        /// Failures in a row.
        failures: u32,
        /// The next attempt is not before this.
        due: Timestamp,
    },
}

/// The pod's folder, volumes and files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Volumes {
    /// Nothing was tried yet.
    #[default]
    Unprepared,
    /// All are there.
    Ready,
    /// All are there, but an object behind them has changed since.
    Outdated,
    /// Not yet.
    Failed {
        /// What is missing.
        message: String,
        /// The next attempt is not before this.
        due: Timestamp,
    },
}

/// A container that could not be made or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// `CreateContainerConfigError` and the like.
    pub reason: String,
    /// What went wrong.
    pub message: String,
    /// Failures in a row.
    pub failures: u32,
    /// The next attempt is not before this.
    pub due: Timestamp,
}

/// What probes say about one container instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probed {
    /// The instance.
    pub id: String,
    /// The startup probe has succeeded.
    pub started: bool,
    /// The readiness probe's last verdict.
    pub ready: bool,
    /// A verdict that asks for a restart: which probe.
    pub unhealthy: Option<Kind>,
    counts: BTreeMap<Kind, Count>,
}

/// A pod as its worker sees it.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The newest version of the object.
    pub pod: Arc<Pod>,
    /// When the worker began; `startTime` of a pod that has none yet.
    pub since: Timestamp,
    /// Whether everything has to end, and why.
    pub ending: Option<Ending>,
    /// When the grace period is over.
    pub deadline: Option<Timestamp>,
    /// The newest sandbox.
    pub sandbox: Option<Sandbox>,
    /// Sandboxes whose network and processes are gone.
    pub stopped: BTreeSet<String>,
    /// Earlier sandboxes that still have to be stopped and removed.
    pub old_sandboxes: BTreeSet<String>,
    /// Why the last sandbox could not be made.
    pub sandbox_error: Option<StartError>,
    /// Instances by container name.
    pub containers: BTreeMap<String, Vec<cri::Container>>,
    /// By container name: the image for its next start.
    pub images: BTreeMap<String, ImageState>,
    /// Volumes and files.
    pub volumes: Volumes,
    /// Tokens among the volumes' files have to be fetched anew then.
    pub tokens_due: Option<Timestamp>,
    /// By container name.
    pub start_errors: BTreeMap<String, StartError>,
    /// By container name.
    pub backoff: BTreeMap<String, BackOff>,
    /// By container name.
    pub probes: BTreeMap<String, Probed>,
    /// Keys of actions that are under way.
    pub in_flight: BTreeSet<String>,
    /// The status that the API has from us.
    pub reported: Option<PodStatus>,
    /// A report failed; the next is not before this.
    pub report_due: Option<Timestamp>,
    /// The object has been removed, or the removal found it gone.
    pub finalized: bool,
    /// Removing the object failed; the next attempt is not before this.
    pub finalize_due: Option<Timestamp>,
    /// Folders, cgroups and the like are gone.
    pub cleaned: bool,
    /// It had ended before this worker began: what the API has of it is the last word.
    pub closed: bool,
}

impl State {
    /// A worker's first state: the object, and what runs of it already.
    pub fn adopt(
        pod: Arc<Pod>,
        sandboxes: Vec<Sandbox>,
        containers: Vec<cri::Container>,
        now: Timestamp,
    ) -> Self {
        let closed = super::status::already_terminal(&pod);
        let mut state = Self { pod, since: now, closed, ..Self::default() };
        for sandbox in sandboxes {
            state.on_sandbox(sandbox);
        }
        for container in containers {
            state.on_container(container, now);
        }
        state.recall_probes();
        state.on_pod(state.pod.clone(), now);
        state
    }

    /// Uid of the pod.
    pub fn uid(&self) -> String {
        self.pod.uid().unwrap_or_default()
    }

    /// The current instance of a container.
    pub fn current(&self, name: &str) -> Option<&cri::Container> {
        self.containers.get(name)?.last()
    }

    /// The current instance of a container, if it is in the sandbox that is in use.
    pub fn current_here(&self, name: &str) -> Option<&cri::Container> {
        let sandbox = self.sandbox.as_ref()?;
        self.current(name).filter(|c| c.sandbox.is_empty() || c.sandbox == sandbox.id)
    }

    /// All instances whose process runs or may run.
    pub fn running(&self) -> impl Iterator<Item = &cri::Container> {
        self.containers.values().flatten().filter(|c| may_run(c))
    }

    /// Whether an action whose key begins with `prefix` is under way.
    pub fn busy(&self, prefix: &str) -> bool {
        self.in_flight.range(prefix.to_owned()..).next().is_some_and(|key| key.starts_with(prefix))
    }

    /// Whether nothing is left to do for this pod, ever.
    pub fn finished(&self) -> bool {
        self.finalized && self.cleaned && self.in_flight.is_empty()
    }

    /// A new version of the object.
    pub fn on_pod(&mut self, pod: Arc<Pod>, now: Timestamp) {
        self.pod = pod;
        let meta = &self.pod.metadata;
        let Some(deleted) = &meta.deletion_timestamp else { return };
        self.ending = match self.ending {
            Some(Ending::Gone) => Some(Ending::Gone),
            _ => Some(Ending::Deleted),
        };
        // deletionTimestamp is in whole seconds and lies in the future by the grace period.
        let grace = meta.deletion_grace_period_seconds.unwrap_or(30);
        let until = deleted.0.min(after(now, grace));
        self.deadline = Some(self.deadline.map_or(until, |earlier| earlier.min(until)));
    }

    /// The object is gone from the API.
    pub fn on_gone(&mut self, now: Timestamp) {
        let meta = &self.pod.metadata;
        let spec_grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let grace = meta.deletion_grace_period_seconds.or(spec_grace).unwrap_or(30);
        let until = after(now, grace.max(1));
        self.ending = Some(Ending::Gone);
        self.finalized = true;
        self.deadline = Some(self.deadline.map_or(until, |earlier| earlier.min(until)));
    }

    /// What a look at a sandbox has found.
    pub fn on_sandbox(&mut self, sandbox: Sandbox) {
        match &mut self.sandbox {
            Some(known) if known.id == sandbox.id => {
                let ips = std::mem::take(&mut known.ips);
                *known = sandbox;
                if known.ips.is_empty() {
                    known.ips = ips;
                }
            }
            Some(known) if known.attempt > sandbox.attempt => {
                self.old_sandboxes.insert(sandbox.id);
            }
            _ => {
                let before = self.sandbox.replace(sandbox);
                self.old_sandboxes.extend(before.map(|s| s.id));
            }
        }
    }

    /// What a look at a container has found.
    pub fn on_container(&mut self, found: cri::Container, now: Timestamp) {
        let name = found.name.clone();
        let instances = self.containers.entry(name.clone()).or_default();
        let ended = match instances.iter_mut().find(|c| c.id == found.id) {
            Some(known) => merge(known, found),
            None => {
                let ended = found.state == ContainerState::Exited;
                instances.push(found);
                instances.sort_by_key(|c| (c.attempt, c.created_at));
                ended
            }
        };
        if ended {
            self.count_end(&name, now);
        }
    }

    fn count_end(&mut self, name: &str, now: Timestamp) {
        let Some(current) = self.current(name).filter(|c| c.state == ContainerState::Exited) else {
            return;
        };
        let ended = time(current.finished_at).unwrap_or(now);
        // One that never started has run for no time.
        let started = time(current.started_at).unwrap_or(ended);
        let ran = ended.duration_since(started).as_secs();
        let next = match self.backoff.get(name) {
            // Ends that a former process of ours has counted show in the attempt.
            None => BackOff::nth(current.attempt.saturating_add(1).min(8), ended),
            previous => BackOff::after(previous.copied(), ended, ran),
        };
        self.backoff.insert(name.to_owned(), next);
        self.images.remove(name);
        self.probes.remove(name);
    }

    /// After a restart of the kubelet: what the API knows of a running container stays true until
    /// a probe says otherwise.
    fn recall_probes(&mut self) {
        let pod = self.pod.clone();
        let status = pod.status.as_ref();
        let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
        let main = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
        for known in init.chain(main) {
            let Some(current) = self.current(&known.name) else { continue };
            let full_id = format!("containerd://{}", current.id);
            if current.state == ContainerState::Running && known.container_id == Some(full_id) {
                let id = current.id.clone();
                let started = known.started == Some(true);
                let probed = Probed { id, started, ready: known.ready, ..Probed::default() };
                self.probes.insert(known.name.clone(), probed);
            }
        }
    }

    /// A probe's result; gives true if it changes what the probes say of the container.
    pub fn on_probe(&mut self, name: &str, id: &str, kind: Kind, success: bool) -> bool {
        if self.current(name).is_none_or(|c| c.id != id || c.state != ContainerState::Running) {
            return false;
        }
        let pod = self.pod.clone();
        let Some(probe) = find(&pod, name).and_then(|(c, _)| kind.of(c)) else { return false };
        let probed = self.probes.entry(name.to_owned()).or_default();
        if probed.id != id {
            *probed = Probed { id: id.to_owned(), ..Probed::default() };
        }
        let verdict = probed.counts.entry(kind).or_default().add(success, probe);
        let before = (probed.started, probed.ready, probed.unhealthy);
        match (kind, verdict) {
            (Kind::Startup, Some(true)) => probed.started = true,
            (Kind::Readiness, Some(ready)) => probed.ready = ready,
            (Kind::Startup | Kind::Liveness, Some(false)) => probed.unhealthy = Some(kind),
            (_, None) | (Kind::Liveness, Some(true)) => {}
        }
        before != (probed.started, probed.ready, probed.unhealthy)
    }

    /// Whether a running container counts as started: its startup probe has succeeded.
    pub fn is_started(&self, spec: &Container, instance: &cri::Container) -> bool {
        instance.state == ContainerState::Running
            && (spec.startup_probe.is_none() || self.probed(instance).is_some_and(|p| p.started))
    }

    /// Whether a running container may be sent traffic.
    pub fn is_ready(&self, spec: &Container, instance: &cri::Container) -> bool {
        self.is_started(spec, instance)
            && (spec.readiness_probe.is_none() || self.probed(instance).is_some_and(|p| p.ready))
    }

    fn probed(&self, instance: &cri::Container) -> Option<&Probed> {
        self.probes.get(&instance.name).filter(|probed| probed.id == instance.id)
    }

    /// An image could not be had.
    pub fn on_image_error(&mut self, name: &str, reason: &str, message: &str, now: Timestamp) {
        let before = match self.images.get(name) {
            Some(ImageState::Failed { failures, .. }) => *failures,
            _ => 0,
        };
        let failures = before.saturating_add(1);
        let failed = ImageState::Failed {
            reason: reason.to_owned(),
            message: message.to_owned(),
            failures,
            due: after(now, delay(failures.saturating_add(1))),
        };
        self.images.insert(name.to_owned(), failed);
    }

    /// A container could not be made or started.
    pub fn on_start_error(&mut self, name: &str, reason: &str, message: &str, now: Timestamp) {
        let error = next_error(self.start_errors.get(name), reason, message, now);
        self.start_errors.insert(name.to_owned(), error);
    }

    /// The sandbox could not be made.
    pub fn on_sandbox_error(&mut self, message: &str, now: Timestamp) {
        let error = next_error(self.sandbox_error.as_ref(), "FailedCreatePodSandBox", message, now);
        self.sandbox_error = Some(error);
    }
}

/// Retries soon at first: what is missing is often made a moment later.
fn next_error(
    before: Option<&StartError>,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> StartError {
    let failures = before.map_or(0, |e| e.failures).saturating_add(1);
    StartError {
        reason: reason.to_owned(),
        message: message.to_owned(),
        failures,
        due: after(now, i64::from((1u32 << failures.min(6)) / 2).min(20)),
    }
}

/// Folds a newer look into what is known; true if the container has ended since.
fn merge(known: &mut cri::Container, found: cri::Container) -> bool {
    if known.state == ContainerState::Exited {
        return false;
    }
    let ended = found.state == ContainerState::Exited;
    let sandbox = std::mem::take(&mut known.sandbox);
    *known = found;
    if known.sandbox.is_empty() {
        known.sandbox = sandbox;
    }
    ended
}

/// Whether a process of the container may be alive.
pub fn may_run(container: &cri::Container) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Unknown)
}

/// A runtime's nanoseconds as a time; none for 0.
pub fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}

/// `seconds` after `at`.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// What part a container of the spec plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the others.
    Init,
    /// An init container that stays.
    Sidecar,
    /// The application.
    Main,
}

/// The role of an init container.
pub fn init_role(container: &Container) -> Role {
    match container.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    }
}

/// All containers of a pod in the order of their start.
pub fn specs(pod: &Pod) -> impl Iterator<Item = (&Container, Role)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    init.map(|c| (c, init_role(c))).chain(main.iter().map(|c| (c, Role::Main)))
}

/// One container of a pod's spec.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<(&'a Container, Role)> {
    specs(pod).find(|(container, _)| container.name == name)
}
