//! A container as the runtime takes it.

use super::env::{Env, expand};
use super::resources::linux_resources;
use super::sandbox::pod_labels;
use super::security::of_container;
use super::state::{CONTAINER_NAME, GRACE, HASH};
use super::volumes::{mount_sub_path, source_path};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use rkube_cri::Map;
use rkube_cri::config::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
    MountPropagation,
};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a container may leave a last word, unless its spec says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// No more of a last word is read.
const MAX_MESSAGE_BYTES: usize = 4096;
/// No more of the log stands for a missing last word.
const MAX_LOG_MESSAGE_BYTES: usize = 2048;

/// What a container is made from, beside its spec.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's spec.
    pub container: &'a Container,
    /// Counts the container's instances.
    pub attempt: u32,
    /// The image by the runtime's reference.
    pub image: &'a str,
    /// All variables.
    pub env: Env,
    /// All mounts.
    pub mounts: Vec<Mount>,
    /// Memory of the node in bytes.
    pub node_memory: i64,
    /// Where seccomp profiles of the node lie.
    pub seccomp_root: &'a Path,
}

/// The container's configuration.
pub fn container_config(parts: Parts<'_>) -> ContainerConfig {
    let Parts { pod, container, attempt, image, env, mounts, node_memory, seccomp_root } = parts;
    let words = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|word| expand(word, &env)).collect::<Vec<_>>()
    };
    let name = container.name.clone();
    ContainerConfig {
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        labels: labels(pod, container),
        annotations: annotations(pod, container),
        log_path: log_path(&name, attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(linux_resources(pod, container, node_memory)),
            security_context: Some(of_container(pod, container, seccomp_root)),
        }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        envs: env.into_pairs().into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        metadata: Some(ContainerMetadata { name, attempt }),
        devices: Vec::new(),
    }
}

fn labels(pod: &Pod, container: &Container) -> Map {
    let mut labels = pod_labels(pod);
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    labels
}

fn annotations(pod: &Pod, container: &Container) -> Map {
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    let path = |p: &Option<String>| p.clone().unwrap_or_else(|| TERMINATION_LOG.to_owned());
    let entries = [
        (HASH, hash(container)),
        (GRACE, grace.to_string()),
        (
            "io.kubernetes.container.terminationMessagePath",
            path(&container.termination_message_path),
        ),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Changes when a running container has to be replaced: when its image does.
pub fn hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\n{image}", container.name));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A container's log, relative to the pod's log folder.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The node's file behind a container's last word.
pub fn message_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(format!("{attempt}.message"))
}

/// All mounts of a container: its volumes, the pod's hosts file, the file for its last word.
///
/// # Errors
/// Names the volume or path that can't be mounted.
pub fn mounts(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    pod_dir: &Path,
    env: &Env,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(pod, container, wanted, index, pod_dir, env)?);
    }
    let is_taken = |mounts: &[Mount], path: &str| mounts.iter().any(|m| m.container_path == path);
    if !is_taken(&mounts, "/etc/hosts") {
        mounts.push(file_mount(&pod_dir.join("etc-hosts"), "/etc/hosts"));
    }
    let message = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
    if !message.is_empty() && !is_taken(&mounts, message) {
        let file = message_file(pod_dir, &container.name, attempt);
        make_message_file(&file).map_err(|e| format!("failed to make {}: {e}", file.display()))?;
        mounts.push(file_mount(&file, message));
    }
    Ok(mounts)
}

fn make_message_file(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(file.parent().unwrap_or(file))?;
    fs::write(file, "")?;
    // Any user of the container may leave a last word.
    fs::set_permissions(file, fs::Permissions::from_mode(0o666))
}

fn file_mount(host: &Path, inside: &str) -> Mount {
    Mount {
        container_path: inside.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

fn volume_mount(
    pod: &Pod,
    container: &Container,
    wanted: &VolumeMount,
    index: usize,
    pod_dir: &Path,
    env: &Env,
) -> Result<Mount, String> {
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let volume = volumes
        .find(|volume| volume.name == wanted.name)
        .ok_or_else(|| format!("cannot find volume \"{}\" to mount", wanted.name))?;
    let source = source_path(pod_dir, volume);
    let sub_path = match (&wanted.sub_path, &wanted.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        (_, Some(expression)) if !expression.is_empty() => Some(expand(expression, env)),
        _ => None,
    };
    let host_path = match sub_path {
        None => source,
        Some(path) => {
            let place = pod_dir.join("subpaths").join(&container.name).join(index.to_string());
            mount_sub_path(&source, &path, &place)?
        }
    };
    let made_of_files = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    let propagation = match wanted.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    Ok(Mount {
        container_path: wanted.mount_path.clone(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: wanted.read_only == Some(true) || made_of_files,
        propagation: propagation as i32,
        ..Mount::default()
    })
}

/// A container's last word: its file, or the end of its log if the spec wants that.
pub fn last_word(
    container: &Container,
    pod_dir: &Path,
    attempt: u32,
    exit_code: i32,
    log: &Path,
) -> String {
    let file = message_file(pod_dir, &container.name, attempt);
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_MESSAGE_BYTES)]).into_owned();
    let policy = container.termination_message_policy.as_deref();
    if !text.is_empty() || exit_code == 0 || policy != Some("FallbackToLogsOnError") {
        return text;
    }
    let log = fs::read(log).unwrap_or_default();
    let lines: Vec<String> = String::from_utf8_lossy(&log)
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3).map(str::to_owned))
        .collect();
    let end = lines[lines.len().saturating_sub(80)..].join("\n");
    let from = end.len().saturating_sub(MAX_LOG_MESSAGE_BYTES);
    let from = (from..=end.len()).find(|at| end.is_char_boundary(*at)).unwrap_or(0);
    end[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "volumes": [{"name": "cfg", "configMap": {"name": "c"}}, {"name": "tmp", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "busybox", "args": ["$(X)", "y"],
                    "volumeMounts": [{"name": "cfg", "mountPath": "/cfg"},
                                     {"name": "tmp", "mountPath": "/etc/hosts"}]}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn mounts_come_from_volumes_and_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let list = mounts(&pod, container, 0, dir.path(), &Env::default()).unwrap();
        let paths: Vec<_> = list.iter().map(|m| (m.container_path.as_str(), m.readonly)).collect();
        assert_eq!(paths, [("/cfg", true), ("/etc/hosts", false), ("/dev/termination-log", false)]);
        let mut unknown = container.clone();
        unknown.volume_mounts.as_mut().unwrap()[0].name = "none".into();
        assert!(mounts(&pod, &unknown, 0, dir.path(), &Env::default()).is_err());
    }

    #[test]
    fn the_hash_follows_the_image_alone() {
        let pod = pod();
        let container = pod.spec.unwrap().containers[0].clone();
        let mut other = container.clone();
        other.args = None;
        assert_eq!(hash(&container), hash(&other));
        other.image = Some("busybox:2".into());
        assert_ne!(hash(&container), hash(&other));
    }

    #[test]
    fn the_log_stands_in_for_a_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let mut container = pod().spec.unwrap().containers[0].clone();
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
        let log = dir.path().join("0.log");
        fs::write(&log, "t stderr F it broke\nt stdout F badly\n").unwrap();
        assert_eq!(last_word(&container, dir.path(), 0, 1, &log), "it broke\nbadly");
        assert_eq!(last_word(&container, dir.path(), 0, 0, &log), "");
    }
}
