//! The container runtime interface: containerd over gRPC, and a recording fake for tests.
//!
//! [`Runtime`] is all that the kubelet knows of a runtime. What goes in (sandbox and container
//! configurations) is CRI's own vocabulary, [`config`]; what comes out is read into the small
//! types of [`types`], so that no generated enum or status code travels further than this crate.

mod containerd;
mod error;
mod fake;
pub mod types;

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::time::Duration;

pub use containerd::Containerd;
pub use error::{Code, CriError};
pub use fake::{Call, FakeRuntime, Script};
/// CRI's configuration messages, as the runtime takes them.
pub use rkube_proto::cri as config;
pub use types::*;

use config::{AuthConfig, ContainerConfig, PodSandboxConfig};

/// The result of a call to the runtime.
pub type Result<T> = std::result::Result<T, CriError>;

/// What the kubelet needs of a container runtime.
///
/// Every call is safe to repeat; stops and removes of what is gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version of the runtime; also tells whether it answers at all.
    async fn version(&self) -> Result<Version>;
    /// Whether the runtime and its network are ready.
    async fn status(&self) -> Result<RuntimeStatus>;

    /// Creates and starts a pod's sandbox with its network; gives the sandbox's id.
    async fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String>;
    /// Kills what runs in the sandbox and gives its network back.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a sandbox and all its containers.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// One sandbox with its addresses.
    async fn sandbox_status(&self, id: &str) -> Result<Sandbox>;
    /// All sandboxes, without addresses.
    async fn list_sandboxes(&self) -> Result<Vec<Sandbox>>;

    /// Creates a container in a sandbox; gives the container's id.
    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends TERM, then KILL after `grace_seconds`; returns when the container has ended.
    async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<()>;
    /// Removes a container and its writable layer; its log files stay.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// One container, with all that is known of its end.
    async fn container_status(&self, id: &str) -> Result<Container>;
    /// All containers, without exit codes and times of start and end.
    async fn list_containers(&self) -> Result<Vec<Container>>;
    /// Has the runtime open a container's log file anew, after a rotation.
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// [`Code::DeadlineExceeded`] after `timeout`.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput>;
    /// A streaming URL, for one use, of a command run in a container.
    async fn exec_url(&self, options: &ExecOptions) -> Result<String>;
    /// A streaming URL, for one use, of a container's own process.
    async fn attach_url(&self, options: &AttachOptions) -> Result<String>;
    /// A streaming URL, for one use, of a sandbox's ports.
    async fn port_forward_url(&self, sandbox: &str, ports: &[i32]) -> Result<String>;

    /// The image behind a name, if it is on the node.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;
    /// Pulls an image; gives the reference that containers are created from.
    async fn pull_image(&self, image: &str, auth: Option<AuthConfig>) -> Result<String>;
    /// All images on the node.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// Removes an image.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// Bytes that images take, and where.
    async fn image_fs(&self) -> Result<Option<FsUsage>>;

    /// CPU and memory of all running containers.
    async fn stats(&self) -> Result<Vec<Stats>>;

    /// Ends of processes as they happen; the stream ends when the runtime goes away.
    async fn events(&self) -> Result<BoxStream<'static, Event>>;
}
