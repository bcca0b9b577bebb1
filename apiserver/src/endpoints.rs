//! The endpoints of the Service `kubernetes`: the API servers of all members, kept by the leader.
//!
//! A slice has one family of addresses and one port, so members that differ in these stand in
//! slices of their own. All of them carry the Service's label; that of the first member is the one
//! named `kubernetes`.

use crate::bootstrap::{ensure, own_context};
use crate::rest;
use crate::server::ApiServer;
use rkube_api::ApiError;
use rkube_store::{Key, Member, Scope};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(1);
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";
const RESOURCE: (&str, &str, &str) = ("discovery.k8s.io", "v1", "endpointslices");
const STORED: &str = "endpointslices.discovery.k8s.io";
/// Who keeps a slice, by its label `endpointslice.kubernetes.io/managed-by`.
const KEEPER: &str = "rkube-apiserver";

/// Follows the members as long as the term lasts.
pub async fn keep(api: &Arc<ApiServer>, term: u64) {
    loop {
        let members = api.storage.members();
        match publish(api, term, &members).await {
            Ok(()) => api.storage.members_changed(&members).await,
            Err(error) => {
                tracing::warn!(%error, "writing the endpoints of the API servers failed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Makes the slices what the members need.
///
/// # Errors
/// What refused a write.
pub async fn publish(api: &Arc<ApiServer>, term: u64, members: &[Member]) -> Result<(), ApiError> {
    let addresses = addresses(api, members);
    if addresses.is_empty() {
        tracing::info!(
            "no member advertises an address that others could reach: the Service kubernetes has no endpoint"
        );
        return Ok(());
    }
    let wanted = slices(&addresses);
    for slice in &wanted {
        put(api, term, slice).await?;
    }
    remove_others(api, term, &wanted).await
}

/// Where the members' API servers are. A member that has not said it yet and is this one is where
/// this server was told.
fn addresses(api: &ApiServer, members: &[Member]) -> Vec<SocketAddr> {
    let own = api.storage.identity().member_id;
    let config = api.config();
    let found = members.iter().filter_map(|member| {
        let told = SocketAddr::new(config.advertise_address, config.secure_port);
        address_of(&member.info.api_url).or((member.id == own).then_some(told))
    });
    // Nobody else could reach a loopback address, and Kubernetes takes no such endpoint.
    found.filter(|a| !a.ip().is_loopback() && !a.ip().is_unspecified()).collect()
}

/// The address in a URL such as `https://192.0.2.1:6443`; None for a name.
fn address_of(url: &str) -> Option<SocketAddr> {
    let uri: http::Uri = url.parse().ok()?;
    let ip: IpAddr = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(ip, uri.port_u16().unwrap_or(443)))
}

/// The slices of these addresses, which are in the members' order.
fn slices(addresses: &[SocketAddr]) -> Vec<Value> {
    let mut groups: Vec<((bool, u16), Vec<String>)> = Vec::new();
    for address in addresses {
        let sort = (address.is_ipv4(), address.port());
        let ip = address.ip().to_string();
        match groups.iter_mut().find(|(s, _)| *s == sort) {
            Some((_, ips)) if ips.contains(&ip) => {}
            Some((_, ips)) => ips.push(ip),
            None => groups.push((sort, vec![ip])),
        }
    }
    let slice = |(i, ((is_ipv4, port), ips)): (usize, &((bool, u16), Vec<String>))| {
        let family = if *is_ipv4 { "IPv4" } else { "IPv6" };
        let name = match i {
            0 => SERVICE.to_owned(),
            _ => format!("{SERVICE}-{}-{port}", family.to_lowercase()),
        };
        let endpoint = |ip: &String| json!({"addresses": [ip], "conditions": {"ready": true}});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/service-name": SERVICE,
                "endpointslice.kubernetes.io/managed-by": KEEPER,
            }},
            "addressType": family,
            "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        })
    };
    groups.iter().enumerate().map(slice).collect()
}

async fn put(api: &Arc<ApiServer>, term: u64, wanted: &Value) -> Result<(), ApiError> {
    let name = rkube_api::meta::metadata_str(wanted, "name").to_owned();
    let old = api.storage.fresh_view().await?.get(&Key::new(STORED, NAMESPACE, &name));
    let old = old.and_then(|o| serde_json::from_slice::<Value>(&o.json).ok());
    if let Some(old) = &old
        && old["addressType"] != wanted["addressType"]
    {
        // The family can't be changed.
        delete(api, term, &name).await?;
    }
    ensure(api, term, RESOURCE, NAMESPACE, wanted.clone()).await?;
    let (group, version, plural) = RESOURCE;
    let kind = api.registry.resource(group, version, plural).ok_or_else(ApiError::no_route)?;
    let mut cx = own_context(RESOURCE, NAMESPACE)?.in_term(Some(term));
    cx.info.name = name;
    rest::change_main(api, &cx, kind, |old| {
        let mut new = old.clone();
        for field in ["endpoints", "ports"] {
            new[field] = wanted[field].clone();
        }
        for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
            new["metadata"]["labels"][key] = value.clone();
        }
        Ok(new)
    })
    .await
}

/// Deletes slices of members that are gone.
async fn remove_others(api: &Arc<ApiServer>, term: u64, wanted: &[Value]) -> Result<(), ApiError> {
    let label = "endpointslice.kubernetes.io/managed-by";
    let scope = Scope::namespace(STORED, NAMESPACE);
    let view = api.storage.fresh_view().await?;
    for object in view.range(&scope, None) {
        let ours = object.header.labels.iter().any(|(k, v)| &**k == label && &**v == KEEPER);
        let name = &*object.key.name;
        let stays = wanted.iter().any(|w| w["metadata"]["name"] == name);
        if ours && !stays {
            delete(api, term, name).await?;
        }
    }
    Ok(())
}

async fn delete(api: &Arc<ApiServer>, term: u64, name: &str) -> Result<(), ApiError> {
    let (group, version, plural) = RESOURCE;
    let kind = api.registry.resource(group, version, plural).ok_or_else(ApiError::no_route)?;
    let cx = own_context(RESOURCE, NAMESPACE)?.in_term(Some(term));
    rest::delete_plainly(api, &cx, kind, &rest::key_of(kind, NAMESPACE, name)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Vec<(String, usize)> {
        let addresses: Vec<SocketAddr> = texts.iter().map(|t| t.parse().unwrap()).collect();
        let slices = slices(&addresses);
        let count = |s: &Value| s["endpoints"].as_array().unwrap().len();
        slices
            .iter()
            .map(|s| (s["metadata"]["name"].as_str().unwrap().to_owned(), count(s)))
            .collect()
    }

    #[test]
    fn members_that_differ_in_family_or_port_have_slices_of_their_own() {
        let same = ["192.0.2.1:6443", "192.0.2.2:6443", "192.0.2.3:6443"];
        assert_eq!(of(&same), [("kubernetes".to_owned(), 3)]);
        let mixed = ["192.0.2.1:6443", "192.0.2.1:6444", "[2001:db8::1]:6443", "192.0.2.2:6443"];
        let names = of(&mixed);
        assert_eq!(names[0], ("kubernetes".to_owned(), 2));
        assert_eq!(names[1], ("kubernetes-ipv4-6444".to_owned(), 1));
        assert_eq!(names[2], ("kubernetes-ipv6-6443".to_owned(), 1));
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn addresses_come_from_urls() {
        assert_eq!(address_of("https://192.0.2.1:6443"), "192.0.2.1:6443".parse().ok());
        assert_eq!(address_of("https://[2001:db8::1]"), "[2001:db8::1]:443".parse().ok());
        assert_eq!(address_of("https://member-1:6443"), None);
        assert_eq!(address_of(""), None);
    }
}
