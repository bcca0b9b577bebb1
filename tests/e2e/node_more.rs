//! What a node does for a container, continued: terminals, security, networks, registries, and a
//! container runtime that dies.

use crate::Test;
use crate::cluster::{Cluster, eventually, run, run_at_a_terminal};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub const TESTS: &[Test] = &[
    ("a_terminal_has_a_size_and_an_exit_code", terminal),
    ("run_gives_its_input_to_the_container", run_with_input),
    ("security_contexts_and_volumes_of_all_kinds", security_and_volumes),
    ("a_sub_path_does_not_leave_its_volume", sub_path),
    ("sidecars_and_last_words", sidecars),
    ("a_pod_on_the_nodes_network", host_network),
    ("slow_starts_and_deadlines", deadlines),
    ("a_registry_with_a_password", private_registry),
    ("large_logs_are_rotated", rotation),
    ("a_killed_containerd_is_started_again", killed_containerd),
];

/// Applies a pod of this name and the rest of its spec.
fn pod(cluster: &Cluster, ns: &str, name: &str, spec: &str) {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {ns}}}\nspec:\n{indented}"
    ));
}

/// A pod with one container `c` that has these further fields.
fn simple(cluster: &Cluster, ns: &str, name: &str, container: &str, spec: &str) {
    let image = "name: c, image: 'registry.rkube.local/web:1'";
    pod(cluster, ns, name, &format!("{spec}\ncontainers: [{{{image}, {container}}}]"));
}

fn wait_ready(cluster: &Cluster, ns: &str, name: &str) {
    let pod = format!("pod/{name}");
    cluster.rkubectl(&["-n", ns, "wait", "--for=condition=Ready", &pod, "--timeout=60s"]).ok();
}

fn exec(cluster: &Cluster, ns: &str, name: &str, script: &str) -> String {
    cluster.rkubectl(&["-n", ns, "exec", name, "-c", "c", "--", "sh", "-c", script]).ok()
}

fn state(cluster: &Cluster, ns: &str, name: &str, path: &str) -> String {
    let path = format!("{{.status.containerStatuses[?(@.name=='c')].state.{path}}}");
    cluster.get(&["-n", ns, "pod", name], &path)
}

fn eventually_is(cluster: &Cluster, ns: &str, name: &str, path: &str, expected: &str) {
    eventually(&format!("{name}: {path} is {expected}"), 60, || {
        (state(cluster, ns, name, path) == expected).then_some(())
    });
}

fn terminal(cluster: &Cluster) {
    let namespace = cluster.namespace("terminal");
    let ns = namespace.name.as_str();
    simple(cluster, ns, "p", "", "");
    wait_ready(cluster, ns, "p");
    let sized = "until [ \"$(stty size)\" = \"33 101\" ]; do sleep 0.05; done; tty; exit 5";
    let mut programs: Vec<String> =
        crate::kubectl::kubectls().into_iter().map(|(_, path)| path).collect();
    programs.push(env!("CARGO_BIN_EXE_rkubectl").into());
    for program in programs {
        // In a process group of its own, as `timeout` makes by default, the program would be
        // stopped as soon as it set the terminal.
        let line = format!(
            "stty rows 33 cols 101; KUBECONFIG={} timeout --foreground 60 {program} -n {ns} exec -it p -- sh -c '{sized}'",
            cluster.kubeconfig()
        );
        let ran = run_at_a_terminal(&line);
        assert!(ran.code == 5 && ran.stdout.contains("/dev/pts/"), "{program}: {ran:?}");
    }
}

fn run_with_input(cluster: &Cluster) {
    let namespace = cluster.namespace("input");
    let ns = namespace.name.as_str();
    let (_, newest) = crate::kubectl::kubectls().into_iter().max().unwrap();
    for (name, program) in [("ours", env!("CARGO_BIN_EXE_rkubectl")), ("theirs", newest.as_str())] {
        let image = "--image=registry.rkube.local/web:1";
        let args = ["-n", ns, "run", name, "-i", "--rm", "--restart=Never", image, "--command"];
        let script = ["--", "sh", "-c", "sleep 1; cat"];
        let ran = cluster.kubectl_with(program, &[&args[..], &script[..]].concat(), "by hand\n");
        assert!(ran.code == 0 && ran.stdout.contains("by hand"), "{name}: {ran:?}");
    }
}

