//! Feeds the snapshot and the queue from watches and carries decisions out.
//!
//! One task owns snapshot and queue; bindings and conditions are written by tasks of their own, a
//! bounded number at once, whose outcomes come back to it. A pod stays assumed from the decision
//! until the watch or a live read shows where it is bound, or its binding was refused; so long it
//! is taken in the queue, or backs off there before the same binding is sent again ([`binding`]). What
//! is unclear counts as a request, so an API server that answers nobody is not asked ever more.

use crate::binding::{self, Attempt, Found, Verdict, verdict};
use crate::metrics::Metrics;
use crate::plan::{Decision, Tuning, cycle};
use crate::plugin;
use crate::pod::PodInfo;
use crate::queue::Queue;
use crate::reason::{Kinds, Refusal};
use crate::resources::is_terminal;
use crate::snapshot::Snapshot;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod};
use kube::api::Patch;
use rkube_runtime::{Caches, Client, ClientError, Delta, EventType, Recorder, Subscription};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How the scheduler works.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// It schedules the pods whose `schedulerName` this is.
    pub name: String,
    /// How hard it searches.
    pub tuning: Tuning,
    /// Requests at once. At 50 ms for a durable write 256 are good for 5,000 pods a second.
    pub requests_in_flight: usize,
    /// Pods a cycle: small enough that changes are looked at every few milliseconds.
    pub batch: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            name: "default-scheduler".into(),
            tuning: Tuning::default(),
            requests_in_flight: 256,
            batch: 64,
        }
    }
}

/// Runs a scheduler with caches of its own until `shutdown`. To share caches, or to run it in a
/// leader scope, use [`Scheduler`].
pub async fn run(client: kube::Client, config: SchedulerConfig, shutdown: CancellationToken) {
    let caches = Caches::new(client.clone());
    let client = Client::new(client, caches.clone(), "kube-scheduler");
    let recorder =
        Recorder::new(client.clone(), &config.name, "", rkube_runtime::Metrics::default());
    Scheduler { caches, client, recorder, metrics: Metrics::default(), config }.run(shutdown).await;
}

/// A scheduler and what it works with.
#[derive(Clone)]
pub struct Scheduler {
    /// It reads pods, nodes and namespaces.
    pub caches: Caches,
    /// It writes bindings and conditions.
    pub client: Client,
    /// It says on each pod what happened.
    pub recorder: Recorder,
    /// It counts.
    pub metrics: Metrics,
    /// How it works.
    pub config: SchedulerConfig,
}

impl Scheduler {
    /// Runs until `shutdown`. Dropping the future ends all requests under way, as a lost
    /// leadership demands; whoever comes next starts from the watches.
    pub async fn run(self, shutdown: CancellationToken) {
        let pods = self.caches.store::<Pod>();
        let nodes = self.caches.store::<Node>();
        let namespaces = self.caches.store::<Namespace>();
        tokio::select! {
            () = shutdown.cancelled() => return,
            ((), (), ()) = async { tokio::join!(pods.wait_synced(), nodes.wait_synced(), namespaces.wait_synced()) } => {}
        }
        let mut shell = Shell {
            pods: Subscription::new(&pods),
            nodes: Subscription::new(&nodes),
            namespaces: Subscription::new(&namespaces),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            requests: JoinSet::new(),
            notices: Vec::new(),
            scheduler: self,
        };
        while !shutdown.is_cancelled() {
            shell.look();
            if shell.schedule() {
                tokio::task::yield_now().await;
            } else {
                shell.wait(&shutdown).await;
            }
        }
    }
}

struct Shell {
    scheduler: Scheduler,
    pods: Subscription<Pod>,
    nodes: Subscription<Node>,
    namespaces: Subscription<Namespace>,
    snapshot: Snapshot,
    queue: Queue,
    requests: JoinSet<Outcome>,
    /// Conditions of gated pods that are to be written: at most one for each pod that there is.
    notices: Vec<Arc<PodInfo>>,
}

/// How a request ended.
enum Outcome {
    Bound(Attempt, Result<(), ClientError>),
    Asked(Attempt, Result<Found, ClientError>),
    Told(Arc<PodInfo>, Result<(), ClientError>),
}

/// What woke the shell.
enum Wake {
    Pod(Box<Delta<Pod>>),
    Node(Box<Delta<Node>>),
    Namespace(Box<Delta<Namespace>>),
    Outcome(Outcome),
    Time,
}

