//! What a kubelet is told: flags, `RKUBE_…` environment variables and keys of the configuration file.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of one node's kubelet. Keys of the configuration file are the flags in camelCase.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeletConfig {
    /// Name of this node; the host's name if empty.
    #[arg(long, env = "RKUBE_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Folder for volumes, logs and the kubelet's own notes.
    #[arg(skip = "/var/lib/rkube/agent")]
    pub data_dir: PathBuf,
    /// Socket of the container runtime.
    #[arg(skip = "unix:///run/containerd/containerd.sock")]
    pub container_runtime_endpoint: String,
    /// Address of this node that pods and the API server reach it by.
    #[arg(long, env = "RKUBE_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Labels put on the node when it registers, as KEY=VALUE.
    #[arg(long = "node-label", env = "RKUBE_NODE_LABELS", value_delimiter = ',', value_parser = label)]
    #[serde(with = "labels")]
    pub node_labels: Vec<(String, String)>,
    /// Most pods that may run here.
    #[arg(long, env = "RKUBE_MAX_PODS", default_value_t = 110)]
    pub max_pods: u32,
    /// Cgroup under which every pod gets its own, `<root>/pod<uid>`; empty leaves it to the runtime.
    #[arg(long, env = "RKUBE_CGROUP_ROOT", default_value = "/rkube")]
    pub cgroup_root: String,
    /// Port of the kubelet's server.
    #[arg(long, env = "RKUBE_KUBELET_PORT", default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Address that the kubelet's server listens on.
    #[arg(long, env = "RKUBE_KUBELET_ADDRESS", default_value = "0.0.0.0")]
    pub kubelet_address: IpAddr,
    /// Certificate (PEM) of the kubelet's server; without it there is no server.
    #[arg(skip)]
    pub tls_cert_file: Option<PathBuf>,
    /// Key (PEM) of the certificate.
    #[arg(skip)]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA (PEM) whose client certificates the server accepts.
    #[arg(skip)]
    pub client_ca_file: Option<PathBuf>,
    /// Address of cluster DNS.
    #[arg(skip = [IpAddr::from([10, 43, 0, 10])])]
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's names.
    #[arg(skip = "cluster.local")]
    pub cluster_domain: String,
    /// The cluster's id: pods that another cluster left behind are never judged by this one's list.
    #[arg(skip)]
    pub cluster_id: String,
    /// CPUs that this node offers, as a quantity; all of the machine's if not set.
    #[arg(long, env = "RKUBE_NODE_CPU")]
    pub node_cpu: Option<String>,
    /// Memory that this node offers, as a quantity; all of the machine's if not set.
    #[arg(long, env = "RKUBE_NODE_MEMORY")]
    pub node_memory: Option<String>,
    /// Images are removed, oldest first, when the disk is fuller than this percentage.
    #[arg(long, default_value_t = 85)]
    pub image_gc_high_percent: u8,
    /// Removal of images stops at this percentage.
    #[arg(long, default_value_t = 80)]
    pub image_gc_low_percent: u8,
    /// Free disk space, in percent, below which the node reports DiskPressure.
    #[arg(long, default_value_t = 10)]
    pub eviction_disk_percent: u8,
    /// Free memory, in MiB, below which the node reports MemoryPressure.
    #[arg(long, default_value_t = 100)]
    pub eviction_memory_mib: u64,
    /// A container's log is rotated when it is larger than this many bytes.
    #[arg(long, default_value_t = 10 << 20)]
    pub container_log_max_size: u64,
    /// Log files kept of a container.
    #[arg(long, default_value_t = 5)]
    pub container_log_max_files: usize,
    /// Seconds between renewals of the node's lease.
    #[arg(long, default_value_t = 10)]
    pub lease_renew_seconds: u64,
}

impl Default for KubeletConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            data_dir: "/var/lib/rkube/agent".into(),
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            node_ip: None,
            node_labels: Vec::new(),
            max_pods: 110,
            cgroup_root: "/rkube".into(),
            kubelet_port: 10250,
            kubelet_address: IpAddr::from([0, 0, 0, 0]),
            tls_cert_file: None,
            tls_private_key_file: None,
            client_ca_file: None,
            cluster_dns: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".into(),
            cluster_id: String::new(),
            node_cpu: None,
            node_memory: None,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            eviction_disk_percent: 10,
            eviction_memory_mib: 100,
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            lease_renew_seconds: 10,
        }
    }
}

impl KubeletConfig {
    /// Folder of everything that belongs to one pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// Folder of all pods' logs.
    pub fn log_root(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    /// Folder of one pod's logs.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_root().join(format!("{namespace}_{name}_{uid}"))
    }

    /// Cgroup of one pod, below every hierarchy's mount point; empty if pods get none from us.
    pub fn cgroup_of(&self, uid: &str) -> String {
        if self.cgroup_root.is_empty() {
            return String::new();
        }
        format!("{}/pod{uid}", self.cgroup_root.trim_end_matches('/'))
    }

    /// Time between renewals of the lease.
    pub fn lease_period(&self) -> Duration {
        Duration::from_secs(self.lease_renew_seconds.max(1))
    }

    /// Fills in the host's name and an address of the machine where none was given.
    pub fn with_defaults_of_host(mut self) -> Self {
        if self.node_name.is_empty() {
            let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
            self.node_name = name.unwrap_or_else(|| "localhost".to_owned()).to_lowercase();
        }
        self.node_ip = self.node_ip.or_else(first_address);
        self
    }
}

/// The first IPv4 address of the machine that isn't loopback.
fn first_address() -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        (!address.is_loopback() && !address.is_link_local()).then_some(IpAddr::V4(address))
    })
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label has the form KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

mod labels {
    use super::BTreeMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        labels: &[(String, String)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        labels.iter().cloned().collect::<BTreeMap<_, _>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, String)>, D::Error> {
        Ok(BTreeMap::<String, String>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        kubelet: KubeletConfig,
    }

    #[test]
    fn flags_and_file_have_the_same_defaults() {
        let flags = Cli::parse_from(["test"]).kubelet;
        let file: KubeletConfig = serde_yaml::from_str("{}").unwrap();
        assert_eq!(serde_json::to_value(flags).unwrap(), serde_json::to_value(file).unwrap());
    }

    #[test]
    fn labels_are_pairs() {
        let flags = Cli::parse_from(["test", "--node-label", "a=b,c=d"]).kubelet;
        assert_eq!(flags.node_labels, [("a".into(), "b".into()), ("c".into(), "d".into())]);
        assert!(Cli::try_parse_from(["test", "--node-label", "a"]).is_err());
    }
}
