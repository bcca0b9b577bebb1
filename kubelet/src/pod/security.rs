//! Security contexts: the pod's and the container's, joined into the runtime's terms.

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use rkube_cri::Image;
use rkube_cri::config::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SecurityProfile, security_profile::ProfileType,
};
use std::path::Path;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The namespaces of a pod's sandbox and containers.
pub fn namespaces(spec: &PodSpec) -> NamespaceOption {
    let node_or = |host: Option<bool>, otherwise| match host {
        Some(true) => NamespaceMode::Node,
        _ => otherwise,
    };
    let pid = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod) as i32,
        pid: node_or(spec.host_pid, pid) as i32,
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod) as i32,
        target_id: String::new(),
    }
}

/// The sandbox's own security: its pause process needs nothing.
pub fn of_sandbox(spec: &PodSpec) -> LinuxSandboxSecurityContext {
    let is_privileged =
        |c: &Container| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let context = spec.security_context.clone().unwrap_or_default();
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        privileged: all.into_iter().any(is_privileged),
        seccomp: Some(profile(ProfileType::RuntimeDefault, "")),
        supplemental_groups: groups(&context),
        ..LinuxSandboxSecurityContext::default()
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

fn profile(kind: ProfileType, local: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind as i32, localhost_ref: local.to_owned() }
}

fn seccomp(profiles: [Option<&SeccompProfile>; 2], root: &Path) -> SecurityProfile {
    let Some(wanted) = profiles.into_iter().flatten().next() else {
        return profile(ProfileType::Unconfined, "");
    };
    match wanted.type_.as_str() {
        "RuntimeDefault" => profile(ProfileType::RuntimeDefault, ""),
        "Localhost" => {
            let path = root.join(wanted.localhost_profile.as_deref().unwrap_or_default());
            profile(ProfileType::Localhost, &path.to_string_lossy())
        }
        _ => profile(ProfileType::Unconfined, ""),
    }
}

/// A container's security. `seccomp_root` is where profiles of the node lie.
pub fn of_container(
    pod: &Pod,
    container: &Container,
    seccomp_root: &Path,
) -> LinuxContainerSecurityContext {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| match unmasked {
        true => Vec::new(),
        false => list.iter().map(|path| (*path).to_owned()).collect(),
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(&spec)),
        run_as_user: run_as_user(&of_pod, &own).map(|value| Int64Value { value }),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: Some(match privileged {
            true => profile(ProfileType::Unconfined, ""),
            false => seccomp(
                [own.seccomp_profile.as_ref(), of_pod.seccomp_profile.as_ref()],
                seccomp_root,
            ),
        }),
        ..LinuxContainerSecurityContext::default()
    }
}

fn run_as_user(of_pod: &PodSecurityContext, own: &SecurityContext) -> Option<i64> {
    own.run_as_user.or(of_pod.run_as_user)
}

/// Completes the user from the image: a group alone can't be told to the runtime.
pub fn with_image_user(context: &mut LinuxContainerSecurityContext, image: &Image) {
    if context.run_as_user.is_none() && context.run_as_group.is_some() {
        context.run_as_user = Some(Int64Value { value: image.uid.unwrap_or(0) });
    }
}

/// Refuses a container that must not run as root but would.
pub fn verify_non_root(pod: &Pod, container: &Container, image: &Image) -> Result<(), String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let name = &container.name;
    match (run_as_user(&of_pod, &own), image.uid, image.username.as_str()) {
        (Some(0), _, _) => {
            Err(format!("container's runAsUser breaks non-root policy (container: {name})"))
        }
        (Some(_), _, _) => Ok(()),
        (None, _, user) if !user.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {name})"
        )),
        (None, Some(uid), _) if uid != 0 => Ok(()),
        (None, _, _) => Err(format!(
            "container has runAsNonRoot and image will run as root (container: {name})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(of_pod: serde_json::Value, own: serde_json::Value) -> (Pod, Container) {
        let pod: Pod = serde_json::from_value(json!({"spec": {"securityContext": of_pod,
            "containers": [{"name": "a", "securityContext": own}]}}))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        (pod, container)
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let (pod, container) = pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                   "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 5, "allowPrivilegeEscalation": false,
                   "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}),
        );
        let context = of_container(&pod, &container, Path::new("/s"));
        assert_eq!(context.run_as_user, Some(Int64Value { value: 5 }));
        assert_eq!(context.run_as_group, Some(Int64Value { value: 2 }));
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert!(context.no_new_privs && !context.masked_paths.is_empty());
        assert_eq!(context.seccomp, Some(profile(ProfileType::RuntimeDefault, "")));
        assert_eq!(context.capabilities.unwrap().drop_capabilities, ["ALL"]);
    }

    #[test]
    fn non_root_is_verified() {
        let root = Image { uid: Some(0), ..Image::default() };
        let user = Image { uid: Some(1000), ..Image::default() };
        let named = Image { username: "app".into(), ..Image::default() };
        let (strict, container) = pod(json!({"runAsNonRoot": true}), json!({}));
        let ok = |image| verify_non_root(&strict, &container, image).is_ok();
        assert_eq!([ok(&root), ok(&user), ok(&named)], [false, true, false]);
        let (given, container) = pod(json!({"runAsNonRoot": true}), json!({"runAsUser": 7}));
        assert!(verify_non_root(&given, &container, &root).is_ok());
    }
}