impl Shell {
    /// Takes in everything that has happened.
    fn look(&mut self) {
        let now = Instant::now();
        let mut kinds = Kinds::default();
        while let Some(delta) = self.namespaces.try_next() {
            kinds = kinds.or(self.namespace(&delta));
        }
        while let Some(delta) = self.nodes.try_next() {
            kinds = kinds.or(self.node(&delta));
        }
        while let Some(delta) = self.pods.try_next() {
            kinds = kinds.or(self.pod(&delta, now));
        }
        while let Some(ended) = self.requests.try_join_next() {
            kinds = kinds.or(self.outcome(ended_well(ended), now));
        }
        self.helped(kinds, now);
        self.queue.advance(now);
        self.scheduler.metrics.pending(self.queue.pending());
    }

    fn helped(&mut self, kinds: Kinds, now: Instant) {
        if kinds != Kinds::default() {
            self.queue.event(kinds, now);
        }
    }

    /// Decides about a batch, as far as requests may be sent. False if there was nothing to do.
    fn schedule(&mut self) -> bool {
        let free = self.scheduler.config.requests_in_flight.saturating_sub(self.requests.len());
        let notices = self.notices.len().min(free);
        for pod in self.notices.split_off(self.notices.len() - notices) {
            let gates = "Scheduling is blocked due to non-empty scheduling gates";
            self.tell(pod, "SchedulingGated", gates.into());
        }
        let batch = self.queue.take((free - notices).min(self.scheduler.config.batch));
        if batch.is_empty() {
            return notices > 0;
        }
        let batch = self.bind_again(batch);
        let start = Instant::now();
        let decisions = cycle(&mut self.snapshot, &batch, self.scheduler.config.tuning);
        let seconds = start.elapsed().as_secs_f64() / batch.len().max(1) as f64;
        for decision in decisions {
            self.scheduler.metrics.decided(seconds);
            match decision {
                Decision::Bind { pod, node } => self.bind(Attempt::new(pod, node, false)),
                Decision::Refuse { pod, refusal } => self.refuse(pod, &refusal),
            }
        }
        true
    }

    /// Sends the bindings again that nobody has answered; gives the pods that are to be decided.
    fn bind_again(&mut self, batch: Vec<Arc<PodInfo>>) -> Vec<Arc<PodInfo>> {
        let mut undecided = Vec::with_capacity(batch.len());
        for pod in batch {
            let Some(node) = self.snapshot.assumed_on(&pod.uid).cloned() else {
                undecided.push(pod);
                continue;
            };
            let state = self.snapshot.node(&node);
            if state.is_some_and(|n| n.known && plugin::takes(&pod, n).is_ok()) {
                self.bind(Attempt::new(pod, node, true));
            } else {
                let kinds = self.forget(&pod.uid);
                self.helped(kinds, Instant::now());
                undecided.push(pod);
            }
        }
        undecided
    }

    /// Waits until something happens, and takes it in.
    async fn wait(&mut self, shutdown: &CancellationToken) {
        let next = self.queue.next_wake();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let wake = tokio::select! {
            () = shutdown.cancelled() => return,
            delta = self.pods.next() => Wake::Pod(Box::new(delta)),
            delta = self.nodes.next() => Wake::Node(Box::new(delta)),
            delta = self.namespaces.next() => Wake::Namespace(Box::new(delta)),
            Some(ended) = self.requests.join_next() => Wake::Outcome(ended_well(ended)),
            () = timer => Wake::Time,
        };
        let now = Instant::now();
        let kinds = match wake {
            Wake::Pod(delta) => self.pod(&delta, now),
            Wake::Node(delta) => self.node(&delta),
            Wake::Namespace(delta) => self.namespace(&delta),
            Wake::Outcome(outcome) => self.outcome(outcome, now),
            Wake::Time => Kinds::default(),
        };
        self.helped(kinds, now);
    }

    fn namespace(&mut self, delta: &Delta<Namespace>) -> Kinds {
        let labels = |n: &Arc<Namespace>| n.metadata.labels.clone().unwrap_or_default();
        self.snapshot.set_namespace(&delta.key.name, delta.new.as_ref().map(labels));
        Kinds::PODS_MISSING.or(Kinds::PODS_IN_THE_WAY)
    }

    fn node(&mut self, delta: &Delta<Node>) -> Kinds {
        match &delta.new {
            Some(node) if self.snapshot.set_node(node) => Kinds::ALL,
            Some(_) => Kinds::default(),
            None => {
                self.snapshot.remove_node(&delta.key.name);
                // Fewer domains may make the rest even again.
                Kinds::PODS_IN_THE_WAY
            }
        }
    }

