//! `rkube server`: the control plane in one process, and a node beside it unless told otherwise.
//!
//! Controllers and scheduler run while this member leads the cluster ([`Components`]). They reach the
//! API server by a call, through the same client that serves them elsewhere over HTTPS
//! ([`local_client`]), and each of their writes carries the leader's term.

use crate::cli::ServerArgs;
use crate::{member_join, peers, shutdown};
use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use rkube_apiserver::member_requests::warning_of_two;
use rkube_apiserver::store_setup::Role;
use rkube_apiserver::{ApiServer, ApiServerConfig, Identity};
use rkube_controller::{ControllersConfig, Parts};
use rkube_runtime::client::instrument;
use rkube_runtime::leader::lead;
use rkube_runtime::{
    Caches, Health, HeldTerm, LeaderScope, Metrics, Recorder, SystemClock, TermScope, supervise,
};
use rkube_scheduler::{Scheduler, SchedulerConfig};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: ServerArgs) -> Result<()> {
    let stop = shutdown::token()?;
    let config = api_config(&args);
    member_join::ensure_member(&args.peers, &config).await?;
    let server = ApiServer::start(config).await.context("starting the API server")?;
    let listener = server.listen().await?;
    let linked = CancellationToken::new();
    let peers = tokio::spawn(peers::start(&server, linked.clone()).await?);
    tracing::info!(address = %listener.local_addr()?, "the API is served");
    warn_of_two(&server);

    // Components end before the API does, so that their last writes find it.
    let components = CancellationToken::new();
    let tasks = TaskTracker::new();
    start_components(&args, &server, &components, &tasks);
    if !args.no_agent {
        tasks.spawn(crate::agent::beside_server(&args, &server, components.clone()));
    }
    let serving = CancellationToken::new();
    let serve = tokio::spawn({
        let (server, serving) = (server.clone(), serving.clone());
        async move { server.serve(listener, serving).await }
    });
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        error = server.failed() => Err(error),
    };
    tracing::info!("stopping");
    components.cancel();
    tasks.close();
    if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "components did not end in time");
    }
    serving.cancel();
    serve.await.context("the API server's accept loop")?;
    // A leader hands over while its links stand.
    server.shutdown().await;
    linked.cancel();
    peers.await.context("the peers' accept loop")?;
    outcome.map_err(Into::into)
}

fn warn_of_two(server: &ApiServer) {
    let members = server.store().members();
    let voters = members.iter().filter(|m| m.role == Role::Voter).count();
    if let Some(warning) = warning_of_two(voters) {
        tracing::warn!("{warning}");
    }
}

fn api_config(args: &ServerArgs) -> ApiServerConfig {
    let mut config = ApiServerConfig::new(&args.data.data_dir);
    config.member_name = member_name(&args.node.kubelet.node_name);
    config.peer_port = args.peers.peer_port;
    config.encryption_key = args.peers.encryption_key_file.clone();
    config.bind_address = args.bind_address;
    config.secure_port = args.secure_port;
    config.advertise_address = args.advertise_address.unwrap_or_else(own_address);
    config.extra_sans = args.tls_san.clone();
    config.default_not_ready_toleration_seconds =
        args.patience.default_not_ready_toleration_seconds;
    config.default_unreachable_toleration_seconds =
        args.patience.default_unreachable_toleration_seconds;
    config.cluster_cidr = args.network.cluster_cidr.to_string();
    config.service_cidr = args.network.service_cidr.to_string();
    config
}

