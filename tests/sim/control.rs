//! The control plane: API server, controllers, scheduler, each of which can be dropped and started
//! anew.

use crate::wire::Wire;
use rkube_apiserver::{ApiServer, ApiServerConfig, Identity};
use rkube_controller::{ControllersConfig, Parts};
use rkube_runtime::{Caches, Health, Metrics, Recorder, SystemClock, TermScope};
use rkube_scheduler::{Scheduler, SchedulerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A node is unwell after this long without a sign.
pub const GRACE: Duration = Duration::from_millis(2500);

/// A component that runs.
struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
    requests: TaskTracker,
}

impl Running {
    /// Ends it, asked or at once. What it had sent is through when this returns, as it would be
    /// with a process that ended.
    async fn end(self, politely: bool) {
        match politely {
            true => self.stop.cancel(),
            false => self.task.abort(),
        }
        // An abort is an error of the task's, and no news.
        let _ = self.task.await;
        self.requests.close();
        self.requests.wait().await;
    }
}

pub struct ControlPlane {
    dir: PathBuf,
    wire: Arc<Wire>,
    api: Option<Arc<ApiServer>>,
    controllers: Option<Running>,
    scheduler: Option<Running>,
    /// The term in which the API server that runs leads.
    terms: watch::Sender<Option<u64>>,
}

impl ControlPlane {
    pub fn new(dir: &Path, wire: Arc<Wire>) -> Self {
        ControlPlane {
            dir: dir.into(),
            wire,
            api: None,
            controllers: None,
            scheduler: None,
            terms: watch::Sender::default(),
        }
    }

    pub async fn start_api(&mut self) {
        let mut config = ApiServerConfig::new(&self.dir);
        config.default_not_ready_toleration_seconds = 1;
        config.default_unreachable_toleration_seconds = 1;
        config.shutdown_grace = Duration::from_secs(5);
        let server = ApiServer::start(config).await.expect("the API server opens its directory");
        self.wire.set_server(Some(server.clone()));
        let mut terms = server.terms();
        let term = terms.wait_for(Option::is_some).await.expect("the only member leads");
        self.terms.send_replace(*term);
        self.api = Some(server);
    }

    async fn stop_api(&mut self) {
        if let Some(server) = self.api.take() {
            self.wire.set_server(None);
            self.terms.send_replace(None);
            server.shutdown().await;
        }
    }

    pub async fn restart_api(&mut self, down: Duration) {
        self.stop_api().await;
        tokio::time::sleep(down).await;
        self.start_api().await;
    }

    pub fn start_controllers(&mut self) {
        let requests = TaskTracker::new();
        let identity = Identity::component("system:kube-controller-manager");
        let client = self.wire.link(identity, true, &requests);
        let parts = Parts {
            config: ControllersConfig {
                node_monitor_grace_period: GRACE,
                node_monitor_period: Duration::from_millis(200),
                gone_node_quarantine: Duration::from_millis(500),
                ..ControllersConfig::default()
            },
            scope: Arc::new(TermScope::new(self.terms.subscribe())),
            health: Health::default(),
            metrics: Metrics::default(),
            clock: Arc::new(SystemClock),
        };
        let stop = CancellationToken::new();
        let caches = Caches::new(client.clone());
        let task = tokio::spawn(rkube_controller::run(client, caches, parts, stop.clone()));
        self.controllers = Some(Running { task, stop, requests });
    }

    pub fn start_scheduler(&mut self) {
        let requests = TaskTracker::new();
        let identity = Identity::component("system:kube-scheduler");
        let client = self.wire.link(identity, true, &requests);
        let caches = Caches::new(client.clone());
        let client = rkube_runtime::Client::new(client, caches.clone(), "kube-scheduler");
        let config = SchedulerConfig::default();
        let scheduler = Scheduler {
            recorder: Recorder::new(client.clone(), &config.name, "", Metrics::default()),
            caches,
            client,
            metrics: rkube_scheduler::Metrics::default(),
            config,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(scheduler.run(stop.clone()));
        self.scheduler = Some(Running { task, stop, requests });
    }

    pub async fn restart_controllers(&mut self, politely: bool) {
        if let Some(running) = self.controllers.take() {
            running.end(politely).await;
        }
        self.start_controllers();
    }

    pub async fn restart_scheduler(&mut self, politely: bool) {
        if let Some(running) = self.scheduler.take() {
            running.end(politely).await;
        }
        self.start_scheduler();
    }

    pub async fn stop(&mut self) {
        for running in [self.controllers.take(), self.scheduler.take()].into_iter().flatten() {
            running.end(true).await;
        }
        self.stop_api().await;
    }
}
