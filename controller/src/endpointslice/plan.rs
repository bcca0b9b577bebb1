//! What to do about a Service's slices: as few writes as lead from the slices that there are to
//! slices with exactly the endpoints that there should be.

use super::endpoint::{endpoint, is_candidate, ports};
use crate::common::{controlled_by, fnv32, generated_name, name, suffix_of, typed_diff, uid};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use rkube_runtime::{Plan, Reconcile};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// So many endpoints a slice holds at most.
const PER_SLICE: usize = 100;
/// The label that names a slice's Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says whose a slice is.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A Service, the pods that it selects and its slices.
#[derive(Clone, Debug)]
pub struct View {
    /// The Service.
    pub service: Arc<Service>,
    /// The pods that it selects.
    pub pods: Vec<Arc<Pod>>,
    /// The nodes of those pods.
    pub nodes: HashMap<String, Arc<Node>>,
    /// The slices that this controller made for it.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create a slice.
    Create(Box<EndpointSlice>),
    /// Merge this into a slice, as far as nobody else has changed it.
    Patch {
        /// The slice as it was seen.
        slice: Arc<EndpointSlice>,
        /// A merge patch.
        patch: Value,
    },
    /// Delete a slice.
    Delete(Arc<EndpointSlice>),
}

/// The rule.
#[derive(Debug)]
pub struct Rule;

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, _now: Timestamp) -> Plan<Action> {
        let Some(spec) = &view.service.spec else { return Plan::none() };
        let selects = spec.selector.as_ref().is_some_and(|s| !s.is_empty());
        let going = view.service.metadata.deletion_timestamp.is_some();
        if !selects || going || spec.type_.as_deref() == Some("ExternalName") {
            return Plan::none();
        }
        let mut work = Work::new(view);
        let families = spec.ip_families.clone().filter(|f| !f.is_empty());
        let families = families.unwrap_or_else(|| vec!["IPv4".into()]);
        families.iter().for_each(|family| work.family(family));
        let strange = view.slices.iter().filter(|s| !families.contains(&s.address_type));
        strange.for_each(|slice| work.actions.push(Action::Delete(slice.clone())));
        Plan::of(work.actions)
    }
}

struct Work<'a> {
    view: &'a View,
    labels: BTreeMap<String, String>,
    taken: HashSet<String>,
    actions: Vec<Action>,
}

/// A slice and the endpoints that it is to have.
struct Draft {
    slice: Option<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

impl<'a> Work<'a> {
    fn new(view: &'a View) -> Self {
        let taken = view.slices.iter().map(|s| name(&s.metadata).to_owned()).collect();
        Work { view, labels: labels(&view.service), taken, actions: Vec::new() }
    }

    /// Brings the slices of one address family up to date: those with the same ports together.
    fn family(&mut self, family: &str) {
        let mut wanted = self.wanted(family);
        let mut slices = BTreeMap::<String, Vec<Arc<EndpointSlice>>>::new();
        for slice in self.view.slices.iter().filter(|s| s.address_type == family) {
            slices.entry(key_of(slice.ports.as_deref())).or_default().push(slice.clone());
        }
        if wanted.is_empty() {
            // A Service without endpoints has one empty slice, so that it is told from one that
            // nobody looks after.
            let port_key = slices.keys().next().cloned().unwrap_or_else(|| key_of(None));
            let first = slices.get(&port_key).and_then(|s| s.first());
            let ports = first.and_then(|s| s.ports.clone()).unwrap_or_default();
            wanted.insert(port_key, (ports, Vec::new()));
        }
        let stale: Vec<String> =
            slices.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
        for (key, (ports, endpoints)) in wanted {
            let mut existing = slices.remove(&key).unwrap_or_default();
            existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            for draft in drafts(existing, endpoints) {
                self.write(family, &ports, draft);
            }
        }
        let stale = stale.into_iter().filter_map(|key| slices.remove(&key)).flatten();
        self.actions.extend(stale.map(Action::Delete));
    }

    /// The endpoints by the ports that their pods have.
    fn wanted(&self, family: &str) -> BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> {
        let mut wanted = BTreeMap::<String, (Vec<EndpointPort>, Vec<Endpoint>)>::new();
        let mut pods: Vec<_> = self.view.pods.iter().filter(|pod| is_candidate(pod)).collect();
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
            let node = node.and_then(|n| self.view.nodes.get(n)).map(Arc::as_ref);
            let Some(endpoint) = endpoint(pod, &self.view.service, node, family) else { continue };
            let ports = ports(pod, &self.view.service);
            let key = key_of(Some(&ports));
            wanted.entry(key).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        }
        wanted
    }

