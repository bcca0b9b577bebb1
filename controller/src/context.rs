//! What every controller's shell is given.

use crate::ControllersConfig;
use rkube_runtime::{Caches, Client, Clock, Controller, Metrics, Recorder, WorkQueue};
use std::sync::Arc;

/// Handles shared by all controllers of one leader's term.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub caches: Caches,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<ControllersConfig>,
}

impl Context {
    /// Records events under a controller's name.
    pub fn recorder(&self, component: &str) -> Recorder {
        let client = self.client.managed_by(component);
        Recorder::new(client, component, "", self.metrics.clone())
    }

    /// Works off a queue until the future is dropped.
    pub async fn run<C: Controller>(
        &self,
        controller: C,
        queue: WorkQueue<C::Key>,
        workers: usize,
    ) {
        let (clock, metrics) = (self.clock.clone(), self.metrics.clone());
        rkube_runtime::run(Arc::new(controller), queue, workers, clock, metrics).await;
    }
}
