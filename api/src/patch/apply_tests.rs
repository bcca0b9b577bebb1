//! Tests of server-side apply over the built-in schema.

use super::*;
use crate::patch::managed;
use crate::schema;
use proptest::prelude::*;

const DEPLOYMENT: &str = "apps.v1.Deployment";

fn writer(manager: &str, second: i64) -> Writer<'_> {
    Writer {
        manager,
        api_version: "apps/v1",
        subresource: "",
        now: Timestamp::from_second(1_700_000_000 + second).unwrap(),
    }
}

fn applied(
    live: Option<&Value>,
    config: Value,
    who: Writer<'_>,
    force: bool,
) -> Result<Value, ApiError> {
    let schema = schema::builtin();
    apply(schema, schema.id(DEPLOYMENT).unwrap(), live, &config, &who, force)
}

fn updated(old: Option<&Value>, mut new: Value, who: Writer<'_>) -> Value {
    let schema = schema::builtin();
    track_update(schema, schema.id(DEPLOYMENT).unwrap(), old, &mut new, &who);
    new
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn template(containers: Value) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}})
}

fn fields(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|e| e["manager"] == manager);
    let entry = entry.unwrap_or_else(|| panic!("{manager} in {entries:?}"));
    serde_json::from_str(entry["fieldsV1"].as_str().unwrap()).unwrap()
}

fn managers(object: &Value) -> Vec<&str> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().map(|e| e["manager"].as_str().unwrap()).collect()
}

/// As a real API server recorded it.
#[test]
fn create_owns_what_is_set() {
    let mut created = updated(
        None,
        deployment(json!({
            "progressDeadlineSeconds": 600, "replicas": 1, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}, "type": "RollingUpdate"},
            "template": {"metadata": {"creationTimestamp": null, "labels": {"a": "b"}}, "spec": {
                "containers": [{"image": "a:1", "imagePullPolicy": "IfNotPresent", "name": "c", "resources": {}}],
                "dnsPolicy": "ClusterFirst", "securityContext": {}}},
        })),
        writer("curl", 0),
    );
    managed::unpack(&mut created);
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{"manager": "curl", "operation": "Update", "apiVersion": "apps/v1", "time": "2023-11-14T22:13:20Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {
                "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {}}},
                    "f:dnsPolicy": {}, "f:securityContext": {}}}}}}])
    );
}

#[test]
fn an_update_takes_over_what_it_changes() {
    let one = updated(None, deployment(json!({"replicas": 1, "paused": true})), writer("a", 0));
    let mut two = one.clone();
    two["spec"]["replicas"] = 2.into();
    let two = updated(Some(&one), two, writer("b", 1));
    assert_eq!(fields(&two, "a"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&two, "b"), json!({"f:spec": {"f:replicas": {}}}));
    let same = updated(Some(&two), two.clone(), writer("b", 9));
    assert_eq!(same, two, "an update that changes nothing leaves the times");
    let mut three = two.clone();
    three["spec"].as_object_mut().unwrap().remove("paused");
    assert_eq!(managers(&updated(Some(&two), three, writer("c", 2))), ["b"]);
}

#[test]
fn managed_fields_can_be_reset() {
    let one = updated(None, deployment(json!({"replicas": 1})), writer("a", 0));
    for (sent, left) in [
        (json!([{}]), 0),
        (json!([]), 1),
        (Value::Null, 1),
        (json!([{"operation": "Nonsense"}]), 1),
    ] {
        let mut new = one.clone();
        new["metadata"]["managedFields"] = sent;
        assert_eq!(managers(&updated(Some(&one), new, writer("b", 1))).len(), left);
    }
}

#[test]
fn many_updaters_are_folded() {
    let mut live = updated(None, deployment(json!({})), writer("m", 0));
    for i in 0..14 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{i}")] = "x".into();
        let manager = format!("m{i}");
        live = updated(Some(&live), new, writer(&manager, i));
    }
    assert_eq!(managers(&live).len(), MAX_UPDATE_ENTRIES);
    assert!(managers(&live).contains(&ANCIENT));
}

