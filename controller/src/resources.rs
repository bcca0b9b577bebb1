//! The kinds that an API server serves, as far as the controllers of whole namespaces and graphs
//! care: discovered at the start and looked up again now and then, since kinds come with
//! CustomResourceDefinitions.

use kube::{
    api::ApiResource,
    discovery::{Discovery, Scope, verbs},
};
use std::time::Duration;

/// How often new kinds are looked for.
pub(crate) const REDISCOVER: Duration = Duration::from_secs(30);

/// A kind whose objects can be listed, watched and deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its names.
    pub api: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether its collections can be deleted at once.
    pub delete_collection: bool,
}

impl Resource {
    /// `pods.`, `deployments.apps`: as conditions name kinds.
    pub fn dotted(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }

    /// Events expire by themselves and own nothing.
    pub fn is_event(&self) -> bool {
        self.api.plural == "events" && matches!(self.api.group.as_str(), "" | "events.k8s.io")
    }
}

/// Every deletable kind in its preferred version. The error says what discovery failed at.
pub(crate) async fn discover(client: kube::Client) -> Result<Vec<Resource>, kube::Error> {
    let discovery = Discovery::new(client).run().await?;
    let mut resources = Vec::new();
    for group in discovery.groups() {
        for (api, capabilities) in group.recommended_resources() {
            let able = |verb| capabilities.supports_operation(verb);
            if able(verbs::LIST) && able(verbs::WATCH) && able(verbs::DELETE) {
                resources.push(Resource {
                    namespaced: capabilities.scope == Scope::Namespaced,
                    delete_collection: able(verbs::DELETE_COLLECTION),
                    api,
                });
            }
        }
    }
    resources.sort_by_key(Resource::dotted);
    Ok(resources)
}
