//! Work that must run once in the cluster runs in a leader scope.
//!
//! [`acquire`](LeaderScope::acquire) waits until this process leads and answers with a [`Term`];
//! when the term is lost its token is cancelled, and [`lead`] drops the work with all of its tasks.
//! A term's number goes out with every write, so that an API server can refuse a late request of a
//! former leader.

use crate::{Client, Metrics, ObjectKey};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::api::Patch;
use serde_json::json;
use std::{future::Future, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long giving up a term may hold up the end of a process.
const GIVE_UP: Duration = Duration::from_secs(2);

/// A time of leading.
pub struct Term {
    /// Grows from leader to leader.
    pub number: u64,
    /// Cancelled when this process leads no more.
    pub lost: CancellationToken,
    /// Dropped with the term: tells who keeps it that it is given up.
    given_up: Option<DropGuard>,
    /// The task that keeps the term; it ends once the term is given up.
    keeper: Option<JoinHandle<()>>,
}

impl Term {
    /// Gives the term up and waits, for a short while, until others can have it.
    pub async fn give_up(mut self) {
        self.lost.cancel();
        drop(self.given_up.take());
        if let Some(keeper) = self.keeper.take()
            && tokio::time::timeout(GIVE_UP, keeper).await.is_err()
        {
            tracing::warn!(term = self.number, "the term was not released in time");
        }
    }
}

/// Says who leads.
#[async_trait]
pub trait LeaderScope: Send + Sync + 'static {
    /// Waits until this process leads.
    async fn acquire(&self) -> Term;
}

/// Runs `work` whenever this process leads, until `shutdown`. Losing the term drops the work.
pub async fn lead<F, Fut>(
    name: &str,
    scope: &dyn LeaderScope,
    metrics: &Metrics,
    shutdown: &CancellationToken,
    mut work: F,
) where
    F: FnMut(u64, CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    loop {
        let term = tokio::select! {
            () = shutdown.cancelled() => return,
            term = scope.acquire() => term,
        };
        tracing::info!(scope = name, term = term.number, "leading");
        metrics.leads(name, true);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = term.lost.cancelled() => {}
            () = work(term.number, term.lost.clone()) => {}
        }
        metrics.leads(name, false);
        tracing::info!(scope = name, term = term.number, "leading no more");
        term.give_up().await;
    }
}

/// Leads always: there is one process.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysLeader {
    /// The only term.
    pub term: u64,
}

#[async_trait]
impl LeaderScope for AlwaysLeader {
    async fn acquire(&self) -> Term {
        Term { number: self.term, lost: CancellationToken::new(), given_up: None, keeper: None }
    }
}

/// Leads in a term that somebody else acquired, for components that share one: none of them
/// outlives it, and none gets it again.
#[derive(Clone, Debug)]
pub struct HeldTerm {
    /// The term.
    pub number: u64,
    /// Cancelled at its end.
    pub lost: CancellationToken,
}

#[async_trait]
impl LeaderScope for HeldTerm {
    async fn acquire(&self) -> Term {
        if self.lost.is_cancelled() {
            std::future::pending::<()>().await;
        }
        let lost = self.lost.child_token();
        Term { number: self.number, lost, given_up: None, keeper: None }
    }
}

/// Leads while a channel holds a term; a Raft driver feeds it.
pub struct TermScope(watch::Receiver<Option<u64>>);

impl TermScope {
    /// Leads while `terms` holds a number.
    pub fn new(terms: watch::Receiver<Option<u64>>) -> Self {
        TermScope(terms)
    }
}

#[async_trait]
impl LeaderScope for TermScope {
    async fn acquire(&self) -> Term {
        let mut terms = self.0.clone();
        let term = terms.wait_for(Option::is_some).await.ok().and_then(|term| *term);
        let number = match term {
            Some(number) => number,
            // Whoever decides is gone: nobody leads from here.
            None => std::future::pending().await,
        };
        let (lost, given_up) = (CancellationToken::new(), CancellationToken::new());
        let (ended, dropped) = (lost.clone(), given_up.clone());
        let keeper = tokio::spawn(async move {
            tokio::select! {
                _ = terms.wait_for(|term| *term != Some(number)) => ended.cancel(),
                () = dropped.cancelled() => {}
            }
        });
        Term { number, lost, given_up: Some(given_up.drop_guard()), keeper: Some(keeper) }
    }
}

