//! Files from ConfigMaps, Secrets, the pod's own fields and tokens.

use super::writer::{Payload, PayloadFile};
use crate::objects::{Key, Objects};
use crate::pod::env::{Place, field_value, optional, resource_value};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::ResourceExt;
use std::collections::BTreeMap;

const DEFAULT_MODE: i32 = 0o644;
/// Without a wish of its own a token is good for an hour.
const TOKEN_SECONDS: i64 = 3600;

/// Objects that one volume is made from.
pub fn objects_of(volume: &Volume, namespace: &str) -> Vec<Key> {
    let map = |name: &str| Key::ConfigMap(namespace.to_owned(), name.to_owned());
    let secret = |name: &str| Key::Secret(namespace.to_owned(), name.to_owned());
    let mut keys = Vec::new();
    keys.extend(volume.config_map.iter().map(|source| map(&source.name)));
    keys.extend(volume.secret.iter().filter_map(|s| s.secret_name.as_deref()).map(secret));
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for source in sources {
        keys.extend(source.config_map.iter().map(|s| map(&s.name)));
        keys.extend(source.secret.iter().map(|s| secret(&s.name)));
    }
    keys
}

/// How long the shortest-lived token among a pod's volumes is good for; none without tokens.
pub fn token_seconds(pod: &Pod) -> Option<i64> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.map(|token| token.expiration_seconds.unwrap_or(TOKEN_SECONDS)).min()
}

/// Whether the volume's files must not reach a disk.
pub fn is_secret(volume: &Volume) -> bool {
    let mut sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    volume.secret.is_some()
        || sources.any(|s| s.secret.is_some() || s.service_account_token.is_some())
}

/// The volume's files; none if it is not made of files.
pub async fn collect(
    pod: &Pod,
    volume: &Volume,
    place: &Place,
    objects: &Objects,
) -> Result<Option<Payload>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let found = optional(objects.config_map(&namespace, &source.name).await, source.optional)?;
        let data = found.map(map_data).unwrap_or_default();
        let items = Items::new(source.items.as_deref(), source.default_mode, source.optional);
        items.pick(&data, "configmap", &mut files)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let found = optional(objects.secret(&namespace, name).await, source.optional)?;
        let data = found.map(secret_data).unwrap_or_default();
        let items = Items::new(source.items.as_deref(), source.default_mode, source.optional);
        items.pick(&data, "secret", &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        downward(pod, source.items.iter().flatten(), source.default_mode, place, &mut files)?;
    } else if let Some(source) = &volume.projected {
        for each in source.sources.iter().flatten() {
            project(pod, each, source.default_mode, place, objects, &mut files).await?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

async fn project(
    pod: &Pod,
    source: &VolumeProjection,
    mode: Option<i32>,
    place: &Place,
    objects: &Objects,
    files: &mut Payload,
) -> Result<(), String> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(from) = &source.config_map {
        let found = optional(objects.config_map(&namespace, &from.name).await, from.optional)?;
        let data = found.map(map_data).unwrap_or_default();
        Items::new(from.items.as_deref(), mode, from.optional).pick(&data, "configmap", files)?;
    }
    if let Some(from) = &source.secret {
        let found = optional(objects.secret(&namespace, &from.name).await, from.optional)?;
        let data = found.map(secret_data).unwrap_or_default();
        Items::new(from.items.as_deref(), mode, from.optional).pick(&data, "secret", files)?;
    }
    if let Some(from) = &source.downward_api {
        downward(pod, from.items.iter().flatten(), mode, place, files)?;
    }
    if let Some(from) = &source.service_account_token {
        let data = token(pod, from, objects).await?.into_bytes();
        files.insert(from.path.clone(), PayloadFile { data, mode: bits(mode, None) });
    }
    Ok(())
}

async fn token(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    objects: &Objects,
) -> Result<String, String> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
    let spec = TokenRequestSpec {
        audiences: source.audience.clone().map(|audience| vec![audience]),
        expiration_seconds: Some(source.expiration_seconds.unwrap_or(TOKEN_SECONDS)),
        bound_object_ref: Some(BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
    };
    let namespace = pod.namespace().unwrap_or_default();
    let token = objects.token(&namespace, account.unwrap_or("default"), spec).await;
    token.map_err(|error| error.to_string())
}

type Data = BTreeMap<String, Vec<u8>>;

fn map_data(map: ConfigMap) -> Data {
    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(key, ByteString(value))| (key, value));
    text.chain(binary).collect()
}

fn secret_data(secret: Secret) -> Data {
    secret.data.into_iter().flatten().map(|(key, ByteString(value))| (key, value)).collect()
}

fn bits(default: Option<i32>, own: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o7777
}

/// Which keys become files, and where.
struct Items<'a> {
    list: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
}

impl<'a> Items<'a> {
    fn new(list: Option<&'a [KeyToPath]>, mode: Option<i32>, optional: Option<bool>) -> Self {
        let list = list.filter(|list| !list.is_empty());
        Self { list, mode, optional: optional == Some(true) }
    }

    fn pick(&self, data: &Data, what: &str, into: &mut Payload) -> Result<(), String> {
        let Some(list) = self.list else {
            let file =
                |data: &Vec<u8>| PayloadFile { data: data.clone(), mode: bits(self.mode, None) };
            into.extend(data.iter().map(|(key, value)| (key.clone(), file(value))));
            return Ok(());
        };
        for item in list {
            match data.get(&item.key) {
                Some(value) => {
                    let mode = bits(self.mode, item.mode);
                    into.insert(item.path.clone(), PayloadFile { data: value.clone(), mode });
                }
                None if self.optional => {}
                None => return Err(format!("references non-existent {what} key: {}", item.key)),
            }
        }
        Ok(())
    }
}

fn downward<'a>(
    pod: &Pod,
    items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
    mode: Option<i32>,
    place: &Place,
    into: &mut Payload,
) -> Result<(), String> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, field, place)?,
            (None, Some(field)) => {
                let divisor = field.divisor.as_ref().map(|q| q.0.as_str());
                let name = field.container_name.as_deref();
                resource_value(pod, &Container::default(), name, &field.resource, divisor, place)?
            }
            (None, None) => continue,
        };
        let file = PayloadFile { data: value.into_bytes(), mode: bits(mode, item.mode) };
        into.insert(item.path.clone(), file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_place_keys() {
        let data = Data::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]);
        let item = |key: &str, mode| KeyToPath { key: key.into(), path: format!("x/{key}"), mode };
        let list = [item("a", Some(0o400))];
        let mut files = Payload::new();
        Items::new(Some(&list), Some(0o600), None).pick(&data, "configmap", &mut files).unwrap();
        assert_eq!(
            files,
            Payload::from([("x/a".into(), PayloadFile { data: b"1".to_vec(), mode: 0o400 })])
        );
        let missing = [item("z", None)];
        let pick = |optional| {
            Items::new(Some(&missing), None, optional).pick(&data, "secret", &mut Payload::new())
        };
        assert_eq!(pick(None), Err("references non-existent secret key: z".into()));
        assert_eq!(pick(Some(true)), Ok(()));
        let mut all = Payload::new();
        Items::new(None, None, None).pick(&data, "configmap", &mut all).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all["a"].mode, 0o644);
    }
}
