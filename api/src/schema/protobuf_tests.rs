//! Protobuf: there and back, hostile bytes, a body that a real kubectl sent.

use super::*;
use crate::schema::{builtin, check};
use proptest::prelude::*;
use serde_json::json;

fn id(name: &str) -> TypeId {
    builtin().id(name).unwrap_or_else(|| panic!("no type {name}"))
}

fn round_trip(name: &str, gvk: &GroupVersionKind, value: &Value) -> Value {
    let schema = builtin();
    let bytes = encode(schema, gvk, id(name), value).unwrap();
    decode(schema, id(name), &bytes).unwrap().value
}

#[test]
fn writes_the_bytes_that_go_writes() {
    let gvk = GroupVersionKind::new("v1", "ConfigMap");
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let bytes = encode(builtin(), &gvk, id("core.v1.ConfigMap"), &value).unwrap();
    let want = [
        &b"k8s\0"[..],
        b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap",
        b"\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v",
        b"\x1a\x00\x22\x00",
    ]
    .concat();
    assert_eq!(bytes, want);
}

#[test]
fn keeps_what_has_a_meaning() {
    let gvk = GroupVersionKind::new("apps/v1", "Deployment");
    let value = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "creationTimestamp": "2026-11-20T16:53:00Z"},
        "spec": {"replicas": 0, "selector": {}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"spec": {"automountServiceAccountToken": false,
                "containers": [{"name": "", "resources": {"limits": {"cpu": "500m"}},
                    "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 3}}],
                "volumes": [{"name": "e", "emptyDir": {}},
                    {"name": "c", "configMap": {"name": "x", "optional": false}}]}}}});
    assert_eq!(round_trip("apps.v1.Deployment", &gvk, &value), value);
}

/// The body of `kubectl create deployment x --image=a`, version 1.33.
const CREATE_DEPLOYMENT: &str = "
    6b3873000a150a07617070732f7631120a4465706c6f796d656e74129b010a1b0a017812001a0022002a0032
    00380042005a080a03617070120178126e0801120a0a080a036170701201781a560a1a0a0012001a0022002a
    003200380042005a080a036170701201781238121a0a01611201612a0042006a007200800100880100900100
    a201001a00320042004a0052005800600068008201008a01009a0100c2010022020a00280038001a0c080010
    0018002000280038001a002200";

#[test]
fn reads_what_kubectl_sends() {
    let digits: Vec<u8> = CREATE_DEPLOYMENT.bytes().filter(u8::is_ascii_hexdigit).collect();
    let body: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(peek_kind(&body).unwrap(), GroupVersionKind::new("apps/v1", "Deployment"));
    let got = decode(builtin(), id("apps.v1.Deployment"), &body).unwrap().value;
    assert_eq!(
        got,
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "x", "labels": {"app": "x"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "x"}}, "strategy": {},
                "template": {"metadata": {"labels": {"app": "x"}},
                    "spec": {"containers": [{"name": "a", "image": "a", "resources": {}}]}}},
            "status": {}})
    );
}

/// What client-go sends for a new namespace: zero strings, an empty time, empty structures.
#[test]
fn drops_the_zero_values_that_go_writes() {
    let mut w = Writer::default();
    w.message(1, |w| {
        w.string(1, "ns");
        for n in 2..=6 {
            w.string(n, "");
        }
        w.int(7, 0);
        w.message(8, |_| {});
    });
    w.message(2, |_| {});
    w.message(3, |w| w.string(1, ""));
    let bytes = envelope(&GroupVersionKind::new("v1", "Namespace"), &w.finish());
    let got = decode(builtin(), id("core.v1.Namespace"), &bytes).unwrap().value;
    assert_eq!(
        got,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}, "spec": {}, "status": {}})
    );
}

#[test]
fn lists_and_watches_carry_messages() {
    let schema = builtin();
    let pod = json!({"metadata": {"name": "p"}});
    let message = encode_message(schema, id("core.v1.Pod"), &pod).unwrap();
    let list = GroupVersionKind::new("v1", "PodList");
    let bytes = encode_list(
        schema,
        &list,
        &json!({"resourceVersion": "7"}),
        [&message[..], &message[..]].into_iter(),
    )
    .unwrap();
    let got = decode(schema, id("core.v1.PodList"), &bytes).unwrap().value;
    assert_eq!(
        got,
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [pod, pod]})
    );
    let object = envelope(&GroupVersionKind::new("v1", "Pod"), &message);
    let frame = watch_frame("ADDED", &object);
    assert_eq!(frame.len() as u32 - 4, u32::from_be_bytes(frame[..4].try_into().unwrap()));
    let event = GroupVersionKind::new("meta.k8s.io/v1", "WatchEvent");
    let got = decode(schema, id("meta.v1.WatchEvent"), &envelope(&event, &frame[4..])).unwrap();
    assert_eq!(got.value["object"]["kind"], "Pod");
    assert_eq!(got.value["type"], "ADDED");
}

#[test]
fn every_list_has_its_items_in_field_two() {
    let lists = builtin().iter().filter(|(_, def)| {
        let items = def.fields.get("items").map(|f| &f.ty);
        let of_objects = matches!(items, Some(FieldType::List { item, .. }) if matches!(**item, FieldType::Struct(_)));
        def.has_protobuf && of_objects && def.name.ends_with("List")
    });
    for (_, def) in lists {
        assert_eq!(def.fields.get("items").unwrap().number, 2, "{}", def.name);
        assert_eq!(def.fields.get("metadata").unwrap().number, 1, "{}", def.name);
    }
}