/// How a lease is held, with the times of Kubernetes' components.
#[derive(Clone, Debug)]
pub struct LeaseTimes {
    /// Others may take a lease that has not been renewed for this long.
    pub duration: Duration,
    /// A leader that could not renew for this long gives up.
    pub renew_deadline: Duration,
    /// Between two tries.
    pub retry_period: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        LeaseTimes {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Leads while it holds a Lease: for API servers that are not ours.
#[derive(Clone)]
pub struct LeaseScope {
    client: Client,
    key: ObjectKey,
    identity: String,
    times: LeaseTimes,
}

impl LeaseScope {
    /// Competes for the lease `key` as `identity`.
    pub fn new(client: Client, key: ObjectKey, identity: &str, times: LeaseTimes) -> Self {
        LeaseScope { client, key, identity: identity.into(), times }
    }

    /// Tries once to create, take or renew the lease; answers the lease that was written.
    async fn attempt(&self, seen: &mut Seen) -> Option<Lease> {
        let live = match self.client.get_live::<Lease>(&self.key).await {
            Ok(live) => live,
            Err(error) => {
                tracing::warn!(%error, "leader election");
                return None;
            }
        };
        let expired = live.as_ref().is_some_and(|lease| seen.expired(lease, Instant::now()));
        let written = match claim(live.as_ref(), &self.identity, expired) {
            Claim::Wait => return None,
            Claim::Create => self.client.create(&self.lease(0, Timestamp::now())).await,
            Claim::Write { transitions, acquire } => {
                let patch = self.patch(live.as_ref(), transitions, acquire, Timestamp::now());
                self.client.patch::<Lease>(&self.key, patch).await
            }
        };
        written.inspect_err(|error| tracing::debug!(%error, "leader election")).ok()
    }

    fn lease(&self, transitions: i32, now: Timestamp) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.key.name.clone()),
                namespace: Some(self.key.namespace.clone()),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.times.duration.as_secs() as i32),
                acquire_time: Some(MicroTime(now)),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(transitions),
                ..Default::default()
            }),
        }
    }

    /// Carries the resource version that was read, so that one of several takers wins.
    fn patch(
        &self,
        live: Option<&Lease>,
        transitions: i32,
        acquire: bool,
        now: Timestamp,
    ) -> Patch<serde_json::Value> {
        let version = live.and_then(|l| l.metadata.resource_version.clone());
        let mut spec = json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.times.duration.as_secs(),
            "renewTime": MicroTime(now),
            "leaseTransitions": transitions,
        });
        if acquire {
            spec["acquireTime"] = json!(MicroTime(now));
        }
        Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "spec": spec }))
    }

    async fn keep(self, lost: CancellationToken, given_up: CancellationToken) {
        let (mut seen, mut renewed) = (Seen::default(), Instant::now());
        loop {
            tokio::select! {
                () = given_up.cancelled() => return self.release().await,
                () = tokio::time::sleep(self.times.retry_period) => {}
            }
            let left = self.times.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt(&mut seen)).await {
                Ok(Some(_)) => renewed = Instant::now(),
                _ if renewed.elapsed() >= self.times.renew_deadline => return lost.cancel(),
                _ => {}
            }
        }
    }

    /// Lets the next one take over at once.
    async fn release(&self) {
        let test = json_patch_of(json!([
            { "op": "test", "path": "/spec/holderIdentity", "value": self.identity },
            { "op": "replace", "path": "/spec/holderIdentity", "value": "" },
        ]));
        if let Some(patch) = test
            && let Err(error) = self.client.patch::<Lease>(&self.key, patch).await
        {
            tracing::debug!(%error, "releasing the lease");
        }
    }
}

fn json_patch_of(operations: serde_json::Value) -> Option<Patch<serde_json::Value>> {
    serde_json::from_value(operations).ok().map(Patch::Json)
}

