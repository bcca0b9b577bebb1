//! Deployments and ReplicaSets under random pods: a rolling update keeps its bounds at every step and
//! always arrives.
//!
//! The rules run over a world in memory. What happens next, a reconcile of either kind or a pod that
//! becomes ready or is gone at last, is chosen at random.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use proptest::prelude::*;
use rkube_controller::{deployment, replicaset};
use rkube_runtime::Reconcile;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

struct World {
    deployment: Deployment,
    sets: BTreeMap<String, ReplicaSet>,
    pods: BTreeMap<String, Pod>,
    now: i64,
    sequence: u64,
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Applies a JSON merge patch to a typed object.
fn merge<T: serde::Serialize + serde::de::DeserializeOwned>(object: &mut T, patch: &Value) {
    let mut value = serde_json::to_value(&*object).unwrap();
    merge_value(&mut value, patch);
    *object = serde_json::from_value(value).unwrap();
}

fn merge_value(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in fields {
        if value.is_null() {
            target.remove(key);
        } else {
            merge_value(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn owner(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> &str {
    meta.owner_references.as_ref().map_or("", |o| o[0].uid.as_str())
}

impl World {
    fn new(replicas: i32, surge: i32, unavailable: i32) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas,
                "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "web:0"}]}},
            },
        }));
        let deployment = deployment.unwrap();
        World { deployment, sets: BTreeMap::new(), pods: BTreeMap::new(), now: 1000, sequence: 0 }
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// Says whether anything was done.
    fn reconcile_deployment(&mut self) -> bool {
        let view = deployment::View {
            deployment: Arc::new(self.deployment.clone()),
            sets: self.sets.values().cloned().map(Arc::new).collect(),
            pods: self.pods.values().cloned().map(Arc::new).collect(),
            taken: HashSet::new(),
        };
        let plan = deployment::Rule.reconcile(&view, time(self.now));
        let acted = !plan.actions.is_empty();
        plan.actions.into_iter().for_each(|action| self.act_deployment(action));
        acted
    }

    fn act_deployment(&mut self, action: deployment::Action) {
        use deployment::Action;
        match action {
            Action::CreateSet(mut set) => {
                let name = set.metadata.name.clone().unwrap();
                self.sequence += 1;
                set.metadata.uid = Some(format!("set-{}", self.sequence));
                set.metadata.generation = Some(1);
                set.metadata.creation_timestamp = Some(Time(time(self.now)));
                assert!(self.sets.insert(name, *set).is_none(), "the set was there already");
            }
            Action::Scale { set, replicas, annotations } => {
                let set = self.sets.get_mut(set.metadata.name.as_ref().unwrap()).unwrap();
                merge(set, &json!({"spec": {"replicas": replicas}}));
                if !annotations.is_null() {
                    merge(set, &json!({"metadata": {"annotations": annotations}}));
                }
                *set.metadata.generation.as_mut().unwrap() += 1;
            }
            Action::PatchSet { set, patch } => {
                merge(self.sets.get_mut(set.metadata.name.as_ref().unwrap()).unwrap(), &patch);
            }
            Action::DeleteSet(set) => {
                self.sets.remove(set.metadata.name.as_ref().unwrap());
            }
            Action::Annotate(annotations) => {
                merge(&mut self.deployment, &json!({"metadata": {"annotations": annotations}}));
            }
            Action::PatchStatus(status) => {
                merge(&mut self.deployment, &json!({ "status": status }));
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn reconcile_set(&mut self, name: &str) -> bool {
        let Some(set) = self.sets.get(name).cloned() else { return false };
        let uid = set.metadata.uid.clone().unwrap();
        let own = self.pods.values().filter(|pod| owner(&pod.metadata) == uid);
        let view = replicaset::View {
            pods: own.cloned().map(Arc::new).collect(),
            set: Arc::new(set),
            on_node: HashMap::new(),
            taken: self.pods.keys().cloned().collect(),
        };
        let plan = replicaset::Rule.reconcile(&view, time(self.now));
        let acted = !plan.actions.is_empty();
        for action in plan.actions {
            match action {
                replicaset::Action::Create(pods) => pods.into_iter().for_each(|p| self.create(p)),
                replicaset::Action::Delete(pods) => {
                    for pod in pods {
                        let pod = self.pods.get_mut(pod.metadata.name.as_ref().unwrap()).unwrap();
                        pod.metadata.deletion_timestamp = Some(Time(time(self.now)));
                    }
                }
                replicaset::Action::PatchStatus(status) => {
                    merge(self.sets.get_mut(name).unwrap(), &json!({ "status": status }));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        acted
    }

    fn create(&mut self, mut pod: Pod) {
        self.sequence += 1;
        pod.metadata.uid = Some(format!("pod-{}", self.sequence));
        pod.metadata.creation_timestamp = Some(Time(time(self.now)));
        let name = pod.metadata.name.clone().unwrap();
        assert!(self.pods.insert(name, pod).is_none(), "the name was taken");
    }

    /// A pod that waits becomes ready.
    fn ready_one(&mut self, choice: usize) -> bool {
        let waits = |pod: &Pod| pod.status.is_none() && pod.metadata.deletion_timestamp.is_none();
        let waiting: Vec<_> =
            self.pods.iter().filter(|(_, p)| waits(p)).map(|(n, _)| n.clone()).collect();
        let Some(name) = waiting.get(choice % waiting.len().max(1)) else { return false };
        let condition =
            json!({"type": "Ready", "status": "True", "lastTransitionTime": Time(time(self.now))});
        let status = json!({"phase": "Running", "conditions": [condition]});
        merge(self.pods.get_mut(name).unwrap(), &json!({ "status": status }));
        true
    }

    /// A pod that was deleted is gone at last.
    fn end_one(&mut self, choice: usize) -> bool {
        let deleted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        let deleted: Vec<_> =
            self.pods.iter().filter(|(_, p)| deleted(p)).map(|(n, _)| n.clone()).collect();
        let Some(name) = deleted.get(choice % deleted.len().max(1)) else { return false };
        self.pods.remove(name);
        true
    }

    fn step(&mut self, choice: usize) {
        self.now += 1;
        let sets: Vec<String> = self.sets.keys().cloned().collect();
        match choice % 5 {
            0 | 1 => {
                self.reconcile_deployment();
            }
            2 if !sets.is_empty() => {
                self.reconcile_set(&sets[choice / 5 % sets.len()]);
            }
            3 => {
                self.ready_one(choice / 5);
            }
            _ => {
                self.end_one(choice / 5);
            }
        }
    }

    /// Runs everything until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now += 1;
            let mut acted = self.reconcile_deployment();
            for set in self.sets.keys().cloned().collect::<Vec<_>>() {
                acted |= self.reconcile_set(&set);
            }
            acted |= self.ready_one(0) | self.end_one(0);
            if !acted {
                return;
            }
        }
        panic!("does not settle: {:?}", self.deployment.status);
    }

    fn active(&self) -> i32 {
        let active = self.pods.values().filter(|p| p.metadata.deletion_timestamp.is_none());
        active.count() as i32
    }

    fn serving(&self) -> i32 {
        let active = self.pods.values().filter(|p| p.metadata.deletion_timestamp.is_none());
        active.filter(|p| p.status.is_some()).count() as i32
    }

    fn reason(&self) -> String {
        let status = self.deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let progressing = conditions.into_iter().find(|c| c.type_ == "Progressing");
        progressing.and_then(|c| c.reason).unwrap_or_default()
    }

    fn assert_arrived(&self, image: &str, replicas: i32) {
        let images: HashSet<_> = self
            .pods
            .values()
            .map(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref())
            .collect();
        assert!(replicas == 0 || images == HashSet::from([Some(image)]), "{images:?}");
        assert_eq!((self.active(), self.serving()), (replicas, replicas));
        assert_eq!(self.reason(), "NewReplicaSetAvailable");
        assert!(self.sets.len() <= 3, "history is cleaned up");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rolling_update_keeps_its_bounds_and_arrives(
        replicas in 0i32..8,
        surge in 0i32..4,
        unavailable in 0i32..4,
        updates in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..60), 1..4),
    ) {
        let mut world = World::new(replicas, surge, unavailable);
        world.settle();
        world.assert_arrived("web:0", replicas);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        let last = updates.len();
        for (n, choices) in updates.into_iter().enumerate() {
            world.set_image(&format!("web:{}", n + 1));
            for choice in choices {
                world.step(choice.into());
                prop_assert!(world.active() <= replicas + surge, "{} pods", world.active());
                let least = replicas - unavailable;
                prop_assert!(world.serving() >= least, "{} serve, {least} must", world.serving());
            }
        }
        world.settle();
        world.assert_arrived(&format!("web:{last}"), replicas);
    }

    #[test]
    fn a_set_has_as_many_pods_as_it_should(sizes in prop::collection::vec((0i32..12, any::<u16>()), 1..8)) {
        let mut world = World::new(3, 1, 0);
        for (size, choice) in sizes {
            world.deployment.spec.as_mut().unwrap().replicas = Some(size);
            *world.deployment.metadata.generation.as_mut().unwrap() += 1;
            for n in 0..10 {
                world.step(usize::from(choice) + n * 7);
            }
            world.settle();
            world.assert_arrived("web:0", size);
        }
    }
}

#[test]
fn taking_up_an_old_template_raises_its_revision_and_remembers_the_old_one() {
    let mut world = World::new(2, 1, 0);
    world.settle();
    let first = world.sets.keys().next().unwrap().clone();
    world.set_image("web:1");
    world.settle();
    world.set_image("web:0");
    world.settle();
    assert_eq!(world.sets.len(), 2);
    let annotations = world.sets[&first].metadata.annotations.clone().unwrap();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
    let of_deployment = world.deployment.metadata.annotations.clone().unwrap();
    assert_eq!(of_deployment["deployment.kubernetes.io/revision"], "3");
    assert_eq!(world.sets[&first].spec.as_ref().unwrap().replicas, Some(2));
}

#[test]
fn a_rollout_without_progress_is_reported_after_its_deadline() {
    let mut world = World::new(2, 1, 0);
    world.settle();
    world.set_image("web:1");
    // The new pod never becomes ready.
    for _ in 0..5 {
        world.reconcile_deployment();
        for set in world.sets.keys().cloned().collect::<Vec<_>>() {
            world.reconcile_set(&set);
        }
    }
    assert_eq!(world.reason(), "ReplicaSetUpdated");
    let view = |world: &World| deployment::View {
        deployment: Arc::new(world.deployment.clone()),
        sets: world.sets.values().cloned().map(Arc::new).collect(),
        pods: vec![],
        taken: HashSet::new(),
    };
    let plan = deployment::Rule.reconcile(&view(&world), time(world.now));
    let wait = plan.recheck_after.expect("the deadline is waited for").as_secs() as i64;
    assert!((600..=601).contains(&wait), "{wait}");
    world.now += wait;
    world.reconcile_deployment();
    assert_eq!(world.reason(), "ProgressDeadlineExceeded");
    world.settle();
    assert_eq!(world.reason(), "NewReplicaSetAvailable");
}

#[test]
fn pausing_stops_the_rollout_and_resuming_takes_it_up() {
    let mut world = World::new(4, 1, 1);
    world.settle();
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("web:1");
    world.settle();
    assert_eq!((world.sets.len(), world.reason().as_str()), (1, "DeploymentPaused"));
    world.deployment.spec.as_mut().unwrap().paused = None;
    world.settle();
    world.assert_arrived("web:1", 4);
}

#[test]
fn recreate_ends_every_old_pod_before_it_begins() {
    let mut world = World::new(3, 0, 0);
    world.deployment.spec.as_mut().unwrap().strategy =
        Some(serde_json::from_value(json!({"type": "Recreate"})).unwrap());
    world.settle();
    world.set_image("web:1");
    for choice in 0..400 {
        world.step(choice * 3 + choice / 7);
        let images: HashSet<_> = world
            .pods
            .values()
            .map(|p| p.spec.as_ref().unwrap().containers[0].image.clone())
            .collect();
        assert!(images.len() <= 1, "{images:?}");
    }
    world.settle();
    world.assert_arrived("web:1", 3);
}

#[test]
fn a_change_of_size_amid_a_rollout_is_shared_in_proportion() {
    let mut world = World::new(10, 3, 2);
    world.settle();
    world.set_image("web:1");
    // Old and new share the surge: 8 old, 5 new, none of the new ready.
    for _ in 0..6 {
        world.reconcile_deployment();
        for set in world.sets.keys().cloned().collect::<Vec<_>>() {
            world.reconcile_set(&set);
        }
    }
    let sizes = |world: &World| {
        let mut sizes: Vec<_> =
            world.sets.values().map(|s| s.spec.as_ref().unwrap().replicas.unwrap()).collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&world), [5, 8]);
    world.deployment.spec.as_mut().unwrap().replicas = Some(20);
    world.reconcile_deployment();
    assert_eq!(sizes(&world), [9, 14]);
}