#[test]
fn refuses_broken_and_hostile_bodies() {
    let schema = builtin();
    let gvk = GroupVersionKind::new("v1", "Pod");
    let mut any = b"{}".to_vec();
    for _ in 0..150 {
        let mut w = Writer::default();
        w.message(2, |w| w.bytes(1, &any));
        any =
            envelope(&GroupVersionKind::new("meta.k8s.io/v1", "WatchEvent"), &w.finish()).to_vec();
    }
    let mut mass = Writer::default();
    mass.message(2, |w| (0..=MAX_OBJECTS).for_each(|_| w.bytes(2, b"")));
    for (name, body, want) in [
        ("core.v1.Pod", b"{}".to_vec(), "does not appear to be a protobuf message"),
        ("core.v1.Pod", envelope(&gvk, &[0x0a, 9]).to_vec(), "unexpected EOF"),
        ("core.v1.Pod", envelope(&gvk, &[0x08, 1]).to_vec(), "wrong wire type"),
        ("core.v1.Pod", envelope(&gvk, &[0x0a, 3, 0x0a, 1, 0xff]).to_vec(), "no UTF-8"),
        ("core.v1.Pod", envelope(&gvk, &mass.finish()).to_vec(), "too many objects"),
        ("meta.v1.WatchEvent", any, "exceeded max depth"),
    ] {
        let error = decode(schema, id(name), &body).unwrap_err();
        assert!(error.message.contains(want), "{want}: {}", error.message);
    }
    let crd = id("apiextensions.v1.CustomResourceDefinition");
    assert_eq!(encode(schema, &gvk, crd, &json!({})).unwrap_err().reason, Reason::NotAcceptable);
}

/// A small generator: values of a type from a stream of random bytes.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }

    fn text(&mut self) -> String {
        (0..self.below(6))
            .map(|_| ['a', 'Z', '0', 'é', '"', '\n'][self.below(6) as usize])
            .collect()
    }

    fn value(&mut self, ty: &FieldType, depth: u32) -> Value {
        match ty {
            FieldType::Scalar(scalar) => self.scalar(*scalar),
            FieldType::Any => json!({"f:x": self.text(), "n": null}),
            FieldType::Struct(id) => self.structure(*id, depth),
            FieldType::List { item, .. } => {
                (0..=self.below(3)).map(|_| self.value(item, depth + 1)).collect()
            }
            FieldType::Map { value, .. } => Value::Object(
                (0..=self.below(3)).map(|_| (self.text(), self.value(value, depth + 1))).collect(),
            ),
        }
    }

    fn structure(&mut self, id: TypeId, depth: u32) -> Value {
        let def = builtin().get(id);
        let mut map = Map::new();
        for (name, field) in def.fields.iter() {
            if field.number > 0 && self.below(3 + u64::from(depth * depth)) == 0 {
                map.insert(name.into(), self.value(&field.ty, depth + 1));
            }
        }
        Value::Object(map)
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => self.text().into(),
            Scalar::Int32 => (self.below(5) as i32 - 2).into(),
            Scalar::Int64 => (self.below(u64::MAX) as i64).into(),
            Scalar::Double => 0.5.into(),
            Scalar::Bool => (self.below(2) == 0).into(),
            Scalar::Bytes => STANDARD.encode(self.text()).into(),
            Scalar::Time => scalar::time_text(self.below(4_000_000_000) as i64).into(),
            Scalar::MicroTime => {
                scalar::micro_time_text(self.below(4_000_000_000) as i64, 123_456_000).into()
            }
            Scalar::Duration => "1m30s".into(),
            Scalar::Quantity => ["0", "500m", "1Gi", "-3"][self.below(4) as usize].into(),
            Scalar::IntOrString => match self.below(2) {
                0 => self.text().into(),
                _ => (self.below(3) as i32).into(),
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_value_survives(seed in 1u64.., pick in 0usize..10_000) {
        let schema = builtin();
        let types: Vec<TypeId> =
            schema.iter().filter(|(_, def)| def.has_protobuf).map(|(id, _)| id).collect();
        let id = types[pick % types.len()];
        let value = Random(seed).structure(id, 0);
        let value = check(schema, id, value, FieldValidation::Strict).unwrap().value;
        let gvk = GroupVersionKind { group: String::new(), version: String::new(), kind: String::new() };
        let bytes = encode(schema, &gvk, id, &value).unwrap();
        prop_assert_eq!(decode(schema, id, &bytes).unwrap().value, value, "{}", schema.get(id).name);
    }

    #[test]
    fn garbage_never_panics(mut body in proptest::collection::vec(any::<u8>(), 0..300), pick in 0u32..500) {
        let gvk = GroupVersionKind::new("v1", "Pod");
        body = envelope(&gvk, &body).to_vec();
        let _ = decode(builtin(), TypeId(pick), &body);
    }

    #[test]
    fn damage_never_panics(seed in 1u64.., at in 0usize..4000, bit in 0u8..8) {
        let schema = builtin();
        let id = id("core.v1.Pod");
        let value = Random(seed).structure(id, 0);
        let mut bytes = encode(schema, &GroupVersionKind::new("v1", "Pod"), id, &value).unwrap().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let _ = decode(schema, id, &bytes);
    }
}
