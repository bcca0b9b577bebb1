//! Host ports: two pods can't have the same one.

use crate::pod::{HostPort, PodInfo};
use crate::reason::Reason;
use crate::snapshot::NodeState;

/// Refuses a node on which one of the pod's ports is taken.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    let taken: Vec<i32> = pod
        .ports
        .iter()
        .filter(|port| node.ports.iter().any(|other| collide(port, other)))
        .map(|port| port.port)
        .collect();
    if taken.is_empty() { Ok(()) } else { Err(Reason::HostPorts(taken)) }
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    let any = |port: &HostPort| port.ip == "0.0.0.0" || port.ip == "::";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || any(a) || any(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions() {
        let port = |ip: &str, protocol: &str, port| HostPort {
            ip: ip.into(),
            protocol: protocol.into(),
            port,
        };
        for (a, b, expected) in [
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 80), true),
            (port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 80), true),
            (port("10.0.0.1", "TCP", 80), port("127.0.0.1", "TCP", 80), false),
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "UDP", 80), false),
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 81), false),
        ] {
            assert_eq!(collide(&a, &b), expected, "{a:?} {b:?}");
        }
    }
}
