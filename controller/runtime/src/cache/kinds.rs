//! The kinds that components read as typed structs.

use super::{Index, Stored};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// A kind that has a typed store and can be written through [`Client`](crate::Client).
pub trait Cached:
    Stored + Resource<DynamicType = ()> + DeserializeOwned + Serialize + Debug
{
    /// The kind's API in a namespace; the namespace is ignored for kinds of the cluster.
    fn api(client: kube::Client, namespace: &str) -> Api<Self>;
}

macro_rules! cached {
    ($kind:ty, namespaced $(, |$o:ident| $terms:expr)?) => {
        cached!(@stored $kind $(, |$o| $terms)?);
        impl Cached for $kind {
            fn api(client: kube::Client, namespace: &str) -> Api<Self> {
                Api::namespaced(client, namespace)
            }
        }
    };
    ($kind:ty, cluster) => {
        cached!(@stored $kind);
        impl Cached for $kind {
            fn api(client: kube::Client, _namespace: &str) -> Api<Self> {
                Api::all(client)
            }
        }
    };
    (@stored $kind:ty $(, |$o:ident| $terms:expr)?) => {
        impl Stored for $kind {
            fn object_meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn object_meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            $(
                fn terms(&self) -> Vec<(Index, String)> {
                    let $o = self;
                    $terms
                }
            )?
        }
    };
}

cached!(Pod, namespaced, |pod| pod
    .spec
    .iter()
    .filter_map(|spec| Some((Index::Node, spec.node_name.clone()?)))
    .collect());
cached!(EndpointSlice, namespaced, |slice| slice
    .metadata
    .labels
    .iter()
    .filter_map(|labels| Some((Index::Service, labels.get("kubernetes.io/service-name")?.clone())))
    .collect());
cached!(ConfigMap, namespaced);
cached!(Deployment, namespaced);
cached!(Event, namespaced);
cached!(Lease, namespaced);
cached!(Namespace, cluster);
cached!(Node, cluster);
cached!(ReplicaSet, namespaced);
cached!(Secret, namespaced);
cached!(Service, namespaced);
cached!(ServiceAccount, namespaced);
