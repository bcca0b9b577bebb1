//! What a node does for a container.

use crate::Test;
use crate::cluster::{Cluster, eventually};

pub const TESTS: &[Test] = &[
    ("volumes_and_environment_reach_the_container", volumes),
    ("init_containers_run_first", init_containers),
    ("a_failing_liveness_probe_restarts", liveness),
    ("limits_reach_the_cgroup", limits),
    ("logs_of_this_and_the_previous_container", logs),
    ("a_command_that_does_not_exist_says_so", no_command),
    ("pre_stop_runs_and_term_ends_in_good_order", pre_stop),
];

fn pod(cluster: &Cluster, ns: &str, spec: &str) {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {ns}}}\nspec:\n{indented}"
    ));
}

fn wait_ready(cluster: &Cluster, ns: &str) {
    cluster.rkubectl(&["-n", ns, "wait", "--for=condition=Ready", "pod/p", "--timeout=60s"]).ok();
}

fn exec(cluster: &Cluster, ns: &str, script: &str) -> String {
    cluster.rkubectl(&["-n", ns, "exec", "p", "--", "sh", "-c", script]).ok()
}

fn volumes(cluster: &Cluster) {
    let namespace = cluster.namespace("volumes");
    let ns = namespace.name.as_str();
    cluster.rkubectl(&["-n", ns, "create", "configmap", "c", "--from-literal=key=value"]).ok();
    cluster
        .rkubectl(&["-n", ns, "create", "secret", "generic", "s", "--from-literal=pass=word"])
        .ok();
    pod(
        cluster,
        ns,
        "containers:
- name: c
  image: registry.rkube.local/web:1
  env:
  - {name: A, value: a}
  - {name: B, value: $(A)b}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: PASS, valueFrom: {secretKeyRef: {name: s, key: pass}}}
  envFrom: [{configMapRef: {name: c}, prefix: CM_}]
  volumeMounts:
  - {name: config, mountPath: /config}
  - {name: secret, mountPath: /secret, readOnly: true}
  - {name: scratch, mountPath: /scratch}
  - {name: host, mountPath: /host}
volumes:
- {name: config, configMap: {name: c}}
- {name: secret, secret: {secretName: s, defaultMode: 0400}}
- {name: scratch, emptyDir: {}}
- {name: host, hostPath: {path: /etc, type: Directory}}",
    );
    wait_ready(cluster, ns);
    let node = cluster.get(&["-n", ns, "pod", "p"], "{.spec.nodeName}");
    assert_eq!(
        exec(cluster, ns, "echo $B $NODE $PASS $CM_key").trim(),
        format!("ab {node} word value")
    );
    assert_eq!(exec(cluster, ns, "cat /config/key /secret/pass"), "valueword");
    exec(cluster, ns, "touch /scratch/x && test -f /host/debian_version");
    cluster
        .rkubectl(&["-n", ns, "patch", "configmap", "c", "-p", "{\"data\":{\"key\":\"new\"}}"])
        .ok();
    eventually("the file follows the ConfigMap", 90, || {
        (exec(cluster, ns, "cat /config/key") == "new").then_some(())
    });
}

fn init_containers(cluster: &Cluster) {
    let namespace = cluster.namespace("init");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "initContainers:
- {name: i, image: 'registry.rkube.local/web:1', command: [sh, -c, 'echo first >/shared/x'], volumeMounts: [{name: v, mountPath: /shared}]}
containers:
- {name: c, image: 'registry.rkube.local/web:1', volumeMounts: [{name: v, mountPath: /shared}]}
volumes: [{name: v, emptyDir: {}}]",
    );
    wait_ready(cluster, ns);
    assert_eq!(exec(cluster, ns, "cat /shared/x"), "first\n");
}

fn liveness(cluster: &Cluster) {
    let namespace = cluster.namespace("liveness");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "containers:
- name: c
  image: registry.rkube.local/web:1
  livenessProbe: {exec: {command: [test, '!', -f, /tmp/sick]}, periodSeconds: 1, failureThreshold: 1}
  readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}",
    );
    wait_ready(cluster, ns);
    exec(cluster, ns, "touch /tmp/sick");
    eventually("a restart", 60, || {
        let path = "{.status.containerStatuses[0].restartCount}";
        (cluster.get(&["-n", ns, "pod", "p"], path) == "1").then_some(())
    });
    wait_ready(cluster, ns);
    let described = cluster.rkubectl(&["-n", ns, "describe", "pod", "p"]).ok();
    assert!(described.contains("Liveness probe failed"), "{described}");
}

fn limits(cluster: &Cluster) {
    let namespace = cluster.namespace("limits");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "restartPolicy: Never
containers:
- {name: c, image: 'registry.rkube.local/web:1', command: [sh, -c, 'x=x; while :; do x=$x$x; done'], resources: {limits: {memory: 32Mi, cpu: 200m}}}",
    );
    eventually("it is killed for its memory", 60, || {
        let path = "{.status.containerStatuses[0].state.terminated.reason}";
        (cluster.get(&["-n", ns, "pod", "p"], path) == "OOMKilled").then_some(())
    });
}

fn logs(cluster: &Cluster) {
    let namespace = cluster.namespace("logs");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "containers:
- {name: c, image: 'registry.rkube.local/web:1', command: [sh, -c, 'echo life of $$; echo two; sleep 1; exit 3']}",
    );
    eventually("a second life", 60, || {
        let path = "{.status.containerStatuses[0].restartCount}";
        (cluster.get(&["-n", ns, "pod", "p"], path) == "1").then_some(())
    });
    let previous = cluster.rkubectl(&["-n", ns, "logs", "p", "--previous"]).ok();
    assert!(previous.contains("two"), "{previous}");
    assert_eq!(cluster.rkubectl(&["-n", ns, "logs", "p", "--previous", "--tail=1"]).ok(), "two\n");
    let code = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(cluster.get(&["-n", ns, "pod", "p"], code), "3");
    eventually("the back-off is told", 60, || {
        let path = "{.status.containerStatuses[0].state.waiting.reason}";
        (cluster.get(&["-n", ns, "pod", "p"], path) == "CrashLoopBackOff").then_some(())
    });
}

fn no_command(cluster: &Cluster) {
    let namespace = cluster.namespace("nocommand");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "containers: [{name: c, image: 'registry.rkube.local/web:1', command: [/no/such]}]",
    );
    eventually("the failure is told", 60, || {
        let described = cluster.rkubectl(&["-n", ns, "describe", "pod", "p"]).ok();
        described.contains("no such file or directory").then_some(())
    });
}

fn pre_stop(cluster: &Cluster) {
    let namespace = cluster.namespace("prestop");
    let ns = namespace.name.as_str();
    pod(
        cluster,
        ns,
        "nodeName: node-1
containers:
- name: c
  image: registry.rkube.local/web:1
  lifecycle: {preStop: {exec: {command: [touch, /seen/pre-stop]}}}
  volumeMounts: [{name: v, mountPath: /seen}]
volumes: [{name: v, hostPath: {path: /tmp/rkube-pre-stop, type: DirectoryOrCreate}}]",
    );
    wait_ready(cluster, ns);
    let began = std::time::Instant::now();
    cluster.rkubectl(&["-n", ns, "delete", "pod", "p"]).ok();
    assert!(began.elapsed().as_secs() < 20, "TERM was not enough");
    let seen = std::path::Path::new("/tmp/rkube-pre-stop/pre-stop");
    assert!(seen.exists());
    std::fs::remove_dir_all("/tmp/rkube-pre-stop").unwrap();
}