    fn write(&mut self, family: &str, ports: &[EndpointPort], draft: Draft) {
        let Some(slice) = draft.slice else {
            let slice = self.new_slice(family, ports, draft.endpoints);
            return self.actions.push(Action::Create(Box::new(slice)));
        };
        let old_labels = slice.metadata.labels.clone().unwrap_or_default();
        let labels = typed_diff(Some(&old_labels), &self.labels);
        if !draft.changed && labels.is_none() {
            return;
        }
        let mut patch =
            json!({ "metadata": { "resourceVersion": slice.metadata.resource_version } });
        if let Some(labels) = labels {
            patch["metadata"]["labels"] = labels;
        }
        if draft.changed {
            patch["endpoints"] = json!(draft.endpoints);
        }
        self.actions.push(Action::Patch { slice, patch });
    }

    fn new_slice(
        &mut self,
        family: &str,
        ports: &[EndpointPort],
        endpoints: Vec<Endpoint>,
    ) -> EndpointSlice {
        let service = &self.view.service.metadata;
        let seed = fnv32([uid(service).as_bytes(), family.as_bytes()]);
        let candidates = (0u32..)
            .map(|n| suffix_of(fnv32([&seed.to_le_bytes()[..], &n.to_le_bytes()[..]])))
            .map(|suffix| generated_name(name(service), &suffix));
        // There are more names than slices.
        let slice_name = { candidates }.find(|name| self.taken.insert(name.clone()));
        EndpointSlice {
            metadata: ObjectMeta {
                name: slice_name,
                generate_name: Some(format!("{}-", name(service))),
                namespace: service.namespace.clone(),
                labels: Some(self.labels.clone()),
                owner_references: Some(vec![controlled_by(service, "v1", "Service")]),
                ..Default::default()
            },
            address_type: family.into(),
            endpoints: Some(endpoints),
            ports: Some(ports.to_vec()),
        }
    }
}

/// Ports in a form to compare, in no order.
fn key_of(ports: Option<&[EndpointPort]>) -> String {
    let mut texts: Vec<String> =
        ports.unwrap_or_default().iter().map(|p| json!(p).to_string()).collect();
    texts.sort();
    texts.join(",")
}

/// Distributes the endpoints: each stays in its slice; new ones go where a write is due anyway, then
/// where there is room, then into new slices; a slice that ends up empty goes, except the last.
fn drafts(existing: Vec<Arc<EndpointSlice>>, endpoints: Vec<Endpoint>) -> Vec<Draft> {
    let mut wanted: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut drafts: Vec<Draft> = existing.into_iter().map(|s| keep(s, &mut wanted)).collect();
    let mut rest: Vec<Endpoint> = wanted.into_values().rev().collect();
    drafts.sort_by_key(|draft| !draft.changed);
    for draft in &mut drafts {
        while draft.endpoints.len() < PER_SLICE
            && let Some(endpoint) = rest.pop()
        {
            draft.endpoints.push(endpoint);
            draft.changed = true;
        }
    }
    while !rest.is_empty() || drafts.is_empty() {
        let share = rest.split_off(rest.len().saturating_sub(PER_SLICE));
        let endpoints = share.into_iter().rev().collect();
        drafts.push(Draft { slice: None, endpoints, changed: true });
    }
    drafts
}

/// An existing slice with those of its endpoints that are still wanted, as they are now.
fn keep(slice: Arc<EndpointSlice>, wanted: &mut BTreeMap<String, Endpoint>) -> Draft {
    let old = slice.endpoints.as_deref().unwrap_or_default();
    let endpoints: Vec<_> = old.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
    let changed = endpoints != old;
    Draft { slice: Some(slice), endpoints, changed }
}

fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    let part = |field: Option<&Option<String>>| field.cloned().flatten().unwrap_or_default();
    let (pod, uid) = (part(target.map(|t| &t.name)), part(target.map(|t| &t.uid)));
    format!("{pod}/{uid}/{}", endpoint.addresses.join(","))
}

