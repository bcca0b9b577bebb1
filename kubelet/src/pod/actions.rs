//! Carrying out a plan's actions. Each is a future of its own that ends in an [`Outcome`]; none
//! touches the worker's state.

use super::env::{Place, environment};
use super::lifecycle;
use super::plan::Action;
use super::sandbox::{host_ports, hosts_file, sandbox_config};
use super::security::{verify_non_root, with_image_user};
use super::start::{self, Parts, container_config, log_path, mounts};
use super::state::find;
use super::{resources, volumes};
use crate::context::Context;
use crate::recorder::Level;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use rkube_cri::{self as cri, ContainerState, Sandbox};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// The right to be in the midst of starting; shared by a pod's starts.
pub type Permit = Option<Arc<OwnedSemaphorePermit>>;

/// What came of an action.
#[derive(Debug)]
pub enum Outcome {
    Prepared(Result<(), String>),
    Pulled { container: String, result: Result<String, crate::images::ImageError> },
    SandboxRun { result: Result<Sandbox, String>, permit: Permit },
    Started { container: String, result: Result<cri::Container, StartFailure>, permit: Permit },
    Stopped(Option<cri::Container>),
    Removed(String),
    SandboxStopped { id: String, result: Result<(), String> },
    SandboxRemoved { id: String, result: Result<(), String> },
    Reported { status: Box<PodStatus>, result: Result<(), ReportError> },
    Finalized(Result<(), String>),
    Cleaned(Result<(), String>),
    Inspected(Vec<cri::Container>),
    SandboxInspected(Option<Sandbox>),
    Nothing,
}

/// A container that was not made or not started.
#[derive(Debug)]
pub struct StartFailure {
    /// `CreateContainerConfigError` and the like.
    pub reason: &'static str,
    /// What went wrong.
    pub message: String,
    /// What there is of it.
    pub container: Option<cri::Container>,
}

/// Why a report did not arrive.
#[derive(Debug)]
pub enum ReportError {
    /// The object is gone or another one has its name.
    Gone,
    /// It may be tried again.
    Failed(String),
}

/// What an action works on.
#[derive(Clone)]
pub struct Job {
    pub context: Arc<Context>,
    pub pod: Arc<Pod>,
    pub sandbox: Option<Sandbox>,
    pub permit: Permit,
    pub reported: Option<PodStatus>,
}

impl Job {
    /// Carries out one action.
    pub async fn run(self, action: Action) -> Outcome {
        match action {
            Action::Prepare => Outcome::Prepared(self.prepare().await),
            Action::Pull { container } => self.pull(container).await,
            Action::RunSandbox { attempt } => self.run_sandbox(attempt).await,
            Action::Start { container, attempt, image } => {
                self.start(container, attempt, image).await
            }
            Action::Stop { container, id, deadline, hook, message } => {
                self.stop(&container, &id, deadline, hook, &message).await
            }
            Action::Remove { id, container, attempt } => self.remove(id, &container, attempt).await,
            Action::StopSandbox { id } => self.stop_sandbox(id).await,
            Action::RemoveSandbox { id } => {
                let result = self.context.runtime.remove_sandbox(&id).await;
                let result = result.map_err(|e| e.to_string());
                pause_if_failed(&result).await;
                Outcome::SandboxRemoved { id, result }
            }
            Action::Report(status) => self.report(status).await,
            Action::Finalize => Outcome::Finalized(self.finalize().await),
            Action::Clean => Outcome::Cleaned(self.clean().await),
            Action::Cancel(_) => Outcome::Nothing,
        }
    }

    fn uid(&self) -> String {
        self.pod.uid().unwrap_or_default()
    }

    fn place(&self) -> Place {
        let mut place = self.context.place.clone();
        let host = self.pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        place.pod_ips = match &self.sandbox {
            Some(_) if host => place.host_ips.clone(),
            Some(sandbox) => sandbox.ips.clone(),
            None => Vec::new(),
        };
        place
    }