#[test]
fn apply_creates_and_prunes() {
    let config = deployment(
        json!({"replicas": 3, "template": template(json!([{"name": "c", "image": "a:1"}, {"name": "d", "image": "a:1"}]))}),
    );
    let one = applied(None, config, writer("a", 0), false).unwrap();
    assert_eq!(
        fields(&one, "a"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}},
            "k:{\"name\":\"d\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
    );
    let config =
        deployment(json!({"template": {"spec": {"containers": [{"name": "d", "image": "a:2"}]}}}));
    let two = applied(Some(&one), config, writer("a", 1), false).unwrap();
    let expected = json!({"template": {"spec": {"containers": [{"name": "d", "image": "a:2"}]}}});
    assert_eq!(two["spec"], expected, "what is left out goes, and what that empties");
    assert_eq!(two["metadata"]["managedFields"][0]["time"], "2023-11-14T22:13:21Z");
}

#[test]
fn what_others_own_stays() {
    let one =
        applied(None, deployment(json!({"replicas": 3, "paused": true})), writer("a", 0), false)
            .unwrap();
    let two =
        applied(Some(&one), deployment(json!({"replicas": 3})), writer("b", 1), false).unwrap();
    assert_eq!(managers(&two), ["a", "b"]);
    let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    let three = applied(Some(&two), nothing.clone(), writer("a", 2), false).unwrap();
    assert_eq!(three["spec"], json!({"replicas": 3}));
    assert_eq!(managers(&three), ["b"]);
    let four = applied(Some(&three), deployment(json!({})), writer("c", 3), false).unwrap();
    let five = applied(Some(&four), nothing, writer("c", 4), false).unwrap();
    assert_eq!(
        five["spec"], three["spec"],
        "an empty structure once applied takes nothing with it"
    );
}

#[test]
fn conflicts_are_worded_as_upstream() {
    let one = applied(None, deployment(json!({"replicas": 3})), writer("a", 0), false).unwrap();
    let error =
        applied(Some(&one), deployment(json!({"replicas": 4})), writer("b", 1), false).unwrap_err();
    assert_eq!(
        error.to_status(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas", "reason": "Conflict",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}]}, "code": 409})
    );
    let mut new = one.clone();
    new["spec"]["paused"] = true.into();
    let two = updated(Some(&one), new, writer("kubectl", 1));
    let config = deployment(json!({"replicas": 4, "paused": false}));
    let error = applied(Some(&two), config.clone(), writer("b", 2), false).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\nconflicts with \"kubectl\" using apps/v1:\n- .spec.paused"
    );
    let forced = applied(Some(&two), config, writer("b", 2), true).unwrap();
    assert_eq!(managers(&forced), ["b"]);
    assert_eq!(forced["spec"], json!({"replicas": 4, "paused": false}));
}

#[test]
fn kubectl_takes_over_its_client_side_fields() {
    let last = deployment(json!({"replicas": 1})).to_string();
    let mut object = deployment(json!({"replicas": 1, "paused": true}));
    object["metadata"]["annotations"] = json!({ LAST_APPLIED: last });
    let live = updated(None, object, writer("kubectl-client-side-apply", 0));
    assert!(
        applied(Some(&live), deployment(json!({"replicas": 2})), writer("kubectl", 1), false)
            .is_ok()
    );
    assert!(
        applied(Some(&live), deployment(json!({"replicas": 2})), writer("other", 1), false)
            .is_err()
    );
    assert!(
        applied(Some(&live), deployment(json!({"paused": false})), writer("kubectl", 1), false)
            .is_err()
    );
}

#[test]
fn what_nobody_manages_has_a_manager_at_the_first_apply() {
    let live = deployment(json!({"replicas": 1, "paused": true}));
    let error = applied(Some(&live), deployment(json!({"replicas": 2})), writer("a", 0), false)
        .unwrap_err();
    let message = "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas";
    assert_eq!(error.message, message);
    let same = deployment(json!({"replicas": 1}));
    let new = applied(Some(&live), same, writer("a", 0), false).unwrap();
    assert_eq!(managers(&new), ["a", "before-first-apply"]);
    assert_eq!(
        fields(&new, "before-first-apply"),
        json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
}

#[test]
fn items_keep_their_places() {
    let containers = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "i"})).collect();
        deployment(json!({"template": template(list.into())}))
    };
    let live = updated(None, containers(&["a", "b", "c", "d"]), writer("u", 0));
    let new = applied(Some(&live), containers(&["d", "x", "b"]), writer("s", 1), false).unwrap();
    let names: Vec<&str> = new["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "d", "x", "b", "c"]);
}

