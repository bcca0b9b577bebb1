//! The node's lease: renewed on time whatever else goes on, in a task of its own.

use crate::config::KubeletConfig;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use std::time::Duration;

/// Where leases of nodes live.
pub const NAMESPACE: &str = "kube-node-lease";
/// After this long without a renewal others think the node dead; they go by their own flag.
const DURATION_SECONDS: i32 = 40;
/// A renewal that hangs makes room for the next attempt.
const TIMEOUT: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(200);

/// Renews until dropped. `owner_uid` is the node's uid.
pub async fn keep(client: Client, config: KubeletConfig, owner_uid: String) {
    let mut ticks = tokio::time::interval(config.lease_period());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        while let Err(error) = renew_in_time(&client, &config.node_name, &owner_uid).await {
            tracing::warn!(error, "renew lease");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn renew_in_time(client: &Client, name: &str, owner_uid: &str) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, renew(client, name, owner_uid)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

/// Renews a node's lease once, making it if it is not there.
pub async fn renew(client: &Client, name: &str, owner_uid: &str) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {
        "holderIdentity": name, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            api.create(&PostParams::default(), &lease(name, owner_uid, now)).await.map(|_| ())
        }
        Err(error) => Err(error),
    }
}

fn lease(name: &str, owner_uid: &str, now: MicroTime) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: owner_uid.to_owned(),
        ..OwnerReference::default()
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.into()),
            owner_references: (!owner_uid.is_empty()).then(|| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}
