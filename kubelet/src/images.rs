//! Images: whether one is here, and pulling it with the pod's credentials.
//!
//! Pulls of one image by several containers follow each other, so that the second finds what the
//! first has brought.

use crate::objects::Objects;
use crate::recorder::{Level, Recorder};
use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::ResourceExt;
use parking_lot::Mutex;
use rkube_cri::config::AuthConfig;
use rkube_cri::{CriError, Image, Runtime};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Why a container's image could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName` or `ImageInspectError`.
    pub reason: &'static str,
    /// The registry's or the runtime's words.
    pub message: String,
}

/// Finds and pulls images.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    objects: Arc<Objects>,
    recorder: Recorder,
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// Images of one runtime.
    pub fn new(runtime: Arc<dyn Runtime>, objects: Arc<Objects>, recorder: Recorder) -> Self {
        Self { runtime, objects, recorder, turns: Mutex::default() }
    }

    /// Makes sure that a container's image is here; gives the reference to create it from.
    pub async fn ensure(&self, pod: &Pod, container: &Container) -> Result<String, ImageError> {
        let image = container.image.clone().unwrap_or_default();
        let name = Some(container.name.as_str());
        if !is_valid(&image) {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            self.recorder.pod(pod, name, Level::Warning, "InspectFailed", &message);
            return Err(ImageError { reason: "InvalidImageName", message });
        }
        let policy = policy(container);
        if policy != "Always"
            && let Some(found) = self.look(&image).await?
        {
            let message = format!("Container image \"{image}\" already present on machine");
            self.recorder.pod(pod, name, Level::Normal, "Pulled", message);
            return Ok(found.id);
        }
        if policy == "Never" {
            let message =
                format!("Container image \"{image}\" is not present with pull policy of Never");
            self.recorder.pod(pod, name, Level::Warning, "ErrImageNeverPull", &message);
            return Err(ImageError { reason: "ErrImageNeverPull", message });
        }
        self.pull(pod, container, &image, policy).await
    }

    /// What the runtime knows of an image.
    pub async fn look(&self, image: &str) -> Result<Option<Image>, ImageError> {
        self.runtime.image_status(image).await.map_err(|error| ImageError {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image \"{image}\": {}", error.message),
        })
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        image: &str,
        policy: &str,
    ) -> Result<String, ImageError> {
        let name = Some(container.name.as_str());
        let waited = Instant::now();
        let turn = self.turns.lock().entry(image.to_owned()).or_default().clone();
        let _turn = turn.lock().await;
        if policy != "Always"
            && let Some(found) = self.look(image).await?
        {
            return Ok(found.id);
        }
        self.recorder.pod(
            pod,
            name,
            Level::Normal,
            "Pulling",
            format!("Pulling image \"{image}\""),
        );
        let began = Instant::now();
        match self.pull_with_any(pod, image).await {
            Ok(reference) => {
                let size = self.look(image).await.ok().flatten().map_or(0, |image| image.size);
                let message = format!(
                    "Successfully pulled image \"{image}\" in {}ms ({}ms including waiting). Image size: {size} bytes.",
                    began.elapsed().as_millis(),
                    waited.elapsed().as_millis()
                );
                self.recorder.pod(pod, name, Level::Normal, "Pulled", message);
                Ok(reference)
            }
            Err(error) => {
                let message = format!("Failed to pull image \"{image}\": {}", error.message);
                self.recorder.pod(pod, name, Level::Warning, "Failed", message);
                self.recorder.pod(pod, name, Level::Warning, "Failed", "Error: ErrImagePull");
                Err(ImageError { reason: "ErrImagePull", message: error.message })
            }
        }
    }

    /// Tries each of the pod's credentials for the registry; without any, as nobody.
    async fn pull_with_any(&self, pod: &Pod, image: &str) -> Result<String, CriError> {
        let mut credentials: Vec<Option<AuthConfig>> =
            self.credentials(pod, image).await.into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = None;
        for auth in credentials {
            match self.runtime.pull_image(image, auth).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            CriError::new("PullImage", image, rkube_cri::Code::Other, "no attempt was made")
        }))
    }

    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<AuthConfig> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut names: Vec<String> = pod
            .spec
            .iter()
            .flat_map(|s| s.image_pull_secrets.iter().flatten())
            .map(|secret| secret.name.clone())
            .collect();
        if names.is_empty() {
            let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
            let account =
                self.objects.service_account(&namespace, account.unwrap_or("default")).await;
            let secrets = account.ok().and_then(|a| a.image_pull_secrets).unwrap_or_default();
            names = secrets.into_iter().map(|secret| secret.name).collect();
        }
        let mut found = Vec::new();
        for name in names {
            match self.objects.secret(&namespace, &name).await {
                Ok(secret) => found.extend(credentials_for(&secret, image)),
                Err(error) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                    );
                    tracing::debug!(%error, "pull secret");
                    self.recorder.pod(
                        pod,
                        None,
                        Level::Warning,
                        "FailedToRetrieveImagePullSecret",
                        message,
                    );
                }
            }
        }
        found
    }
}

