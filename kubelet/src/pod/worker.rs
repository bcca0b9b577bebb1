//! One task a pod: it folds news into the pod's [`State`], plans, and starts what the plan says.
//!
//! The worker never waits for an action: outcomes come back as news. It ends when its pod is gone
//! from the API and from the node.

use super::actions::{Job, Outcome, Permit, ReportError};
use super::plan::{Action, plan};
use super::probes::{self, Kind, Timing};
use super::state::{Ending, ImageState, State, Volumes, after, find, may_run, specs};
use super::status::{self, Node};
use super::volumes;
use crate::context::Context;
use crate::recorder::Level;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use rkube_cri::{self as cri, ContainerState, Sandbox};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tracing::Instrument;

/// News for one pod; the worker takes them in faster than they come, the queue only bridges a plan.
const MAILBOX: usize = 64;
/// Added to each retry of something that the node itself failed to do.
const RETRY_SECONDS: i64 = 1;
/// The runtime says that a container has ended some time after its process has: ask this often.
const INSPECT_PAUSE: Duration = Duration::from_millis(8);
const INSPECT_ATTEMPTS: u32 = 125;

/// News for a worker.
#[derive(Debug)]
pub enum News {
    /// A new version of the object.
    Pod(Arc<Pod>),
    /// The object is gone.
    Gone(Option<Arc<Pod>>),
    /// A process of the pod has ended: the id of its container or sandbox.
    Exited(String),
    /// Everything of this pod that the runtime has.
    Seen(Vec<Sandbox>, Vec<cri::Container>),
    /// An object behind a volume has changed.
    VolumesChanged,
    /// A probe's result.
    Probe {
        /// The container's name.
        container: String,
        /// The instance.
        id: String,
        /// Which probe.
        kind: Kind,
        /// What it said.
        result: Result<String, String>,
    },
}

/// A way to reach a worker.
#[derive(Clone)]
pub struct Handle {
    news: mpsc::Sender<News>,
}

impl Handle {
    /// Tells the worker something; a worker that has ended doesn't care.
    pub async fn tell(&self, news: News) {
        let _ = self.news.send(news).await;
    }
}

/// What a new worker is to begin with.
pub struct Begin {
    /// The object.
    pub pod: Arc<Pod>,
    /// The object is gone already: only cleaning is left.
    pub is_orphan: bool,
    /// What runs of it.
    pub sandboxes: Vec<Sandbox>,
    /// What runs of it.
    pub containers: Vec<cri::Container>,
}

/// Starts a worker; `ended` gets the pod's uid when it is done.
pub fn spawn(context: Arc<Context>, begin: Begin, ended: mpsc::Sender<String>) -> Handle {
    let (sender, mailbox) = mpsc::channel(MAILBOX);
    let handle = Handle { news: sender.clone() };
    let node = Node { ips: context.place.host_ips.clone() };
    let now = Timestamp::now();
    let mut state = State::adopt(begin.pod, begin.sandboxes, begin.containers, now);
    if begin.is_orphan {
        state.on_gone(now);
    }
    for id in state.containers.values().flatten().map(|c| &c.id) {
        context.own(id, &state.uid());
    }
    if let Some(sandbox) = &state.sandbox {
        context.own(&sandbox.id, &state.uid());
    }
    let worker = Worker {
        context,
        node,
        state,
        mailbox,
        own_news: sender,
        running: JoinSet::new(),
        keys: HashMap::new(),
        permit: None,
        probes: BTreeMap::new(),
        early: BTreeSet::new(),
    };
    let span = tracing::debug_span!("pod", uid = worker.state.uid());
    let work = async move {
        let uid = worker.run().await;
        let _ = ended.send(uid).await;
    };
    tokio::spawn(work.instrument(span));
    handle
}

struct Probing {
    id: String,
    task: AbortHandle,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Worker {
    context: Arc<Context>,
    node: Node,
    state: State,
    mailbox: mpsc::Receiver<News>,
    own_news: mpsc::Sender<News>,
    running: JoinSet<Outcome>,
    keys: HashMap<Id, (String, AbortHandle)>,
    permit: Permit,
    probes: BTreeMap<(String, Kind), Probing>,
    /// Ends of processes whose start has not come back to us yet.
    early: BTreeSet<String>,
}

impl Worker {
    async fn run(mut self) -> String {
        self.restore_host_ports().await;
        loop {
            let recheck = self.step();
            if self.state.finished() {
                return self.state.uid();
            }
            self.wait(recheck).await;
            while let Ok(news) = self.mailbox.try_recv() {
                self.fold(news);
            }
        }
    }

