//! Registering the node and keeping its status current.
//!
//! The status is sent when it says something new and else every five minutes; the lease says in
//! between that the node lives. While the node is not Ready the runtime is asked every few
//! milliseconds, so that Ready follows its reason at once; afterwards every ten seconds.

use super::lease;
use super::machine::{Free, Machine};
use super::status::{View, node_status, not_ready, says_the_same};
use crate::config::KubeletConfig;
use crate::recorder::{Level, Recorder};
use crate::watch::{Change, Selection, list_watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use rkube_cri::Runtime;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// While the node is not Ready.
const EAGER: Duration = Duration::from_millis(10);
/// After this long it will not be a matter of moments any more.
const EAGER_FOR: Duration = Duration::from_secs(30);
/// Not Ready for long.
const WAITING: Duration = Duration::from_millis(500);
/// While all is well.
const CALM: Duration = Duration::from_secs(10);
/// A status that says nothing new is sent this often.
const HEARTBEAT: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(100);
/// Versions of one object that are only looked at.
const CHANGES: usize = 16;

/// The node object as this kubelet registers it.
pub fn node_object(config: &KubeletConfig, machine: &Machine, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config, machine)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(status),
    }
}

fn labels(config: &KubeletConfig, machine: &Machine) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", &machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", &machine.architecture),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.into_iter().chain(config.node_labels.iter().cloned()).collect()
}

/// Creates the node, or adopts the one of this name; tries until the API has taken it.
pub async fn register(client: &Client, config: &KubeletConfig, view: &View) -> Node {
    loop {
        match try_register(client, config, view).await {
            Ok(node) => return node,
            Err(error) => tracing::warn!(%error, node = config.node_name, "register"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_register(client: &Client, config: &KubeletConfig, view: &View) -> kube::Result<Node> {
    let api: Api<Node> = Api::all(client.clone());
    let status = node_status(config, view, None, Timestamp::now());
    let node = node_object(config, &view.machine, status);
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"metadata": {"labels": labels(config, &view.machine)}});
            api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        other => other,
    }
}

/// Registers the node and keeps it alive and its status current, until dropped.
pub async fn keep(
    client: Client,
    config: KubeletConfig,
    runtime: Arc<dyn Runtime>,
    machine: Machine,
    recorder: Recorder,
) {
    let mut view = View { machine, free: Free::look(&config.data_dir), ..View::default() };
    let node = register(&client, &config, &view).await;
    recorder.node(&config.node_name, Level::Normal, "Starting", "Starting kubelet.");
    let uid = node.uid().unwrap_or_default();
    let renewing = tokio::spawn(lease::keep(client.clone(), config.clone(), uid));
    let (sender, mut changes) = mpsc::channel(CHANGES);
    let own = Selection::fields(format!("metadata.name={}", config.node_name));
    let watching = tokio::spawn(list_watch(Api::<Node>::all(client.clone()), own, sender));
    let _stop = (AbortOnDrop(renewing), AbortOnDrop(watching));
    view.pod_cidr = node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone());
    let mut reporter = Reporter {
        sent: None,
        sent_at: Instant::now(),
        known: node.status,
        gone: false,
        began: Instant::now(),
    };
    loop {
        look(runtime.as_ref(), &config, &mut view).await;
        reporter.report(&client, &config, &view).await;
        let pause = reporter.pause(&view);
        tokio::select! {
            Some(change) = changes.recv() => reporter.on_node(&config, change, &mut view),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn look(runtime: &dyn Runtime, config: &KubeletConfig, view: &mut View) {
    if view.version.is_none() {
        view.version = runtime.version().await.ok();
    }
    view.runtime = Some(runtime.status().await.map_err(|error| error.to_string()));
    view.free = Free::look(&config.data_dir);
}

struct Reporter {
    sent: Option<NodeStatus>,
    sent_at: Instant,
    /// What the API had when we began; transitions go on from there.
    known: Option<NodeStatus>,
    gone: bool,
    began: Instant,
}

impl Reporter {
    async fn report(&mut self, client: &Client, config: &KubeletConfig, view: &View) {
        if self.gone {
            register(client, config, view).await;
            (self.gone, self.sent) = (false, None);
        }
        let before = self.sent.as_ref().or(self.known.as_ref());
        let status = node_status(config, view, before, Timestamp::now());
        let is_old_news = self.sent.as_ref().is_some_and(|sent| says_the_same(sent, &status));
        if is_old_news && self.sent_at.elapsed() < HEARTBEAT {
            return;
        }
        let api: Api<Node> = Api::all(client.clone());
        let patch = json!({"status": status});
        match api
            .patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(_) => {
                self.sent = Some(status);
                self.sent_at = Instant::now();
            }
            Err(kube::Error::Api(status)) if status.code == 404 => self.gone = true,
            Err(error) => {
                tracing::warn!(%error, "report node status");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn pause(&self, view: &View) -> Duration {
        match not_ready(view) {
            None => CALM,
            Some(_) if self.began.elapsed() < EAGER_FOR => EAGER,
            Some(_) => WAITING,
        }
    }

    fn on_node(&mut self, config: &KubeletConfig, change: Change<Node>, view: &mut View) {
        let node = match change {
            Change::Applied(node) => node,
            Change::Listed { mut items, .. } => match items.pop() {
                Some(node) => node,
                None => return self.gone = true,
            },
            Change::Deleted(_) => return self.gone = true,
            Change::Failed(error) => {
                return tracing::warn!(%error, node = config.node_name, "watch node");
            }
        };
        view.pod_cidr = node.spec.and_then(|spec| spec.pod_cidr).filter(|cidr| !cidr.is_empty());
        // Somebody else says that we are not alive: say that we are.
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let ours = self.sent.as_ref().and_then(|sent| sent.conditions.as_ref());
        let ready = |list: &[k8s_openapi::api::core::v1::NodeCondition]| {
            list.iter().find(|c| c.type_ == "Ready").map(|c| c.status.clone())
        };
        if let Some(ours) = ours
            && ready(&conditions).as_deref() == Some("Unknown")
            && ready(ours).is_some()
        {
            self.known = self.sent.take();
        }
    }
}