#[test]
fn missing_keys_have_their_default() {
    let ports = |ports: Value| {
        deployment(json!({"template": template(json!([{"name": "c", "ports": ports}]))}))
    };
    let one = applied(None, ports(json!([{"containerPort": 80}])), writer("a", 0), false).unwrap();
    let set = fields(&one, "a").to_string();
    assert!(set.contains(r#"k:{\"containerPort\":80,\"protocol\":\"TCP\"}"#), "{set}");
    for (bad, why) in [
        (
            ports(json!([{"name": "x"}])),
            ".spec.template.spec.containers[name=\"c\"].ports: element 0: associative list with keys has an element that omits key field \"containerPort\" (and doesn't have default value)",
        ),
        (deployment(json!({"nope": 4})), ".spec.nope: field not declared in schema"),
        (
            ports(json!([{"containerPort": 1}, {"containerPort": 1}])),
            ".spec.template.spec.containers[name=\"c\"].ports: duplicate entries for key [containerPort=1,protocol=\"TCP\"]",
        ),
    ] {
        let error = applied(None, bad, writer("a", 0), false).unwrap_err();
        assert_eq!(
            error.message,
            format!("failed to create typed patch object (/d; apps/v1, Kind=Deployment): {why}")
        );
    }
}

#[test]
fn a_configuration_has_no_managed_fields() {
    let mut config = deployment(json!({}));
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let error = applied(None, config, writer("a", 0), false).unwrap_err();
    assert_eq!(
        (error.message.as_str(), error.reason.code()),
        ("metadata.managedFields must be nil", 400)
    );
}

fn spec() -> impl Strategy<Value = Value> {
    let labels = || {
        prop::collection::btree_map(
            "[a-c]".prop_map(String::from),
            "[xy]".prop_map(String::from),
            0..3,
        )
    };
    let containers =
        prop::collection::btree_map("[a-d]", ("[xy]", prop::option::of(labels())), 0..4);
    let containers = containers.prop_map(|map| {
        let item = |(name, (image, env)): (
            String,
            (String, Option<std::collections::BTreeMap<String, String>>),
        )| {
            let env: Vec<Value> =
                env.into_iter().flatten().map(|(k, v)| json!({"name": k, "value": v})).collect();
            json!({"name": name, "image": image, "env": env})
        };
        Value::from(map.into_iter().map(item).collect::<Vec<_>>())
    });
    (prop::option::of(0_i32..3), labels(), containers, any::<bool>()).prop_map(|(replicas, labels, mut containers, reverse)| {
        if reverse {
            containers.as_array_mut().unwrap().reverse();
        }
        let mut spec = json!({"template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}});
        if let Some(replicas) = replicas {
            spec["replicas"] = replicas.into();
        }
        deployment(spec)
    })
}

proptest! {
    #[test]
    fn applying_twice_is_a_no_op(base in spec(), a in spec(), b in spec()) {
        let live = updated(None, base, writer("u", 0));
        let live = applied(Some(&live), b, writer("b", 1), true).unwrap();
        let once = applied(Some(&live), a.clone(), writer("a", 2), true).unwrap();
        let twice = applied(Some(&once), a.clone(), writer("a", 3), false).unwrap();
        prop_assert_eq!(&twice, &once);
        let owned = structured::field_set(schema::builtin(), schema::builtin().id(DEPLOYMENT).unwrap(), &a).unwrap();
        prop_assert_eq!(serde_json::to_value(&owned).unwrap(), fields(&once, "a"));
    }

    #[test]
    fn owners_own_what_exists(base in spec(), a in spec(), b in spec()) {
        let schema = schema::builtin();
        let ty = schema.id(DEPLOYMENT).unwrap();
        let one = updated(None, base, writer("u", 0));
        let two = applied(Some(&one), a, writer("a", 1), true).unwrap();
        let mut edited = two.clone();
        edited["spec"] = b["spec"].clone();
        let three = updated(Some(&two), edited, writer("e", 2));
        let all = structured::compare(schema, ty, Some(&json!({"metadata": {}})), &three).changed;
        let mut whole = all.clone();
        whole.union(&structured::field_set(schema, ty, &three).unwrap());
        for entry in decode(&raw_entries(Some(&three))) {
            let mut outside = entry.set.clone();
            outside.subtract(&whole);
            // The path of a structure or list may stay owned when it is emptied or held by value.
            prop_assert!(outside.paths().iter().all(|p| !p.ends_with("image") && !p.ends_with("value")), "{:?}", outside.paths());
        }
    }
}
