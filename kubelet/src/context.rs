//! What all parts of one kubelet share.

use crate::cgroup::Cgroups;
use crate::config::KubeletConfig;
use crate::images::Images;
use crate::objects::Objects;
use crate::pod::env::Place;
use crate::pod::prober::Prober;
use crate::recorder::Recorder;
use async_trait::async_trait;
use kube::Client;
use parking_lot::Mutex;
use rkube_cri::Runtime;
use rkube_net::PortMapping;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Ports of the node that lead to pods.
#[async_trait]
pub trait HostPorts: Send + Sync + 'static {
    /// Leads these ports to the pod, instead of those it had.
    async fn set(
        &self,
        pod_uid: &str,
        pod_ip: Ipv4Addr,
        ports: Vec<PortMapping>,
    ) -> Result<(), String>;
    /// Takes away what the pod had.
    async fn clear(&self, pod_uid: &str) -> Result<(), String>;
}

#[async_trait]
impl HostPorts for rkube_net::HostPorts {
    async fn set(
        &self,
        pod_uid: &str,
        pod_ip: Ipv4Addr,
        ports: Vec<PortMapping>,
    ) -> Result<(), String> {
        rkube_net::HostPorts::set(self, pod_uid, pod_ip, ports).await.map_err(|e| e.to_string())
    }

    async fn clear(&self, pod_uid: &str) -> Result<(), String> {
        rkube_net::HostPorts::clear(self, pod_uid).await.map_err(|e| e.to_string())
    }
}

/// No host ports at all, for where nothing may be changed on the machine.
pub struct NoHostPorts;

#[async_trait]
impl HostPorts for NoHostPorts {
    async fn set(&self, _uid: &str, _ip: Ipv4Addr, _ports: Vec<PortMapping>) -> Result<(), String> {
        Ok(())
    }

    async fn clear(&self, _uid: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Pods that may be in the midst of starting at once: more make each start later and none earlier.
const STARTS: usize = 4;

/// Shared by workers, server and housekeeping.
pub struct Context {
    /// Settings.
    pub config: KubeletConfig,
    /// The API.
    pub client: Client,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Events.
    pub recorder: Recorder,
    /// Images.
    pub images: Images,
    /// ConfigMaps, Secrets, Services.
    pub objects: Arc<Objects>,
    /// The pods' cgroups.
    pub cgroups: Cgroups,
    /// Ports of the node.
    pub host_ports: Arc<dyn HostPorts>,
    /// Probes and hooks.
    pub prober: Prober,
    /// The node's addresses and size.
    pub place: Place,
    /// Pods in the midst of starting.
    pub starts: Arc<Semaphore>,
    /// Which pod a container or sandbox belongs to, by id.
    pub owners: Mutex<BTreeMap<String, String>>,
}

impl Context {
    /// Joins the parts.
    pub fn new(
        config: KubeletConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        objects: Arc<Objects>,
        host_ports: Arc<dyn HostPorts>,
        place: Place,
    ) -> Self {
        let recorder = Recorder::start(client.clone(), config.node_name.clone());
        let images = Images::new(runtime.clone(), objects.clone(), recorder.clone());
        Self {
            prober: Prober::new(runtime.clone()),
            cgroups: match config.cgroup_root.as_str() {
                "" => Cgroups::default(),
                _ => Cgroups::detect(),
            },
            starts: Arc::new(Semaphore::new(STARTS)),
            owners: Mutex::default(),
            config,
            client,
            runtime,
            recorder,
            images,
            objects,
            host_ports,
            place,
        }
    }

    /// Notes which pod a container or sandbox belongs to, so that its end reaches the right worker.
    pub fn own(&self, id: &str, uid: &str) {
        self.owners.lock().insert(id.to_owned(), uid.to_owned());
    }

    /// Forgets all containers and sandboxes of a pod.
    pub fn disown(&self, uid: &str) {
        self.owners.lock().retain(|_, owner| owner != uid);
    }
}
