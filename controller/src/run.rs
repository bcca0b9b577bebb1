//! Runs every controller while this process leads.

use crate::{
    ControllersConfig, context::Context, deployment, endpointslice, garbage, namespace, node,
    podgc, replicaset,
};
use futures::future::BoxFuture;
use rkube_runtime::{
    Caches, Client, Clock, Health, LeaderScope, Metrics, client::instrument, leader::lead,
    supervise,
};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the controllers are given besides client and caches.
pub struct Parts {
    /// Their settings.
    pub config: ControllersConfig,
    /// When this process leads.
    pub scope: Arc<dyn LeaderScope>,
    /// Which of them are up; part of the process' readiness.
    pub health: Health,
    /// Their metrics.
    pub metrics: Metrics,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

type Start = fn(Context) -> BoxFuture<'static, ()>;

/// Every controller with its name.
const CONTROLLERS: [(&str, Start); 8] = [
    ("deployment", |ctx| Box::pin(deployment::start(ctx))),
    ("replicaset", |ctx| Box::pin(replicaset::start(ctx))),
    ("endpointslice", |ctx| Box::pin(endpointslice::start(ctx))),
    ("node-lifecycle", |ctx| Box::pin(node::start(ctx))),
    ("node-ipam", |ctx| Box::pin(node::ipam::start(ctx))),
    ("pod-garbage-collector", |ctx| Box::pin(podgc::start(ctx))),
    ("namespace", |ctx| Box::pin(namespace::start(ctx))),
    ("garbage-collector", |ctx| Box::pin(garbage::start(ctx))),
];

/// Runs the controllers whenever this process leads, until `shutdown`. A controller that ends or
/// panics is started again and shows in the health meanwhile. Losing the lead drops all of them, and
/// their client sends nothing more.
pub async fn run(client: kube::Client, caches: Caches, parts: Parts, shutdown: CancellationToken) {
    let (health, metrics, config) = (parts.health, parts.metrics, Arc::new(parts.config));
    let work = |term: u64, lost: CancellationToken| {
        let client = instrument(client.clone(), metrics.clone(), Some(term), lost);
        let client = Client::new(client, caches.clone(), "kube-controller-manager");
        let ctx = Context {
            client,
            caches: caches.clone(),
            metrics: metrics.clone(),
            clock: parts.clock.clone(),
            config: config.clone(),
        };
        run_all(ctx, health.clone())
    };
    lead("kube-controller-manager", parts.scope.as_ref(), &metrics, &shutdown, work).await;
}

async fn run_all(ctx: Context, health: Health) {
    let mut tasks = JoinSet::new();
    for (name, start) in CONTROLLERS {
        let (ctx, health) = (ctx.clone(), health.clone());
        tasks.spawn(async move {
            supervise(name, &health, &ctx.metrics, || start(ctx.clone())).await;
        });
    }
    // The set aborts what is left when this future is dropped with the term.
    while tasks.join_next().await.is_some() {}
}