    async fn prepare(&self) -> Result<(), String> {
        let dir = self.context.config.pod_dir(&self.uid());
        fs::create_dir_all(dir.join("volumes"))
            .map_err(|e| format!("make {}: {e}", dir.display()))?;
        self.context.objects.track(&self.uid(), &volumes::objects_of(&self.pod));
        let made = volumes::prepare(&self.pod, &dir, &self.place(), &self.context.objects).await;
        if let Err(message) = &made {
            self.context.recorder.pod(&self.pod, None, Level::Warning, "FailedMount", message);
        }
        made
    }

    async fn pull(self, container: String) -> Outcome {
        let Some((spec, _)) = find(&self.pod, &container) else { return Outcome::Nothing };
        let result = self.context.images.ensure(&self.pod, spec).await;
        Outcome::Pulled { container, result }
    }

    async fn permit(&self) -> Permit {
        if self.permit.is_some() {
            return self.permit.clone();
        }
        self.context.starts.clone().acquire_owned().await.ok().map(Arc::new)
    }

    // --- sandbox ---

    async fn run_sandbox(self, attempt: u32) -> Outcome {
        let permit = self.permit().await;
        let result = self.try_sandbox(attempt).await;
        if let Err(error) = &result {
            let message = format!("Failed to create pod sandbox: {error}");
            self.context.recorder.pod(
                &self.pod,
                None,
                Level::Warning,
                "FailedCreatePodSandBox",
                message,
            );
        }
        Outcome::SandboxRun { result, permit }
    }

    async fn try_sandbox(&self, attempt: u32) -> Result<Sandbox, String> {
        let (context, uid) = (&self.context, self.uid());
        let limits = resources::pod_limits(&self.pod);
        context
            .cgroups
            .create(&context.config.cgroup_of(&uid), &limits)
            .map_err(|e| format!("make cgroup of pod {uid}: {e}"))?;
        let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let config = sandbox_config(&self.pod, attempt, &context.config, &resolv);
        fs::create_dir_all(&config.log_directory)
            .map_err(|e| format!("make {}: {e}", config.log_directory))?;
        let text = |error: cri::CriError| error.message;
        let id = context.runtime.run_sandbox(&config).await.map_err(text)?;
        context.own(&id, &uid);
        let sandbox = context.runtime.sandbox_status(&id).await.map_err(text)?;
        self.write_hosts(&sandbox).map_err(|e| format!("write hosts file: {e}"))?;
        self.set_host_ports(&sandbox).await;
        Ok(sandbox)
    }

    fn write_hosts(&self, sandbox: &Sandbox) -> std::io::Result<()> {
        let dir = self.context.config.pod_dir(&self.uid());
        fs::create_dir_all(&dir)?;
        let node_hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = hosts_file(&self.pod, &sandbox.ips, &self.context.config, &node_hosts);
        fs::write(dir.join("etc-hosts"), text)
    }

    /// Leads the pod's host ports to it; also after a restart of ours, when nobody else knows them.
    pub async fn set_host_ports(&self, sandbox: &Sandbox) {
        let ports = host_ports(&self.pod);
        let ip = sandbox.ips.iter().find_map(|ip| ip.parse().ok());
        let Some(ip) = ip.filter(|_| !ports.is_empty()) else { return };
        if let Err(error) = self.context.host_ports.set(&self.uid(), ip, ports).await {
            let message = format!("Failed to set host ports: {error}");
            self.context.recorder.pod(&self.pod, None, Level::Warning, "FailedHostPort", message);
        }
    }

    async fn stop_sandbox(self, id: String) -> Outcome {
        if let Err(error) = self.context.host_ports.clear(&self.uid()).await {
            tracing::warn!(%error, uid = self.uid(), "clear host ports");
        }
        let result = self.context.runtime.stop_sandbox(&id).await.map_err(|e| e.to_string());
        if let Err(error) = &result {
            let message = format!("Failed to stop pod sandbox: {error}");
            self.context.recorder.pod(&self.pod, None, Level::Warning, "FailedKillPod", message);
        }
        pause_if_failed(&result).await;
        Outcome::SandboxStopped { id, result }
    }

    // --- containers ---

