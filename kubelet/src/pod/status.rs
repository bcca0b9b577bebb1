//! What the API is told of a pod: a pure function of its [`State`].

use super::resources::qos_class;
use super::state::{
    Ending, ImageState, Role, State, Volumes, after, init_role, may_run, specs, time,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use rkube_cri::{self as cri, ContainerState as Cri};

/// What every status says of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's addresses.
    pub ips: Vec<String>,
}

/// Conditions that are the kubelet's to write; all others belong to somebody else.
pub const OWN_CONDITIONS: [&str; 4] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// The status of a pod at `now`.
pub fn status(state: &State, node: &Node, now: Timestamp) -> PodStatus {
    let pod = &state.pod;
    let before = pod.status.as_ref();
    let (mut init, mut main) = (Vec::new(), Vec::new());
    for (spec, role) in specs(pod) {
        let status = container_status(state, spec, role, now);
        if role == Role::Main { main.push(status) } else { init.push(status) }
    }
    let phase = phase(state);
    let ips = pod_ips(state, node);
    let (reason, message) = pod_reason(state);
    PodStatus {
        conditions: Some(conditions(state, &phase, now)),
        phase: Some(phase),
        host_ip: node.ips.first().cloned(),
        host_ips: Some(node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(
            before.and_then(|s| s.start_time.clone()).unwrap_or(Time(seconds(state.since))),
        ),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        qos_class: Some(
            before.and_then(|s| s.qos_class.clone()).unwrap_or_else(|| qos_class(pod).to_owned()),
        ),
        observed_generation: pod.metadata.generation,
        reason,
        message,
        ..PodStatus::default()
    }
}

/// Whether the API has just this of us already, as after a restart of ours.
pub fn is_known(status: &PodStatus, known: Option<&PodStatus>) -> bool {
    let Some(known) = known else { return false };
    let own = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(list) = &mut status.conditions {
            list.retain(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str()));
            list.sort_by(|one, other| one.type_.cmp(&other.type_));
        }
        status
    };
    own(status) == own(known)
}

/// Whether a status only says that everything is on its way.
pub fn is_being_created(status: &PodStatus) -> bool {
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses);
    status.phase.as_deref() == Some("Pending")
        && containers.flatten().all(|container| {
            let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
            let reason = waiting.and_then(|w| w.reason.as_deref());
            matches!(reason, Some("ContainerCreating" | "PodInitializing"))
        })
}

/// Whether all containers have ended for good.
pub fn is_terminal(state: &State) -> bool {
    let pod = &state.pod;
    if state.closed {
        return true;
    }
    let ended = |spec: &Container, role| {
        let current = state.current(&spec.name);
        current.filter(|c| c.state == Cri::Exited && !restarts_after(pod, role, c.exit_code))
    };
    let mut regular = specs(pod).filter(|(_, role)| *role == Role::Init);
    if regular.any(|(spec, role)| ended(spec, role).is_some_and(|c| c.exit_code != 0)) {
        return true;
    }
    let mut mains = specs(pod).filter(|(_, role)| *role == Role::Main).peekable();
    mains.peek().is_some() && mains.all(|(spec, role)| ended(spec, role).is_some())
}

/// Whether the API says that it has ended.
pub fn already_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a main container was made in the sandbox in use: init containers are done with.
pub fn has_started_main(state: &State) -> bool {
    let mut mains = specs(&state.pod).filter(|(_, role)| *role == Role::Main);
    mains.any(|(spec, _)| state.current_here(&spec.name).is_some())
}

/// Whether a container of this role that ended with `code` is started again.
pub fn restarts_after(pod: &Pod, role: Role, code: i32) -> bool {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    match (role, policy) {
        (Role::Sidecar, _) => true,
        (Role::Init, "Never") | (Role::Main, "Never") => false,
        (Role::Init, _) | (Role::Main, "OnFailure") => code != 0,
        (Role::Main, _) => true,
    }
}

