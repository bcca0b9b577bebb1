//! ConfigMap, Secret and ServiceAccount.

use super::access::{fields, flag, get, name_cell, remove, text};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::print::entries as count;
use super::{Kind, Strategy, Target, access, metadata, names};
use crate::error::FieldError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

/// The most that the values of a ConfigMap or Secret may weigh together.
const MAX_BYTES: usize = 1024 * 1024;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";
const REDACTED: &str = "<secret contents redacted>";

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    vec![config_map(), secret(), service_account()]
}

fn config_map() -> Kind {
    define("", "v1", "ConfigMap", "configmaps")
        .namespaced()
        .short_names(&["cm"])
        .columns(&[("Name", "string", 0), ("Data", "string", 0), ("Age", "string", 0)])
        .build(ConfigMapRules)
}

fn secret() -> Kind {
    define("", "v1", "Secret", "secrets")
        .namespaced()
        .columns(&[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("Data", "string", 0),
            ("Age", "string", 0),
        ])
        .selectable(&["type"])
        .build(SecretRules)
}

fn service_account() -> Kind {
    define("", "v1", "ServiceAccount", "serviceaccounts")
        .namespaced()
        .short_names(&["sa"])
        .columns(&[("Name", "string", 0), ("Age", "string", 0)])
        .subresource_of("token", &["create"], ("authentication.k8s.io", "v1", "TokenRequest"))
        .build(ServiceAccountRules)
}

/// What an object with `immutable: true` keeps.
fn frozen(faults: &mut Faults, new: &Value, old: &Value, keys: &[&'static str]) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        faults.forbidden(&Path::root("immutable"), IMMUTABLE);
    }
    for key in keys {
        if !access::same_field(new, old, key) {
            faults.forbidden(&Path::root(key), IMMUTABLE);
        }
    }
}

/// How many bytes a base64 text stands for.
fn decoded_len(text: &str) -> usize {
    (text.len() / 4 * 3).saturating_sub(text.bytes().rev().take_while(|b| *b == b'=').count())
}

struct ConfigMapRules;

impl ConfigMapRules {
    fn body(faults: &mut Faults, object: &Value) {
        let mut bytes = 0;
        let binary = object.get("binaryData");
        let (data_path, binary_path) = (Path::root("data"), Path::root("binaryData"));
        for (key, value) in object.get("data").into_iter().flat_map(fields) {
            faults.each(&data_path.key(key), key, names::config_key(key));
            if binary.is_some_and(|b| b.get(key).is_some()) {
                let detail = "duplicate of key present in binaryData";
                faults.invalid(&data_path.key(key), key.as_str(), detail);
            }
            bytes += value.as_str().map_or(0, str::len);
        }
        for (key, value) in binary.into_iter().flat_map(fields) {
            faults.each(&binary_path.key(key), key, names::config_key(key));
            bytes += value.as_str().map_or(0, decoded_len);
        }
        if bytes > MAX_BYTES {
            // The whole object is meant, which upstream writes so.
            faults.too_long(&Path::root("[]"), MAX_BYTES);
        }
    }
}

impl Strategy for ConfigMapRules {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        Self::body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        frozen(&mut faults, new, old, &["data", "binaryData"]);
        Self::body(&mut faults, new);
        faults.0
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let entries = count(object, &["data", "binaryData"]);
        vec![name_cell(object), entries, age_cell(object, now)]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

struct SecretRules;

impl SecretRules {
    fn body(faults: &mut Faults, object: &Value) {
        let path = Path::root("data");
        let mut bytes = 0;
        for (key, value) in object.get("data").into_iter().flat_map(fields) {
            faults.each(&path.key(key), key, names::config_key(key));
            bytes += value.as_str().map_or(0, decoded_len);
        }
        if bytes > MAX_BYTES {
            faults.too_long(&path, MAX_BYTES);
        }
        Self::of_type(faults, object);
    }

    /// The keys that a type asks for.
    fn of_type(faults: &mut Faults, object: &Value) {
        let none = Value::Null;
        let data = object.get("data").unwrap_or(&none);
        let path = Path::root("data");
        // Upstream writes these two paths so.
        let odd = Path::root("data[%s]");
        match text(object, "type") {
            "kubernetes.io/service-account-token" => service_account_name(faults, object),
            "kubernetes.io/dockercfg" => docker_config(faults, data, ".dockercfg"),
            "kubernetes.io/dockerconfigjson" => docker_config(faults, data, ".dockerconfigjson"),
            "kubernetes.io/basic-auth"
                if data.get("username").is_none() && data.get("password").is_none() =>
            {
                faults.required(&odd.key("username"), "");
                faults.required(&odd.key("password"), "");
            }
            "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
                faults.required(&odd.key("ssh-privatekey"), "");
            }
            "kubernetes.io/tls" => {
                for key in ["tls.crt", "tls.key"] {
                    if data.get(key).is_none() {
                        faults.required(&path.key(key), "");
                    }
                }
            }
            _ => {}
        }
    }
}

fn service_account_name(faults: &mut Faults, object: &Value) {
    const NAME: &str = "kubernetes.io/service-account.name";
    let annotations = object.get("metadata").and_then(|m| get(m, "annotations"));
    if annotations.is_none_or(|a| text(a, NAME).is_empty()) {
        let root = Path::root("metadata");
        let path = root.field("annotations");
        faults.required(&path.key(NAME), "");
    }
}

fn docker_config(faults: &mut Faults, data: &Value, key: &str) {
    let root = Path::root("data");
    let path = root.key(key);
    let Some(encoded) = data.get(key).and_then(Value::as_str) else {
        return faults.required(&path, "");
    };
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        faults.invalid(&path, REDACTED, error.to_string());
    }
}

impl Strategy for SecretRules {
    fn default(&self, object: &mut Value) {
        if let Some(Value::Object(plain)) = remove(object, "stringData")
            && let Some(data) = access::child(object, "data")
        {
            for (key, value) in plain {
                data[key.as_str()] = STANDARD.encode(value.as_str().unwrap_or("")).into();
            }
        }
        access::default_to(object, "type", "Opaque");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        Self::body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        faults.immutable(&Path::root("type"), get(new, "type"), get(old, "type"));
        frozen(&mut faults, new, old, &["data"]);
        Self::body(&mut faults, new);
        faults.0
    }

    fn selectable_values(&self, object: &Value) -> Vec<String> {
        vec![text(object, "type").into()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name_cell(object),
            text(object, "type").into(),
            count(object, &["data"]),
            age_cell(object, now),
        ]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}

struct ServiceAccountRules;

impl Strategy for ServiceAccountRules {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        metadata::validate(object, names::dns_subdomain).0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        metadata::validate_update(new, old).0
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name_cell(object), age_cell(object, now)]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}
