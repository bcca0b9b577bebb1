//! containerd over its unix socket: CRI v1, and its own event service for the ends of processes.

use crate::config::{
    self as wire, AuthConfig, ContainerConfig, PodSandboxConfig,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use crate::{
    AttachOptions, Code, Container, CriError, Event, ExecOptions, ExecOutput, FsUsage, Image,
    Readiness, Result, Runtime, RuntimeStatus, Sandbox, Stats, Version,
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use hyper_util::rt::TokioIo;
use prost::Message;
use rkube_proto::containerd::{
    Envelope, SubscribeRequest, events_client::EventsClient, task::TaskExit, task::TaskOom,
};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The namespace in which containerd's CRI plugin keeps its containers.
const NAMESPACE: &str = "k8s.io";
/// A list of all containers of a full node stays far below this.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Calls that only look something up; a healthy runtime answers in a millisecond.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Creating, starting and removing; longer means that the runtime hangs.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);
/// Added to a grace period or a command's own time before the call itself is given up.
const MARGIN: Duration = Duration::from_secs(10);
/// A pull of any size ends within this or is tried again.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A client of one containerd.
#[derive(Clone)]
pub struct Containerd {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    events: EventsClient<Channel>,
}

impl Containerd {
    /// A client of the containerd behind `endpoint`, a path or a `unix://` URL.
    ///
    /// Connects on first use and again whenever the connection is lost, so containerd may start
    /// later. Has to be called within a tokio runtime.
    pub fn new(endpoint: &str) -> Self {
        let channel = channel(PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint)));
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            image: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            events: EventsClient::new(channel),
        }
    }
}