/// When a pod with `activeDeadlineSeconds` has to end.
pub fn active_deadline(state: &State) -> Option<Timestamp> {
    let limit = state.pod.spec.as_ref()?.active_deadline_seconds?;
    let started = state.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    Some(after(started.map_or(state.since, |t| t.0), limit))
}

fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn spec_of(state: &State) -> Option<&PodSpec> {
    state.pod.spec.as_ref()
}

fn pod_ips(state: &State, node: &Node) -> Vec<String> {
    let host = spec_of(state).and_then(|s| s.host_network) == Some(true);
    match &state.sandbox {
        Some(_) if host => node.ips.clone(),
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        _ => {
            let known = state.pod.status.as_ref().and_then(|s| s.pod_ips.as_ref());
            let ended = state.ending.is_some() || is_terminal(state);
            known.into_iter().flatten().filter(|_| ended).map(|ip| ip.ip.clone()).collect()
        }
    }
}

fn pod_reason(state: &State) -> (Option<String>, Option<String>) {
    if state.ending == Some(Ending::Deadline) {
        let message = "Pod was active on the node longer than the specified deadline";
        return (Some("DeadlineExceeded".into()), Some(message.into()));
    }
    let before = state.pod.status.as_ref().filter(|_| already_terminal(&state.pod));
    (before.and_then(|s| s.reason.clone()), before.and_then(|s| s.message.clone()))
}

fn phase(state: &State) -> String {
    let before = state.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    // A phase that is final stays.
    if let Some(last @ ("Succeeded" | "Failed")) = before {
        return last.to_owned();
    }
    let over = state.ending.is_some() && state.running().next().is_none();
    let phase = match is_terminal(state) {
        _ if state.ending == Some(Ending::Deadline) => "Failed",
        false if over && !state.busy("start/") => ended_phase(state),
        true => ended_phase(state),
        false if has_run_main(state) => "Running",
        false => "Pending",
    };
    phase.to_owned()
}

fn has_run_main(state: &State) -> bool {
    let mut mains = specs(&state.pod).filter(|(_, role)| *role == Role::Main);
    mains.any(|(spec, _)| state.current(&spec.name).is_some_and(|c| c.state != Cri::Created))
}

/// A pod that was stopped before it ran has failed too.
fn ended_phase(state: &State) -> &'static str {
    let failed = |spec: &Container| {
        state.current(&spec.name).is_none_or(|c| c.state != Cri::Exited || c.exit_code != 0)
    };
    let mut regular = specs(&state.pod).filter(|(_, role)| *role != Role::Sidecar);
    if regular.any(|(spec, _)| failed(spec)) { "Failed" } else { "Succeeded" }
}

// --- conditions ---

fn conditions(state: &State, phase: &str, now: Timestamp) -> Vec<PodCondition> {
    let running = state.running().next().is_some();
    let network =
        state.sandbox.as_ref().is_some_and(|s| s.ready) && (state.ending.is_none() || running);
    let containers = containers_ready(state, phase);
    let ready = containers.clone().and_then(|()| gates_ready(state));
    let entries = [
        ("PodReadyToStartContainers", if network { Ok(()) } else { Err(None) }),
        ("Initialized", initialized(state, phase)),
        ("Ready", ready),
        ("ContainersReady", containers),
    ];
    entries.map(|(name, value)| condition(state, name, value, now)).to_vec()
}

type Verdict = Result<(), Option<(String, String)>>;

