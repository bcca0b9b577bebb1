//! What to do next for a pod: a pure function of its [`State`].
//!
//! A plan lists everything that may start now; actions go on side by side. What is in flight is
//! never planned again, so a plan may be made after every piece of news.

use super::probes::Kind;
use super::state::{Ending, ImageState, Role, State, Volumes, after, find, may_run, specs};
use super::status::{self, status};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus};
use rkube_cri::{self as cri, ContainerState};
use std::time::Duration;

/// A pod that starts within this time is told as Running in its first report; one that takes
/// longer shows as being created. Half the wait that a person notices.
const QUIET_START_MS: i64 = 300;

/// Something to carry out. Each has a key; of equal keys only one is in flight.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod's folder, volumes and files, or bring them up to date.
    Prepare,
    /// Find or pull the image of this container.
    Pull {
        /// The container's name.
        container: String,
    },
    /// Run a sandbox.
    RunSandbox {
        /// Counts the pod's sandboxes.
        attempt: u32,
    },
    /// Create and start a container.
    Start {
        /// The container's name.
        container: String,
        /// Counts its instances.
        attempt: u32,
        /// The image by the runtime's reference.
        image: String,
    },
    /// End a container.
    Stop {
        /// The container's name.
        container: String,
        /// The instance.
        id: String,
        /// When it is killed at the latest.
        deadline: Timestamp,
        /// Run its preStop hook first.
        hook: bool,
        /// For the event.
        message: String,
    },
    /// Remove an instance that is no longer needed.
    Remove {
        /// The instance.
        id: String,
        /// The container's name.
        container: String,
        /// Which of its instances; its log goes with it.
        attempt: u32,
    },
    /// End a sandbox.
    StopSandbox {
        /// The sandbox.
        id: String,
    },
    /// Remove a sandbox with what is in it.
    RemoveSandbox {
        /// The sandbox.
        id: String,
    },
    /// Tell the API.
    Report(Box<PodStatus>),
    /// Remove the object from the API.
    Finalize,
    /// Remove folders, cgroups and the like.
    Clean,
    /// Give up what is in flight under this key.
    Cancel(String),
}

impl Action {
    /// The key that says whether two actions are the same.
    pub fn key(&self) -> String {
        match self {
            Action::Prepare => "prepare".into(),
            Action::Pull { container } => format!("pull/{container}"),
            Action::RunSandbox { .. } => "sandbox/run".into(),
            Action::Start { container, .. } => format!("start/{container}"),
            Action::Stop { id, deadline, .. } => format!("stop/{id}/{}", deadline.as_second()),
            Action::Remove { id, .. } => format!("remove/{id}"),
            Action::StopSandbox { id } => format!("sandbox/stop/{id}"),
            Action::RemoveSandbox { id } => format!("sandbox/remove/{id}"),
            Action::Report(_) => "report".into(),
            Action::Finalize => "finalize".into(),
            Action::Clean => "clean".into(),
            Action::Cancel(key) => format!("cancel/{key}"),
        }
    }
}

/// What to start now, and when to look again if nothing happens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Side by side.
    pub actions: Vec<Action>,
    /// Something is due then.
    pub recheck_after: Option<Duration>,
}

/// Collects a plan.
struct Draft<'a> {
    state: &'a State,
    now: Timestamp,
    actions: Vec<Action>,
    next: Option<Timestamp>,
}

/// What to do next.
pub fn plan(state: &State, node: &status::Node, now: Timestamp) -> Plan {
    let mut draft = Draft { state, now, actions: Vec::new(), next: None };
    match state.ending {
        Some(_) => draft.end(),
        None if status::is_terminal(state) => draft.settle(),
        None => draft.run(),
    }
    draft.old_sandboxes();
    draft.report(node);
    let in_flight = &state.in_flight;
    draft.actions.retain(|action| !in_flight.contains(&action.key()));
    Plan { recheck_after: draft.recheck_after(), actions: draft.actions }
}

