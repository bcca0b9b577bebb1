//! ConfigMaps, Secrets and Services that the node's pods refer to.
//!
//! A read for a starting container is always fresh. Objects behind volumes are watched one by one
//! for as long as a pod uses them: a node may read what its pods need and nothing else.

use crate::watch::{Change, Selection, list_watch};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Changes come one at a time and are only passed on.
const CHANGES: usize = 16;
/// A container that needs no service does not wait for them forever.
const SERVICES_WAIT: Duration = Duration::from_secs(2);

/// Why an object could not be read.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The API has no such object.
    #[error("{0} not found")]
    NotFound(String),
    /// The API did not say.
    #[error("{what}: {}", words(source))]
    Api {
        /// Kind and name.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
}

/// An object that a volume is made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A ConfigMap's namespace and name.
    ConfigMap(String, String),
    /// A Secret's namespace and name.
    Secret(String, String),
}

struct Watched {
    users: BTreeSet<String>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads objects and tells which pods' volumes are out of date.
pub struct Objects {
    client: Client,
    watched: Mutex<BTreeMap<Key, Watched>>,
    changed: mpsc::Sender<Key>,
    services: watch::Receiver<Option<Arc<Vec<Service>>>>,
}

impl Objects {
    /// Starts with the services' watch. Keys of changed objects go to `changed`.
    pub fn start(client: Client, changed: mpsc::Sender<Key>) -> Arc<Self> {
        let (sender, services) = watch::channel(None);
        tokio::spawn(watch_services(client.clone(), sender));
        Arc::new(Self { client, watched: Mutex::default(), changed, services })
    }

    /// A ConfigMap as it is now.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, ObjectError> {
        self.get("configmap", namespace, name).await
    }

    /// A Secret as it is now.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ObjectError> {
        self.get("secret", namespace, name).await
    }

    /// A ServiceAccount as it is now.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<ServiceAccount, ObjectError> {
        self.get("serviceaccount", namespace, name).await
    }

    /// A token of a service account, bound to a pod.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        spec: TokenRequestSpec,
    ) -> Result<String, ObjectError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = api.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| failed("token of serviceaccount", account, error))?;
        Ok(answer.status.and_then(|status| status.token).unwrap_or_default())
    }

    /// All services, once the first list has come in.
    pub async fn services(&self) -> Arc<Vec<Service>> {
        let mut services = self.services.clone();
        let listed = tokio::time::timeout(SERVICES_WAIT, services.wait_for(Option::is_some)).await;
        match listed {
            Ok(Ok(list)) => list.clone().unwrap_or_default(),
            _ => Arc::default(),
        }
    }

    /// A pod's volumes are made from just these objects.
    pub fn track(&self, uid: &str, keys: &BTreeSet<Key>) {
        let mut watched = self.watched.lock();
        for (key, entry) in watched.iter_mut() {
            if !keys.contains(key) {
                entry.users.remove(uid);
            }
        }
        watched.retain(|_, entry| !entry.users.is_empty());
        for key in keys {
            let entry = watched.entry(key.clone()).or_insert_with(|| self.watch(key.clone()));
            entry.users.insert(uid.to_owned());
        }
    }

    /// Uids of the pods whose volumes are made from an object.
    pub fn users(&self, key: &Key) -> Vec<String> {
        self.watched.lock().get(key).map(|w| w.users.iter().cloned().collect()).unwrap_or_default()
    }

    async fn get<K>(&self, what: &str, namespace: &str, name: &str) -> Result<K, ObjectError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.get(name).await.map_err(|error| failed(what, name, error))
    }

    fn watch(&self, key: Key) -> Watched {
        let (client, changed) = (self.client.clone(), self.changed.clone());
        let task = match key.clone() {
            Key::ConfigMap(namespace, name) => {
                let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                tokio::spawn(watch_one(api, name, key, changed))
            }
            Key::Secret(namespace, name) => {
                let api: Api<Secret> = Api::namespaced(client, &namespace);
                tokio::spawn(watch_one(api, name, key, changed))
            }
        };
        Watched { users: BTreeSet::new(), task: task.abort_handle() }
    }
}

/// The server's own sentence, where there is one.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn failed(what: &str, name: &str, error: kube::Error) -> ObjectError {
    let what = format!("{what} \"{name}\"");
    match &error {
        kube::Error::Api(status) if status.code == 404 => ObjectError::NotFound(what),
        _ => ObjectError::Api { what, source: Box::new(error) },
    }
}

/// Tells of every version of one object after the first that it sees.
async fn watch_one<K>(api: Api<K>, name: String, key: Key, changed: mpsc::Sender<Key>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(CHANGES);
    let feed = list_watch(api, Selection::fields(format!("metadata.name={name}")), sender);
    let pass_on = async {
        let mut seen: Option<Option<String>> = None;
        while let Some(change) = receiver.recv().await {
            let version = match change {
                Change::Listed { items, .. } => {
                    items.first().and_then(ResourceExt::resource_version)
                }
                Change::Applied(object) => object.resource_version(),
                Change::Deleted(_) => None,
                Change::Failed(_) => continue,
            };
            let is_news = seen.as_ref().is_some_and(|before| *before != version);
            seen = Some(version);
            if is_news && changed.send(key.clone()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = feed => {}, () = pass_on => {} }
}

async fn watch_services(client: Client, to: watch::Sender<Option<Arc<Vec<Service>>>>) {
    let (sender, mut receiver) = mpsc::channel(CHANGES);
    let feed = list_watch(Api::all(client), Selection::default(), sender);
    let collect = async {
        let mut known: BTreeMap<(Option<String>, String), Service> = BTreeMap::new();
        let key = |service: &Service| (service.namespace(), service.name_any());
        while let Some(change) = receiver.recv().await {
            match change {
                Change::Listed { items, .. } => {
                    known = items.into_iter().map(|service| (key(&service), service)).collect();
                }
                Change::Applied(service) => {
                    known.insert(key(&service), service);
                }
                Change::Deleted(service) => {
                    known.remove(&key(&service));
                }
                // Who may not read services has none in the environment; nobody waits for them.
                Change::Failed(kube::Error::Api(status)) if status.code == 403 => {}
                Change::Failed(_) => continue,
            }
            to.send_replace(Some(Arc::new(known.values().cloned().collect())));
        }
    };
    tokio::select! { () = feed => {}, () = collect => {}, () = to.closed() => {} }
}
