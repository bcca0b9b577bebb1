//! The names of what a `rkube up` makes on the machine, told apart by its data directory.

use crate::cli::UpArgs;
use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Names and addresses.
#[derive(Clone, Debug)]
pub struct Names {
    /// Eight hex digits that stand for the data directory.
    id: String,
    data_dir: PathBuf,
    /// The nodes' network.
    pub subnet: Ipv4Net,
}

impl Names {
    pub fn new(args: &UpArgs) -> Self {
        let hash = Sha256::digest(args.data.data_dir.as_os_str().as_encoded_bytes());
        let id = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Names { id, data_dir: args.data.data_dir.clone(), subnet: args.node_subnet }
    }

    /// The bridge that the nodes hang on.
    pub fn bridge(&self) -> String {
        format!("rk-{}", self.id)
    }

    /// The machine's end of a node's cable.
    pub fn veth(&self, index: u8) -> String {
        format!("rk-{}-{index}", self.id)
    }

    /// The table of rules on the machine.
    pub fn table(&self) -> String {
        format!("rkube_up_{}", self.id)
    }

    /// The cgroup below which all pods of a node run, or those of all nodes.
    pub fn cgroup(&self, node: Option<&str>) -> String {
        match node {
            Some(node) => format!("/rkube-{}/{node}", self.id),
            None => format!("/rkube-{}", self.id),
        }
    }

    /// The machine's address on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address of node `index` (from 1).
    pub fn node_ip(&self, index: u8) -> Ipv4Addr {
        self.address(10 + u32::from(index))
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + offset)
    }

    /// A node's data directory.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.data_dir.join("nodes").join(node)
    }

    /// Where a child writes what it says.
    pub fn log(&self, child: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{child}.log"))
    }

    /// Where `rkube node` reaches us.
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.data_dir)
    }
}

/// Where the `rkube up` of a data directory listens.
pub fn control_socket(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("up.sock")
}
