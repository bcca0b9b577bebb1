//! Pods by plain CRI calls: what the container runtime alone takes.

use futures::{StreamExt, stream};
use rkube_cri::config::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use rkube_cri::{Containerd, Runtime};
use std::path::Path;
use std::time::Instant;

pub const IMAGE: &str = "registry.rkube.local/web:1";

/// A pod that runs.
pub struct PlainPod {
    sandbox: String,
    container: String,
}

/// A container runtime without a kubelet.
pub struct Plain {
    runtime: Containerd,
    image: String,
    /// Below which its pods run.
    cgroup: String,
}

impl Plain {
    /// Of the containerd behind this socket; pulls the image. Its pods run below the cgroup.
    pub async fn new(socket: &Path, cgroup: String) -> Self {
        let runtime = Containerd::new(&socket.display().to_string());
        let image = runtime.pull_image(IMAGE, None).await.expect("the image");
        Plain { runtime, image, cgroup }
    }

    /// Starts a pod of one container.
    pub async fn up(&self, name: &str) -> PlainPod {
        let sandbox_config = sandbox(name, &self.cgroup);
        let sandbox = self.runtime.run_sandbox(&sandbox_config).await.expect("a sandbox");
        let config = container(&self.image);
        let created = self.runtime.create_container(&sandbox, &config, &sandbox_config).await;
        let container = created.expect("a container");
        self.runtime.start_container(&container).await.expect("its start");
        PlainPod { sandbox, container }
    }

    /// Stops and removes it.
    pub async fn down(&self, pod: PlainPod) {
        let runtime = &self.runtime;
        runtime.stop_container(&pod.container, 30).await.expect("stop container");
        runtime.stop_sandbox(&pod.sandbox).await.expect("stop sandbox");
        runtime.remove_container(&pod.container).await.expect("remove container");
        runtime.remove_sandbox(&pod.sandbox).await.expect("remove sandbox");
    }

    /// Seconds until so many pods run, so many started at once; they are removed again.
    pub async fn many(&self, count: usize, at_once: usize) -> f64 {
        let began = Instant::now();
        let names: Vec<String> = (0..count).map(|n| format!("plain-{at_once}-{n}")).collect();
        let ups = stream::iter(&names).map(|name| self.up(name)).buffer_unordered(at_once);
        let pods: Vec<PlainPod> = ups.collect().await;
        let took = began.elapsed().as_secs_f64();
        stream::iter(pods).for_each_concurrent(4, |pod| self.down(pod)).await;
        took
    }
}

fn namespaces() -> NamespaceOption {
    // The default would put all containers into the sandbox's process namespace.
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

fn sandbox(name: &str, cgroup: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "bench".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("{cgroup}/{name}"),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

fn container(image: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}