#[async_trait]
impl LeaderScope for LeaseScope {
    async fn acquire(&self) -> Term {
        let mut seen = Seen::default();
        loop {
            if let Some(lease) = self.attempt(&mut seen).await {
                let transitions = lease.spec.and_then(|s| s.lease_transitions).unwrap_or(0);
                let (lost, given_up) = (CancellationToken::new(), CancellationToken::new());
                let keeper = tokio::spawn(self.clone().keep(lost.clone(), given_up.clone()));
                let number = u64::try_from(transitions).unwrap_or(0) + 1;
                let given_up = Some(given_up.drop_guard());
                return Term { number, lost, given_up, keeper: Some(keeper) };
            }
            tokio::time::sleep(self.times.retry_period).await;
        }
    }
}

/// When a lease was last seen to change, by this machine's own clock: others' clocks don't count.
#[derive(Default)]
struct Seen {
    version: Option<String>,
    at: Option<Instant>,
}

impl Seen {
    fn expired(&mut self, lease: &Lease, now: Instant) -> bool {
        if self.version != lease.metadata.resource_version || self.at.is_none() {
            self.version = lease.metadata.resource_version.clone();
            self.at = Some(now);
        }
        let seconds = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(0);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        self.at.is_some_and(|at| now.duration_since(at) >= duration)
    }
}

#[derive(Debug, PartialEq)]
enum Claim {
    Wait,
    Create,
    Write { transitions: i32, acquire: bool },
}

/// What `identity` may do with the lease.
fn claim(lease: Option<&Lease>, identity: &str, expired: bool) -> Claim {
    let Some(lease) = lease else { return Claim::Create };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or("");
    let transitions = spec.and_then(|s| s.lease_transitions).unwrap_or(0);
    match holder {
        holder if holder == identity => Claim::Write { transitions, acquire: false },
        "" => Claim::Write { transitions: transitions.saturating_add(1), acquire: true },
        _ if expired => Claim::Write { transitions: transitions.saturating_add(1), acquire: true },
        _ => Claim::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..Default::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(4),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_or_expired() {
        let take = Claim::Write { transitions: 5, acquire: true };
        assert_eq!(claim(None, "me", false), Claim::Create);
        assert_eq!(claim(Some(&lease("", "1")), "me", false), take);
        assert_eq!(claim(Some(&lease("you", "1")), "me", false), Claim::Wait);
        assert_eq!(claim(Some(&lease("you", "1")), "me", true), take);
        let keep = Claim::Write { transitions: 4, acquire: false };
        assert_eq!(claim(Some(&lease("me", "1")), "me", true), keep);
    }

    #[test]
    fn a_lease_expires_by_the_observers_clock() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!(!seen.expired(&lease("you", "1"), at(0)));
        assert!(!seen.expired(&lease("you", "1"), at(14)));
        assert!(!seen.expired(&lease("you", "2"), at(15)));
        assert!(!seen.expired(&lease("you", "2"), at(29)));
        assert!(seen.expired(&lease("you", "2"), at(30)));
    }

    #[tokio::test]
    async fn a_shared_term_ends_for_all_and_does_not_come_back() {
        let held = HeldTerm { number: 7, lost: CancellationToken::new() };
        let (one, other) = (held.acquire().await, held.acquire().await);
        assert_eq!((one.number, other.number), (7, 7));
        one.give_up().await;
        assert!(!other.lost.is_cancelled(), "one component gave up for all");
        held.lost.cancel();
        assert!(other.lost.is_cancelled());
        let again = tokio::time::timeout(Duration::from_millis(20), held.acquire()).await;
        assert!(again.is_err(), "a term that is over was given out");
    }

    #[tokio::test]
    async fn losing_the_term_drops_the_work() {
        let (terms, receiver) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let (started, mut runs) = tokio::sync::mpsc::channel(8);
        let alive = Arc::new(());
        let (held, stop) = (alive.clone(), shutdown.clone());
        let task = tokio::spawn(async move {
            let scope = TermScope::new(receiver);
            lead("test", &scope, &Metrics::default(), &stop, |term, _lost| {
                let (started, held) = (started.clone(), held.clone());
                async move {
                    let _held = held;
                    started.send(term).await.unwrap();
                    std::future::pending::<()>().await;
                }
            })
            .await;
        });
        terms.send_replace(Some(3));
        assert_eq!(runs.recv().await, Some(3));
        terms.send_replace(None);
        terms.send_replace(Some(5));
        assert_eq!(runs.recv().await, Some(5));
        shutdown.cancel();
        task.await.unwrap();
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