    async fn wait(&mut self, recheck: Option<Duration>) {
        let recheck = recheck.unwrap_or(Duration::from_secs(3600));
        tokio::select! {
            Some(news) = self.mailbox.recv() => self.fold(news),
            Some(done) = self.running.join_next_with_id() => match done {
                Ok((id, outcome)) => {
                    self.release(id);
                    self.fold_outcome(outcome);
                }
                // Aborted, or panicked: the next plan makes up for it.
                Err(error) => self.release(error.id()),
            },
            () = tokio::time::sleep(recheck) => {}
        }
    }

    fn release(&mut self, id: Id) {
        if let Some((key, _)) = self.keys.remove(&id) {
            self.state.in_flight.remove(&key);
        }
    }

    async fn restore_host_ports(&self) {
        if let Some(sandbox) =
            self.state.sandbox.as_ref().filter(|s| s.ready && self.state.ending.is_none())
        {
            self.job().set_host_ports(sandbox).await;
        }
    }

    /// Plans and starts what the plan says.
    fn step(&mut self) -> Option<Duration> {
        let now = Timestamp::now();
        self.check_deadline(now);
        let plan = plan(&self.state, &self.node, now);
        for action in plan.actions {
            match action {
                Action::Cancel(key) => self.cancel(&key),
                action => {
                    let key = action.key();
                    let job = self.job().run(action);
                    self.launch(key, job);
                }
            }
        }
        if !self.state.busy("start/") && !self.state.busy("sandbox/run") {
            self.permit = None;
            self.early.clear();
        }
        self.sync_probes();
        plan.recheck_after
    }

    fn check_deadline(&mut self, now: Timestamp) {
        let due = status::active_deadline(&self.state).is_some_and(|deadline| deadline <= now);
        if due && self.state.ending.is_none() && !status::is_terminal(&self.state) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.context.recorder.pod(
                &self.state.pod,
                None,
                Level::Normal,
                "DeadlineExceeded",
                message,
            );
            self.state.ending = Some(Ending::Deadline);
        }
    }

    fn job(&self) -> Job {
        Job {
            context: self.context.clone(),
            pod: self.state.pod.clone(),
            sandbox: self.state.sandbox.clone(),
            permit: self.permit.clone(),
            reported: self.state.reported.clone(),
        }
    }

    fn launch(&mut self, key: String, job: impl Future<Output = Outcome> + Send + 'static) {
        if self.state.in_flight.insert(key.clone()) {
            let handle = self.running.spawn(job);
            self.keys.insert(handle.id(), (key, handle));
        }
    }

    fn cancel(&mut self, key: &str) {
        for (_, handle) in self.keys.values().filter(|(k, _)| k == key) {
            handle.abort();
        }
    }

    // --- news ---

    fn fold(&mut self, news: News) {
        let now = Timestamp::now();
        match news {
            News::Pod(pod) => self.on_pod(pod, now),
            News::Gone(pod) => {
                if let Some(pod) = pod {
                    self.state.pod = pod;
                }
                self.state.on_gone(now);
            }
            News::Exited(id) => self.inspect(id),
            News::Seen(sandboxes, containers) => self.on_seen(sandboxes, containers),
            News::VolumesChanged => {
                if self.state.volumes == Volumes::Ready {
                    self.state.volumes = Volumes::Outdated;
                }
            }
            News::Probe { container, id, kind, result } => {
                self.on_probe(&container, &id, kind, result)
            }
        }
    }

