//! Golden data over all kinds: what a real API server stores, and what it answers to faults.

use super::*;
use crate::error::ApiError;
use crate::meta::{metadata_str, split_api_version};
use crate::schema;
use serde_json::json;

fn kind_of(object: &Value) -> &'static Arc<Kind> {
    let (group, version) = split_api_version(object["apiVersion"].as_str().unwrap());
    let kind = object["kind"].as_str().unwrap();
    builtin().kind(group, version, kind).unwrap()
}

/// The way of a new object up to validation, admission left out.
fn create(mut object: Value) -> Value {
    let kind = kind_of(&object);
    let types = schema::builtin();
    let id = types.id(&kind.type_name).unwrap();
    schema::apply_defaults(types, id, &mut object);
    kind.strategy.default(&mut object);
    kind.strategy.prepare_create(&mut object);
    bump_generation(kind, &mut object, &Value::Null);
    object
}

#[test]
fn defaults_are_those_of_a_real_server() {
    let pairs: Vec<Value> = serde_json::from_str(include_str!("testdata/defaults.json")).unwrap();
    assert!(pairs.len() > 15);
    for pair in pairs {
        let stored = create(pair["sent"].clone());
        let name = metadata_str(&stored, "name").to_owned();
        assert_eq!(stored, pair["stored"], "{} {name}", stored["kind"]);
        let faults = kind_of(&stored).strategy.validate(&with_namespace(stored));
        assert_eq!(faults, [], "{} {name}", pair["sent"]["kind"]);
    }
}

/// The server sets the namespace before it validates.
fn with_namespace(mut object: Value) -> Value {
    if kind_of(&object).namespaced {
        object["metadata"]["namespace"] = "default".into();
    }
    object
}

#[test]
fn faults_are_told_in_upstreams_words() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("testdata/errors.json")).unwrap();
    assert!(cases.len() > 25);
    for case in cases {
        let object = with_namespace(create(case["object"].clone()));
        let kind = kind_of(&object);
        let faults = kind.strategy.validate(&object);
        if case.get("message").is_none() {
            assert_eq!(faults, [], "{}", case["case"]);
            continue;
        }
        let name = metadata_str(&object, "name");
        let error = ApiError::invalid(&kind.group, &kind.kind, name, &faults);
        assert_eq!(error.message, case["message"].as_str().unwrap(), "{}", case["case"]);
        assert_eq!(error.to_status()["details"]["causes"], case["causes"], "{}", case["case"]);
    }
}

#[test]
fn a_big_config_map_is_refused() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"},
        "data": {"a": "x".repeat(1_100_000)}});
    let faults = kind_of(&object).strategy.validate(&object);
    let shown = ApiError::invalid("", "ConfigMap", "big", &faults).message;
    let text = "ConfigMap \"big\" is invalid: []: Too long: may not be more than 1048576 bytes";
    assert_eq!(shown, text);
}

fn deployment() -> Value {
    create(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}}}}),
    )
}

#[test]
fn a_selector_is_immutable() {
    let old = deployment();
    let mut new = old.clone();
    new["spec"]["selector"]["matchLabels"]["z"] = "z".into();
    let faults = kind_of(&old).strategy.validate_update(Target::Main, &new, &old);
    let message = ApiError::invalid("apps", "Deployment", "d", &faults).message;
    let expected = "Deployment.apps \"d\" is invalid: [spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`, spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"z\":\"z\"}}: field is immutable]";
    assert_eq!(message, expected);
}

#[test]
fn generations_count_changes_of_what_is_desired() {
    let old = deployment();
    let kind = kind_of(&old);
    let mut cases: Vec<(&str, Value, i64)> = Vec::new();
    let change = |pointer: &str, value: Value| {
        let mut new = old.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[key] = value;
        new
    };
    cases.push(("nothing", old.clone(), 1));
    cases.push(("spec", change("/spec/replicas", json!(5)), 2));
    cases.push(("status", change("/status/replicas", json!(5)), 1));
    cases.push(("labels", change("/metadata/labels", json!({"a": "b"})), 1));
    cases.push(("annotations", change("/metadata/annotations", json!({"a": "b"})), 2));
    cases.push(("forged", change("/metadata/generation", json!(70)), 1));
    for (name, mut new, expected) in cases {
        bump_generation(kind, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], expected, "{name}");
    }
}

