//! A runtime in memory: it records every call that changes something and behaves as scripted.
//!
//! Sandboxes and containers live until they are removed. A container runs until a stop, until the
//! test ends it with [`FakeRuntime::exit`], or as [`Script::exits`] says. Ids are `s1`, `c2`, …;
//! times are the machine's.

use crate::config::{AuthConfig, ContainerConfig, PodSandboxConfig};
use crate::{
    AttachOptions, Code, Container, ContainerState, CriError, Event, ExecOptions, ExecOutput,
    FsUsage, Image, Readiness, Result, Runtime, RuntimeStatus, Sandbox, Stats, Version,
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// More events than any test lets pile up unread.
const EVENTS: usize = 1024;

/// A call that changed something, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `RunPodSandbox` of this pod name and attempt.
    RunSandbox(String, u32),
    /// `StopPodSandbox` of this id.
    StopSandbox(String),
    /// `RemovePodSandbox` of this id.
    RemoveSandbox(String),
    /// `CreateContainer` of this name and attempt.
    Create(String, u32),
    /// `StartContainer` of this container name.
    Start(String),
    /// `StopContainer` of this container name with this grace period in seconds.
    Stop(String, i64),
    /// `RemoveContainer` of this id.
    Remove(String),
    /// `ExecSync` of this command in this container name.
    Exec(String, Vec<String>),
    /// `PullImage` of this name.
    Pull(String),
    /// `RemoveImage` of this name.
    RemoveImage(String),
}

/// How the fake behaves where a healthy runtime leaves a choice.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Failures still to come, by the operation's CRI name; the first is used up by the next call.
    pub failures: BTreeMap<&'static str, Vec<CriError>>,
    /// How long an operation takes, by its CRI name.
    pub delays: BTreeMap<&'static str, Duration>,
    /// Images that no registry has: a pull answers `NotFound`.
    pub missing_images: BTreeSet<String>,
    /// Containers, by name, that end with this code as soon as they have started.
    pub exits: BTreeMap<String, i32>,
    /// Exit codes of commands, by their first word; others succeed.
    pub exec_codes: BTreeMap<String, i32>,
    /// Whether the network is reported as not ready.
    pub network_down: bool,
}

#[derive(Default)]
struct State {
    script: Script,
    calls: Vec<Call>,
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    configs: BTreeMap<String, ContainerConfig>,
    images: BTreeMap<String, Image>,
    count: u64,
}

/// The fake; share it in an `Arc` and keep a handle in the test.
pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new(Script::default())
    }
}

impl FakeRuntime {
    /// A runtime with nothing in it.
    pub fn new(script: Script) -> Self {
        let state = Mutex::new(State { script, ..State::default() });
        Self { state, events: broadcast::channel(EVENTS).0 }
    }

    /// Changes the script while it runs.
    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.lock().script);
    }

    /// Every changing call so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The configuration that a container was created with.
    pub fn config_of(&self, id: &str) -> Option<ContainerConfig> {
        self.lock().configs.get(id).cloned()
    }

    /// Puts an image on the node.
    pub fn add_image(&self, name: &str) {
        self.lock().add_image(name);
    }

    /// Ends a running container.
    pub fn exit(&self, id: &str, code: i32, reason: &str) {
        if self.lock().end(id, code, reason) {
            self.tell(id);
        }
    }

    /// Ends a sandbox, as when its shim is killed; all its containers end too.
    pub fn kill_sandbox(&self, id: &str) {
        for ended in self.lock().end_sandbox(id) {
            self.tell(&ended);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: &str) {
        // Without a subscriber nobody wants to know.
        let _ = self.events.send(Event::Exited { id: id.to_owned() });
    }

    async fn enter(&self, operation: &'static str, call: Option<Call>) -> Result<()> {
        let (delay, failure) = self.lock().enter(operation, call);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        failure.map_or(Ok(()), Err)
    }
}

