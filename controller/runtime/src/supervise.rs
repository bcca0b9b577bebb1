//! Keeps the tasks of a component alive and says which are down.

use crate::{Metrics, backoff::RECONNECT};
use futures::FutureExt;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};
use tokio::time::Instant;

/// After this long up a task's next fall counts as its first.
const STEADY: Duration = Duration::from_secs(60);

/// Which tasks are up; clones share it. Part of readiness.
#[derive(Clone, Debug, Default)]
pub struct Health {
    tasks: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Health {
    /// The tasks that are down, each with why.
    pub fn down(&self) -> Vec<(String, String)> {
        let tasks = self.tasks.lock();
        tasks.iter().filter_map(|(name, why)| Some((name.clone(), why.clone()?))).collect()
    }

    /// Whether every task is up.
    pub fn is_ready(&self) -> bool {
        self.tasks.lock().values().all(Option::is_none)
    }

    /// A task is up.
    pub fn set_up(&self, name: &str) {
        self.tasks.lock().insert(name.into(), None);
    }

    /// A task is down.
    pub fn set_down(&self, name: &str, why: &str) {
        self.tasks.lock().insert(name.into(), Some(why.into()));
    }
}

/// Runs `task` for ever: when it ends or panics that is logged and shows in `health`, and it starts
/// again after a back-off. Dropping the future ends it.
pub async fn supervise<F, Fut>(name: &str, health: &Health, metrics: &Metrics, mut task: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    let mut falls = 0u32;
    loop {
        health.set_up(name);
        let start = Instant::now();
        let ended = AssertUnwindSafe(task()).catch_unwind().await;
        let why = if ended.is_ok() { "ended" } else { "panicked" };
        falls = if start.elapsed() > STEADY { 1 } else { falls.saturating_add(1) };
        let again_after = RECONNECT.delay(falls);
        health.set_down(name, why);
        metrics.restarted(name);
        tracing::error!(task = name, why, ?again_after, "task fell; starting it again");
        tokio::time::sleep(again_after).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_fallen_task_shows_and_is_started_again() {
        let health = Health::default();
        let runs = Arc::new(AtomicU32::new(0));
        let (seen, counted) = (health.clone(), runs.clone());
        let task = tokio::spawn(async move {
            let make = || {
                let run = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    match run {
                        0 => panic!("first run"),
                        1 => (),
                        _ => std::future::pending().await,
                    }
                }
            };
            supervise("t", &seen, &Metrics::default(), make).await;
        });
        let pause = || tokio::time::sleep(Duration::from_millis(2));
        while health.is_ready() {
            pause().await;
        }
        assert_eq!(health.down(), [("t".to_owned(), "panicked".to_owned())]);
        while runs.load(Ordering::SeqCst) < 3 || !health.is_ready() {
            pause().await;
        }
        task.abort();
    }
}