    fn on_pod(&mut self, pod: Arc<Pod>, now: Timestamp) {
        let before = self.state.pod.clone();
        let spec_changed = before.spec != pod.spec;
        // Labels and annotations may stand in files of a downward API volume.
        let meta_changed =
            before.labels() != pod.labels() || before.annotations() != pod.annotations();
        self.state.on_pod(pod, now);
        if spec_changed {
            for (container, _) in specs(&self.state.pod.clone()) {
                let old = find(&before, &container.name).and_then(|(c, _)| c.image.clone());
                if old != container.image {
                    self.state.images.remove(&container.name);
                    self.state.start_errors.remove(&container.name);
                }
            }
        }
        if meta_changed && self.state.volumes == Volumes::Ready {
            self.state.volumes = Volumes::Outdated;
        }
    }

    /// Looks until the runtime has noticed what its event said.
    fn inspect(&mut self, id: String) {
        let job = self.job();
        if self.state.sandbox.as_ref().is_some_and(|s| s.id == id) {
            self.launch(format!("inspect/{id}"), async move {
                Outcome::SandboxInspected(inspect_sandbox(&job, &id).await)
            });
            return;
        }
        let mut containers = self.state.containers.values().flatten();
        let Some(known) = containers.find(|c| c.id == id) else {
            self.early.insert(id);
            return;
        };
        if known.state == ContainerState::Exited {
            return;
        }
        let name = known.name.clone();
        self.launch(format!("inspect/{id}"), async move {
            Outcome::Inspected(inspect(&job, &name, &id).await.into_iter().collect())
        });
    }

    /// The slow way to learn what the runtime has, in case an event was lost.
    fn on_seen(&mut self, sandboxes: Vec<Sandbox>, containers: Vec<cri::Container>) {
        let gone = |id: &str| !containers.iter().any(|c| c.id == id);
        let differs = |c: &cri::Container| {
            containers.iter().any(|seen| seen.id == c.id && seen.state != c.state)
        };
        let stale: Vec<String> = self
            .state
            .containers
            .values()
            .flatten()
            .filter(|c| c.state != ContainerState::Exited && (gone(&c.id) || differs(c)))
            .map(|c| c.id.clone())
            .collect();
        for id in stale {
            self.inspect(id);
        }
        if let Some(known) = self.state.sandbox.clone().filter(|s| s.ready) {
            let seen = sandboxes.iter().find(|s| s.id == known.id);
            if seen.is_none_or(|seen| !seen.ready) {
                self.inspect(known.id);
            }
        }
    }

    fn on_probe(&mut self, container: &str, id: &str, kind: Kind, result: Result<String, String>) {
        if let Err(output) = &result {
            let message = format!("{} probe failed: {output}", kind.word());
            let pod = self.state.pod.clone();
            self.context.recorder.pod(&pod, Some(container), Level::Warning, "Unhealthy", message);
        }
        self.state.on_probe(container, id, kind, result.is_ok());
    }

    // --- outcomes ---

    fn fold_outcome(&mut self, outcome: Outcome) {
        let now = Timestamp::now();
        match outcome {
            Outcome::Prepared(Ok(())) => {
                self.state.volumes = Volumes::Ready;
                let life = volumes::token_seconds(&self.state.pod);
                self.state.tokens_due = life.map(|seconds| after(now, seconds * 4 / 5));
            }
            Outcome::Prepared(Err(message)) => {
                self.state.volumes =
                    Volumes::Failed { message, due: after(now, 2 * RETRY_SECONDS) };
            }
            Outcome::Pulled { container, result } => self.on_pulled(&container, result, now),
            Outcome::SandboxRun { result, permit } => self.on_sandbox_run(result, permit, now),
            Outcome::Started { container, result, permit } => {
                self.permit = permit;
                self.on_started(&container, result, now);
            }
            Outcome::Stopped(container) => self.on_found(container, now),
            Outcome::Removed(id) => {
                for instances in self.state.containers.values_mut() {
                    instances.retain(|container| container.id != id);
                }
            }
            Outcome::SandboxStopped { id, result } => self.on_sandbox_stopped(id, result),
            Outcome::SandboxRemoved { id, result } => self.on_sandbox_removed(&id, result),
            Outcome::Reported { status, result } => match result {
                Ok(()) => {
                    self.state.reported = Some(*status);
                    self.state.report_due = None;
                }
                // The watch says the rest.
                Err(ReportError::Gone) => self.state.reported = Some(*status),
                Err(ReportError::Failed(error)) => {
                    tracing::warn!(%error, pod = self.state.pod.name_any(), "report status");
                    self.state.report_due = Some(after(now, RETRY_SECONDS));
                }
            },
            Outcome::Finalized(Ok(())) => self.state.finalized = true,
            Outcome::Finalized(Err(error)) => {
                tracing::warn!(%error, pod = self.state.pod.name_any(), "remove pod from the API");
                self.state.finalize_due = Some(after(now, RETRY_SECONDS));
            }
            Outcome::Cleaned(result) => {
                if let Err(error) = result {
                    // Housekeeping looks for leftovers and tries again.
                    tracing::warn!(%error, uid = self.state.uid(), "clean up after pod");
                }
                self.state.cleaned = true;
            }
            Outcome::Inspected(containers) => {
                for container in containers {
                    self.on_found(Some(container), now);
                }
            }
            Outcome::SandboxInspected(Some(sandbox)) => self.state.on_sandbox(sandbox),
            Outcome::SandboxInspected(None) | Outcome::Nothing => {}
        }
    }

