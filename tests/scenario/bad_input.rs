//! What bad input gets, and a bad disk: an answer that says why, from a server that goes on.

use crate::server::{self, Server, within};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Name and test.
pub const TESTS: &[(&str, fn())] = &[
    ("bodies", bodies),
    ("yaml_bombs", yaml_bombs),
    ("numbers_and_masses", numbers_and_masses),
    ("strangers", strangers),
    ("a_port_in_use", a_port_in_use),
    ("a_data_directory_in_use", a_data_directory_in_use),
    ("a_full_disk", a_full_disk),
];

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PATIENCE: Duration = Duration::from_secs(60);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value of the kubeconfig, decoded.
fn credential(server: &Server, key: &str) -> Vec<u8> {
    use base64::Engine;
    let config = std::fs::read_to_string(server.data_inside().join("admin.kubeconfig")).unwrap();
    let line = config.lines().find(|l| l.contains(key)).expect("a credential");
    let value = line.split(':').nth(1).expect("a value").trim();
    base64::engine::general_purpose::STANDARD.decode(value).expect("base64")
}

/// curl as the administrator: the status code and the body.
fn send(server: &Server, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name).display().to_string()
    };
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-X", method, "-w", "\n%{http_code}", "-H", &format!("content-type: {kind}")])
        .args(["--cacert", &file("ca", &credential(server, "certificate-authority-data"))])
        .args(["--cert", &file("cert", &credential(server, "client-certificate-data"))])
        .args(["--key", &file("key", &credential(server, "client-key-data"))])
        .args(["--data-binary", &format!("@{}", file("body", body))])
        .arg(format!("{}{path}", server.address()));
    let output = within(PATIENCE, &mut command);
    let answer = text(&output.stdout);
    let (body, code) = answer.rsplit_once('\n').unwrap_or(("", ""));
    let code = code.parse().unwrap_or_else(|_| panic!("{answer} {}", text(&output.stderr)));
    (code, body.to_string())
}

fn config_map(name: &str, data: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{data}}}"#
    )
}

/// The server is there, takes a proper object, and has none of the bad ones.
#[track_caller]
fn goes_on(server: &mut Server) {
    server.assert_alive();
    let names = || text(&server.rkubectl(&["get", "configmaps", "-o", "name"]).stdout);
    assert_eq!(names(), "configmap/kube-root-ca.crt\n", "nothing bad was stored");
    let (code, answer) =
        send(server, "POST", CONFIG_MAPS, JSON, config_map("good", "{}").as_bytes());
    assert_eq!(code, 201, "{answer}");
}

