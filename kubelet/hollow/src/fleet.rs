//! The nodes by number and by name.

use crate::HollowConfig;
use kube::Client;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

/// First address of the range that pods are given: 100.64.0.0/10, which no real network routes.
const POD_RANGE: u32 = 0x6440_0000;
const POD_RANGE_SIZE: u32 = 1 << 22;

/// All simulated nodes of this process.
pub struct Fleet {
    pub config: HollowConfig,
    pub client: Client,
    /// Addresses given to pods so far.
    addresses: AtomicU32,
}

impl Fleet {
    pub fn new(config: HollowConfig, client: Client) -> Self {
        Fleet { config, client, addresses: AtomicU32::new(0) }
    }

    /// The name of a node.
    pub fn name(&self, index: usize) -> String {
        format!("{}{index}", self.config.prefix)
    }

    /// The number of a node, if it is one of ours.
    pub fn index(&self, name: &str) -> Option<usize> {
        let digits = name.strip_prefix(&self.config.prefix)?;
        let index: usize = digits.parse().ok()?;
        // "+7" and "007" are numbers, but no names of ours.
        (index < self.config.nodes && self.name(index) == name).then_some(index)
    }

    /// An address for one more pod; after four million they repeat.
    pub fn next_address(&self) -> Ipv4Addr {
        let next = self.addresses.fetch_add(1, Ordering::Relaxed) % POD_RANGE_SIZE;
        Ipv4Addr::from(POD_RANGE + next)
    }
}

/// The address of a node: a loopback address of its own, at which nothing listens.
pub fn node_address(index: usize) -> Ipv4Addr {
    let [_, b, c, d] = (index as u32 + 1).to_be_bytes();
    Ipv4Addr::new(127, b.saturating_add(1), c, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(nodes: usize) -> Fleet {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::io::Error>(http::Response::new(kube::client::Body::empty()))
        });
        Fleet::new(HollowConfig::new(nodes, "hollow-"), Client::new(service, "default"))
    }

    #[tokio::test]
    async fn only_our_own_names_have_a_number() {
        let fleet = fleet(10);
        assert_eq!(fleet.index("hollow-0"), Some(0));
        assert_eq!(fleet.index("hollow-9"), Some(9));
        for other in ["hollow-10", "hollow-", "hollow-+1", "hollow-01", "node-1", ""] {
            assert_eq!(fleet.index(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn addresses_differ() {
        let fleet = fleet(1);
        assert_eq!(fleet.next_address(), Ipv4Addr::new(100, 64, 0, 0));
        assert_eq!(fleet.next_address(), Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(node_address(0), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(node_address(255), Ipv4Addr::new(127, 1, 1, 0));
    }
}