#[test]
fn each_writer_keeps_the_others_half() {
    let old = deployment();
    let kind = kind_of(&old);
    let mut new = old.clone();
    new["spec"]["replicas"] = 7.into();
    new["status"] = json!({"replicas": 7});
    let mut by_main = new.clone();
    kind.strategy.prepare_update(Target::Main, &mut by_main, &old);
    assert_eq!((&by_main["spec"]["replicas"], &by_main["status"]), (&json!(7), &old["status"]));
    kind.strategy.prepare_update(Target::Status, &mut new, &old);
    assert_eq!((&new["spec"], &new["status"]["replicas"]), (&old["spec"], &json!(7)));
}

fn pod() -> Value {
    create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "a:1"}],
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}]}}))
}

#[test]
fn little_of_a_pod_may_change() {
    let old = pod();
    let change = |pointer: &str, value: Value| {
        let mut new = old.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match new.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            map => map[key] = value,
        }
        new
    };
    let longer = json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9},
        {"operator": "Exists"}]);
    for (new, expected) in [
        (change("/spec/containers/0/image", json!("b:2")), ""),
        (change("/spec/activeDeadlineSeconds", json!(9)), ""),
        (change("/spec/tolerations", longer), ""),
        (change("/metadata/labels", json!({"a": "b"})), ""),
        (
            change("/spec/tolerations", json!([])),
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ),
        (change("/spec/containers/0/image", json!("")), "spec.containers[0].image: Required value"),
        (
            change("/spec/containers", json!([])),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
        (
            change("/spec/nodeName", json!("n")),
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
        ),
        (
            change("/spec/containers/0/command", json!(["x"])),
            "spec: Forbidden: pod updates may not change fields",
        ),
    ] {
        let faults = kind_of(&old).strategy.validate_update(Target::Main, &new, &old);
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        match expected {
            "" => assert_eq!(shown, Vec::<String>::new()),
            start => assert!(shown[0].starts_with(start), "{shown:?}"),
        }
    }
}

#[test]
fn a_services_allocations_stay_until_its_type_goes() {
    let service = |spec: Value| {
        create(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}),
        )
    };
    let mut old = service(json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}]}));
    old["spec"]["clusterIP"] = "10.43.0.9".into();
    old["spec"]["clusterIPs"] = json!(["10.43.0.9"]);
    old["spec"]["ports"][0]["nodePort"] = 30_001.into();
    let update = |spec: Value| {
        let mut new = service(spec);
        let rules = &kind_of(&old).strategy;
        rules.prepare_update(Target::Main, &mut new, &old);
        let faults = rules.validate_update(Target::Main, &new, &old);
        (new["spec"].clone(), faults.first().map(ToString::to_string).unwrap_or_default())
    };
    let (kept, fault) = update(json!({"type": "NodePort", "ports": [{"name": "a", "port": 81}]}));
    assert_eq!(
        (&kept["clusterIP"], &kept["ports"][0]["nodePort"]),
        (&json!("10.43.0.9"), &json!(30_001))
    );
    assert_eq!(fault, "");
    let mut plain = old["spec"].clone();
    plain["type"] = "ClusterIP".into();
    let (dropped, fault) = update(plain);
    assert_eq!(
        (dropped["ports"][0].get("nodePort"), dropped.get("externalTrafficPolicy")),
        (None, None)
    );
    assert_eq!(fault, "");
    let mut outside = old["spec"].clone();
    outside["type"] = "ExternalName".into();
    outside["externalName"] = "a.b".into();
    let (moved, fault) = update(outside);
    assert_eq!((moved.get("clusterIP"), fault.as_str()), (None, ""));
    let (_, fault) = update(
        json!({"type": "NodePort", "clusterIP": "10.43.0.1", "ports": [{"name": "a", "port": 80}]}),
    );
    assert_eq!(
        fault,
        "spec.clusterIPs[0]: Invalid value: [\"10.43.0.1\"]: may not change once set"
    );
}

#[test]
fn frozen_configuration_does_not_change() {
    let old = create(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}}),
    );
    let mut new = old.clone();
    new["data"]["a"] = "c".into();
    let faults = kind_of(&old).strategy.validate_update(Target::Main, &new, &old);
    let text = "data: Forbidden: field is immutable when `immutable` is set";
    assert_eq!(faults.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
}