fn bodies() {
    let mut server = Server::start();
    let deep = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n));
    let lists = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let big = config_map("big", &format!(r#"{{"a":"{}"}}"#, "x".repeat(3 << 20)));
    let mut invalid = config_map("bytes", r#"{"a":"?"}"#).into_bytes();
    let at = invalid.iter().position(|b| *b == b'?').unwrap();
    invalid[at] = 0xff;
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("nothing", vec![], 400, ""),
        ("half", br#"{"apiVersion":"#.to_vec(), 400, "unexpected end"),
        ("no object", b"[1]".to_vec(), 400, ""),
        ("deep objects", config_map("deep", &deep(200_000)).into_bytes(), 400, ""),
        ("deep lists", config_map("deep", &lists(500_000)).into_bytes(), 400, ""),
        ("only deep", lists(1_000_000).into_bytes(), 400, ""),
        ("more than 3 MiB", big.into_bytes(), 413, "Request entity too large: limit is 3145728"),
        ("no UTF-8", invalid, 400, "unicode"),
        (
            "another kind",
            config_map("k", "{}").replace("ConfigMap", "Secret").into_bytes(),
            400,
            "Secret",
        ),
        (
            "a wrong type",
            config_map("t", r#"{"a":{"b":1}}"#).into_bytes(),
            400,
            "cannot unmarshal object",
        ),
    ];
    for (what, body, expected, words) in cases {
        let (code, answer) = send(&server, "POST", CONFIG_MAPS, JSON, &body);
        assert_eq!(code, expected, "{what}: {answer}");
        assert!(answer.contains(words), "{what}: {answer}");
        assert!(answer.contains(r#""kind":"Status""#), "{what}: {answer}");
        assert!(answer.len() < 10_000, "{what}: an answer of {} bytes", answer.len());
    }
    let name = CONFIG_MAPS.to_string() + "/kube-root-ca.crt";
    for kind in ["merge-patch", "strategic-merge-patch", "json-patch", "apply-patch"] {
        let suffix = if kind == "apply-patch" { "yaml" } else { "json" };
        let body = format!(r#"{{"data":{}}}"#, deep(100_000));
        let path = format!("{name}?fieldManager=x");
        let (code, answer) =
            send(&server, "PATCH", &path, &format!("application/{kind}+{suffix}"), body.as_bytes());
        assert!((400..500).contains(&code), "{kind}: {code} {answer}");
    }
    goes_on(&mut server);
}

/// Aliases that stand for a billion of values.
fn bomb() -> String {
    let first = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
    let doubled = (1..10).fold(first, |text, n| {
        let before = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{}]\n", vec![before; 10].join(","))
    });
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bomb}}\n{doubled}")
}

fn yaml_bombs() {
    let mut server = Server::start();
    let started = Instant::now();
    for body in
        [bomb(), format!("a: {}", "[".repeat(100_000)), "&a [*a]".into(), "- ".repeat(100_000)]
    {
        let (code, answer) = send(&server, "POST", CONFIG_MAPS, YAML, body.as_bytes());
        assert_eq!(code, 400, "{answer}");
        let path = format!("{CONFIG_MAPS}/bomb?fieldManager=x");
        let kind = "application/apply-patch+yaml";
        let (code, answer) = send(&server, "PATCH", &path, kind, body.as_bytes());
        assert_eq!(code, 400, "{answer}");
        // In rkubectl itself.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(body.as_bytes()).unwrap();
        let output = server.rkubectl(&["apply", "-f", &file.path().display().to_string()]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).starts_with("error"), "{}", text(&output.stderr));
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    goes_on(&mut server);
}

fn numbers_and_masses() {
    let mut server = Server::start();
    let deployment = |replicas: &str| {
        format!(
            r#"{{"metadata":{{"name":"d"}},"spec":{{"replicas":{replicas},"selector":{{"matchLabels":{{"a":"b"}}}},
            "template":{{"metadata":{{"labels":{{"a":"b"}}}},"spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}}}}}"#
        )
    };
    let path = "/apis/apps/v1/namespaces/default/deployments";
    for replicas in ["2147483648", "1e999", "-1", "1.5", "99999999999999999999999", "\"1\"", "true"]
    {
        let (code, answer) = send(&server, "POST", path, JSON, deployment(replicas).as_bytes());
        assert!(matches!(code, 400 | 422), "{replicas}: {code} {answer}");
    }
    let pod = |more: &str| {
        format!(
            r#"{{"metadata":{{"name":"p"}},"spec":{{"containers":[{{"name":"c","image":"i"{more}}}]}}}}"#
        )
    };
    let path = "/api/v1/namespaces/default/pods";
    let million = |item: &str| format!("[{}]", vec![item; 1_000_000].join(","));
    let args = million("\"\"");
    let cases = [
        (r#","resources":{"requests":{"cpu":"1e"}}"#.to_string(), 400..423),
        (r#","resources":{"requests":{"cpu":"-1"}}"#.to_string(), 422..423),
        (r#","resources":{"requests":{"cpu":"much"}}"#.to_string(), 400..423),
        (r#","ports":[{"containerPort":70000}]"#.to_string(), 422..423),
        (format!(r#","env":{}"#, million("{}")), 400..423),
        (format!(r#","args":{}"#, million("1")), 400..401),
        // Longer than a body may be.
        (format!(r#","args":{args},"command":{args}"#), 413..414),
    ];
    for (more, expected) in cases {
        let (code, answer) = send(&server, "POST", path, JSON, pod(&more).as_bytes());
        let shown = &more[..more.len().min(60)];
        assert!(expected.contains(&code), "{shown}: {code} {}", &answer[..answer.len().min(300)]);
        assert!(answer.len() < 100_000, "{shown}: an answer of {} bytes", answer.len());
    }
    for query in [
        "limit=-1",
        "limit=99999999999999999999",
        "resourceVersion=-1",
        "resourceVersion=x",
        "labelSelector=%3D%3D",
        "fieldSelector=a",
        "continue=x",
        "timeoutSeconds=x&watch=1",
        "watch=maybe",
    ] {
        let (code, answer) = send(&server, "GET", &format!("{path}?{query}"), JSON, b"");
        assert!(matches!(code, 200 | 400 | 410 | 422), "{query}: {code} {answer}");
    }
    goes_on(&mut server);
}

/// Runs curl with these arguments against a path; what happened.
fn curl(server: &Server, args: &[&str], path: &str) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sSk", "-w", "\n%{http_code}"]).args(args);
    command.arg(format!("{}{path}", server.address()));
    within(PATIENCE, &mut command)
}

/// A client's certificate and key that the cluster's CA signed, valid until that many seconds from
/// now, in the past if negative.
fn certificate(server: &Server, dir: &Path, ends_in: i64) -> (String, String) {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
    let pki = server.data_inside().join("server/pki");
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "late");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    params.not_before = (now - 2 * day).into();
    let by = Duration::from_secs(ends_in.unsigned_abs());
    params.not_after = if ends_in < 0 { now - by } else { now + by }.into();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let (cert, private) = (dir.join("late.crt"), dir.join("late.key"));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    (cert.display().to_string(), private.display().to_string())
}

fn strangers() {
    let mut server = Server::start();
    let code = |output: &Output| text(&output.stdout).rsplit('\n').next().unwrap().to_string();
    for args in [
        &[][..],
        &["-H", "authorization: Bearer abcdef.0123456789"],
        &["-H", "authorization: Bearer "],
        &["-H", "authorization: Basic YWRtaW46YWRtaW4="],
        &["-H", "x-remote-user: admin", "-H", "x-remote-group: system:masters"],
    ] {
        let output = curl(&server, args, CONFIG_MAPS);
        assert_eq!(code(&output), "401", "{args:?}: {}", text(&output.stdout));
        assert!(text(&output.stdout).contains(r#""reason":"Unauthorized""#), "{args:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(&server, dir.path(), 3600);
    let output = curl(&server, &["--cert", &cert, "--key", &key], CONFIG_MAPS);
    assert_eq!(code(&output), "200", "valid for an hour: {}", text(&output.stderr));
    let (cert, key) = certificate(&server, dir.path(), -3600);
    let output = curl(&server, &["--cert", &cert, "--key", &key], CONFIG_MAPS);
    assert_eq!(code(&output), "401", "ended an hour ago: {}", text(&output.stdout));
    assert!(text(&output.stdout).contains(r#""reason":"Unauthorized""#));
    let log = server.log();
    let refusals: Vec<_> =
        log.lines().filter(|l| l.contains("client certificate refused")).collect();
    assert!(matches!(*refusals, [l] if l.contains("expired") && l.contains("late")), "{log}");
    let output =
        server.rkubectl(&["get", "pods", "--client-certificate", &cert, "--client-key", &key]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert_eq!(told, "error: You must be logged in to the server (Unauthorized)\n");
    let output = server.rkubectl(&[
        "get",
        "pods",
        "--kubeconfig",
        "/dev/null",
        "--server",
        &server.address(),
        "--insecure-skip-tls-verify",
        "--token",
        "wrong",
    ]);
    let told = text(&output.stderr);
    assert!(told.contains("You must be logged in to the server (Unauthorized)"), "{told}");
    goes_on(&mut server);
}

fn a_port_in_use() {
    let mut server = Server::start_with(|data, port| {
        let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let output = within(PATIENCE, &mut server::command(data, port));
        assert!(!output.status.success());
        let told = text(&output.stderr);
        assert!(told.contains(&port.to_string()) && told.contains("in use"), "{told}");
        drop(taken);
        server::command(data, port)
    });
    goes_on(&mut server);
}

fn a_data_directory_in_use() {
    let mut server = Server::start();
    let output = within(PATIENCE, &mut server::command(&server.data(), server::free_port()));
    assert!(!output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains(&server.data().display().to_string()), "{told}");
    goes_on(&mut server);
    server.kill_and_start();
    let kept = server.rkubectl(&["get", "configmap", "good", "-o", "name"]);
    assert_eq!(text(&kept.stdout), "configmap/good\n");
}

/// A server whose data directory is a small file system of its own; killed once, it starts again.
fn on_small_disk(data: &Path, port: u16) -> Command {
    let inner = server::command(data, port);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(
        "mount -t tmpfs -o size=40m tmpfs \"$0\" && { setpriv --pdeathsig KILL \"$@\"; exec \"$@\"; }",
    );
    command.arg(data).arg(inner.get_program()).args(inner.get_args());
    command
}

/// Kills the first run of a server from [`on_small_disk`] as a power cut would.
fn kill_first_run(server: &Server) {
    let shell = server.pid().to_string();
    let output = within(PATIENCE, Command::new("pkill").args(["-KILL", "-P", &shell]));
    assert!(output.status.success(), "no server to kill below {shell}");
}

fn a_full_disk() {
    let mut server = Server::start_with(on_small_disk);
    let body =
        |n: usize| config_map(&format!("m{n}"), &format!(r#"{{"a":"{}"}}"#, "x".repeat(200_000)));
    let post =
        |server: &Server, n: usize| send(server, "POST", CONFIG_MAPS, JSON, body(n).as_bytes());
    let filler = server.data_inside().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[7; 65536]).is_ok() {}
    drop(file);
    let mut acknowledged = 0;
    let (code, answer) = loop {
        match post(&server, acknowledged) {
            (201, _) => acknowledged += 1,
            refused => break refused,
        }
        assert!(acknowledged < 1000, "the disk is never full");
    };
    assert!((500..600).contains(&code), "{code} {answer}");
    assert!(answer.contains("disk") || answer.contains("space"), "{answer}");
    let count = |server: &Server| {
        let names = server.rkubectl(&["get", "configmaps", "-o", "name"]);
        assert!(names.status.success(), "reads go on: {}", text(&names.stderr));
        text(&names.stdout).matches("configmap/m").count()
    };
    assert_eq!(count(&server), acknowledged, "what was refused is not there, what was not is");
    server.assert_alive();
    kill_first_run(&server);
    server.wait_until_ready();
    assert_eq!(count(&server), acknowledged, "started again on the full disk");
    std::fs::remove_file(&filler).unwrap();
    let started = Instant::now();
    while post(&server, acknowledged).0 != 201 {
        assert!(
            started.elapsed() < PATIENCE,
            "no write after there is room again: {}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(count(&server), acknowledged + 1);
    server.assert_alive();
}