fn condition(state: &State, name: &str, value: Verdict, now: Timestamp) -> PodCondition {
    let status = if value.is_ok() { "True" } else { "False" };
    let (reason, message) = match value {
        Err(Some((reason, message))) => (Some(reason), Some(message).filter(|m| !m.is_empty())),
        _ => (None, None),
    };
    let before = state.reported.as_ref().or(state.pod.status.as_ref());
    let known = before.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let same = known.filter(|c| c.type_ == name && c.status == status);
    let since = same.filter_map(|c| c.last_transition_time.clone()).next();
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        last_transition_time: Some(since.unwrap_or(Time(seconds(now)))),
        observed_generation: state.pod.metadata.generation,
        ..PodCondition::default()
    }
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn initialized(state: &State, phase: &str) -> Verdict {
    if phase == "Succeeded" || has_started_main(state) {
        return Ok(());
    }
    let pending = |spec: &Container, role| match (role, state.current_here(&spec.name)) {
        (Role::Main, _) => false,
        (Role::Init, current) => !current.is_some_and(super::plan::is_done),
        (Role::Sidecar, current) => !current.is_some_and(|c| state.is_started(spec, c)),
    };
    let waiting: Vec<_> = specs(&state.pod)
        .filter(|(spec, role)| pending(spec, *role))
        .map(|(spec, _)| spec.name.as_str())
        .collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let message = format!("containers with incomplete status: {}", names(&waiting));
    Err(Some(("ContainersNotInitialized".into(), message)))
}

fn containers_ready(state: &State, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Err(Some(("PodCompleted".into(), String::new()))),
        "Failed" => return Err(Some(("PodFailed".into(), String::new()))),
        _ => {}
    }
    if state.ending.is_some() {
        return Err(Some(("PodTerminating".into(), "the pod is being stopped".into())));
    }
    let unready: Vec<_> = specs(&state.pod)
        .filter(|(spec, role)| {
            *role != Role::Init
                && !state.current_here(&spec.name).is_some_and(|c| state.is_ready(spec, c))
        })
        .map(|(spec, _)| spec.name.as_str())
        .collect();
    if unready.is_empty() {
        return Ok(());
    }
    let message = format!("containers with unready status: {}", names(&unready));
    Err(Some(("ContainersNotReady".into(), message)))
}

fn gates_ready(state: &State) -> Verdict {
    let conditions = state.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let is_true = |name: &str| {
        conditions.into_iter().flatten().any(|c| c.type_ == name && c.status == "True")
    };
    let gates = spec_of(state).and_then(|s| s.readiness_gates.as_ref()).into_iter().flatten();
    let unmet: Vec<_> =
        gates.map(|gate| &gate.condition_type).filter(|name| !is_true(name)).collect();
    if unmet.is_empty() {
        return Ok(());
    }
    let each = unmet.iter().map(|name| {
        format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")
    });
    Err(Some(("ReadinessGatesNotReady".into(), each.collect::<Vec<_>>().join(", "))))
}

// --- containers ---

fn container_status(
    state: &State,
    spec: &Container,
    role: Role,
    now: Timestamp,
) -> ContainerStatus {
    let instances = state.containers.get(&spec.name).map(Vec::as_slice).unwrap_or_default();
    let (current, earlier) = match instances.split_last() {
        Some((current, earlier)) if current.state != Cri::Created => {
            (Some(current), earlier.last())
        }
        Some((_, earlier)) => (earlier.last(), None),
        None => (None, None),
    };
    let waiting = waiting(state, spec, role, current, now);
    let (now_state, last_state) = match (current, waiting) {
        (Some(ended), Some(waiting)) => (waiting, Some(ended)),
        (None, Some(waiting)) => (waiting, None),
        (Some(current), None) => (shown(current), earlier),
        (None, None) => (wait("ContainerCreating", ""), None),
    };
    let running = current.filter(|c| may_run(c));
    let ready = match role {
        Role::Init => current.is_some_and(super::plan::is_done),
        _ => running.is_some_and(|c| state.is_ready(spec, c)),
    };
    ContainerStatus {
        name: spec.name.clone(),
        state: Some(now_state),
        last_state: Some(last_state.map(shown).unwrap_or_default()),
        ready,
        started: Some(running.is_some_and(|c| state.is_started(spec, c))),
        restart_count: current.map_or(0, |c| i32::try_from(c.attempt).unwrap_or(i32::MAX)),
        image: current.map_or_else(|| spec.image.clone().unwrap_or_default(), |c| named(c, spec)),
        image_id: current.map(|c| c.image_ref.clone()).unwrap_or_default(),
        container_id: current.map(|c| format!("containerd://{}", c.id)),
        ..ContainerStatus::default()
    }
}

