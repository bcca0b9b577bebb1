//! What a runtime tells, read into types of our own.

use crate::config as wire;
use std::collections::BTreeMap;

/// Labels and annotations.
pub type Map = BTreeMap<String, String>;

/// Name and version of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// Such as `containerd`.
    pub name: String,
    /// Without a leading `v`.
    pub version: String,
}

/// Whether pods can be run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeStatus {
    /// `Err` has the runtime's reason.
    pub runtime: Readiness,
    /// `Err` has the reason, such as a missing CNI configuration.
    pub network: Readiness,
}

/// Ready, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It may be used.
    Ready,
    /// It may not, for this reason.
    NotReady(String),
}

impl Default for Readiness {
    fn default() -> Self {
        Self::NotReady("not reported".to_owned())
    }
}

/// A pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Uid of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Counts the sandboxes of one pod.
    pub attempt: u32,
    /// Whether its processes run.
    pub ready: bool,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Addresses; empty for pods on the node's own network and in lists.
    pub ips: Vec<String>,
    /// As given at creation.
    pub labels: Map,
    /// As given at creation.
    pub annotations: Map,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContainerState {
    /// Created, not started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
    /// The runtime has lost track of it.
    Unknown,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Counts the containers of one name in one pod.
    pub attempt: u32,
    /// Id of its sandbox; empty in answers about one container.
    pub sandbox: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0 before the start.
    pub started_at: i64,
    /// Nanoseconds since 1970; 0 before the end.
    pub finished_at: i64,
    /// Of an ended container.
    pub exit_code: i32,
    /// The runtime's reason, such as `OOMKilled`.
    pub reason: String,
    /// The runtime's words.
    pub message: String,
    /// The image as the spec named it.
    pub image: String,
    /// The image by digest.
    pub image_ref: String,
    /// As given at creation.
    pub labels: Map,
    /// As given at creation.
    pub annotations: Map,
    /// Path of the log on the node; empty in lists.
    pub log_path: String,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// The runtime's id of it.
    pub id: String,
    /// Names with tags.
    pub tags: Vec<String>,
    /// Names with digests.
    pub digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// The numeric user that the image asks for.
    pub uid: Option<i64>,
    /// The named user that the image asks for.
    pub username: String,
    /// Never to be collected.
    pub pinned: bool,
}

/// Bytes taken on one filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsUsage {
    /// A path on that filesystem.
    pub mountpoint: String,
    /// Bytes used by images.
    pub used_bytes: u64,
    /// Inodes used by images.
    pub inodes_used: u64,
}

/// What one container uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// The container's id.
    pub container: String,
    /// The container's labels, which name its pod.
    pub labels: Map,
    /// Nanoseconds since 1970 of the reading.
    pub timestamp: i64,
    /// CPU time since the start, in core-nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory in use less what can be dropped, in bytes.
    pub working_set_bytes: u64,
    /// Bytes of the writable layer.
    pub writable_bytes: u64,
}

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Its exit code.
    pub exit_code: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote on its error stream.
    pub stderr: Vec<u8>,
}

/// A command to stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOptions {
    /// The container's id.
    pub container: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// On a terminal.
    pub tty: bool,
    /// Stream the input.
    pub stdin: bool,
    /// Stream the output.
    pub stdout: bool,
    /// Stream the error output; not with a terminal.
    pub stderr: bool,
}

/// Streams of a container's own process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttachOptions {
    /// The container's id.
    pub container: String,
    /// The container has a terminal.
    pub tty: bool,
    /// Stream the input.
    pub stdin: bool,
    /// Stream the output.
    pub stdout: bool,
    /// Stream the error output; not with a terminal.
    pub stderr: bool,
}

/// What happened to a process of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first process of a container or sandbox ended.
    Exited {
        /// Id of the container or sandbox.
        id: String,
    },
    /// The kernel killed a process of the container for memory.
    OutOfMemory {
        /// Id of the container.
        id: String,
    },
}