fn channel(path: PathBuf) -> Channel {
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

/// Makes one call, turning a failure into an error that names the call and its subject. The client
/// side deadline is kept here too: a runtime that hangs does not read the header.
macro_rules! call {
    ($client:expr, $method:ident, $name:literal, $subject:expr, $timeout:expr, $message:expr) => {{
        let mut client = $client.clone();
        let limit = $timeout;
        match tokio::time::timeout(limit + MARGIN, client.$method(request($message, limit))).await {
            Ok(answer) => answer
                .map(tonic::Response::into_inner)
                .map_err(|status| CriError::from_status($name, $subject, &status)),
            Err(_) => Err(CriError::new(
                $name,
                $subject,
                Code::DeadlineExceeded,
                format!("no answer within {} s", (limit + MARGIN).as_secs()),
            )),
        }
    }};
}

/// Stops and removes of what is gone already have reached their aim.
fn gone_is_done<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn missing(operation: &'static str, subject: &str) -> CriError {
    CriError::new(operation, subject, Code::Other, "the runtime's answer is empty")
}

fn spec(image: &str) -> wire::ImageSpec {
    wire::ImageSpec { image: image.to_owned(), ..wire::ImageSpec::default() }
}

fn readiness(conditions: &[wire::RuntimeCondition], kind: &str) -> Readiness {
    match conditions.iter().find(|condition| condition.r#type == kind) {
        None => Readiness::NotReady(format!("{kind} is not reported")),
        Some(condition) if condition.status => Readiness::Ready,
        Some(condition) => Readiness::NotReady(format!(
            "container runtime network not ready: {kind}=false reason:{} message:{}",
            condition.reason, condition.message
        )),
    }
}

/// Reads one of containerd's events; those of commands run in a container are left out.
fn event(envelope: Envelope) -> Option<Event> {
    let body = envelope.event?;
    match envelope.topic.as_str() {
        "/tasks/exit" => {
            let exit = TaskExit::decode(body.value.as_slice()).ok()?;
            (exit.id == exit.container_id).then_some(Event::Exited { id: exit.container_id })
        }
        "/tasks/oom" => {
            let oom = TaskOom::decode(body.value.as_slice()).ok()?;
            Some(Event::OutOfMemory { id: oom.container_id })
        }
        _ => None,
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<Version> {
        let message = wire::VersionRequest::default();
        let answer = call!(self.runtime, version, "Version", "", QUERY_TIMEOUT, message)?;
        let version = answer.runtime_version.trim_start_matches('v').to_owned();
        Ok(Version { name: answer.runtime_name, version })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let message = wire::StatusRequest::default();
        let answer = call!(self.runtime, status, "Status", "", QUERY_TIMEOUT, message)?;
        let conditions = answer.status.unwrap_or_default().conditions;
        Ok(RuntimeStatus {
            runtime: readiness(&conditions, "RuntimeReady"),
            network: readiness(&conditions, "NetworkReady"),
        })
    }

    async fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let name = config.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        let message = wire::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        call!(self.runtime, run_pod_sandbox, "RunPodSandbox", name, CHANGE_TIMEOUT, message)
            .map(|answer| answer.pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let message = wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(call!(
            self.runtime,
            stop_pod_sandbox,
            "StopPodSandbox",
            id,
            CHANGE_TIMEOUT,
            message
        ))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let message = wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(call!(
            self.runtime,
            remove_pod_sandbox,
            "RemovePodSandbox",
            id,
            CHANGE_TIMEOUT,
            message
        ))
    }

    async fn sandbox_status(&self, id: &str) -> Result<Sandbox> {
        let message =
            wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        call!(self.runtime, pod_sandbox_status, "PodSandboxStatus", id, QUERY_TIMEOUT, message)?
            .status
            .map(Sandbox::from)
            .ok_or_else(|| missing("PodSandboxStatus", id))
    }

    async fn list_sandboxes(&self) -> Result<Vec<Sandbox>> {
        let message = wire::ListPodSandboxRequest::default();
        let answer =
            call!(self.runtime, list_pod_sandbox, "ListPodSandbox", "", QUERY_TIMEOUT, message)?;
        Ok(answer.items.into_iter().map(Sandbox::from).collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> Result<String> {
        let name = config.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
        let message = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox_config.clone()),
        };
        call!(self.runtime, create_container, "CreateContainer", name, CHANGE_TIMEOUT, message)
            .map(|answer| answer.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let message = wire::StartContainerRequest { container_id: id.to_owned() };
        call!(self.runtime, start_container, "StartContainer", id, CHANGE_TIMEOUT, message)?;
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<()> {
        let timeout = grace_seconds.max(0);
        let message = wire::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = seconds(timeout) + CHANGE_TIMEOUT;
        gone_is_done(call!(self.runtime, stop_container, "StopContainer", id, limit, message))
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let message = wire::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_done(call!(
            self.runtime,
            remove_container,
            "RemoveContainer",
            id,
            CHANGE_TIMEOUT,
            message
        ))
    }

    async fn container_status(&self, id: &str) -> Result<Container> {
        let message = wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        call!(self.runtime, container_status, "ContainerStatus", id, QUERY_TIMEOUT, message)?
            .status
            .map(Container::from)
            .ok_or_else(|| missing("ContainerStatus", id))
    }

    async fn list_containers(&self) -> Result<Vec<Container>> {
        let message = wire::ListContainersRequest::default();
        let answer =
            call!(self.runtime, list_containers, "ListContainers", "", QUERY_TIMEOUT, message)?;
        Ok(answer.containers.into_iter().map(Container::from).collect())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let message = wire::ReopenContainerLogRequest { container_id: id.to_owned() };
        call!(
            self.runtime,
            reopen_container_log,
            "ReopenContainerLog",
            id,
            QUERY_TIMEOUT,
            message
        )?;
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let message = wire::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let limit = timeout + MARGIN;
        let answer = call!(self.runtime, exec_sync, "ExecSync", id, limit, message)?;
        Ok(ExecOutput { exit_code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
    }

    async fn exec_url(&self, options: &ExecOptions) -> Result<String> {
        let message = wire::ExecRequest {
            container_id: options.container.clone(),
            cmd: options.command.clone(),
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        call!(self.runtime, exec, "Exec", &options.container, QUERY_TIMEOUT, message)
            .map(|answer| answer.url)
    }

    async fn attach_url(&self, options: &AttachOptions) -> Result<String> {
        let message = wire::AttachRequest {
            container_id: options.container.clone(),
            stdin: options.stdin,
            tty: options.tty,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        call!(self.runtime, attach, "Attach", &options.container, QUERY_TIMEOUT, message)
            .map(|answer| answer.url)
    }

    async fn port_forward_url(&self, sandbox: &str, ports: &[i32]) -> Result<String> {
        let message =
            wire::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: ports.to_vec() };
        call!(self.runtime, port_forward, "PortForward", sandbox, QUERY_TIMEOUT, message)
            .map(|answer| answer.url)
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let message = wire::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        let answer = call!(self.image, image_status, "ImageStatus", image, QUERY_TIMEOUT, message)?;
        Ok(answer.image.map(Image::from))
    }

    async fn pull_image(&self, image: &str, auth: Option<AuthConfig>) -> Result<String> {
        let message =
            wire::PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
        call!(self.image, pull_image, "PullImage", image, PULL_TIMEOUT, message)
            .map(|answer| answer.image_ref)
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let message = wire::ListImagesRequest::default();
        let answer = call!(self.image, list_images, "ListImages", "", QUERY_TIMEOUT, message)?;
        Ok(answer.images.into_iter().map(Image::from).collect())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let message = wire::RemoveImageRequest { image: Some(spec(image)) };
        gone_is_done(call!(self.image, remove_image, "RemoveImage", image, CHANGE_TIMEOUT, message))
    }

    async fn image_fs(&self) -> Result<Option<FsUsage>> {
        let message = wire::ImageFsInfoRequest::default();
        let answer = call!(self.image, image_fs_info, "ImageFsInfo", "", QUERY_TIMEOUT, message)?;
        let value = |v: Option<wire::UInt64Value>| v.map(|v| v.value).unwrap_or_default();
        Ok(answer.image_filesystems.into_iter().next().map(|usage| FsUsage {
            mountpoint: usage.fs_id.unwrap_or_default().mountpoint,
            used_bytes: value(usage.used_bytes),
            inodes_used: value(usage.inodes_used),
        }))
    }

    async fn stats(&self) -> Result<Vec<Stats>> {
        let message = wire::ListContainerStatsRequest::default();
        let answer = call!(
            self.runtime,
            list_container_stats,
            "ListContainerStats",
            "",
            QUERY_TIMEOUT,
            message
        )?;
        Ok(answer.stats.into_iter().map(Stats::from).collect())
    }

    async fn events(&self) -> Result<BoxStream<'static, Event>> {
        let filters = ["exit", "oom"]
            .map(|what| format!("topic==\"/tasks/{what}\",namespace=={NAMESPACE}"))
            .to_vec();
        // The stream is open for as long as the connection is: no deadline.
        let stream = self
            .events
            .clone()
            .subscribe(SubscribeRequest { filters })
            .await
            .map_err(|status| CriError::from_status("Subscribe", "", &status))?
            .into_inner();
        let ended = stream.take_while(|item| futures::future::ready(item.is_ok()));
        Ok(ended.filter_map(|item| async move { item.ok().and_then(event) }).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, body: Vec<u8>) -> Envelope {
        let event = prost_types::Any { type_url: String::new(), value: body };
        Envelope { topic: topic.into(), event: Some(event), ..Envelope::default() }
    }

    #[test]
    fn only_first_processes_count_as_exits() {
        let exit =
            |id: &str| TaskExit { container_id: "c1".into(), id: id.into(), ..TaskExit::default() };
        let own = envelope("/tasks/exit", exit("c1").encode_to_vec());
        let exec = envelope("/tasks/exit", exit("probe-1").encode_to_vec());
        let oom = envelope("/tasks/oom", TaskOom { container_id: "c2".into() }.encode_to_vec());
        assert_eq!(event(own), Some(Event::Exited { id: "c1".into() }));
        assert_eq!(event(exec), None);
        assert_eq!(event(oom), Some(Event::OutOfMemory { id: "c2".into() }));
        assert_eq!(event(envelope("/tasks/create", Vec::new())), None);
    }

    #[tokio::test]
    async fn nobody_on_the_socket_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Containerd::new(dir.path().join("none.sock").to_str().unwrap());
        assert_eq!(runtime.version().await.unwrap_err().code, Code::Unavailable);
    }
}
