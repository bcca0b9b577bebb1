//! The processes of a `rkube up` and what happens to them.

use super::control::{Call, Control, Request, Verb};
use super::host::Host;
use super::names::Names;
use super::node::{AgentSettings, Node};
use super::process::{OnOurDeath, Process, own_program};
use super::progress::Progress;
use super::registry::Registry;
use crate::cli::{TokenRole, UpArgs};
use crate::client;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long a step of the start may take before it counts as failed.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const CONTROL_PLANE: &str = "control-plane";

/// All that runs.
pub struct Cluster {
    args: UpArgs,
    names: Names,
    host: Option<Host>,
    registry: Option<Registry>,
    server: Option<Process>,
    nodes: Vec<Node>,
    settings: Option<AgentSettings>,
    client: Option<Client>,
    began: Timestamp,
}

impl Cluster {
    pub fn new(args: UpArgs, names: Names) -> Self {
        let nodes = (1..=args.nodes).map(|index| Node::new(&names, index)).collect();
        Cluster {
            args,
            names,
            host: None,
            registry: None,
            server: None,
            nodes,
            settings: None,
            client: None,
            began: Timestamp::now(),
        }
    }

    /// Starts everything and returns once every node is Ready.
    pub async fn start(&mut self, progress: &mut Progress) -> Result<()> {
        progress.step("network");
        self.host = Some(Host::set_up(&self.names, self.args.network.cluster_cidr).await?);
        progress.done(&format!("network {} on {}", self.names.subnet, self.names.bridge()));

        progress.step("control plane");
        self.start_server().await?;
        progress.done(&format!("control plane at {}", self.url()));

        let mut mirrors = self.args.registry_mirrors.clone();
        if let Some(images) = self.args.registry_images.clone() {
            progress.step("registry");
            let dir = self.args.data.data_dir.clone();
            let registry = Registry::start(&self.names, &dir, &images).await?;
            mirrors.push(registry.mirror());
            self.registry = Some(registry);
            progress.done(&format!("registry {}", super::registry::HOST));
        }

        progress.step("nodes");
        self.start_nodes(mirrors).await?;
        let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
        progress.done(&format!("nodes {} started", names.join(", ")));

        progress.step("waiting until every node is Ready");
        self.wait_for_nodes().await?;
        progress.done("every node is Ready");
        Ok(())
    }