#[test]
fn more_faults_and_their_words() {
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    let with = |container: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "a:1"}]});
        for (key, value) in container.as_object().unwrap() {
            spec["containers"][0][key] = value.clone();
        }
        pod(spec)
    };
    let secret = |kind: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": kind});
    for (object, expected) in [
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}),
            "spec.containers: Required value",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "p"}}),
            "spec.ports: Required value",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "p"}}),
            "spec.selector: Required value",
        ),
        (
            with(
                json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]}),
            ),
            "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
        ),
        (
            with(
                json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]}),
            ),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"",
        ),
        (
            with(json!({"resources": {"limits": {"cpu": "-1"}}})),
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            with(json!({"readinessProbe": {"httpGet": {"port": 0}}})),
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            with(json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            with(json!({"imagePullPolicy": "Often"})),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            pod(
                json!({"containers": [{"name": "c", "image": "a"}], "initContainers": [{"name": "c", "image": "a"}]}),
            ),
            "spec.initContainers[0].name: Duplicate value: \"c\"",
        ),
        (
            pod(json!({"containers": [{"name": "c", "image": "a"}], "dnsPolicy": "None"})),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            pod(json!({"containers": [{"name": "c", "image": "a"}], "activeDeadlineSeconds": 0})),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (secret("kubernetes.io/tls"), "data[tls.crt]: Required value"),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a/b": ""}}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}}),
            "metadata.name: Invalid value: \"a.b\": a lowercase RFC 1123 label must consist of",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80, "nodePort": 30000}]}}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace",
        ),
        (
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
        ),
        (
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "Now"}]}}),
            "metadata.taints[0].effect: Unsupported value: \"Now\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ),
    ] {
        let object = create(object);
        let faults = kind_of(&object).strategy.validate(&object);
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(shown.first().is_some_and(|s| s.starts_with(expected)), "{expected}\n{shown:?}");
    }
}

#[test]
fn rows_fit_the_columns_and_selectable_values_the_fields() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for kind in &builtin().kinds {
        let object = create(json!({"apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": "x", "creationTimestamp": "2025-12-31T23:00:00Z"}}));
        assert_eq!(kind.strategy.cells(&object, now).len(), kind.columns.len(), "{}", kind.plural);
        let values = kind.strategy.selectable_values(&object);
        assert_eq!(values.len(), kind.selectable_fields.len(), "{}", kind.plural);
        assert!(schema::builtin().id(&kind.type_name).is_some(), "{}", kind.type_name);
    }
}

#[test]
fn rows_of_other_kinds() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let created = json!("2025-12-31T23:00:00Z");
    let row = |mut object: Value| {
        object["metadata"] = json!({"name": "x", "creationTimestamp": created,
            "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "w"}});
        let cells = kind_of(&object).strategy.cells(&object, now);
        Value::from(cells)
    };
    assert_eq!(
        row(
            json!({"apiVersion": "v1", "kind": "Node", "spec": {"unschedulable": true}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})
        ),
        json!([
            "x",
            "Ready,SchedulingDisabled",
            "control-plane,w",
            "60m",
            "v1.36.0",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ])
    );
    assert_eq!(
        row(
            json!({"apiVersion": "v1", "kind": "Service", "spec": {"type": "NodePort", "clusterIP": "10.43.0.5",
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"app": "web"}}})
        ),
        json!(["x", "NodePort", "10.43.0.5", "<none>", "80:30080/TCP", "60m", "app=web"])
    );
    assert_eq!(
        row(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 3}})),
        json!(["x", "1/3", 3, 0, "60m", "c", "nginx:1", "app=web"])
    );
    assert_eq!(
        row(
            json!({"apiVersion": "v1", "kind": "Event", "type": "Normal", "reason": "Pulled", "message": "m ",
            "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"},
            "lastTimestamp": "2025-12-31T23:59:00Z", "firstTimestamp": "2025-12-31T23:58:00Z", "count": 3})
        ),
        json!(["60s", "Normal", "Pulled", "pod/p", "", "kubelet, n", "m", "2m", 3, "x"])
    );
}

#[test]
fn look_ups_find_kinds_by_any_name() {
    let all = builtin();
    for name in ["po", "pod", "pods", "Pod", "POD"] {
        assert_eq!(all.by_short_name(name).unwrap().kind, "Pod");
    }
    assert_eq!(all.by_short_name("events").unwrap().group, "");
    assert_eq!(all.by_short_name("events.events.k8s.io").unwrap().group, "events.k8s.io");
    assert_eq!(
        all.resource("apps", "v1", "deployments").unwrap().store_resource(),
        "deployments.apps"
    );
    assert_eq!(all.kind("events.k8s.io", "v1", "Event").unwrap().store_resource(), "events");
    assert!(all.resource("apps", "v1", "pods").is_none());
}

