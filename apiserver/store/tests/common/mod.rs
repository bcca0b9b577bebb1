//! What the integration tests share; each of them uses a part.
#![allow(dead_code)]

use rkube_store::{
    Command, Header, Key, NewObject, Outcome, Precondition, Store, StoreConfig, Write,
};
use serde_json::json;
use std::path::Path;

/// A small store that also meets its bounds.
pub fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 256 << 10, snapshot_every_bytes: 1 << 20, ..StoreConfig::new(dir) }
}

pub fn pod(namespace: &str, name: &str) -> Key {
    Key::new("pods", namespace, name)
}

/// An object whose bytes say `value`.
pub fn object(key: &Key, value: &str) -> NewObject {
    let json = json!({
        "kind": "Pod",
        "metadata": {"name": &*key.name, "namespace": &*key.namespace},
        "value": value,
    });
    let header = Header { index: [format!("node={value}").into()].into(), ..Header::default() };
    NewObject::encode(&json, header).unwrap()
}

pub fn put(key: &Key, value: &str) -> Command {
    Command::unconditional(0, vec![Write::Put(key.clone(), object(key, value))])
}

pub fn create(key: &Key, value: &str) -> Command {
    Command { preconditions: vec![Precondition::Absent(key.clone())], ..put(key, value) }
}

pub fn delete(key: &Key) -> Command {
    Command::unconditional(0, vec![Write::Delete(key.clone())])
}

/// Proposes and expects the command to be applied; answers with its revision.
pub async fn apply(store: &Store, command: Command) -> u64 {
    match store.propose(command).await.unwrap() {
        Outcome::Applied { revision, .. } => revision,
        other => panic!("not applied: {other:?}"),
    }
}

/// What the object's bytes say.
pub fn value_of(object: &rkube_store::Object) -> String {
    let read: serde_json::Value = serde_json::from_slice(&object.json).unwrap();
    assert_eq!(read["metadata"]["resourceVersion"], object.revision.to_string());
    read["value"].as_str().unwrap().to_owned()
}