    /// Where this machine reaches the API.
    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.args.secure_port)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.args.data.data_dir.join("admin.kubeconfig")
    }

    async fn start_server(&mut self) -> Result<()> {
        let toleration = self.args.default_toleration_seconds;
        let mut command = vec![own_program().display().to_string(), "server".into()];
        command.push("--no-agent".into());
        for (flag, value) in [
            ("--data-dir", self.args.data.data_dir.display().to_string()),
            ("--secure-port", self.args.secure_port.to_string()),
            ("--advertise-address", self.names.gateway().to_string()),
            ("--cluster-cidr", self.args.network.cluster_cidr.to_string()),
            ("--service-cidr", self.args.network.service_cidr.to_string()),
            ("--node-monitor-grace-period", self.args.node_monitor_grace_period.to_string()),
            ("--default-not-ready-toleration-seconds", toleration.to_string()),
            ("--default-unreachable-toleration-seconds", toleration.to_string()),
        ] {
            command.push(format!("{flag}={value}"));
        }
        let log = self.names.log(CONTROL_PLANE);
        let tie = OnOurDeath::Terminate;
        let server = Process::start("the control plane", tie, &command, &[], &log, false)?;
        let server = self.server.insert(server);
        let kubeconfig = self.args.data.data_dir.join("admin.kubeconfig");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.ended() {
                bail!("the control plane ended at its start ({status}):\n{}", server.last_words());
            }
            match client::ready(&kubeconfig).await {
                Ok(client) => {
                    self.client = Some(client);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the control plane does not become ready"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn start_nodes(&mut self, mirrors: Vec<String>) -> Result<()> {
        let client = self.client.clone().context("no control plane")?;
        let settings = AgentSettings {
            server: format!("https://{}:{}", self.names.gateway(), self.args.secure_port),
            token: client::create_token(&client, TokenRole::Node).await?,
            mirrors,
        };
        let host = self.host.as_ref().context("no network")?;
        let starts = self.nodes.iter_mut().map(|node| node.start(host, &settings));
        futures::future::try_join_all(starts).await?;
        self.settings = Some(settings);
        Ok(())
    }

    async fn wait_for_nodes(&mut self) -> Result<()> {
        let client = self.client.clone().context("no control plane")?;
        let mut ready: BTreeMap<String, bool> =
            self.nodes.iter().map(|n| (n.name.clone(), false)).collect();
        let mut changes = node_changes(client);
        let deadline = Instant::now() + START_TIMEOUT;
        let began = self.began;
        while ready.values().any(|is| !is) {
            tokio::select! {
                change = changes.next() => {
                    let node = change.context("the watch of nodes ended")??;
                    self.route_to(&node).await?;
                    if let Some(is) = node.metadata.name.as_ref().and_then(|n| ready.get_mut(n)) {
                        *is = is_ready(&node) && is_fresh(&node, began);
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    if let Some(news) = self.nodes.iter_mut().find_map(Node::news) {
                        bail!("{news}");
                    }
                    if Instant::now() > deadline {
                        let late: Vec<&String> =
                            ready.iter().filter(|(_, is)| !**is).map(|(n, _)| n).collect();
                        bail!("not Ready in time: {late:?}; see their logs in {}",
                            self.names.log("").parent().unwrap_or(&self.names.log("")).display());
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a node's pods reachable from this machine once their range is known.
    async fn route_to(&self, node: &NodeObject) -> Result<()> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let cidr =
            node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).and_then(|c| c.parse().ok());
        let ours = self.nodes.iter().find(|n| n.name == name);
        match (cidr, ours, &self.host) {
            (Some(cidr), Some(node), Some(host)) => host.route(cidr, node.ip).await,
            _ => Ok(()),
        }
    }

    /// What to do next.
    pub fn print_welcome(&self) {
        let kubeconfig = self.kubeconfig();
        if !super::in_path("rkubectl")
            && let Some(dir) = own_program().parent()
        {
            println!("\n  export PATH={}:$PATH", dir.display());
        }
        if kubeconfig != Path::new("/var/lib/rkube/admin.kubeconfig") {
            println!("\n  export KUBECONFIG={}", kubeconfig.display());
        }
        let count = self.nodes.len();
        println!(
            "
  rkubectl get nodes
  rkubectl apply -f manifests/deploy.yaml
  rkubectl get pods -o wide -w
  curl \"http://$(rkubectl get pod -l app=web -o jsonpath='{{.items[0].status.podIP}}'):8080/\"
  rkube node kill node-{count}        # and see what the cluster does

A node that is silent for {} s is not ready; its pods are replaced {} s later
(Kubernetes waits 300 s). Logs: {}

ready: {count} node{}. Type these in another terminal; Ctrl-C here stops the cluster.",
            self.args.node_monitor_grace_period,
            self.args.default_toleration_seconds,
            self.names.log("*").display(),
            if count == 1 { "" } else { "s" },
        );
    }

    /// Carries out requests and reports deaths until `stop`.
    pub async fn supervise(&mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let control = Control::listen(&self.names.control_socket())?;
        let client = self.client.clone().context("no control plane")?;
        let mut changes = node_changes(client);
        let mut look = tokio::time::interval(Duration::from_millis(500));
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                call = control.next() => self.answer(call?).await,
                Some(change) = changes.next() => {
                    if let Ok(node) = change
                        && let Err(error) = self.route_to(&node).await
                    {
                        tracing::warn!(%error, "no route to a node's pods");
                    }
                }
                _ = look.tick() => self.report_deaths(),
            }
        }
    }

    async fn answer(&mut self, call: Call) {
        let outcome = self.carry_out(&call.request).await;
        call.answer(outcome).await;
    }

    async fn carry_out(&mut self, Request { verb, name }: &Request) -> Result<String> {
        if name == CONTROL_PLANE {
            return self.control_plane(*verb).await;
        }
        let known: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        let Some(node) = self.nodes.iter_mut().find(|n| n.name == *name) else {
            bail!("no node {name:?}; there are {} and {CONTROL_PLANE}", known.join(", "));
        };
        match verb {
            Verb::Stop => {
                node.stop().await;
                Ok(format!("{name} stopped"))
            }
            Verb::Kill => {
                node.kill().await;
                Ok(format!("{name} killed"))
            }
            Verb::Start => {
                let host = self.host.as_ref().context("no network")?;
                let settings = self.settings.as_ref().context("not started yet")?;
                Ok(format!("{name} {}", node.start(host, settings).await?))
            }
        }
    }

    async fn control_plane(&mut self, verb: Verb) -> Result<String> {
        match verb {
            Verb::Start if self.server.as_mut().is_some_and(|s| s.ended().is_none()) => {
                return Ok(format!("{CONTROL_PLANE} runs already"));
            }
            Verb::Start => self.start_server().await?,
            Verb::Stop => self.stop_server().await,
            Verb::Kill => {
                if let Some(mut server) = self.server.take() {
                    server.kill().await;
                }
            }
        }
        let done = match verb {
            Verb::Start => "started",
            Verb::Stop => "stopped",
            Verb::Kill => "killed",
        };
        Ok(format!("{CONTROL_PLANE} {done}"))
    }

    fn report_deaths(&mut self) {
        for news in self.nodes.iter_mut().filter_map(Node::news) {
            println!("{news}");
        }
        if let Some(server) = &mut self.server
            && let Some(status) = server.ended()
        {
            println!(
                "the control plane ended ({status}); the nodes go on; \
                 `rkube node start {CONTROL_PLANE}` starts it again\n{}",
                server.last_words()
            );
            self.server = None;
        }
    }

    async fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.stop(Duration::from_secs(15)).await;
        }
    }

    /// Ends everything and puts the machine back as it was.
    pub async fn stop(&mut self) {
        futures::future::join_all(self.nodes.iter_mut().map(Node::stop)).await;
        self.stop_server().await;
        if let Some(mut registry) = self.registry.take() {
            registry.process.stop(Duration::from_secs(5)).await;
        }
        if let Some(host) = self.host.take() {
            host.tear_down().await;
        }
    }
}

/// Every node as it changes, from now on and for ever.
fn node_changes(
    client: Client,
) -> futures::stream::BoxStream<'static, watcher::Result<NodeObject>> {
    watcher(Api::<NodeObject>::all(client), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .boxed()
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The Ready of an earlier run says nothing: the node's agent has to have posted it since then.
fn is_fresh(node: &NodeObject, since: Timestamp) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let heartbeats =
        conditions.into_iter().flatten().filter_map(|c| c.last_heartbeat_time.as_ref());
    // Heartbeats are told to the second.
    heartbeats.map(|time| time.0.as_second()).any(|second| second >= since.as_second())
}