#[test]
fn index_terms_name_what_is_looked_up() {
    let terms = |object: Value| index_terms(kind_of(&object), &object);
    assert_eq!(
        terms(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"ownerReferences": [{"uid": "u"}]}, "spec": {"nodeName": "n"}})
        ),
        ["owner=u", "node=n"]
    );
    assert_eq!(
        terms(
            json!({"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"],
            "ports": [{"nodePort": 30001}, {"port": 1}]}})
        ),
        ["clusterIP=10.43.0.1", "nodePort=30001"]
    );
    assert_eq!(
        terms(
            json!({"apiVersion": "v1", "kind": "Node", "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]}})
        ),
        ["podCIDR=10.42.0.0/24"]
    );
    assert_eq!(
        terms(json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"uid": "u"}})),
        ["involved=u"]
    );
}

#[test]
fn every_column_is_described() {
    for kind in &builtin().kinds {
        for column in &kind.columns {
            assert!(!column.description.is_empty(), "{} {}", kind.plural, column.name);
        }
    }
}

#[test]
fn ephemeral_containers_are_only_added() {
    let debugger = |image: &str| {
        json!({"name": "d", "image": image, "imagePullPolicy": "Always",
        "terminationMessagePolicy": "File"})
    };
    let old = pod();
    let rules = &kind_of(&old).strategy;
    let with = |image: &str| {
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] = json!([debugger(image)]);
        new["spec"]["nodeName"] = "elsewhere".into();
        new
    };
    let mut added = with("b:1");
    rules.prepare_update(Target::EphemeralContainers, &mut added, &old);
    assert_eq!(added["spec"].get("nodeName"), None);
    assert_eq!(added["spec"]["ephemeralContainers"], json!([debugger("b:1")]));
    assert_eq!(rules.validate_update(Target::EphemeralContainers, &added, &old), []);
    for (new, word) in [(with("b:2"), "changed"), (old.clone(), "removed")] {
        let faults = rules.validate_update(Target::EphemeralContainers, &new, &added);
        assert!(faults[0].to_string().contains(word), "{faults:?}");
    }
    let mut by_main = old.clone();
    rules.prepare_update(Target::Main, &mut by_main, &added);
    assert_eq!(by_main["spec"], added["spec"]);
}

#[test]
fn a_namespace_lets_go_by_its_own_subresource() {
    let old = create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
    let rules = &kind_of(&old).strategy;
    for (target, expected) in [
        (Target::Main, json!(["kubernetes"])),
        (Target::Status, json!(["kubernetes"])),
        (Target::Finalize, json!([])),
    ] {
        let mut new = old.clone();
        new["spec"]["finalizers"] = json!([]);
        rules.prepare_update(target, &mut new, &old);
        assert_eq!(new["spec"]["finalizers"], expected, "{target:?}");
    }
}

#[test]
fn host_ports_are_set_in_pods_but_not_in_templates() {
    let spec = json!({"hostNetwork": true, "containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 80}]}]});
    let pod =
        create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}));
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    let set = create(
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}}),
    );
    let port = &set["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!(port.get("hostPort"), None);
    assert_eq!(kind_of(&set).strategy.validate(&set), []);
}

/// What a change of one object into another is told.
fn change(target: Target, old: Value, patch: Value) -> Vec<String> {
    let old = create(old);
    let mut new = old.clone();
    json_patch::merge(&mut new, &patch);
    let rules = &kind_of(&old).strategy;
    rules.prepare_update(target, &mut new, &old);
    rules.validate_update(target, &new, &old).iter().map(ToString::to_string).collect()
}