fn security_and_volumes(cluster: &Cluster) {
    let namespace = cluster.namespace("security");
    let ns = namespace.name.as_str();
    simple(
        cluster,
        ns,
        "p",
        "command: [sleep, '3600'],
  securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}},
  volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}, {name: pr, mountPath: /pr}],
  resources: {limits: {memory: 64Mi, cpu: 200m}}",
        "securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, runAsNonRoot: true}
volumes:
- {name: v, emptyDir: {}}
- {name: m, emptyDir: {medium: Memory, sizeLimit: 2Mi}}
- name: pr
  projected:
    sources:
    - configMap: {name: kube-root-ca.crt}
    - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}",
    );
    simple(cluster, ns, "root", "", "securityContext: {runAsNonRoot: true}");
    wait_ready(cluster, ns, "p");
    let see = |script: &str| exec(cluster, ns, "p", script);
    assert_eq!(see("id -u; id -g; id -G | tr ' ' '\\n' | sort").trim(), "1000\n3000\n2000\n3000");
    assert_eq!(see("touch /v/x; stat -c '%u %g' /v/x").trim(), "1000 2000");
    assert_eq!(see("touch /x 2>/dev/null || echo read only").trim(), "read only");
    assert_eq!(
        see("grep -E 'CapEff|CapBnd' /proc/self/status | grep -vc 0000000000000000; true"),
        "0\n"
    );
    assert_eq!(see("head -c 3000000 /dev/zero 2>/dev/null >/m/x; stat -c %s /m/x"), "2097152\n");
    assert_eq!(see("cat /pr/name /pr/cpu; grep -c BEGIN /pr/ca.crt"), "p2001\n");
    let uid = cluster.get(&["-n", ns, "pod", "p"], "{.metadata.uid}");
    let find = format!(
        "cat $(find /sys/fs/cgroup -path '*/pod{uid}/memory.limit_in_bytes' -o -path '*/pod{uid}/memory.max' | head -1)"
    );
    assert_eq!(run("sh", &["-c", &find]).ok().trim(), (64 << 20).to_string());
    eventually_is(cluster, ns, "root", "waiting.reason", "CreateContainerConfigError");
}

fn sub_path(cluster: &Cluster) {
    let namespace = cluster.namespace("subpath");
    let ns = namespace.name.as_str();
    let init = |script: &str| {
        format!(
            "initContainers: [{{name: i, image: 'registry.rkube.local/web:1', command: [sh, -c, '{script}'], volumeMounts: [{{name: v, mountPath: /v}}]}}]\nvolumes: [{{name: v, emptyDir: {{}}}}]"
        )
    };
    simple(
        cluster,
        ns,
        "good",
        "env: [{name: D, value: d}], volumeMounts: [{name: v, mountPath: /d, subPathExpr: $(D)}, {name: v, mountPath: /f, subPath: d/f}, {name: v, mountPath: /new, subPath: a/b}]",
        &init("mkdir /v/d && echo ok >/v/d/f"),
    );
    simple(
        cluster,
        ns,
        "evil",
        "volumeMounts: [{name: v, mountPath: /e, subPath: e}]",
        &init("ln -s /etc /v/e"),
    );
    wait_ready(cluster, ns, "good");
    assert_eq!(exec(cluster, ns, "good", "cat /d/f /f; touch /new/x"), "ok\nok\n");
    eventually_is(cluster, ns, "evil", "waiting.reason", "CreateContainerConfigError");
    let message = state(cluster, ns, "evil", "waiting.message");
    assert!(message.contains("not inside the volume"), "{message}");
}