impl State {
    fn enter(
        &mut self,
        operation: &'static str,
        call: Option<Call>,
    ) -> (Option<Duration>, Option<CriError>) {
        self.calls.extend(call);
        let failures = self.script.failures.get_mut(operation);
        let failure = failures.filter(|list| !list.is_empty()).map(|list| list.remove(0));
        (self.script.delays.get(operation).copied(), failure)
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn add_image(&mut self, name: &str) {
        let image =
            Image { id: format!("sha256:{name}"), tags: vec![name.to_owned()], ..Image::default() };
        self.images.insert(name.to_owned(), image);
    }

    fn name_of(&self, id: &str) -> String {
        self.containers.get(id).map_or_else(|| id.to_owned(), |c| c.name.clone())
    }

    fn end(&mut self, id: &str, code: i32, reason: &str) -> bool {
        match self.containers.get_mut(id) {
            Some(container) if container.state != ContainerState::Exited => {
                container.state = ContainerState::Exited;
                container.exit_code = code;
                container.finished_at = now();
                container.reason = reason.to_owned();
                true
            }
            _ => false,
        }
    }

    fn end_sandbox(&mut self, id: &str) -> Vec<String> {
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
        let inside = self.containers.values().filter(|c| c.sandbox == id);
        let inside: Vec<String> = inside.map(|c| c.id.clone()).collect();
        let mut ended: Vec<String> =
            inside.into_iter().filter(|c| self.end(c, 137, "Error")).collect();
        ended.push(id.to_owned());
        ended
    }

    fn run_sandbox(&mut self, config: &PodSandboxConfig) -> String {
        let number = self.next();
        let meta = config.metadata.clone().unwrap_or_default();
        let id = format!("s{number}");
        let sandbox = Sandbox {
            id: id.clone(),
            uid: meta.uid,
            namespace: meta.namespace,
            name: meta.name,
            attempt: meta.attempt,
            ready: true,
            created_at: now(),
            ips: vec![format!("10.42.0.{number}")],
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        self.sandboxes.insert(id.clone(), sandbox);
        id
    }

    fn create(&mut self, sandbox: &str, config: &ContainerConfig) -> String {
        let number = self.next();
        let meta = config.metadata.clone().unwrap_or_default();
        let id = format!("c{number}");
        let image = config.image.clone().unwrap_or_default().image;
        let container = Container {
            id: id.clone(),
            name: meta.name,
            attempt: meta.attempt,
            sandbox: sandbox.to_owned(),
            created_at: now(),
            image_ref: image.clone(),
            image,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            ..Container::default()
        };
        self.containers.insert(id.clone(), container);
        self.configs.insert(id.clone(), config.clone());
        id
    }

    fn start(&mut self, id: &str) -> Result<Option<i32>> {
        let container = self.containers.get_mut(id).ok_or_else(|| gone("StartContainer", id))?;
        container.state = ContainerState::Running;
        container.started_at = now();
        Ok(self.script.exits.get(&container.name).copied())
    }
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn gone(operation: &'static str, id: &str) -> CriError {
    CriError::new(operation, id, Code::NotFound, format!("{id} not found"))
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<Version> {
        self.enter("Version", None).await?;
        Ok(Version { name: "fake".into(), version: "1.0.0".into() })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        self.enter("Status", None).await?;
        let network = match self.lock().script.network_down {
            true => Readiness::NotReady("cni config uninitialized".into()),
            false => Readiness::Ready,
        };
        Ok(RuntimeStatus { runtime: Readiness::Ready, network })
    }

    async fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let meta = config.metadata.clone().unwrap_or_default();
        self.enter("RunPodSandbox", Some(Call::RunSandbox(meta.name, meta.attempt))).await?;
        Ok(self.lock().run_sandbox(config))
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.enter("StopPodSandbox", Some(Call::StopSandbox(id.to_owned()))).await?;
        self.kill_sandbox(id);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.enter("RemovePodSandbox", Some(Call::RemoveSandbox(id.to_owned()))).await?;
        let mut state = self.lock();
        state.sandboxes.remove(id);
        state.containers.retain(|_, container| container.sandbox != id);
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<Sandbox> {
        self.enter("PodSandboxStatus", None).await?;
        self.lock().sandboxes.get(id).cloned().ok_or_else(|| gone("PodSandboxStatus", id))
    }

    async fn list_sandboxes(&self) -> Result<Vec<Sandbox>> {
        self.enter("ListPodSandbox", None).await?;
        Ok(self.lock().sandboxes.values().cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        _sandbox_config: &PodSandboxConfig,
    ) -> Result<String> {
        let meta = config.metadata.clone().unwrap_or_default();
        self.enter("CreateContainer", Some(Call::Create(meta.name, meta.attempt))).await?;
        Ok(self.lock().create(sandbox, config))
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let name = self.lock().name_of(id);
        if let Err(error) = self.enter("StartContainer", Some(Call::Start(name))).await {
            self.lock().end(id, 128, "StartError");
            return Err(error);
        }
        let exits = self.lock().start(id)?;
        if let Some(code) = exits {
            self.exit(id, code, if code == 0 { "Completed" } else { "Error" });
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<()> {
        let name = self.lock().name_of(id);
        self.enter("StopContainer", Some(Call::Stop(name, grace_seconds))).await?;
        self.exit(id, 143, "Error");
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.enter("RemoveContainer", Some(Call::Remove(id.to_owned()))).await?;
        self.lock().containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<Container> {
        self.enter("ContainerStatus", None).await?;
        self.lock().containers.get(id).cloned().ok_or_else(|| gone("ContainerStatus", id))
    }

    async fn list_containers(&self) -> Result<Vec<Container>> {
        self.enter("ListContainers", None).await?;
        Ok(self.lock().containers.values().cloned().collect())
    }

    async fn reopen_log(&self, _id: &str) -> Result<()> {
        self.enter("ReopenContainerLog", None).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        _timeout: Duration,
    ) -> Result<ExecOutput> {
        let name = self.lock().name_of(id);
        self.enter("ExecSync", Some(Call::Exec(name, command.to_vec()))).await?;
        let first = command.first().map(String::as_str).unwrap_or_default();
        let exit_code = self.lock().script.exec_codes.get(first).copied().unwrap_or_default();
        Ok(ExecOutput { exit_code, ..ExecOutput::default() })
    }

    async fn exec_url(&self, options: &ExecOptions) -> Result<String> {
        self.enter("Exec", None).await?;
        Ok(format!("http://127.0.0.1:1/exec/{}", options.container))
    }

    async fn attach_url(&self, options: &AttachOptions) -> Result<String> {
        self.enter("Attach", None).await?;
        Ok(format!("http://127.0.0.1:1/attach/{}", options.container))
    }

    async fn port_forward_url(&self, sandbox: &str, _ports: &[i32]) -> Result<String> {
        self.enter("PortForward", None).await?;
        Ok(format!("http://127.0.0.1:1/portforward/{sandbox}"))
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.enter("ImageStatus", None).await?;
        Ok(self.lock().images.get(image).cloned())
    }

    async fn pull_image(&self, image: &str, _auth: Option<AuthConfig>) -> Result<String> {
        self.enter("PullImage", Some(Call::Pull(image.to_owned()))).await?;
        let mut state = self.lock();
        if state.script.missing_images.contains(image) {
            let text = format!("failed to resolve reference \"{image}\": {image}: not found");
            return Err(CriError::new("PullImage", image, Code::NotFound, text));
        }
        state.add_image(image);
        Ok(format!("sha256:{image}"))
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.enter("ListImages", None).await?;
        Ok(self.lock().images.values().cloned().collect())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.enter("RemoveImage", Some(Call::RemoveImage(image.to_owned()))).await?;
        self.lock().images.retain(|name, held| name != image && held.id != image);
        Ok(())
    }

    async fn image_fs(&self) -> Result<Option<FsUsage>> {
        self.enter("ImageFsInfo", None).await?;
        Ok(None)
    }

    async fn stats(&self) -> Result<Vec<Stats>> {
        self.enter("ListContainerStats", None).await?;
        let state = self.lock();
        let running = state.containers.values().filter(|c| c.state == ContainerState::Running);
        Ok(running
            .map(|c| Stats {
                container: c.id.clone(),
                labels: c.labels.clone(),
                ..Stats::default()
            })
            .collect())
    }

    async fn events(&self) -> Result<BoxStream<'static, Event>> {
        self.enter("Subscribe", None).await?;
        let stream = BroadcastStream::new(self.events.subscribe());
        Ok(stream.filter_map(|item| async move { item.ok() }).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerMetadata;

    #[tokio::test]
    async fn a_scripted_exit_is_told_and_recorded() {
        let fake = FakeRuntime::default();
        fake.script(|script| {
            script.exits.insert("app".into(), 3);
        });
        let mut events = fake.events().await.unwrap();
        let sandbox = fake.run_sandbox(&PodSandboxConfig::default()).await.unwrap();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".into(), attempt: 0 }),
            ..ContainerConfig::default()
        };
        let id =
            fake.create_container(&sandbox, &config, &PodSandboxConfig::default()).await.unwrap();
        fake.start_container(&id).await.unwrap();
        assert_eq!(events.next().await, Some(Event::Exited { id: id.clone() }));
        let status = fake.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 3));
        assert_eq!(
            fake.calls(),
            [
                Call::RunSandbox(String::new(), 0),
                Call::Create("app".into(), 0),
                Call::Start("app".into()),
            ]
        );
    }

    #[tokio::test]
    async fn a_failure_is_used_up() {
        let fake = FakeRuntime::default();
        let error = CriError::new("PullImage", "x", Code::Unavailable, "down");
        fake.script(|script| {
            script.failures.insert("PullImage", vec![error.clone()]);
        });
        assert_eq!(fake.pull_image("x", None).await, Err(error));
        assert_eq!(fake.pull_image("x", None).await, Ok("sha256:x".to_owned()));
    }
}
