//! Users: what they do is drawn from the seed, whom they do it to from what there is.

use crate::history::{History, Name};
use http::Request;
use kube::Client;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const NAMESPACES: [&str; 2] = ["sim-a", "sim-b"];
const APPS: [&str; 4] = ["web", "db", "cache", "port"];
/// A finalizer that only the user takes away.
pub const HOLD: &str = "sim.example.com/hold";

pub struct User {
    client: Client,
    history: Arc<History>,
    rng: StdRng,
    /// What was done, and with what answer.
    pub journal: Vec<String>,
    /// Uids whose finalizer the user was about to take away.
    pub let_go: BTreeSet<String>,
}

type Act = (&'static str, &'static str, String, Value);

fn deployments(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments")
}

fn pod_path((namespace, name): &Name) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

impl User {
    pub fn new(client: Client, history: Arc<History>, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        User { client, history, rng, journal: Vec::new(), let_go: BTreeSet::new() }
    }

    async fn send(&mut self, method: &str, path: &str, body: Value) -> kube::Result<Value> {
        let media = match (method, body.is_array()) {
            ("PATCH", true) => "application/json-patch+json",
            ("PATCH", false) => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request.body(bytes).map_err(kube::Error::HttpError)?;
        let answer = self.client.request::<Value>(request).await;
        let told = match &answer {
            Ok(object) => object["metadata"]["resourceVersion"].to_string(),
            Err(error) => error.to_string(),
        };
        self.journal.push(format!("{method} {path} {body} → {told}"));
        answer
    }

    /// The namespaces, their Services and first Deployments.
    pub async fn found(&mut self) {
        for namespace in NAMESPACES {
            self.make_namespace(namespace).await;
            for app in APPS {
                self.create(namespace, app).await;
            }
        }
    }

    async fn refurnish(&mut self) {
        let namespace = NAMESPACES[self.rng.random_range(0..NAMESPACES.len())];
        self.make_namespace(namespace).await;
        let app = APPS[self.rng.random_range(0..APPS.len())];
        self.create(namespace, app).await;
    }

    async fn make_namespace(&mut self, namespace: &str) {
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let _ = self.send("POST", "/api/v1/namespaces", object).await;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        });
        let path = format!("/api/v1/namespaces/{namespace}/services");
        let _ = self.send("POST", &path, service).await;
    }

    async fn create(&mut self, namespace: &str, app: &str) {
        let deployment = self.deployment(app);
        // That it is there already, or its namespace goes away, is the user's bad luck.
        let _ = self.send("POST", &deployments(namespace), deployment).await;
    }

    fn deployment(&mut self, app: &str) -> Value {
        let rng = &mut self.rng;
        let bounds = [json!(0), json!(1), json!(2), json!("25%"), json!("50%")];
        let mut bound = || bounds.choose(rng).cloned().unwrap_or_default();
        // One more pod of a host port may find no node that is free.
        let fixed = (app == "port").then(|| (json!(0), json!(1)));
        let (surge, unavailable) = fixed.unwrap_or_else(|| (bound(), bound()));
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {
            "maxSurge": if unavailable == 0 && surge == 0 { json!(1) } else { surge },
            "maxUnavailable": unavailable,
        }});
        let recreate = app == "db" && rng.random_bool(0.7);
        let mut container = json!({
            "name": "main", "image": "image:0",
            "resources": {"requests": {
                "cpu": format!("{}m", rng.random_range(1..=2) * 100),
                "memory": format!("{}Mi", rng.random_range(1..=3) * 32),
            }},
        });
        let most = if app == "port" { 2 } else { 4 };
        let replicas = rng.random_range(0..=most);
        if app == "port" {
            container["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
        }
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": app}},
                "revisionHistoryLimit": rng.random_range(0..4),
                "strategy": if recreate { json!({"type": "Recreate"}) } else { rolling },
                "template": {
                    "metadata": {"labels": {"app": app}},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
                },
            },
        })
    }

    fn any(&mut self, kind: &str) -> Option<(Name, Arc<Value>)> {
        let ours = |(namespace, _): &Name| namespace.is_empty() || namespace.starts_with("sim-");
        let all: Vec<_> = self.history.objects(kind).into_iter().filter(|(n, _)| ours(n)).collect();
        all.choose(&mut self.rng).cloned()
    }

    /// One action.
    pub async fn act(&mut self) {
        let kind = match self.rng.random_range(0..100) {
            0..45 => "Deployment",
            45..80 => "Pod",
            80..88 => "Node",
            88..94 => "ReplicaSet",
            94 => "Namespace",
            _ => return self.refurnish().await,
        };
        if kind == "Namespace" {
            return self.delete_namespace().await;
        }
        let Some((name, object)) = self.any(kind) else {
            return self.found().await;
        };
        let act = match kind {
            "Deployment" => self.on_deployment(&name, &object),
            "Pod" => self.on_pod(&name, &object),
            "ReplicaSet" => self.on_set(&name),
            _ => {
                let cordon = json!({"spec": {"unschedulable": self.rng.random_bool(0.4)}});
                Some(("PATCH", "", format!("/api/v1/nodes/{}", name.1), cordon))
            }
        };
        if let Some((method, sub, path, body)) = act {
            let _ = self.send(method, &format!("{path}{sub}"), body).await;
        }
    }

    async fn delete_namespace(&mut self) {
        let namespace = NAMESPACES[self.rng.random_range(0..2)];
        let path = format!("/api/v1/namespaces/{namespace}");
        let _ = self.send("DELETE", &path, Value::Null).await;
    }

    fn on_deployment(&mut self, name: &Name, object: &Value) -> Option<Act> {
        let path = format!("{}/{}", deployments(&name.0), name.1);
        let patch = |body| Some(("PATCH", "", path.clone(), body));
        let most = if name.1 == "port" { 2 } else { 4 };
        match self.rng.random_range(0..100) {
            0..25 => {
                let scale = json!({"spec": {"replicas": self.rng.random_range(0..=most)}});
                Some(("PATCH", "/scale", path, scale))
            }
            25..55 => patch(self.image()),
            55..63 => patch(json!({"spec": {"paused": true}})),
            63..75 => patch(json!({"spec": {"paused": null}})),
            75..83 => self.roll_back(&path, object),
            83..88 => self.delete(path),
            88..92 => patch(json!({"metadata": {"finalizers": [HOLD]}})),
            92..95 => patch(self.let_go(object)),
            _ => Some(("POST", "", deployments(&name.0), {
                let app = APPS[self.rng.random_range(0..APPS.len())];
                self.deployment(app)
            })),
        }
    }

    fn image(&mut self) -> Value {
        // All that a merge patch replaces with the list of containers comes back by the template.
        let image = format!("image:{}", self.rng.random_range(0..5));
        json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": image}])
    }

    fn roll_back(&mut self, path: &str, deployment: &Value) -> Option<Act> {
        let sets = self.history.objects("ReplicaSet");
        let uid = deployment["metadata"]["uid"].as_str();
        let own: Vec<_> = sets.values().filter(|s| crate::rest::controller(s) == uid).collect();
        let mut template = own.choose(&mut self.rng)?["spec"]["template"].clone();
        let labels = template["metadata"]["labels"].as_object_mut()?;
        labels.remove("pod-template-hash");
        let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
        Some(("PATCH", "", path.to_owned(), patch))
    }

    fn delete(&mut self, path: String) -> Option<Act> {
        let policies = ["Background", "Background", "Foreground", "Orphan"];
        let policy = policies[self.rng.random_range(0..4)];
        let options = json!({
            "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy,
        });
        Some(("DELETE", "", path, options))
    }

    /// The change that takes the user's finalizer away.
    fn let_go(&mut self, object: &Value) -> Value {
        let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        self.let_go.insert(object["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
        let Some(at) = finalizers.iter().position(|f| f == HOLD) else {
            return json!({"metadata": {"annotations": {"held": "no"}}});
        };
        let path = format!("/metadata/finalizers/{at}");
        json!([
            {"op": "test", "path": path, "value": HOLD},
            {"op": "remove", "path": path},
        ])
    }

    fn on_set(&mut self, name: &Name) -> Option<Act> {
        let path = format!("/apis/apps/v1/namespaces/{}/replicasets/{}", name.0, name.1);
        match self.rng.random_bool(0.5) {
            true => self.delete(path),
            false => {
                let scale = json!({"spec": {"replicas": self.rng.random_range(0..4)}});
                Some(("PATCH", "", path, scale))
            }
        }
    }

    fn on_pod(&mut self, name: &Name, object: &Value) -> Option<Act> {
        let path = pod_path(name);
        let patch = |body| Some(("PATCH", "", path.clone(), body));
        match self.rng.random_range(0..100) {
            0..20 => Some(("DELETE", "", path, Value::Null)),
            20..35 => {
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": {"name": name.1, "namespace": name.0},
                });
                Some(("POST", "/eviction", path, eviction))
            }
            35..48 => patch(json!({"metadata": {"labels": {"app": "stray"}}})),
            48..62 => {
                let app = APPS[self.rng.random_range(0..APPS.len())];
                patch(json!({"metadata": {"labels": {"app": app}}}))
            }
            75..82 => patch(json!({"metadata": {"finalizers": [HOLD]}})),
            82..88 => patch(self.let_go(object)),
            _ => {
                Some(("POST", "", format!("/api/v1/namespaces/{}/pods", name.0), self.large_pod()))
            }
        }
    }

    /// A pod of its own, of which a node has room for one.
    fn large_pod(&mut self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "large-", "labels": {"app": "large"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "main", "image": "image:0",
                "resources": {"requests": {"cpu": format!("{}m", self.rng.random_range(8..15) * 100)}},
            }]},
        })
    }

    /// Takes back what keeps a cluster from rest: holds, pauses, cordons, pods that nobody owns.
    pub async fn tidy_up(&mut self) {
        for (name, node) in self.history.objects("Node") {
            if node["spec"]["unschedulable"] == true {
                let path = format!("/api/v1/nodes/{}", name.1);
                self.insist("PATCH", &path, json!({"spec": {"unschedulable": null}})).await;
            }
        }
        for namespace in NAMESPACES {
            let path = format!("{}?limit=500", deployments(namespace));
            let list = self.insist("GET", &path, Value::Null).await;
            for deployment in list["items"].as_array().cloned().unwrap_or_default() {
                let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{}/{name}", deployments(namespace));
                self.release(&path, &deployment).await;
                self.insist("PATCH", &path, json!({"spec": {"paused": null}})).await;
            }
            self.tidy_pods(namespace).await;
        }
    }

    async fn tidy_pods(&mut self, namespace: &str) {
        let all = format!("/api/v1/namespaces/{namespace}/pods");
        let list = self.insist("GET", &all, Value::Null).await;
        for pod in list["items"].as_array().cloned().unwrap_or_default() {
            let path = pod_path(&crate::history::name_of(&pod));
            self.release(&path, &pod).await;
            if crate::rest::controller(&pod).is_none() {
                self.insist("DELETE", &path, Value::Null).await;
            }
        }
        // Sets that were orphaned keep their pods; those would take room from the Deployments.
        let all = format!("/apis/apps/v1/namespaces/{namespace}/replicasets");
        let list = self.insist("GET", &all, Value::Null).await;
        for set in list["items"].as_array().cloned().unwrap_or_default() {
            if crate::rest::controller(&set).is_none() {
                let name = set["metadata"]["name"].as_str().unwrap_or_default();
                self.insist("DELETE", &format!("{all}/{name}"), Value::Null).await;
            }
        }
    }

    async fn release(&mut self, path: &str, object: &Value) {
        let finalizers = object["metadata"]["finalizers"].as_array();
        if finalizers.is_some_and(|f| f.iter().any(|f| f == HOLD)) {
            let patch = self.let_go(object);
            self.insist("PATCH", path, patch).await;
        }
    }

    /// Tries until the server has decided.
    async fn insist(&mut self, method: &str, path: &str, body: Value) -> Value {
        for _ in 0..100 {
            match self.send(method, path, body.clone()).await {
                Ok(answer) => return answer,
                Err(kube::Error::Api(refusal)) if refusal.code < 500 && refusal.code != 429 => {
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        Value::Null
    }

    /// A new image for every Deployment.
    pub async fn roll_all(&mut self) -> usize {
        let all = self.history.objects("Deployment");
        for (namespace, name) in all.keys() {
            let image = format!("calm:{}", self.rng.random::<u16>());
            let path = "/spec/template/spec/containers/0/image";
            let patch = json!([{"op": "replace", "path": path, "value": image}]);
            self.insist("PATCH", &format!("{}/{name}", deployments(namespace)), patch).await;
        }
        all.len()
    }
}