    async fn start(self, container: String, attempt: u32, image: String) -> Outcome {
        let permit = self.permit().await;
        let result = match find(&self.pod, &container) {
            Some((spec, _)) => self.try_start(spec, attempt, &image).await,
            None => return Outcome::Nothing,
        };
        Outcome::Started { container, result, permit }
    }

    async fn try_start(
        &self,
        spec: &Container,
        attempt: u32,
        image: &str,
    ) -> Result<cri::Container, StartFailure> {
        let context = &self.context;
        let event = |level, reason, message: &str| {
            context.recorder.pod(&self.pod, Some(&spec.name), level, reason, message);
        };
        let fail = |reason: &'static str, message: String| {
            event(Level::Warning, "Failed", &format!("Error: {message}"));
            StartFailure { reason, message, container: None }
        };
        let Some(sandbox) = &self.sandbox else {
            return Err(fail("CreateContainerError", "the pod has no sandbox".into()));
        };
        let config = self.config(spec, attempt, image).await;
        let config = config.map_err(|message| fail("CreateContainerConfigError", message))?;
        let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let sandbox_config = sandbox_config(&self.pod, sandbox.attempt, &context.config, &resolv);
        let created = context.runtime.create_container(&sandbox.id, &config, &sandbox_config).await;
        let id = created.map_err(|error| fail("CreateContainerError", error.message))?;
        context.own(&id, &self.uid());
        event(Level::Normal, "Created", &format!("Container created: {}", spec.name));
        if let Err(error) = context.runtime.start_container(&id).await {
            event(Level::Warning, "Failed", &format!("Error: {}", error.message));
            let container = self.look(&id, spec).await.map(|mut container| {
                container.sandbox.clone_from(&sandbox.id);
                if container.message.is_empty() {
                    container.message.clone_from(&error.message);
                }
                container
            });
            return Err(StartFailure {
                reason: "RunContainerError",
                message: error.message,
                container,
            });
        }
        event(Level::Normal, "Started", &format!("Container started: {}", spec.name));
        let cgroup = context.config.cgroup_of(&self.uid());
        if let Err(error) = context.cgroups.share(&cgroup, resources::pod_limits(&self.pod).shares)
        {
            tracing::warn!(%error, cgroup, "set CPU shares");
        }
        self.post_start(spec, &id).await;
        let mut container = self.look(&id, spec).await.unwrap_or_else(|| cri::Container {
            id: id.clone(),
            name: spec.name.clone(),
            attempt,
            state: ContainerState::Running,
            ..cri::Container::default()
        });
        container.sandbox.clone_from(&sandbox.id);
        Ok(container)
    }

    async fn config(
        &self,
        spec: &Container,
        attempt: u32,
        image: &str,
    ) -> Result<cri::config::ContainerConfig, String> {
        let context = &self.context;
        let place = self.place();
        let services = context.objects.services().await;
        let env = environment(&self.pod, spec, &place, &services, &context.objects).await?;
        let dir = context.config.pod_dir(&self.uid());
        let mounts = mounts(&self.pod, spec, attempt, &dir, &env)?;
        let seccomp_root = context.config.data_dir.join("seccomp");
        let mut config = container_config(Parts {
            pod: &self.pod,
            container: spec,
            attempt,
            image,
            env,
            mounts,
            node_memory: place.node_memory,
            seccomp_root: &seccomp_root,
        });
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        if let Some(security) = security
            && needs_image_user(&self.pod, spec)
        {
            let found = context.images.look(image).await.map_err(|error| error.message)?;
            let found = found.unwrap_or_default();
            verify_non_root(&self.pod, spec, &found)?;
            with_image_user(security, &found);
        }
        Ok(config)
    }

    /// A hook that fails ends the container; its restart follows the pod's policy.
    async fn post_start(&self, spec: &Container, id: &str) {
        let Some(hook) = lifecycle::post_start(spec) else { return };
        let place = self.place();
        let ip = place.pod_ips.first().cloned().unwrap_or_default();
        let prober = &self.context.prober;
        let ran = lifecycle::run(prober, hook, spec, id, &ip, lifecycle::LONGEST).await;
        if let Err(error) = ran {
            let name = Some(spec.name.as_str());
            let message = format!("PostStartHook failed: {error}");
            self.context.recorder.pod(
                &self.pod,
                name,
                Level::Warning,
                "FailedPostStartHook",
                message,
            );
            let message = format!("FailedPostStartHook: Container {}", spec.name);
            self.context.recorder.pod(&self.pod, name, Level::Normal, "Killing", message);
            if let Err(error) = self.context.runtime.stop_container(id, 2).await {
                tracing::warn!(%error, "stop container after a failed hook");
            }
        }
    }

    async fn stop(
        self,
        name: &str,
        id: &str,
        deadline: Timestamp,
        hook: bool,
        message: &str,
    ) -> Outcome {
        let spec = find(&self.pod, name).map(|(spec, _)| spec.clone());
        if hook {
            self.context.recorder.pod(&self.pod, Some(name), Level::Normal, "Killing", message);
        }
        if let Some(spec) = spec.as_ref().filter(|_| hook)
            && let Some(handler) = lifecycle::pre_stop(spec)
        {
            let place = self.place();
            let ip = place.pod_ips.first().cloned().unwrap_or_default();
            let limit = left(deadline);
            let ran = lifecycle::run(&self.context.prober, handler, spec, id, &ip, limit).await;
            if let Err(error) = ran {
                let message = format!("PreStopHook failed: {error}");
                self.context.recorder.pod(
                    &self.pod,
                    Some(name),
                    Level::Warning,
                    "FailedPreStopHook",
                    message,
                );
            }
        }
        // A hook that used up the grace period leaves a moment for TERM all the same.
        let least = u64::from(hook && deadline > Timestamp::now());
        let grace = i64::try_from(left(deadline).as_secs_f64().ceil() as u64).unwrap_or(0);
        let grace = grace.max(i64::try_from(least).unwrap_or(0));
        if let Err(error) = self.context.runtime.stop_container(id, grace).await {
            tracing::warn!(%error, container = name, "stop container");
            pause_if_failed(&Err(())).await;
        }
        let container = match &spec {
            Some(spec) => self.look(id, spec).await,
            None => self.context.runtime.container_status(id).await.ok(),
        };
        Outcome::Stopped(container.or_else(|| Some(lost(id, name))))
    }

    async fn remove(self, id: String, container: &str, attempt: u32) -> Outcome {
        if let Err(error) = self.context.runtime.remove_container(&id).await {
            tracing::warn!(%error, "remove container");
        }
        let log = self.log_of(container, attempt);
        let message =
            start::message_file(&self.context.config.pod_dir(&self.uid()), container, attempt);
        for file in crate::gc::rotated_files(&log).into_iter().chain([log, message]) {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %file.display(), "remove file");
                }
                _ => {}
            }
        }
        Outcome::Removed(id)
    }

    fn log_of(&self, container: &str, attempt: u32) -> std::path::PathBuf {
        let (namespace, name) = (self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        let logs = self.context.config.log_dir(&namespace, &name, &self.uid());
        logs.join(log_path(container, attempt))
    }

    /// A container's status with its last word, if it has ended.
    pub async fn look(&self, id: &str, spec: &Container) -> Option<cri::Container> {
        let mut container = match self.context.runtime.container_status(id).await {
            Ok(container) => container,
            Err(error) if error.is_not_found() => return Some(lost(id, &spec.name)),
            Err(error) => {
                tracing::warn!(%error, "container status");
                return None;
            }
        };
        if container.state == ContainerState::Exited && container.message.is_empty() {
            let log = self.log_of(&spec.name, container.attempt);
            let dir = self.context.config.pod_dir(&self.uid());
            container.message =
                start::last_word(spec, &dir, container.attempt, container.exit_code, &log);
        }
        Some(container)
    }

    // --- API and cleaning ---

    async fn report(self, status: Box<PodStatus>) -> Outcome {
        let namespace = self.pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let before = self.reported.as_ref().or(self.pod.status.as_ref());
        let patch = status_patch(&self.uid(), before, &status);
        let sent = api
            .patch_status(&self.pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        let result = match sent {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Err(ReportError::Gone),
            Err(error) => Err(ReportError::Failed(error.to_string())),
        };
        Outcome::Reported { status, result }
    }

    async fn finalize(&self) -> Result<(), String> {
        let namespace = self.pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&self.pod.name_any(), &params).await {
            Ok(_) => Ok(()),
            // Gone already, or its name belongs to another pod by now.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn clean(&self) -> Result<(), String> {
        let (namespace, name) = (self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        clean(self.context.clone(), self.uid(), Some((namespace, name))).await
    }
}

/// Removes everything on the node that belongs to a pod without processes.
pub async fn clean(
    context: Arc<Context>,
    uid: String,
    name: Option<(String, String)>,
) -> Result<(), String> {
    context.objects.track(&uid, &Default::default());
    context.disown(&uid);
    let remove = move || -> Result<(), String> {
        let config = &context.config;
        volumes::remove(&config.pod_dir(&uid)).map_err(|e| format!("remove volumes: {e}"))?;
        if let Some((namespace, name)) = name {
            let logs = config.log_dir(&namespace, &name, &uid);
            match fs::remove_dir_all(&logs) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("remove {}: {e}", logs.display()));
                }
                _ => {}
            }
        }
        let cgroup = config.cgroup_of(&uid);
        context.cgroups.remove(&cgroup).map_err(|e| format!("remove cgroup {cgroup}: {e}"))
    };
    tokio::task::spawn_blocking(remove).await.map_err(|e| e.to_string())?
}

