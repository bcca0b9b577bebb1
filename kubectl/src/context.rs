//! What a verb works with: flags, streams, the way to the server, the resources it knows.

use crate::cli::GlobalFlags;
use crate::client::Http;
use crate::discovery::{self, ApiResource};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::kubeconfig::Kubeconfig;
use jiff::Timestamp;
use tokio::sync::OnceCell;

/// One run of rkubectl.
pub struct Context {
    /// The flags that every verb takes.
    pub flags: GlobalFlags,
    /// Where it reads and prints.
    pub io: Io,
    http: OnceCell<Http>,
    kubeconfig: OnceCell<Kubeconfig>,
    discovered: OnceCell<Vec<ApiResource>>,
    known: Vec<ApiResource>,
    now: Option<Timestamp>,
}

impl Context {
    /// A run that connects when a verb first needs the server.
    pub fn new(flags: GlobalFlags, io: Io) -> Self {
        Context {
            flags,
            io,
            http: OnceCell::new(),
            kubeconfig: OnceCell::new(),
            discovered: OnceCell::new(),
            known: discovery::well_known().collect(),
            now: None,
        }
    }

    /// A run over a connection that is there already.
    pub fn with_http(flags: GlobalFlags, io: Io, http: Http) -> Self {
        Context { http: OnceCell::new_with(Some(http)), ..Context::new(flags, io) }
    }

    /// The same run at a given time.
    pub fn at(self, now: Timestamp) -> Self {
        Context { now: Some(now), ..self }
    }

    /// The kubeconfig in force.
    pub async fn kubeconfig(&self) -> Result<&Kubeconfig> {
        self.kubeconfig.get_or_try_init(|| async { Kubeconfig::load(&self.flags) }).await
    }

    /// The way to the server.
    pub async fn http(&self) -> Result<&Http> {
        self.http
            .get_or_try_init(|| async {
                Http::connect(self.kubeconfig().await?, &self.flags, self.io.clone()).await
            })
            .await
    }

    /// The namespace that is meant where none is named.
    pub async fn namespace(&self) -> Result<String> {
        if let Some(ns) = &self.flags.namespace {
            return Ok(ns.clone());
        }
        if self.http.initialized() && !self.kubeconfig.initialized() {
            return Ok("default".into());
        }
        let chosen = self.kubeconfig().await?.choose(&self.flags)?;
        Ok(if chosen.namespace.is_empty() { "default".into() } else { chosen.namespace })
    }

    /// The time, for ages.
    pub fn now(&self) -> Timestamp {
        self.now.unwrap_or_else(Timestamp::now)
    }

    /// Everything the server serves.
    pub async fn resources(&self) -> Result<&[ApiResource]> {
        let http = self.http().await?;
        let found = self.discovered.get_or_try_init(|| discovery::discover(http)).await?;
        Ok(found)
    }

    /// The resource that a user typed.
    pub async fn resource(&self, typed: &str) -> Result<ApiResource> {
        if let Some(found) = discovery::find(&self.known, typed) {
            return Ok(found);
        }
        discovery::find(self.resources().await?, typed)
            .ok_or_else(|| Error::msg(format!("the server doesn't have a resource type {typed:?}")))
    }

    /// The resources of a category such as `all`, in the server's order; empty if there is none.
    pub async fn category(&self, name: &str) -> Result<Vec<ApiResource>> {
        if discovery::find(&self.known, name).is_some() {
            return Ok(Vec::new());
        }
        let mut seen = std::collections::HashSet::new();
        let members = self.resources().await?.iter().filter(|r| {
            r.categories.iter().any(|c| c == name) && r.verbs.iter().any(|v| v == "list")
        });
        Ok(members.filter(|r| seen.insert(r.qualified())).cloned().collect())
    }

    /// The resource that serves a kind. `file` is named if there is none.
    pub async fn resource_of_kind(
        &self,
        api_version: &str,
        kind: &str,
        file: &str,
    ) -> Result<ApiResource> {
        let (group, version) = rkube_api::meta::split_api_version(api_version);
        let fits = |r: &&ApiResource| r.group == group && r.version == version && r.kind == kind;
        if let Some(found) = self.known.iter().find(fits) {
            return Ok(found.clone());
        }
        self.resources().await?.iter().find(fits).cloned().ok_or_else(|| {
            Error::msg(format!(
                "resource mapping not found for name: \"{{name}}\" namespace: \"{{namespace}}\" from {file:?}: no matches for kind {kind:?} in version {api_version:?}\nensure CRDs are installed first"
            ))
        })
    }
}
