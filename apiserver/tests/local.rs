//! The server under kube's client in the same process.

mod common;

use common::Harness;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use rkube_apiserver::Identity;

#[tokio::test]
async fn kube_works_without_a_socket() {
    use futures::TryStreamExt;
    let h = Harness::start().await;
    let service = h.server.local(Identity::component("test"));
    let client = kube::Client::new(service, "default");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    assert_eq!(namespaces.list(&ListParams::default()).await.unwrap().items.len(), 4);
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let revision =
        maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut map = ConfigMap::default();
    map.metadata.name = Some("k".into());
    maps.create(&PostParams::default(), &map).await.unwrap();
    let patch = serde_json::json!({"data": {"a": "b"}});
    maps.patch("k", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    maps.delete("k", &DeleteParams::default()).await.unwrap();
    let stream = maps.watch(&WatchParams::default(), &revision).await.unwrap();
    let mut stream = std::pin::pin!(stream);
    let mut words = Vec::new();
    while words.len() < 3 {
        words.push(match stream.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(words, ["added", "modified", "deleted"]);
    let node = kube::Client::new(h.server.local(Identity::node("n1")), "default");
    let refused =
        Api::<Namespace>::all(node.clone()).delete("default", &DeleteParams::default()).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    h.stop().await;
}