/// The container's pull policy; by the image's tag if it says none.
pub fn policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    match container.image_pull_policy.as_deref().filter(|policy| !policy.is_empty()) {
        Some(policy) => policy,
        None if image.contains('@') => "IfNotPresent",
        None => {
            let last = image.rsplit('/').next().unwrap_or_default();
            match last.split_once(':') {
                None | Some((_, "latest")) => "Always",
                Some(_) => "IfNotPresent",
            }
        }
    }
}

/// Whether a name has the form `[registry[:port]/]path[:tag][@digest]`.
pub fn is_valid(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let parts: Vec<&str> = path.split('/').collect();
    let is_host = parts.len() > 1
        && (parts[0].contains(['.', ':'])
            || parts[0] == "localhost"
            || parts[0].chars().any(char::is_uppercase));
    let rest = if is_host { &parts[1..] } else { &parts[..] };
    let is_part = |part: &&str| {
        let edges = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(edges)
            && part.ends_with(edges)
            && part.chars().all(|c| edges(c) || "._-".contains(c))
    };
    let is_tag = |tag: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        tag.len() <= 128
            && tag.starts_with(word)
            && tag.chars().all(|c| word(c) || ".-".contains(c))
    };
    !rest.is_empty()
        && rest.iter().all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|d| d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32))
}

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// The registry that an image comes from.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn credentials_for(secret: &Secret, image: &str) -> Vec<AuthConfig> {
    let data = secret.data.as_ref();
    let get = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let config = match (get(".dockerconfigjson"), get(".dockercfg")) {
        (Some(json), _) => serde_json::from_slice::<DockerConfig>(json).unwrap_or_default().auths,
        (None, Some(json)) => serde_json::from_slice(json).unwrap_or_default(),
        (None, None) => BTreeMap::new(),
    };
    let wanted = registry_of(image);
    config
        .iter()
        .filter(|(host, _)| is_same(host, wanted, image))
        .map(|(_, auth)| auth_of(auth))
        .collect()
}

fn is_same(configured: &str, registry: &str, image: &str) -> bool {
    let plain = configured.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = plain.split_once('/').unwrap_or((plain, ""));
    let host =
        if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let path = path.trim_end_matches('/');
    let in_path = matches!(path, "" | "v1" | "v2") || image.contains(&format!("/{path}/"));
    host == registry && in_path
}

/// `server_address` stays empty: containerd wants a scheme there and doesn't need it.
fn auth_of(auth: &DockerAuth) -> AuthConfig {
    let decoded =
        base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).unwrap_or_default();
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    let (user, password) = decoded.split_once(':').unwrap_or_default();
    let or =
        |own: &str, other: &str| if own.is_empty() { other.to_owned() } else { own.to_owned() };
    AuthConfig {
        username: or(&auth.username, user),
        password: or(&auth.password, password),
        identity_token: auth.identity_token.clone(),
        ..AuthConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn policies_by_tag() {
        let of = |image: &str| {
            policy(&Container { image: Some(image.into()), ..Container::default() }).to_owned()
        };
        assert_eq!(of("busybox"), "Always");
        assert_eq!(of("host:5000/busybox"), "Always");
        assert_eq!(of("busybox:latest"), "Always");
        assert_eq!(of("host:5000/busybox:1.36"), "IfNotPresent");
        assert_eq!(of("busybox@sha256:00"), "IfNotPresent");
    }

    #[test]
    fn names() {
        let good = [
            "busybox",
            "a/b/c:1",
            "localhost:5000/x/y:v1.2-3",
            "host.x/a_b",
            "x@sha256:0123456789abcdef0123456789abcdef",
        ];
        let bad = ["", "Busybox", "a//b", ":tag", "x:", "x:a b", "-x", "http://x/y"];
        assert_eq!(good.iter().filter(|i| !is_valid(i)).collect::<Vec<_>>(), Vec::<&&str>::new());
        assert_eq!(bad.iter().filter(|i| is_valid(i)).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn credentials_by_registry() {
        let config =
            br#"{"auths":{"https://reg.x:5000":{"auth":"dTpwOnc="},"other":{"username":"o"}}}"#;
        let data = [(".dockerconfigjson".to_owned(), ByteString(config.to_vec()))];
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        let found = credentials_for(&secret, "reg.x:5000/a/b:1");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("u", "p:w"));
        assert!(found[0].server_address.is_empty());
        assert!(credentials_for(&secret, "busybox").is_empty());
    }
}