/// What failed is planned again as soon as its outcome is known: not at once.
async fn pause_if_failed<E>(result: &Result<(), E>) {
    if result.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn left(deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default()
}

/// A container that the runtime no longer knows has ended, we can't say how.
fn lost(id: &str, name: &str) -> cri::Container {
    cri::Container {
        id: id.to_owned(),
        name: name.to_owned(),
        state: ContainerState::Exited,
        exit_code: 137,
        reason: "ContainerStatusUnknown".to_owned(),
        message: "The container could not be located when the pod was terminated".to_owned(),
        ..cri::Container::default()
    }
}

fn needs_image_user(pod: &Pod, container: &Container) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let non_root = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    let group = own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    non_root == Some(true) || group.is_some()
}

/// The strategic merge patch from what the API has to `status`. Conditions merge by type, so those
/// of others stay; addresses would merge too and are replaced.
fn status_patch(uid: &str, before: Option<&PodStatus>, status: &PodStatus) -> serde_json::Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let old = before.and_then(|b| serde_json::to_value(b).ok()).unwrap_or_default();
    if let (Some(new), Some(old)) = (value.as_object_mut(), old.as_object()) {
        let changed = old.get("podIPs").is_some() && old.get("podIPs") != new.get("podIPs");
        if let Some(list) =
            new.get_mut("podIPs").and_then(|ips| ips.as_array_mut()).filter(|_| changed)
        {
            list.push(json!({"$patch": "replace"}));
        }
        for gone in ["reason", "message", "podIP", "podIPs"] {
            if old.contains_key(gone) && !new.contains_key(gone) {
                new.insert(gone.to_owned(), serde_json::Value::Null);
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": value})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodIP;

    #[test]
    fn what_is_gone_is_nulled_and_addresses_are_replaced() {
        let ip = |ip: &str| Some(vec![PodIP { ip: ip.into() }]);
        let before =
            PodStatus { reason: Some("X".into()), pod_ips: ip("1.1.1.1"), ..PodStatus::default() };
        let after = PodStatus { pod_ips: ip("2.2.2.2"), ..PodStatus::default() };
        let patch = status_patch("u", Some(&before), &after);
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["status"]["reason"], serde_json::Value::Null);
        assert_eq!(patch["status"]["podIPs"], json!([{"ip": "2.2.2.2"}, {"$patch": "replace"}]));
        let same = status_patch("u", Some(&after), &after);
        assert_eq!(same["status"]["podIPs"], json!([{"ip": "2.2.2.2"}]));
    }
}