    fn pod(&mut self, delta: &Delta<Pod>, now: Instant) -> Kinds {
        let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        let (old, new) = (delta.old.as_ref().map(uid), delta.new.as_ref().map(uid));
        let mut kinds = Kinds::default();
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
            kinds = self.gone(&old);
        }
        match &delta.new {
            Some(pod) => kinds.or(self.present(pod, delta.old.as_deref(), now)),
            None => kinds,
        }
    }

    fn gone(&mut self, uid: &str) -> Kinds {
        self.queue.remove(uid);
        match self.snapshot.remove_pod(uid) {
            true => Kinds::ROOM.or(Kinds::PODS_IN_THE_WAY),
            false => Kinds::default(),
        }
    }

    fn present(&mut self, pod: &Arc<Pod>, old: Option<&Pod>, now: Instant) -> Kinds {
        if is_terminal(pod) {
            return self.gone(pod.metadata.uid.as_deref().unwrap_or_default());
        }
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        if !node.is_empty() {
            if old.is_some_and(|old| same_for_scheduling(old, pod)) {
                return Kinds::default();
            }
            let info = Arc::new(PodInfo::of(pod));
            self.queue.remove(&info.uid);
            self.snapshot.place(info, node);
            return Kinds::PODS_MISSING;
        }
        if !self.is_ours(pod) {
            return Kinds::default();
        }
        let info = Arc::new(PodInfo::of(pod));
        if info.terminating {
            // Nobody binds it any more, so what is assumed of it goes too.
            return self.gone(&info.uid);
        }
        let told = info.refused.as_ref().is_some_and(|(reason, _)| reason == "SchedulingGated");
        if !info.gates.is_empty() && !told && !self.notices.iter().any(|p| p.uid == info.uid) {
            self.notices.push(info.clone());
        }
        self.queue.put(info, now);
        Kinds::default()
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        name.unwrap_or("default-scheduler") == self.scheduler.config.name
    }

    fn outcome(&mut self, outcome: Outcome, now: Instant) -> Kinds {
        match outcome {
            Outcome::Told(pod, Err(error)) if !error.is_not_found() => {
                tracing::warn!(pod = %pod.key, %error, "condition not written");
                Kinds::default()
            }
            Outcome::Told(..) => Kinds::default(),
            Outcome::Bound(attempt, Ok(())) => {
                self.scheduled(&attempt, now);
                Kinds::default()
            }
            Outcome::Bound(attempt, Err(error)) => self.not_bound(attempt, &error, now),
            Outcome::Asked(attempt, read) => self.asked(attempt, read, now),
        }
    }

    fn scheduled(&self, attempt: &Attempt, now: Instant) {
        let Scheduler { recorder, metrics, config, .. } = &self.scheduler;
        metrics.attempt(&config.name, "scheduled");
        if let Some(added) = self.queue.added(&attempt.pod.uid) {
            metrics.bound((now - added).as_secs_f64());
        }
        let message = format!("Successfully assigned {} to {}", attempt.pod.key, attempt.node);
        recorder.event_about(reference(&attempt.pod), EventType::Normal, "Scheduled", &message);
    }

    fn not_bound(&mut self, mut attempt: Attempt, error: &ClientError, now: Instant) -> Kinds {
        let (pod, verdict) = (&attempt.pod, verdict(error));
        if verdict == Verdict::Contested || error.is_not_found() {
            tracing::debug!(pod = %pod.key, %error, "binding overtaken");
        } else {
            tracing::warn!(pod = %pod.key, ?verdict, %error, "binding failed");
        }
        if verdict == Verdict::Refused {
            return self.failed(&attempt, now);
        }
        attempt.lost |= verdict == Verdict::Unknown;
        self.ask(attempt);
        Kinds::default()
    }

    /// Reads the pod, unless the watch has told meanwhile what became of it.
    fn ask(&mut self, attempt: Attempt) {
        if self.snapshot.assumed_on(&attempt.pod.uid).is_none() {
            return;
        }
        let client = self.scheduler.client.clone();
        self.requests.spawn(async move {
            let read = binding::ask(&client, &attempt).await;
            Outcome::Asked(attempt, read)
        });
    }

    fn asked(
        &mut self,
        mut attempt: Attempt,
        read: Result<Found, ClientError>,
        now: Instant,
    ) -> Kinds {
        // What the watch has shown is as new as the read, and may be newer.
        if self.snapshot.assumed_on(&attempt.pod.uid).is_none() {
            return Kinds::default();
        }
        match read {
            Err(error) => {
                tracing::warn!(pod = %attempt.pod.key, %error, "still unknown whether it is bound");
                attempt.unread = attempt.unread.saturating_add(1);
                self.ask(attempt);
                Kinds::default()
            }
            Ok(Found::Gone) => self.gone(&attempt.pod.uid),
            Ok(Found::Bound(pod, node)) => self.found_bound(&attempt, pod, &node, now),
            Ok(Found::Unbound) if attempt.lost => {
                // A copy may be under way: the room stays taken until the next one is answered.
                self.count_error();
                self.queue.failed(&attempt.pod.uid, now);
                Kinds::default()
            }
            Ok(Found::Unbound) => self.failed(&attempt, now),
        }
    }

    /// In the queue the pod stays taken: an older change of it, from before it was bound, may be
    /// the next that the watch shows.
    fn found_bound(
        &mut self,
        attempt: &Attempt,
        pod: Arc<PodInfo>,
        node: &str,
        now: Instant,
    ) -> Kinds {
        self.snapshot.place(pod, node);
        if node == &*attempt.node {
            self.scheduled(attempt, now);
            return Kinds::PODS_MISSING;
        }
        let pod = &attempt.pod.key;
        tracing::debug!(%pod, node, wanted = %attempt.node, "bound by somebody else");
        self.count_error();
        Kinds::ROOM.or(Kinds::PODS_MISSING).or(Kinds::PODS_IN_THE_WAY)
    }

    /// The API server decided against the binding: its room is free, the pod is tried again.
    fn failed(&mut self, attempt: &Attempt, now: Instant) -> Kinds {
        self.count_error();
        self.queue.failed(&attempt.pod.uid, now);
        self.forget(&attempt.pod.uid)
    }

    fn forget(&mut self, uid: &str) -> Kinds {
        match self.snapshot.forget(uid) {
            true => Kinds::ROOM.or(Kinds::PODS_IN_THE_WAY),
            false => Kinds::default(),
        }
    }

    fn count_error(&self) {
        self.scheduler.metrics.attempt(&self.scheduler.config.name, "error");
    }

    fn bind(&mut self, attempt: Attempt) {
        let client = self.scheduler.client.clone();
        let span = tracing::debug_span!("bind", pod = %attempt.pod.key, node = %attempt.node);
        let work = async move {
            let bound = binding::bind(&client, &attempt.pod, &attempt.node).await;
            Outcome::Bound(attempt, bound)
        };
        self.requests.spawn(work.instrument(span));
    }

    fn refuse(&mut self, pod: Arc<PodInfo>, refusal: &Refusal) {
        self.queue.refused(&pod.uid, refusal.kinds(), Instant::now());
        self.scheduler.metrics.attempt(&self.scheduler.config.name, "unschedulable");
        let message = refusal.message();
        let known = pod.refused.as_ref();
        if known.is_some_and(|(reason, text)| reason == "Unschedulable" && *text == message) {
            return;
        }
        let recorder = &self.scheduler.recorder;
        recorder.event_about(reference(&pod), EventType::Warning, "FailedScheduling", &message);
        self.tell(pod, "Unschedulable", message);
    }

    fn tell(&mut self, pod: Arc<PodInfo>, reason: &'static str, message: String) {
        let client = self.scheduler.client.clone();
        let patch = condition(&pod, reason, &message, Timestamp::now());
        self.requests.spawn(async move {
            let told = client.patch_status::<Pod>(&pod.key, Patch::Strategic(patch)).await;
            Outcome::Told(pod, told.map(drop))
        });
    }
}

/// A request that panicked takes the scheduler with it, whose supervisor starts it anew from the
/// watches: nothing that it had taken can stay behind untried.
fn ended_well(ended: Result<Outcome, JoinError>) -> Outcome {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(outcome) => outcome,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(cancelled)) => std::panic::resume_unwind(Box::new(cancelled.to_string())),
    }
}

/// What differs, if anything, is nothing that scheduling looks at in a bound pod.
fn same_for_scheduling(old: &Pod, new: &Pod) -> bool {
    let terminating = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && terminating(old) == terminating(new)
        && old.spec == new.spec
}

/// Says that the pod has no node and why. The time of the transition stays where the condition was
/// False already.
fn condition(pod: &PodInfo, reason: &str, message: &str, now: Timestamp) -> serde_json::Value {
    let mut condition =
        json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message});
    if pod.refused.is_none() {
        condition["lastTransitionTime"] = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [condition]}})
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.key.name.clone()),
        namespace: Some(pod.key.namespace.clone()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
