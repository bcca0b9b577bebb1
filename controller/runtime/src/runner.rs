//! The shell around a [`Reconcile`]: take a key, build its view, plan, act in order, stop at the
//! first failure and back off.

use crate::{ClientError, Clock, Metrics, Plan, Reconcile, WorkQueue};
use async_trait::async_trait;
use futures::FutureExt;
use std::{
    error::Error, fmt::Debug, hash::Hash, panic::AssertUnwindSafe, sync::Arc, time::Instant,
};
use tokio::task::JoinSet;
use tracing::Instrument;

/// Why an action failed.
pub type ActError = Box<dyn Error + Send + Sync>;

/// A rule with the shell that feeds it and carries out what it says.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// What names a unit of work, mostly an [`ObjectKey`](crate::ObjectKey).
    type Key: Clone + Eq + Hash + Debug + Send + Sync + 'static;
    /// The pure half.
    type Rule: Reconcile<View: Send + Sync, Action: Debug + Send> + Send + Sync;

    /// Labels logs and metrics.
    fn name(&self) -> &'static str;

    /// The pure half.
    fn rule(&self) -> &Self::Rule;

    /// What the caches know about the key; none if there is nothing (left) to reconcile.
    fn view(&self, key: &Self::Key) -> Option<<Self::Rule as Reconcile>::View>;

    /// Carries out one action.
    async fn act(
        &self,
        key: &Self::Key,
        view: &<Self::Rule as Reconcile>::View,
        action: <Self::Rule as Reconcile>::Action,
    ) -> Result<(), ActError>;
}

/// Works off the queue with `workers` tasks for ever; dropping the future ends them.
pub async fn run<C: Controller>(
    controller: Arc<C>,
    queue: WorkQueue<C::Key>,
    workers: usize,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (controller, queue) = (controller.clone(), queue.clone());
        let (clock, metrics) = (clock.clone(), metrics.clone());
        tasks.spawn(async move {
            loop {
                work(controller.as_ref(), &queue, clock.as_ref(), &metrics).await;
            }
        });
    }
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(controller = controller.name(), %error, "worker fell");
    }
}

/// Takes one key and sees it through. A panic counts as a failure of that key alone.
async fn work<C: Controller>(
    controller: &C,
    queue: &WorkQueue<C::Key>,
    clock: &dyn Clock,
    metrics: &Metrics,
) {
    let key = queue.take().await;
    let start = Instant::now();
    let span = tracing::debug_span!("reconcile", controller = controller.name(), ?key);
    let work = reconcile(controller, &key, clock).instrument(span);
    let done = AssertUnwindSafe(work).catch_unwind().await;
    let result = match done {
        Ok(Ok(recheck_after)) => {
            queue.forget(&key);
            recheck_after.into_iter().for_each(|delay| queue.add_after(key.clone(), delay));
            "success"
        }
        Ok(Err(error)) => {
            let again_after = queue.retry(key.clone());
            report(controller.name(), &key, error.as_ref(), again_after);
            "error"
        }
        Err(_panic) => {
            queue.retry(key.clone());
            tracing::error!(controller = controller.name(), ?key, "reconcile panicked");
            "panic"
        }
    };
    queue.done(&key, start.elapsed());
    metrics.reconciled(controller.name(), result);
}

async fn reconcile<C: Controller>(
    controller: &C,
    key: &C::Key,
    clock: &dyn Clock,
) -> Result<Option<std::time::Duration>, ActError> {
    let Some(view) = controller.view(key) else { return Ok(None) };
    let Plan { actions, recheck_after } = controller.rule().reconcile(&view, clock.now());
    for action in actions {
        tracing::debug!(action = %Brief(&action), "acting");
        controller.act(key, &view, action).await?;
    }
    Ok(recheck_after)
}

/// The beginning of an action, enough to tell what it is: whole objects would drown the log.
struct Brief<'a>(&'a dyn Debug);

impl std::fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(text.get(..160).unwrap_or(&text))
    }
}

/// A write that lost to another one, or came too late for its namespace, is everyday and tried again;
/// the rest is worth a warning.
fn report(
    controller: &str,
    key: &dyn Debug,
    error: &(dyn Error + Send + Sync + 'static),
    again_after: std::time::Duration,
) {
    let everyday = |e: &ClientError| {
        let overtaken = e.is_conflict() || e.is_not_found() || e.is_already_exists();
        overtaken || e.is_namespace_terminating()
    };
    if error.downcast_ref::<ClientError>().is_some_and(everyday) {
        tracing::debug!(controller, ?key, %error, ?again_after, "overtaken; trying again");
    } else {
        tracing::warn!(controller, ?key, %error, ?again_after, "failed; trying again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;
    use jiff::Timestamp;
    use parking_lot::Mutex;
    use std::time::Duration;

    struct Rule;

    impl Reconcile for Rule {
        type View = u32;
        type Action = String;

        fn reconcile(&self, view: &u32, _now: Timestamp) -> Plan<String> {
            assert_ne!(*view, 13, "a view that makes the rule panic");
            let actions = ["a", "b", "c"].map(|a| format!("{a}{view}")).to_vec();
            Plan { actions, recheck_after: (*view == 2).then_some(Duration::from_millis(30)) }
        }
    }

    #[derive(Default)]
    struct Fake {
        log: Mutex<Vec<String>>,
        fail_once: Mutex<Option<String>>,
    }

    #[async_trait]
    impl Controller for Fake {
        type Key = u32;
        type Rule = Rule;

        fn name(&self) -> &'static str {
            "fake"
        }

        fn rule(&self) -> &Rule {
            &Rule
        }

        fn view(&self, key: &u32) -> Option<u32> {
            (*key != 0).then_some(*key)
        }

        async fn act(&self, _key: &u32, _view: &u32, action: String) -> Result<(), ActError> {
            let mut fail = self.fail_once.lock();
            if fail.as_ref() == Some(&action) {
                *fail = None;
                return Err("no".into());
            }
            self.log.lock().push(action);
            Ok(())
        }
    }

    async fn until(fake: &Fake, len: usize) -> Vec<String> {
        loop {
            let log = fake.log.lock().clone();
            if log.len() >= len {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn actions_go_in_order_and_a_failure_starts_over() {
        let fake = Arc::new(Fake::default());
        *fake.fail_once.lock() = Some("b1".into());
        let metrics = Metrics::default();
        let queue = WorkQueue::new("fake", &metrics);
        let task =
            tokio::spawn(run(fake.clone(), queue.clone(), 2, Arc::new(SystemClock), metrics));
        queue.add(0);
        queue.add(13);
        queue.add(1);
        assert_eq!(until(&fake, 4).await, ["a1", "a1", "b1", "c1"]);
        queue.add(2);
        assert_eq!(until(&fake, 10).await[4..], ["a2", "b2", "c2", "a2", "b2", "c2"]);
        task.abort();
    }
}