fn sidecars(cluster: &Cluster) {
    let namespace = cluster.namespace("sidecars");
    let ns = namespace.name.as_str();
    simple(
        cluster,
        ns,
        "p",
        "command: [sh, -c, 'wget -qO- http://127.0.0.1:8080/ && printf bye >/dev/termination-log; exit 3']",
        "restartPolicy: Never
initContainers:
- {name: side, image: 'registry.rkube.local/web:1', restartPolicy: Always, startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
- {name: i, image: 'registry.rkube.local/web:1', command: [wget, -qO-, 'http://127.0.0.1:8080/']}",
    );
    simple(
        cluster,
        ns,
        "log",
        "terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, 'echo from the log; exit 1']",
        "restartPolicy: Never",
    );
    let phase = || cluster.get(&["-n", ns, "pod", "p"], "{.status.phase}");
    eventually("it ends, and its sidecar with it", 60, || (phase() == "Failed").then_some(()));
    assert_eq!(state(cluster, ns, "p", "terminated.message"), "bye");
    assert_eq!(state(cluster, ns, "p", "terminated.exitCode"), "3");
    eventually_is(cluster, ns, "log", "terminated.message", "from the log");
}

fn host_network(cluster: &Cluster) {
    let namespace = cluster.namespace("hostnetwork");
    let ns = namespace.name.as_str();
    let container = "env: [{name: PORT, value: '9977'}], readinessProbe: {httpGet: {port: 9977}, periodSeconds: 1}";
    simple(cluster, ns, "p", container, "hostNetwork: true");
    wait_ready(cluster, ns, "p");
    let ips = cluster.get(&["-n", ns, "pod", "p"], "{.status.podIP} {.status.hostIP}");
    let (pod_ip, host_ip) = ips.split_once(' ').unwrap();
    assert_eq!(pod_ip, host_ip);
    let node = cluster.get(&["-n", ns, "pod", "p"], "{.spec.nodeName}");
    assert_eq!(exec(cluster, ns, "p", "hostname").trim(), node);
}

fn deadlines(cluster: &Cluster) {
    let namespace = cluster.namespace("deadlines");
    let ns = namespace.name.as_str();
    simple(cluster, ns, "late", "", "activeDeadlineSeconds: 2\nterminationGracePeriodSeconds: 1");
    let probe = "httpGet: {port: 8080}, periodSeconds: 1";
    let slow = format!(
        "command: [sh, -c, 'sleep 3; exec web'], startupProbe: {{{probe}, failureThreshold: 30}}, livenessProbe: {{{probe}, failureThreshold: 1}}"
    );
    simple(cluster, ns, "slow", &slow, "");
    let never = "imagePullPolicy: Never, image: 'registry.rkube.local/none:1'";
    pod(cluster, ns, "never", &format!("containers: [{{name: c, {never}}}]"));
    wait_ready(cluster, ns, "slow");
    let restarts = "{.status.containerStatuses[0].restartCount}";
    assert_eq!(cluster.get(&["-n", ns, "pod", "slow"], restarts), "0");
    eventually("its time is over", 30, || {
        let why = cluster.get(&["-n", ns, "pod", "late"], "{.status.phase} {.status.reason}");
        (why == "Failed DeadlineExceeded").then_some(())
    });
    eventually_is(cluster, ns, "never", "waiting.reason", "ErrImageNeverPull");
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A registry on the nodes' network that wants the user `user` with the password `sesame`.
fn start_private_registry(dir: &Path, address: &str) -> Running {
    let hash = "$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O";
    std::fs::write(dir.join("htpasswd"), format!("user:{hash}\n")).unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {d}/data}}}}\n\
         http: {{addr: '{address}'}}\nauth: {{htpasswd: {{realm: r, path: {d}/htpasswd}}}}\n",
        d = dir.display()
    );
    std::fs::write(dir.join("config.yml"), config).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(dir.join("config.yml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    eventually("the registry listens", 20, || std::net::TcpStream::connect(address).ok());
    running
}

fn private_registry(cluster: &Cluster) {
    let namespace = cluster.namespace("private");
    let ns = namespace.name.as_str();
    let dir = tempfile::tempdir().unwrap();
    let address = "10.99.0.1:5443";
    let _registry = start_private_registry(dir.path(), address);
    let image = concat!("oci:", env!("CARGO_MANIFEST_DIR"), "/target/images/web_1:1");
    let target = format!("docker://{address}/team/web:1");
    let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds"];
    run("skopeo", &[&copy[..], &["user:sesame", image, &target]].concat()).ok();
    let hosts =
        cluster.data_dir().join("nodes/node-1/agent/containerd/certs.d/private.rkube.local");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = \"http://{address}\"\n[host.\"http://{address}\"]\n");
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    for (name, password) in [("good", "sesame"), ("bad", "wrong")] {
        let password = format!("--docker-password={password}");
        let server = "--docker-server=private.rkube.local";
        let create = ["-n", ns, "create", "secret", "docker-registry", name, server];
        let user = ["--docker-username=user", &password];
        cluster.rkubectl(&[&create[..], &user[..]].concat()).ok();
        let container = "name: c, image: 'private.rkube.local/team/web:1', imagePullPolicy: Always";
        let spec = format!("nodeName: node-1\nimagePullSecrets: [{{name: {name}}}]");
        pod(cluster, ns, name, &format!("{spec}\ncontainers: [{{{container}}}]"));
    }
    wait_ready(cluster, ns, "good");
    eventually("the registry's answer is told", 30, || {
        let message = state(cluster, ns, "bad", "waiting.message");
        message.contains("401 Unauthorized").then_some(())
    });
}