    fn on_pulled(
        &mut self,
        container: &str,
        result: Result<String, crate::images::ImageError>,
        now: Timestamp,
    ) {
        match result {
            Ok(reference) => {
                self.state.images.insert(container.to_owned(), ImageState::Present(reference));
            }
            Err(error) => {
                self.state.on_image_error(container, error.reason, &error.message, now);
                let pod = self.state.pod.clone();
                let image = find(&pod, container).and_then(|(c, _)| c.image.clone());
                if error.reason == "ErrImagePull" {
                    let message =
                        format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
                    self.context.recorder.pod(
                        &pod,
                        Some(container),
                        Level::Normal,
                        "BackOff",
                        message,
                    );
                }
            }
        }
    }

    fn on_sandbox_run(&mut self, result: Result<Sandbox, String>, permit: Permit, now: Timestamp) {
        match result {
            Ok(sandbox) => {
                self.permit = permit;
                self.state.sandbox_error = None;
                let id = sandbox.id.clone();
                self.state.on_sandbox(sandbox);
                if self.early.remove(&id) {
                    self.inspect(id);
                }
            }
            Err(message) => self.state.on_sandbox_error(&message, now),
        }
    }

    fn on_started(
        &mut self,
        name: &str,
        result: Result<cri::Container, super::actions::StartFailure>,
        now: Timestamp,
    ) {
        match result {
            Ok(container) => {
                self.state.start_errors.remove(name);
                self.state.images.remove(name);
                let id = container.id.clone();
                self.state.on_container(container, now);
                if self.early.remove(&id) {
                    self.inspect(id);
                }
            }
            Err(failure) => match failure.container {
                Some(container) if container.state == ContainerState::Exited => {
                    self.state.on_container(container, now);
                    self.say_back_off(name);
                }
                _ => self.state.on_start_error(name, failure.reason, &failure.message, now),
            },
        }
    }

    fn on_found(&mut self, container: Option<cri::Container>, now: Timestamp) {
        let Some(container) = container else { return };
        let name = container.name.clone();
        let ended = container.state == ContainerState::Exited;
        self.state.on_container(container, now);
        if ended && self.state.ending.is_none() {
            self.say_back_off(&name);
        }
    }