impl Draft<'_> {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Whether `due` has come; if not, the plan is made again then.
    fn is_due(&mut self, due: Timestamp) -> bool {
        if due > self.now {
            self.next = Some(self.next.map_or(due, |next| next.min(due)));
        }
        due <= self.now
    }

    fn recheck_after(&self) -> Option<Duration> {
        let next = self.next?;
        Duration::try_from(next.duration_since(self.now)).ok()
    }

    // --- running ---

    fn run(&mut self) {
        if self.is_past_active_deadline() {
            return;
        }
        self.prepare();
        self.sandbox();
        self.pulls();
        self.containers();
        self.unhealthy();
        self.surplus();
    }

    /// The worker turns this into [`Ending::Deadline`]; here it only has to be looked at in time.
    fn is_past_active_deadline(&mut self) -> bool {
        match status::active_deadline(self.state) {
            Some(deadline) => self.is_due(deadline),
            None => false,
        }
    }

    fn prepare(&mut self) {
        let due = match &self.state.volumes {
            Volumes::Ready => match self.state.tokens_due {
                Some(due) => due,
                None => return,
            },
            Volumes::Failed { due, .. } => *due,
            Volumes::Unprepared | Volumes::Outdated => self.now,
        };
        if self.is_due(due) {
            self.push(Action::Prepare);
        }
    }

    fn sandbox(&mut self) {
        let attempt = match &self.state.sandbox {
            Some(sandbox) if sandbox.ready => return,
            Some(dead) => {
                if !self.state.stopped.contains(&dead.id) {
                    // A start that was under way may yet have come off in it.
                    if self.state.running().any(|c| c.sandbox == dead.id) {
                        return;
                    }
                    let id = dead.id.clone();
                    return self.push(Action::StopSandbox { id });
                }
                dead.attempt + 1
            }
            None => 0,
        };
        let failures = self.state.sandbox_error.as_ref();
        let due = failures.map_or(self.now, |error| error.due);
        // A name stays reserved for a while after a failure: a new attempt takes a new one.
        let attempt = attempt + failures.map_or(0, |error| error.failures);
        if self.is_due(due) {
            self.push(Action::RunSandbox { attempt });
        }
    }

    /// Images of all containers that are still to start, so that they arrive while the sandbox is made.
    fn pulls(&mut self) {
        let state = self.state;
        for (spec, role) in specs(&state.pod) {
            let waits = state.current_here(&spec.name).is_none_or(|c| restarts(state, c, role));
            if !waits || state.in_flight.contains(&format!("start/{}", spec.name)) {
                continue;
            }
            let due = match state.images.get(&spec.name) {
                Some(ImageState::Present(_)) => continue,
                Some(ImageState::Failed { due, .. }) => *due,
                None => self.now,
            };
            let due = due.max(self.restart_due(&spec.name));
            if self.is_due(due) {
                self.push(Action::Pull { container: spec.name.clone() });
            }
        }
    }

    fn restart_due(&self, name: &str) -> Timestamp {
        let ended = self.state.current_here(name).is_some();
        let backoff = self.state.backoff.get(name).filter(|_| ended);
        backoff.map_or(self.now, |backoff| backoff.due)
    }

    /// Init containers one after the other, then all others at once.
    fn containers(&mut self) {
        let state = self.state;
        if !state.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready) {
            return;
        }
        let initialized = status::has_started_main(state);
        for (spec, role) in specs(&state.pod) {
            let current = state.current_here(&spec.name);
            match role {
                Role::Init if initialized => {}
                Role::Init => match current {
                    Some(c) if is_done(c) => {}
                    _ => return self.start_if_ended(spec, role),
                },
                Role::Sidecar => {
                    self.start_if_ended(spec, role);
                    if !initialized && !current.is_some_and(|c| state.is_started(spec, c)) {
                        return;
                    }
                }
                Role::Main => self.start_if_ended(spec, role),
            }
        }
    }

    fn start_if_ended(&mut self, spec: &Container, role: Role) {
        let state = self.state;
        let name = &spec.name;
        if let Some(current) = state.current_here(name)
            && !restarts(state, current, role)
        {
            return;
        }
        let Some(ImageState::Present(image)) = state.images.get(name) else { return };
        if !matches!(state.volumes, Volumes::Ready | Volumes::Outdated) {
            return;
        }
        let error_due = state.start_errors.get(name).map_or(self.now, |error| error.due);
        if self.is_due(error_due.max(self.restart_due(name))) {
            let attempt = state.current(name).map_or(0, |c| c.attempt + 1);
            let image = image.clone();
            self.push(Action::Start { container: name.clone(), attempt, image });
        }
    }

    /// Containers that a probe condemns, that were made from another image than the spec's, or whose
    /// sandbox has died.
    fn unhealthy(&mut self) {
        let state = self.state;
        let stopping: Vec<_> = state.running().filter_map(|c| self.why_restart(c)).collect();
        for stop in stopping {
            if !state.busy(&format!("stop/{}/", stop.0.id)) {
                let (container, grace, message) = stop;
                let (name, id) = (container.name.clone(), container.id.clone());
                let deadline = after(self.now, grace);
                self.push(Action::Stop { container: name, id, deadline, hook: true, message });
            }
        }
    }

    fn why_restart<'c>(
        &self,
        container: &'c cri::Container,
    ) -> Option<(&'c cri::Container, i64, String)> {
        let (spec, _) = find(&self.state.pod, &container.name)?;
        let name = &container.name;
        let dead =
            self.state.sandbox.as_ref().is_some_and(|s| !s.ready && s.id == container.sandbox);
        if dead {
            let message = "Pod sandbox changed, it will be killed and re-created.".into();
            return Some((container, self.grace(), message));
        }
        let hash = container.annotations.get(super::state::HASH);
        if hash.is_some_and(|hash| *hash != super::start::hash(spec)) {
            let message = format!("Container {name} definition changed, will be restarted");
            return Some((container, self.grace(), message));
        }
        let probed = self.state.probes.get(name).filter(|p| p.id == container.id)?;
        let kind = probed.unhealthy?;
        let own_grace = kind.of(spec).and_then(|p| p.termination_grace_period_seconds);
        let word = kind.word().to_lowercase();
        let after = if kind == Kind::Startup { "startup" } else { word.as_str() };
        let message = format!("Container {name} failed {after} probe, will be restarted");
        Some((container, own_grace.unwrap_or_else(|| self.grace()), message))
    }

    fn grace(&self) -> i64 {
        let spec = self.state.pod.spec.as_ref();
        spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30)
    }

    /// One ended instance a container is kept for its log and state; older ones go.
    fn surplus(&mut self) {
        for instances in self.state.containers.values() {
            let older = instances.len().saturating_sub(2);
            for surplus in instances.iter().take(older).filter(|c| !may_run(c)) {
                let (id, container) = (surplus.id.clone(), surplus.name.clone());
                self.push(Action::Remove { id, container, attempt: surplus.attempt });
            }
        }
    }

    // --- ended by itself ---

    /// All has ended and nothing starts again: give back the address, keep the logs.
    fn settle(&mut self) {
        self.stop_running();
        if self.state.running().next().is_none() {
            self.stop_sandbox();
        }
    }

    // --- ending ---

    fn end(&mut self) {
        for key in self.state.in_flight.iter().filter(|key| key.starts_with("pull/")) {
            self.actions.push(Action::Cancel(key.clone()));
        }
        self.stop_running();
        let starting = self.state.busy("start/") || self.state.busy("sandbox/run");
        if starting || self.state.running().next().is_some() {
            return;
        }
        self.stop_sandbox();
        if self.state.sandbox.as_ref().is_some_and(|s| !self.state.stopped.contains(&s.id)) {
            return;
        }
        if self.state.ending != Some(Ending::Deadline) {
            self.finalize();
        }
    }

    /// The application first, then sidecars, the last one first.
    fn stop_running(&mut self) {
        let state = self.state;
        let deadline = state.deadline.unwrap_or_else(|| after(self.now, self.grace()));
        let is_sidecar = |c: &&cri::Container| {
            find(&state.pod, &c.name).is_some_and(|(_, role)| role == Role::Sidecar)
        };
        let mains: Vec<_> = state.running().filter(|c| !is_sidecar(c)).collect();
        let stopping = if mains.is_empty() && !state.busy("start/") {
            let order: Vec<_> = specs(&state.pod).map(|(c, _)| c.name.as_str()).collect();
            let place = |c: &cri::Container| order.iter().position(|name| *name == c.name);
            state.running().max_by_key(|c| place(c)).into_iter().collect()
        } else {
            mains
        };
        for container in stopping {
            let (name, id) = (container.name.clone(), container.id.clone());
            let hook = !state.busy(&format!("stop/{id}/"));
            let message = format!("Stopping container {name}");
            self.push(Action::Stop { container: name, id, deadline, hook, message });
        }
    }

    fn stop_sandbox(&mut self) {
        if let Some(sandbox) = &self.state.sandbox
            && !self.state.stopped.contains(&sandbox.id)
        {
            self.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
        }
    }

    /// The object goes when the API knows how all ended; the rest of the cleaning goes beside it.
    fn finalize(&mut self) {
        let state = self.state;
        if let Some(sandbox) = &state.sandbox {
            self.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        } else if !state.cleaned && state.old_sandboxes.is_empty() {
            self.push(Action::Clean);
        }
        let due = state.finalize_due.unwrap_or(self.now);
        if !state.finalized && self.is_due(due) {
            self.push(Action::Finalize);
        }
    }

    // --- always ---

    fn old_sandboxes(&mut self) {
        for id in self.state.old_sandboxes.iter().cloned() {
            self.actions.push(match self.state.stopped.contains(&id) {
                true => Action::RemoveSandbox { id },
                false => Action::StopSandbox { id },
            });
        }
    }

    fn report(&mut self, node: &status::Node) {
        let state = self.state;
        if state.finalized || state.closed {
            return;
        }
        let wanted = status(state, node, self.now);
        let is_first = state.reported.is_none();
        let is_known = is_first && status::is_known(&wanted, state.pod.status.as_ref());
        if is_known || state.reported.as_ref() == Some(&wanted) {
            return;
        }
        let mut due = state.report_due.unwrap_or(self.now);
        if is_first && status::is_being_created(&wanted) {
            let quiet = SignedDuration::from_millis(QUIET_START_MS);
            due = due.max(state.since.checked_add(quiet).unwrap_or(Timestamp::MAX));
        }
        if self.is_due(due) {
            // The last word on how all ended has to be there before the object goes.
            let last = self.actions.iter().position(|a| *a == Action::Finalize);
            if let Some(position) = last {
                self.actions.remove(position);
            }
            self.actions.insert(0, Action::Report(Box::new(wanted)));
        }
    }
}

/// Whether an instance ran to a good end.
pub fn is_done(container: &cri::Container) -> bool {
    container.state == ContainerState::Exited && container.exit_code == 0
}

/// Whether an instance has to be followed by another one.
pub fn restarts(state: &State, container: &cri::Container, role: Role) -> bool {
    match container.state {
        ContainerState::Running | ContainerState::Unknown => false,
        // Made but never started: a former process of ours ended in between.
        ContainerState::Created => !state.busy(&format!("start/{}", container.name)),
        ContainerState::Exited => status::restarts_after(&state.pod, role, container.exit_code),
    }
}