fn rotation(cluster: &Cluster) {
    let namespace = cluster.namespace("rotation");
    let ns = namespace.name.as_str();
    let script = "yes 0123456789012345678901234567890123456789 | head -n 200000; echo large; while :; do echo tick; sleep 0.1; done";
    simple(cluster, ns, "p", &format!("command: [sh, -c, '{script}']"), "nodeName: node-1");
    wait_ready(cluster, ns, "p");
    let uid = cluster.get(&["-n", ns, "pod", "p"], "{.metadata.uid}");
    let dir = cluster.data_dir().join(format!("nodes/node-1/agent/logs/{ns}_p_{uid}/c"));
    eventually("the log is rotated and written again", 40, || {
        let rotated = std::fs::read_dir(&dir)
            .ok()?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("0.log."));
        let newest = std::fs::read_to_string(dir.join("0.log")).ok()?;
        (rotated && newest.contains("tick")).then_some(())
    });
    assert_eq!(cluster.rkubectl(&["-n", ns, "logs", "p", "--tail=1"]).ok(), "tick\n");
    // Those before the rotation are still there.
    let all = cluster.rkubectl(&["-n", ns, "logs", "p"]).ok();
    assert_eq!(all.lines().filter(|line| line.starts_with("0123")).count(), 200_000);
}

fn killed_containerd(cluster: &Cluster) {
    let namespace = cluster.namespace("containerd");
    let ns = namespace.name.as_str();
    let until = "command: [sh, -c, 'until [ -e /host/end ]; do sleep 0.1; done; exit 7'], volumeMounts: [{name: h, mountPath: /host}]";
    let spec = format!(
        "nodeName: node-2\nrestartPolicy: Never\nvolumes: [{{name: h, hostPath: {{path: {}}}}}]",
        cluster.data_dir().display()
    );
    simple(cluster, ns, "ender", until, &spec);
    simple(cluster, ns, "stays", "", "nodeName: node-2");
    wait_ready(cluster, ns, "ender");
    wait_ready(cluster, ns, "stays");
    let started = state(cluster, ns, "stays", "running.startedAt");
    run("pkill", &["-KILL", "-f", "containerd --config .*node-2/agent"]).ok();
    // It ends while nobody watches.
    std::fs::write(cluster.data_dir().join("end"), "").unwrap();
    eventually_is(cluster, ns, "ender", "terminated.exitCode", "7");
    assert_eq!(state(cluster, ns, "stays", "running.startedAt"), started);
    simple(cluster, ns, "new", "", "nodeName: node-2");
    wait_ready(cluster, ns, "new");
    std::fs::remove_file(cluster.data_dir().join("end")).unwrap();
}