/// A member is called as its node is: as it was told, or as its host.
pub fn member_name(told: &str) -> String {
    if !told.is_empty() {
        return told.into();
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.unwrap_or_else(|| "localhost".into()).to_lowercase()
}

/// The address that the way out of this machine begins with; loopback if there is none. Nothing
/// is sent.
pub fn own_address() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A client that acts as one of the control plane's components, in this process.
fn local_client(server: &Arc<ApiServer>, name: &str) -> kube::Client {
    kube::Client::new(server.local(Identity::component(name)), "default")
}

/// Names the components that are down.
fn down(health: Health) -> Box<dyn Fn() -> Option<String> + Send + Sync> {
    Box::new(move || {
        let down: Vec<String> =
            health.down().into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        (!down.is_empty()).then(|| down.join(", "))
    })
}

/// Starts controllers and scheduler, which run while this member leads.
fn start_components(
    args: &ServerArgs,
    server: &Arc<ApiServer>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let scheduler_metrics = rkube_scheduler::Metrics::register(&mut registry);
    server.companions().add_metrics(registry);
    let health = Health::default();
    server.companions().add_check("components", down(health.clone()));
    let components = Components {
        server: Arc::clone(server),
        controllers: ControllersConfig {
            node_monitor_grace_period: Duration::from_secs(args.patience.node_monitor_grace_period),
            cluster_cidr: args.network.cluster_cidr.to_string(),
            ..ControllersConfig::default()
        },
        health,
        metrics,
        scheduler_metrics,
    };
    let (scope, stop) = (TermScope::new(server.terms()), stop.clone());
    tasks.spawn(async move { components.lead(&scope, &stop).await });
}

/// The control plane's components and what they share.
#[derive(Clone)]
struct Components {
    server: Arc<ApiServer>,
    controllers: ControllersConfig,
    health: Health,
    metrics: Metrics,
    scheduler_metrics: rkube_scheduler::Metrics,
}

impl Components {
    /// Runs all of them whenever this member leads, until `stop`.
    async fn lead(&self, scope: &dyn LeaderScope, stop: &CancellationToken) {
        let work = |number, lost| self.clone().run(HeldTerm { number, lost });
        lead("control-plane", scope, &self.metrics, stop, work).await;
    }

    /// Runs all of them in a term; dropping the future ends them. The caches are the term's own:
    /// their first list is confirmed by this leader, so they begin with everything that a former
    /// leader wrote, and a member that does not lead keeps no decoded objects.
    async fn run(self, term: HeldTerm) {
        let caches = Caches::new(local_client(&self.server, "system:kube-controller-manager"));
        tokio::join!(self.run_controllers(&term, &caches), self.run_scheduler(&term, &caches));
    }

    async fn run_controllers(&self, term: &HeldTerm, caches: &Caches) {
        let parts = Parts {
            config: self.controllers.clone(),
            scope: Arc::new(term.clone()),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            clock: Arc::new(SystemClock),
        };
        let client = local_client(&self.server, "system:kube-controller-manager");
        rkube_controller::run(client, caches.clone(), parts, term.lost.clone()).await;
    }

    async fn run_scheduler(&self, term: &HeldTerm, caches: &Caches) {
        let work = |number, lost| {
            let client = local_client(&self.server, "system:kube-scheduler");
            let client = instrument(client, self.metrics.clone(), Some(number), lost);
            let client = rkube_runtime::Client::new(client, caches.clone(), "kube-scheduler");
            let config = SchedulerConfig::default();
            let scheduler = Scheduler {
                recorder: Recorder::new(client.clone(), &config.name, "", self.metrics.clone()),
                caches: caches.clone(),
                client,
                metrics: self.scheduler_metrics.clone(),
                config,
            };
            let (health, metrics) = (self.health.clone(), self.metrics.clone());
            async move {
                let run = || scheduler.clone().run(CancellationToken::new());
                supervise("scheduler", &health, &metrics, run).await;
            }
        };
        lead("kube-scheduler", term, &self.metrics, &term.lost, work).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
    use serde_json::json;
    use std::time::Instant;
    use tokio::sync::watch;

    /// A control plane whose leadership is a channel.
    struct Stage {
        server: Arc<ApiServer>,
        client: kube::Client,
        terms: watch::Sender<Option<u64>>,
        stop: CancellationToken,
        _dir: tempfile::TempDir,
    }

    impl Stage {
        async fn set() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let server = ApiServer::start(ApiServerConfig::new(dir.path())).await.unwrap();
            let (terms, told) = watch::channel(None);
            let (scope, stop) = (TermScope::new(told), CancellationToken::new());
            let components = Components {
                server: server.clone(),
                controllers: ControllersConfig::default(),
                health: Health::default(),
                metrics: Metrics::default(),
                scheduler_metrics: rkube_scheduler::Metrics::default(),
            };
            let ended = stop.clone();
            tokio::spawn(async move { components.lead(&scope, &ended).await });
            let client = local_client(&server, "test");
            Stage { server, client, terms, stop, _dir: dir }
        }

        async fn count<K>(&self) -> usize
        where
            K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
                + Clone
                + std::fmt::Debug
                + serde::de::DeserializeOwned,
        {
            let api = Api::<K>::namespaced(self.client.clone(), "default");
            api.list(&ListParams::default()).await.unwrap().items.len()
        }

        async fn pods(&self, wanted: usize) -> Duration {
            let start = Instant::now();
            while self.count::<Pod>().await != wanted {
                assert!(start.elapsed() < Duration::from_secs(20), "{wanted} pods did not come");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            start.elapsed()
        }

        /// Whether a write to a resource was answered with 409.
        async fn was_refused(&self, resource: &str) -> bool {
            let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
            let text = self.client.request_text(request).await.unwrap();
            text.lines().any(|line| {
                line.contains(&format!("resource=\"{resource}\"")) && line.contains("code=\"409\"")
            })
        }
    }

    fn deployment() -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "a:1"}]},
                },
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn components_write_in_their_term_and_take_over_without_doubles() {
        let stage = Stage::set().await;
        let term = stage.server.store().status().term;
        let deployments = Api::<Deployment>::namespaced(stage.client.clone(), "default");
        deployments.create(&PostParams::default(), &deployment()).await.unwrap();

        // A former leader that does not know it yet: it writes, and nothing comes of it.
        stage.terms.send_replace(Some(term + 7));
        while !stage.was_refused("replicasets").await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((stage.count::<ReplicaSet>().await, stage.count::<Pod>().await), (0, 0));

        stage.terms.send_replace(Some(term));
        let took = stage.pods(3).await;
        eprintln!("three pods {took:?} after the term began");
        stage.terms.send_replace(None);
        let patch = Patch::Merge(json!({"spec": {"replicas": 5}}));
        deployments.patch("web", &PatchParams::default(), &patch).await.unwrap();
        stage.terms.send_replace(Some(term));
        stage.pods(5).await;
        assert_eq!(stage.count::<ReplicaSet>().await, 1);
        stage.stop.cancel();
        stage.server.shutdown().await;
    }
}