#[test]
fn what_may_change_of_other_things() {
    let gated = || {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "schedulingGates": [{"name": "a.b/c"}], "nodeSelector": {"a": "b"}, "activeDeadlineSeconds": 9,
        "containers": [{"name": "c", "image": "a:1"}]}})
    };
    let node = || json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "10.42.0.0/24", "providerID": "a"}});
    let secret = || json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "finalizers": ["a/b"]}, "type": "a/b"});
    let mut leaving = secret();
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for (old, patch, expected) in [
        (gated(), json!({"spec": {"schedulingGates": null}}), ""),
        (gated(), json!({"spec": {"nodeSelector": {"c": "d"}}}), ""),
        (
            gated(),
            json!({"spec": {"nodeSelector": null}}),
            "spec.nodeSelector: Invalid value: null: may only be extended",
        ),
        (
            gated(),
            json!({"spec": {"schedulingGates": [{"name": "a.b/c"}, {"name": "d"}]}}),
            "spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'd'",
        ),
        (
            gated(),
            json!({"spec": {"hostname": "x"}}),
            "spec: Forbidden: pod updates may not change fields",
        ),
        (
            gated(),
            json!({"spec": {"activeDeadlineSeconds": 10}}),
            "spec.activeDeadlineSeconds: Invalid value: 10: must be less than or equal to previous value",
        ),
        (
            gated(),
            json!({"spec": {"activeDeadlineSeconds": null}}),
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value",
        ),
        (
            gated(),
            json!({"metadata": {"name": "q"}}),
            "metadata.name: Invalid value: \"q\": field is immutable",
        ),
        (
            node(),
            json!({"spec": {"podCIDRs": ["10.42.1.0/24"]}}),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            node(),
            json!({"spec": {"providerID": "b"}}),
            "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
        ),
        (
            node(),
            json!({"spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoExecute"}]}}),
            "",
        ),
        (
            secret(),
            json!({"type": "Opaque"}),
            "type: Invalid value: \"Opaque\": field is immutable",
        ),
        (secret(), json!({"metadata": {"finalizers": ["c/d"]}}), ""),
        (
            leaving,
            json!({"metadata": {"finalizers": ["a/b", "c/d"]}}),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}",
        ),
    ] {
        let shown = change(Target::Main, old, patch.clone());
        match expected {
            "" => assert_eq!(shown, Vec::<String>::new(), "{patch}"),
            start => {
                assert!(shown.first().is_some_and(|s| s.starts_with(start)), "{patch} {shown:?}")
            }
        }
    }
}

#[test]
fn what_may_change_of_a_status() {
    let ended = json!([{"name": "c", "state": {"terminated": {"exitCode": 0}}}]);
    let running =
        json!({"status": {"containerStatuses": [{"name": "c", "state": {"running": {}}}]}});
    let revived = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
    for (policy, expected) in
        [("Always", None), ("OnFailure", Some(revived)), ("Never", Some(revived))]
    {
        let mut old =
            create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "restartPolicy": policy, "containers": [{"name": "c", "image": "a:1"}]}}));
        old["status"]["containerStatuses"] = ended.clone();
        let mut new = old.clone();
        json_patch::merge(&mut new, &running);
        let faults = kind_of(&old).strategy.validate_update(Target::Status, &new, &old);
        assert_eq!(faults.first().map(ToString::to_string).as_deref(), expected, "{policy}");
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    let shown = change(Target::Status, namespace, json!({"status": {"phase": "Terminating"}}));
    let expected = "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty";
    assert_eq!(shown, [expected]);
    let shown = change(
        Target::Status,
        deployment(),
        json!({"status": {"replicas": 1, "readyReplicas": 2}}),
    );
    assert_eq!(
        shown,
        ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
    );
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, format!("{at}/{key}"), all);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                places(value, format!("{at}/{index}"), all);
            }
        }
        _ => {}
    }
    all.push(at);
}

/// The rules run on what the schema let through, but must not fall over anything.
#[test]
fn no_shape_makes_the_rules_panic() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let pairs: Vec<Value> = serde_json::from_str(include_str!("testdata/defaults.json")).unwrap();
    let odd = [
        json!(null),
        json!(""),
        json!(-1),
        json!(true),
        json!([]),
        json!({}),
        json!(["x"]),
        json!([{}]),
    ];
    for sound in pairs.iter().map(|p| &p["stored"]) {
        let kind = kind_of(sound);
        let rules = &kind.strategy;
        let mut all = Vec::new();
        places(sound, String::new(), &mut all);
        for (place, odd) in
            all.iter().filter(|p| !p.is_empty()).flat_map(|p| odd.iter().map(move |o| (p, o)))
        {
            let mut object = sound.clone();
            *object.pointer_mut(place).unwrap() = odd.clone();
            let mut new = object.clone();
            rules.default(&mut new);
            rules.prepare_create(&mut new);
            rules.validate(&new);
            rules.warnings(&new);
            rules.cells(&object, now);
            rules.selectable_values(&object);
            index_terms(kind, &object);
            for target in
                [Target::Main, Target::Status, Target::Finalize, Target::EphemeralContainers]
            {
                for (new, old) in [(&object, sound), (sound, &object)] {
                    let mut new = new.clone();
                    rules.prepare_update(target, &mut new, old);
                    bump_generation(kind, &mut new, old);
                    rules.validate_update(target, &new, old);
                }
            }
        }
    }
}