impl From<wire::PodSandbox> for Sandbox {
    fn from(from: wire::PodSandbox) -> Self {
        let ready = from.state() == wire::PodSandboxState::SandboxReady;
        let meta = from.metadata.unwrap_or_default();
        Self {
            id: from.id,
            uid: meta.uid,
            namespace: meta.namespace,
            name: meta.name,
            attempt: meta.attempt,
            ready,
            created_at: from.created_at,
            ips: Vec::new(),
            labels: from.labels,
            annotations: from.annotations,
        }
    }
}

impl From<wire::PodSandboxStatus> for Sandbox {
    fn from(from: wire::PodSandboxStatus) -> Self {
        let ready = from.state() == wire::PodSandboxState::SandboxReady;
        let meta = from.metadata.unwrap_or_default();
        Self {
            id: from.id,
            uid: meta.uid,
            namespace: meta.namespace,
            name: meta.name,
            attempt: meta.attempt,
            ready,
            created_at: from.created_at,
            ips: from.network.map(addresses).unwrap_or_default(),
            labels: from.labels,
            annotations: from.annotations,
        }
    }
}

fn addresses(network: wire::PodSandboxNetworkStatus) -> Vec<String> {
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect()
}

impl From<wire::ContainerState> for ContainerState {
    fn from(from: wire::ContainerState) -> Self {
        match from {
            wire::ContainerState::ContainerCreated => Self::Created,
            wire::ContainerState::ContainerRunning => Self::Running,
            wire::ContainerState::ContainerExited => Self::Exited,
            wire::ContainerState::ContainerUnknown => Self::Unknown,
        }
    }
}

impl From<wire::Container> for Container {
    fn from(from: wire::Container) -> Self {
        let state = from.state().into();
        let meta = from.metadata.unwrap_or_default();
        Self {
            id: from.id,
            name: meta.name,
            attempt: meta.attempt,
            sandbox: from.pod_sandbox_id,
            state,
            created_at: from.created_at,
            image: from.image.map(|image| image.image).unwrap_or_default(),
            image_ref: from.image_ref,
            labels: from.labels,
            annotations: from.annotations,
            ..Self::default()
        }
    }
}

impl From<wire::ContainerStatus> for Container {
    fn from(from: wire::ContainerStatus) -> Self {
        let state = from.state().into();
        let meta = from.metadata.unwrap_or_default();
        Self {
            id: from.id,
            name: meta.name,
            attempt: meta.attempt,
            sandbox: String::new(),
            state,
            created_at: from.created_at,
            started_at: from.started_at,
            finished_at: from.finished_at,
            exit_code: from.exit_code,
            reason: from.reason,
            message: from.message,
            image: from.image.map(|image| image.image).unwrap_or_default(),
            image_ref: from.image_ref,
            labels: from.labels,
            annotations: from.annotations,
            log_path: from.log_path,
        }
    }
}

impl From<wire::Image> for Image {
    fn from(from: wire::Image) -> Self {
        Self {
            id: from.id,
            tags: from.repo_tags,
            digests: from.repo_digests,
            size: from.size,
            uid: from.uid.map(|uid| uid.value),
            username: from.username,
            pinned: from.pinned,
        }
    }
}

impl From<wire::ContainerStats> for Stats {
    fn from(from: wire::ContainerStats) -> Self {
        let attributes = from.attributes.unwrap_or_default();
        let cpu = from.cpu.unwrap_or_default();
        let value = |v: Option<wire::UInt64Value>| v.map(|v| v.value).unwrap_or_default();
        Self {
            container: attributes.id,
            labels: attributes.labels,
            timestamp: cpu.timestamp,
            cpu_nanoseconds: value(cpu.usage_core_nano_seconds),
            working_set_bytes: value(from.memory.unwrap_or_default().working_set_bytes),
            writable_bytes: value(from.writable_layer.unwrap_or_default().used_bytes),
        }
    }
}