    fn say_back_off(&self, name: &str) {
        let waits = self.state.backoff.get(name).is_some_and(|b| b.delay_seconds > 0);
        let restarts = find(&self.state.pod, name).zip(self.state.current(name)).is_some_and(
            |((_, role), c)| status::restarts_after(&self.state.pod, role, c.exit_code),
        );
        if waits && restarts {
            let pod = &self.state.pod;
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                pod.name_any(),
                pod.namespace().unwrap_or_default(),
                self.state.uid()
            );
            self.context.recorder.pod(pod, Some(name), Level::Warning, "BackOff", message);
        }
    }

    fn on_sandbox_stopped(&mut self, id: String, result: Result<(), String>) {
        if result.is_err() {
            return;
        }
        if let Some(sandbox) = self.state.sandbox.as_mut().filter(|s| s.id == id) {
            sandbox.ready = false;
        }
        // Nothing in a stopped sandbox runs; what the runtime did not tell yet it tells when asked.
        let inside: Vec<_> = self
            .state
            .containers
            .values()
            .flatten()
            .filter(|c| c.sandbox == id && may_run(c))
            .map(|c| c.id.clone())
            .collect();
        for container in inside {
            self.inspect(container);
        }
        self.state.stopped.insert(id);
    }

    fn on_sandbox_removed(&mut self, id: &str, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::warn!(%error, "remove sandbox");
            return;
        }
        self.state.old_sandboxes.remove(id);
        if self.state.sandbox.as_ref().is_some_and(|s| s.id == id) {
            self.state.sandbox = None;
        }
    }

    // --- probes ---

    /// One task for each probe of each running container.
    fn sync_probes(&mut self) {
        let pod = self.state.pod.clone();
        let mut wanted = BTreeMap::new();
        for (spec, _) in specs(&pod).filter(|_| self.state.ending.is_none()) {
            let current = self.state.current_here(&spec.name);
            let Some(current) = current.filter(|c| c.state == ContainerState::Running) else {
                continue;
            };
            let started = self.state.is_started(spec, current);
            for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                if kind.of(spec).is_some() && (kind == Kind::Startup) != started {
                    wanted.insert((spec.name.clone(), kind), current.id.clone());
                }
            }
        }
        self.probes.retain(|key, probing| wanted.get(key) == Some(&probing.id));
        for ((name, kind), id) in wanted {
            if !self.probes.contains_key(&(name.clone(), kind)) {
                let task = self.probe(&pod, &name, &id, kind);
                self.probes.insert((name, kind), Probing { id, task });
            }
        }
    }

    fn probe(&self, pod: &Pod, name: &str, id: &str, kind: Kind) -> AbortHandle {
        let spec = find(pod, name).map(|(spec, _)| spec.clone()).unwrap_or_default();
        let host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let sandbox_ip = self.state.sandbox.as_ref().and_then(|s| s.ips.first());
        let ip = if host { self.node.ips.first() } else { sandbox_ip }.cloned().unwrap_or_default();
        let (context, news) = (self.context.clone(), self.own_news.clone());
        let (container, id) = (name.to_owned(), id.to_owned());
        tokio::spawn(async move {
            let Some(probe) = kind.of(&spec) else { return };
            let timing = Timing::from(probe);
            tokio::time::sleep(timing.initial_delay).await;
            let mut ticks = tokio::time::interval(timing.period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let result = match probes::check(probe, &spec, &ip) {
                    Ok(check) => probes::ask(&context.prober, &check, &id, timing.timeout).await,
                    Err(error) => Err(error),
                };
                let (container, id) = (container.clone(), id.clone());
                if news.send(News::Probe { container, id, kind, result }).await.is_err() {
                    return;
                }
            }
        })
        .abort_handle()
    }
}

async fn inspect(job: &Job, name: &str, id: &str) -> Option<cri::Container> {
    let spec = find(&job.pod, name).map(|(spec, _)| spec.clone()).unwrap_or_else(|| {
        k8s_openapi::api::core::v1::Container { name: name.to_owned(), ..Default::default() }
    });
    let mut found = None;
    for _ in 0..INSPECT_ATTEMPTS {
        found = job.look(id, &spec).await;
        if found.as_ref().is_some_and(|c| c.state == ContainerState::Exited) {
            break;
        }
        tokio::time::sleep(INSPECT_PAUSE).await;
    }
    found
}

async fn inspect_sandbox(job: &Job, id: &str) -> Option<Sandbox> {
    let mut found = None;
    for _ in 0..INSPECT_ATTEMPTS {
        match job.context.runtime.sandbox_status(id).await {
            Ok(sandbox) => {
                let ended = !sandbox.ready;
                found = Some(sandbox);
                if ended {
                    break;
                }
            }
            Err(error) if error.is_not_found() => {
                let known = job.sandbox.clone().filter(|s| s.id == id);
                return known.map(|sandbox| Sandbox { ready: false, ..sandbox });
            }
            Err(error) => tracing::warn!(%error, "sandbox status"),
        }
        tokio::time::sleep(INSPECT_PAUSE).await;
    }
    found
}