/// The image's name; a runtime that only knows its id is no help to a reader.
fn named(container: &cri::Container, spec: &Container) -> String {
    match container.image.starts_with("sha256:") || container.image.is_empty() {
        true => spec.image.clone().unwrap_or_default(),
        false => container.image.clone(),
    }
}

/// The state of a container that waits, unless it runs or has ended for good.
fn waiting(
    state: &State,
    spec: &Container,
    role: Role,
    current: Option<&cri::Container>,
    now: Timestamp,
) -> Option<ContainerState> {
    if current.is_some_and(may_run) || (state.ending.is_some() && current.is_some()) {
        return None;
    }
    if current.is_some_and(|c| !restarts_after(&state.pod, role, c.exit_code)) {
        return None;
    }
    if let Some(ImageState::Failed { reason, message, failures, due }) =
        state.images.get(&spec.name)
    {
        return Some(image_wait(spec, reason, message, *failures, *due, now));
    }
    if let Some(error) = state.start_errors.get(&spec.name) {
        return Some(wait(&error.reason, &error.message));
    }
    if current.is_some() {
        return crash_loop(state, spec, now);
    }
    let has_init = spec_of(state)
        .is_some_and(|s| s.init_containers.iter().flatten().any(|c| init_role(c) == Role::Init));
    if let Volumes::Failed { .. } = state.volumes {
        return Some(wait("ContainerCreating", ""));
    }
    Some(wait(if has_init { "PodInitializing" } else { "ContainerCreating" }, ""))
}

/// After the first report of an error, later ones say that we wait before the next attempt.
fn image_wait(
    spec: &Container,
    reason: &str,
    message: &str,
    failures: u32,
    due: Timestamp,
    now: Timestamp,
) -> ContainerState {
    let image = spec.image.as_deref().unwrap_or_default();
    if reason == "ErrImagePull" && (failures > 1 && due > now) {
        let text = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
        return wait("ImagePullBackOff", &text);
    }
    wait(reason, message)
}

fn crash_loop(state: &State, spec: &Container, now: Timestamp) -> Option<ContainerState> {
    let backoff = state.backoff.get(&spec.name).filter(|b| b.due > now)?;
    let (namespace, name) = (state.pod.namespace().unwrap_or_default(), state.pod.name_any());
    let text = format!(
        "back-off {} restarting failed container={} pod={name}_{namespace}({})",
        duration(backoff.delay_seconds),
        spec.name,
        state.uid()
    );
    Some(wait("CrashLoopBackOff", &text))
}

/// Seconds as Go prints them: `10s`, `1m20s`, `5m0s`.
fn duration(seconds: i64) -> String {
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

fn wait(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

fn shown(container: &cri::Container) -> ContainerState {
    let at = |nanoseconds| Some(Time(seconds(time(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH))));
    if may_run(container) {
        return ContainerState {
            running: Some(ContainerStateRunning { started_at: at(container.started_at) }),
            ..ContainerState::default()
        };
    }
    let fallback = if container.exit_code == 0 { "Completed" } else { "Error" };
    let reason = Some(container.reason.clone()).filter(|r| !r.is_empty());
    let message = Some(container.message.clone()).filter(|m| !m.is_empty());
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("containerd://{}", container.id)),
            exit_code: container.exit_code,
            reason: Some(reason.unwrap_or_else(|| fallback.to_owned())),
            message,
            started_at: at(container.started_at),
            finished_at: at(container.finished_at),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}
