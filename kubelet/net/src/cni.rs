//! The CNI configuration that containerd reads: a bridge, addresses from the node's range.

use crate::command::NetError;
use ipnet::Ipv4Net;
use serde_json::json;
use std::path::Path;

/// The bridge that a node's pods hang on.
pub const BRIDGE: &str = "cni0";

/// The network list of a node.
///
/// No `ipMasq` and no `portmap`: they cost 40 to 210 ms a pod and hide the pods' addresses; the
/// rules of [`crate::nft`] do their work once a node.
pub fn conflist(node: &str, pod_cidr: Ipv4Net, mtu: u32, ipam_dir: &Path) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": format!("rkube-{node}"),
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "mtu": mtu,
            "ipam": {
                "type": "host-local",
                "dataDir": ipam_dir,
                "ranges": [[{"subnet": pod_cidr.to_string()}]],
            },
        }],
    });
    format!("{list:#}\n")
}

/// Writes the network list into `conf_dir` unless it already says the same. containerd watches
/// the folder and notices only a rename inside it.
pub fn write(conf_dir: &Path, content: &str) -> Result<(), NetError> {
    let target = conf_dir.join("10-rkube.conflist");
    if std::fs::read_to_string(&target).is_ok_and(|now| now == content) {
        return Ok(());
    }
    let temporary = conf_dir.join("10-rkube.conflist.tmp");
    let file = |source| NetError::File { path: target.display().to_string(), source };
    std::fs::create_dir_all(conf_dir).map_err(file)?;
    std::fs::write(&temporary, content).map_err(file)?;
    std::fs::rename(&temporary, &target).map_err(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflist_names_the_range_and_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let text = conflist("n1", "10.42.3.0/24".parse().unwrap(), 1500, &dir.path().join("ipam"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.42.3.0/24");
        write(dir.path(), &text).unwrap();
        let file = dir.path().join("10-rkube.conflist");
        let first = std::fs::metadata(&file).unwrap().modified().unwrap();
        write(dir.path(), &text).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), first);
        assert!(!dir.path().join("10-rkube.conflist.tmp").exists());
    }
}
