//! Decoding: the faults that it finds and the words that it has for them.

use super::*;
use crate::schema::builtin;
use serde_json::json;

fn run_as(kind: &str, body: &str, mode: FieldValidation) -> Result<Decoded, String> {
    let schema = builtin();
    decode(schema, schema.id(kind).unwrap(), body.as_bytes(), mode).map_err(|e| e.message)
}

fn strict(kind: &str, body: &str) -> String {
    run_as(kind, body, FieldValidation::Strict).map(|d| d.value.to_string()).unwrap_or_else(|e| e)
}

const POD: &str = "Pod in version \"v1\" cannot be handled as a Pod: ";

#[test]
fn words_faults_as_upstream() {
    let pod = |spec: &str| {
        format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p"}},"spec":{spec}}}"#)
    };
    for (spec, want) in [
        (
            r#"{"containers":[{"name":"c"}],"imagee":"x"}"#,
            "strict decoding error: unknown field \"spec.imagee\"",
        ),
        (
            r#"{"containers":[{"name":"c","imag":1,"name":"d"}],"nodeSelector":{"a":"b","a":"c"}}"#,
            "strict decoding error: unknown field \"spec.containers[0].imag\", duplicate field \"spec.containers[0].name\", duplicate field \"spec.nodeSelector.a\"",
        ),
        (
            r#"{"containers":[{"ports":[{"containerPort":"80"}]}]}"#,
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            r#"{"containers":[{"imagePullPolicy":3}]}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            r#"{"containers":{}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (r#"[]"#, "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        (
            r#"{"nodeSelector":{"a":true}}"#,
            "json: cannot unmarshal bool into Go struct field PodSpec.spec.nodeSelector of type string",
        ),
        (
            r#"{"activeDeadlineSeconds":1.5}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64",
        ),
        (
            r#"{"containers":[{"resources":{"limits":{"cpu":"1x"}}}]}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        assert_eq!(strict("core.v1.Pod", &pod(spec)), format!("{POD}{want}"));
    }
}

#[test]
fn words_syntax_as_upstream() {
    let head = "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: ";
    for (body, want) in [
        (r#"{"a":"#, "unexpected end of JSON input ({\"a\":)"),
        ("", "unexpected end of JSON input (<empty>)"),
        ("{x}", "invalid character 'x' looking for beginning of object key string ({x})"),
        ("{\"a\":1 1}", "invalid character '1' after object key:value pair ({\"a\":1 1})"),
        ("<html>", "invalid character '<' looking for beginning of value (<html>)"),
    ] {
        assert_eq!(strict("core.v1.Pod", body), format!("{head}{want}"));
    }
}

#[test]
fn takes_what_go_clients_emit() {
    let body = r#"{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"d","creationTimestamp":null},
        "spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"strategy":{},"paused":false,
        "template":{"metadata":{"creationTimestamp":null,"labels":{}},"spec":{"containers":[
        {"name":"","image":"i","resources":{},"imagePullPolicy":"","volumeMounts":[]}],"volumes":[{"name":"v","emptyDir":{}}]}}},"status":{}}"#;
    let got = run_as("apps.v1.Deployment", body, FieldValidation::Strict).unwrap();
    assert_eq!(
        got.value,
        json!({"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"d"},
            "spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"strategy":{},
            "template":{"metadata":{},"spec":{"containers":[{"name":"","image":"i","resources":{}}],
            "volumes":[{"name":"v","emptyDir":{}}]}}},"status":{}})
    );
}

#[test]
fn takes_the_forms_of_numbers_and_texts() {
    let body = r#"{"metadata":{"labels":{"a":null}},"spec":{"ports":[{"port":80,"targetPort":"http"},{"port":81,"targetPort":8081}]}}"#;
    let got = run_as("core.v1.Service", body, FieldValidation::Warn).unwrap().value;
    assert_eq!(got["metadata"]["labels"], json!({"a": ""}));
    assert_eq!(got["spec"]["ports"][1]["targetPort"], json!(8081));
    let body = r#"{"spec":{"hard":{"cpu":2,"memory":"1Gi"}}}"#;
    let got = run_as("core.v1.ResourceQuota", body, FieldValidation::Warn).unwrap().value;
    assert_eq!(got["spec"]["hard"], json!({"cpu": "2", "memory": "1Gi"}));
}

#[test]
fn warns_or_keeps_silent() {
    let body = r#"{"metadata":{"nmae":"x"},"data":{"a":"1","a":"2"}}"#;
    let warned = run_as("core.v1.ConfigMap", body, FieldValidation::Warn).unwrap();
    assert_eq!(warned.warnings, ["unknown field \"metadata.nmae\"", "duplicate field \"data.a\""]);
    assert_eq!(warned.value, json!({"metadata": {}, "data": {"a": "2"}}));
    assert!(
        run_as("core.v1.ConfigMap", body, FieldValidation::Ignore).unwrap().warnings.is_empty()
    );
}

#[test]
fn refuses_depth_and_mass() {
    let deep = format!(r#"{{"data":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(strict("apps.v1.ControllerRevision", &deep).contains("exceeded max depth"));
    let mass = format!(r#"{{"spec":{{"containers":[{}{{}}]}}}}"#, "{},".repeat(MAX_OBJECTS));
    assert!(strict("core.v1.Pod", &mass).contains("objects in one body"));
    let mut value = json!(1);
    for _ in 0..1000 {
        value = json!([value]);
    }
    let schema = builtin();
    let id = schema.id("apps.v1.ControllerRevision").unwrap();
    let error = check(schema, id, json!({"data": value}), FieldValidation::Warn).unwrap_err();
    assert!(error.message.contains("exceeded max depth"));
}

#[test]
fn reads_yaml_but_no_alias_bomb() {
    let schema = builtin();
    let id = schema.id("core.v1.ConfigMap").unwrap();
    let yaml = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata:\n  k: |\n    text\n";
    let got = decode_yaml(schema, id, yaml.as_bytes(), FieldValidation::Strict).unwrap();
    assert_eq!(got.value["data"]["k"], "text\n");
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 9].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let error = decode_yaml(schema, id, bomb.as_bytes(), FieldValidation::Ignore).unwrap_err();
    assert!(error.message.starts_with("error converting YAML to JSON"), "{}", error.message);
}

#[test]
fn knows_its_kind() {
    let pod = crate::GroupVersionKind::new("v1", "Pod");
    let mut bare = json!({"metadata": {}});
    expect_kind(&mut bare, &pod).unwrap();
    assert_eq!(bare["kind"], "Pod");
    for (kind, version, want) in [
        (
            "Service",
            "v1",
            "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (v1.Pod): unknown conversion",
        ),
        (
            "Pod",
            "v2",
            "Pod in version \"v2\" cannot be handled as a Pod: no kind \"Pod\" is registered for version \"v2\"",
        ),
    ] {
        let mut value = json!({"kind": kind, "apiVersion": version});
        assert_eq!(expect_kind(&mut value, &pod).unwrap_err().message, want);
    }
}
