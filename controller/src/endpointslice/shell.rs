//! Feeds the rule from the caches and carries out what it says.

use super::plan::{Action, MANAGED_BY, MANAGER, Rule, SERVICE_NAME, View};
use crate::{
    claim::{of_seen, unless_gone},
    common::namespace,
    context::Context,
};
use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::api::{DeleteParams, Preconditions};
use rkube_api::selector::LabelSelector;
use rkube_runtime::{ActError, Change, Controller, Index, ObjectKey, Store, WorkQueue};
use std::sync::Arc;

struct Slices {
    ctx: Context,
    services: Store<Service>,
    pods: Store<Pod>,
    nodes: Store<Node>,
    slices: Store<EndpointSlice>,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("endpointslice", &ctx.metrics);
    let (services, pods) = (ctx.caches.store::<Service>(), ctx.caches.store::<Pod>());
    let (nodes, slices) = (ctx.caches.store::<Node>(), ctx.caches.store::<EndpointSlice>());
    services.wait_synced().await;
    pods.wait_synced().await;
    nodes.wait_synced().await;
    slices.wait_synced().await;
    queue.feed(&services, |change: &Change<Service>| vec![change.key.clone()]);
    queue.feed(&slices, |change: &Change<EndpointSlice>| {
        change.latest().and_then(|slice| service_of(slice)).into_iter().collect()
    });
    let all = services.clone();
    queue.feed(&pods, move |change: &Change<Pod>| match matters(change) {
        true => change.both().flat_map(|pod| services_of(&all, pod)).collect(),
        false => Vec::new(),
    });
    let controller = Slices { ctx: ctx.clone(), services, pods, nodes, slices };
    ctx.run(controller, queue, 4).await;
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(namespace(&slice.metadata), name))
}

fn services_of(services: &Store<Service>, pod: &Pod) -> Vec<ObjectKey> {
    let nearby = services.in_namespace(namespace(&pod.metadata));
    nearby.iter().filter(|s| selects(s, pod)).map(|s| ObjectKey::of(&s.metadata)).collect()
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector =
        service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
    selector.is_some_and(|selector| {
        let pairs = selector.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        LabelSelector::from_map(pairs).matches(&pod.metadata.labels)
    })
}

/// Whether the pod's endpoint may have changed with it.
fn matters(change: &Change<Pod>) -> bool {
    let face = |pod: &Arc<Pod>| {
        let status = pod.status.clone().unwrap_or_default();
        let ready = crate::common::is_ready(pod);
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
        let going = pod.metadata.deletion_timestamp.is_some();
        (
            pod.metadata.labels.clone(),
            status.pod_ips,
            status.pod_ip,
            status.phase,
            ready,
            node,
            going,
        )
    };
    change.old.as_ref().map(face) != change.new.as_ref().map(face)
}

#[async_trait]
impl Controller for Slices {
    type Key = ObjectKey;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn rule(&self) -> &Rule {
        &Rule
    }

    fn view(&self, key: &ObjectKey) -> Option<View> {
        let service = self.services.get(key)?;
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        let names = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        let nodes = names.filter_map(|n| Some((n.clone(), self.nodes.named("", &n)?))).collect();
        let mut slices = self.slices.by_index(Index::Service, &key.name);
        slices.retain(|slice| {
            let labels = slice.metadata.labels.as_ref();
            namespace(&slice.metadata) == key.namespace
                && slice.metadata.deletion_timestamp.is_none()
                && labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
        });
        Some(View { service, pods, nodes, slices })
    }

    async fn act(&self, _key: &ObjectKey, _view: &View, action: Action) -> Result<(), ActError> {
        let client = &self.ctx.client;
        match action {
            Action::Create(slice) => {
                client.create(slice.as_ref()).await?;
            }
            Action::Patch { slice, patch } => {
                let key = ObjectKey::of(&slice.metadata);
                client.patch::<EndpointSlice>(&key, of_seen(&slice.metadata, patch)).await?;
            }
            Action::Delete(slice) => {
                let uid = Preconditions { uid: slice.metadata.uid.clone(), ..Default::default() };
                let params = DeleteParams::default().preconditions(uid);
                let key = ObjectKey::of(&slice.metadata);
                unless_gone(client.delete::<EndpointSlice>(&key, &params).await)?;
            }
        }
        Ok(())
    }
}