/// The Service's labels and our own.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let headless = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None");
    labels.remove(HEADLESS);
    if headless {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), name(&service.metadata).into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn service(extra: Value) -> Arc<Service> {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "s", "labels": {"team": "x"}},
            "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"],
                     "ports": [{"port": 80, "targetPort": "http"}]},
        });
        let fields = extra.as_object().unwrap().clone();
        service["spec"].as_object_mut().unwrap().extend(fields);
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn pod(n: usize, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": format!("p{n:04}"), "namespace": "shop", "uid": format!("u{n}")},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]},
            ]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.42.{}.{}", n / 250, n % 250)}],
                       "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn view(service: Arc<Service>, pods: Vec<Arc<Pod>>, slices: Vec<EndpointSlice>) -> View {
        let slices = slices.into_iter().map(Arc::new).collect();
        View { service, pods, nodes: HashMap::new(), slices }
    }

    fn created(plan: &Plan<Action>) -> Vec<EndpointSlice> {
        let slice = |a: &Action| match a {
            Action::Create(slice) => slice.as_ref().clone(),
            other => panic!("{other:?}"),
        };
        plan.actions.iter().map(slice).collect()
    }

    fn reconcile(view: &View) -> Plan<Action> {
        Rule.reconcile(view, at(0))
    }

    #[test]
    fn a_slice_says_what_it_should() {
        let plan = reconcile(&view(service(json!({})), vec![pod(1, true), pod(2, false)], vec![]));
        let [slice] = &created(&plan)[..] else { panic!() };
        insta::assert_snapshot!(serde_json::to_string_pretty(slice).unwrap(), @r#"
        {
          "apiVersion": "discovery.k8s.io/v1",
          "kind": "EndpointSlice",
          "addressType": "IPv4",
          "endpoints": [
            {
              "addresses": [
                "10.42.0.1"
              ],
              "conditions": {
                "ready": true,
                "serving": true,
                "terminating": false
              },
              "nodeName": "n1",
              "targetRef": {
                "kind": "Pod",
                "name": "p0001",
                "namespace": "shop",
                "uid": "u1"
              }
            },
            {
              "addresses": [
                "10.42.0.2"
              ],
              "conditions": {
                "ready": false,
                "serving": false,
                "terminating": false
              },
              "nodeName": "n1",
              "targetRef": {
                "kind": "Pod",
                "name": "p0002",
                "namespace": "shop",
                "uid": "u2"
              }
            }
          ],
          "metadata": {
            "generateName": "web-",
            "labels": {
              "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
              "kubernetes.io/service-name": "web",
              "team": "x"
            },
            "name": "web-bscff",
            "namespace": "shop",
            "ownerReferences": [
              {
                "apiVersion": "v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "Service",
                "name": "web",
                "uid": "s"
              }
            ]
          },
          "ports": [
            {
              "name": "",
              "port": 8080,
              "protocol": "TCP"
            }
          ]
        }
        "#);
    }

    #[test]
    fn nothing_changes_when_nothing_has() {
        let (service, pods) =
            (service(json!({})), (0..250).map(|n| pod(n, true)).collect::<Vec<_>>());
        let slices = created(&reconcile(&view(service.clone(), pods.clone(), vec![])));
        let sizes: Vec<_> = slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let names: HashSet<_> = slices.iter().map(|s| s.metadata.name.clone()).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(reconcile(&view(service, pods, slices)), Plan::none());
    }

    #[test]
    fn one_pod_that_changes_writes_one_slice() {
        let (service, mut pods) =
            (service(json!({})), (0..250).map(|n| pod(n, true)).collect::<Vec<_>>());
        let slices = created(&reconcile(&view(service.clone(), pods.clone(), vec![])));
        pods[120] = pod(120, false);
        let plan = reconcile(&view(service.clone(), pods.clone(), slices.clone()));
        let [Action::Patch { slice, patch }] = &plan.actions[..] else { panic!() };
        assert_eq!(slice.metadata.name, slices[1].metadata.name);
        assert_eq!(patch["endpoints"].as_array().unwrap().len(), 100);
        // One goes, one comes: the newcomer takes the room in the slice that is written anyway.
        pods[120] = pod(700, true);
        let plan = reconcile(&view(service, pods, slices.clone()));
        let [Action::Patch { slice, patch }] = &plan.actions[..] else {
            panic!("{:?}", plan.actions)
        };
        assert_eq!(slice.metadata.name, slices[1].metadata.name);
        assert_eq!(patch["endpoints"][99]["targetRef"]["name"], "p0700");
    }

    #[test]
    fn a_service_without_endpoints_keeps_one_empty_slice() {
        let empty = created(&reconcile(&view(service(json!({})), vec![], vec![])));
        assert_eq!((empty.len(), empty[0].endpoints.as_deref()), (1, Some(&[][..])));
        assert_eq!(reconcile(&view(service(json!({})), vec![], empty.clone())), Plan::none());
        let plan = reconcile(&view(service(json!({})), vec![pod(1, true)], empty.clone()));
        let kinds: Vec<_> = plan.actions.iter().map(|a| matches!(a, Action::Delete(_))).collect();
        assert_eq!(kinds, [false, true], "the slice with ports comes before that without goes");
    }

    #[test]
    fn services_without_selector_or_of_other_places_are_left_alone() {
        for extra in
            [json!({"selector": null}), json!({"selector": {}}), json!({"type": "ExternalName"})]
        {
            let plan = reconcile(&view(service(extra), vec![pod(1, true)], vec![]));
            assert_eq!(plan, Plan::none());
        }
    }

    #[test]
    fn headless_and_unready_are_said() {
        let extra = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
        let [slice] = &created(&reconcile(&view(service(extra), vec![pod(1, false)], vec![])))[..]
        else {
            panic!()
        };
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(labels.get("service.kubernetes.io/headless").map(String::as_str), Some(""));
        let conditions = slice.endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
    }
}
