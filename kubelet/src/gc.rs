//! Housekeeping: images that nobody uses when the disk fills, leftovers of pods, log rotation.

use crate::context::Context;
use crate::node::machine::storage;
use crate::pod::state::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::pods::Known;
use crate::recorder::Level;
use jiff::Timestamp;
use rkube_cri::{Container, ContainerState, Image};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often logs are looked at: no container writes more than its disk takes meanwhile.
const LOGS: Duration = Duration::from_secs(10);
/// How often the rest is looked at.
const REST: Duration = Duration::from_secs(60);
/// An image that was just pulled is about to be used.
const MIN_IMAGE_AGE_SECONDS: i64 = 120;

/// Keeps house until dropped.
pub async fn run(context: Arc<Context>, known: Arc<Known>) {
    let (mut logs, mut rest) = (tokio::time::interval(LOGS), tokio::time::interval(REST));
    rest.tick().await;
    let mut last_used = BTreeMap::new();
    loop {
        tokio::select! {
            _ = logs.tick() => rotate_logs(&context).await,
            _ = rest.tick() => {
                collect_images(&context, &mut last_used).await;
                collect_leftovers(&context, &known).await;
            }
        }
    }
}

// --- images ---

async fn collect_images(context: &Context, last_used: &mut BTreeMap<String, Timestamp>) {
    let (Ok(images), Ok(containers)) =
        (context.runtime.list_images().await, context.runtime.list_containers().await)
    else {
        return;
    };
    let now = Timestamp::now();
    for image in &images {
        let used = containers.iter().any(|container| is_of(container, image));
        let seen = last_used.entry(image.id.clone()).or_insert(now);
        if used {
            *seen = now;
        }
    }
    last_used.retain(|id, _| images.iter().any(|image| image.id == *id));
    let Ok(Some(fs)) = context.runtime.image_fs().await else { return };
    let Some((total, free)) = storage(Path::new(&fs.mountpoint)) else { return };
    let config = &context.config;
    let goal = to_free(total, free, config.image_gc_high_percent, config.image_gc_low_percent);
    for id in surplus(&images, last_used, goal, now) {
        match context.runtime.remove_image(&id).await {
            Ok(()) => tracing::info!(image = id, "removed an unused image"),
            Err(error) => {
                let message = format!("failed to remove image {id}: {error}");
                context.recorder.node(&config.node_name, Level::Warning, "ImageGCFailed", message);
            }
        }
    }
}

fn is_of(container: &Container, image: &Image) -> bool {
    container.image == image.id
        || container.image_ref == image.id
        || image.tags.contains(&container.image)
        || image.digests.contains(&container.image_ref)
}

/// Bytes to free to get from above `high` percent down to `low`; 0 below `high`.
fn to_free(total: u64, free: u64, high: u8, low: u8) -> u64 {
    let percent = |percent: u8| total / 100 * u64::from(percent.min(100));
    let used = total.saturating_sub(free);
    if used < percent(high) { 0 } else { used.saturating_sub(percent(low)) }
}

/// The longest unused images that together are `goal` bytes.
fn surplus(
    images: &[Image],
    last_used: &BTreeMap<String, Timestamp>,
    goal: u64,
    now: Timestamp,
) -> Vec<String> {
    let age = |image: &Image| {
        last_used.get(&image.id).map_or(0, |seen| now.duration_since(*seen).as_secs())
    };
    let mut candidates: Vec<&Image> =
        images.iter().filter(|i| !i.pinned && age(i) >= MIN_IMAGE_AGE_SECONDS).collect();
    candidates.sort_by_key(|image| std::cmp::Reverse(age(image)));
    let mut freed = 0;
    candidates
        .into_iter()
        .take_while(|image| {
            let wanted = freed < goal;
            freed += image.size;
            wanted
        })
        .map(|image| image.id.clone())
        .collect()
}

// --- leftovers ---

/// Folders and cgroups of pods that neither the API nor the runtime knows.
async fn collect_leftovers(context: &Arc<Context>, known: &Known) {
    // A pod's emptyDir outlives its containers: only the API's word ends it.
    if !known.is_complete() {
        return;
    }
    let Ok(sandboxes) = context.runtime.list_sandboxes().await else { return };
    let running: BTreeSet<&str> = sandboxes.iter().map(|s| s.uid.as_str()).collect();
    let folders =
        fs::read_dir(context.config.data_dir.join("pods")).into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let mut uids: BTreeSet<String> = folders.collect();
    uids.extend(context.cgroups.pods(&context.config.cgroup_root));
    for uid in uids {
        if running.contains(uid.as_str()) || known.has(&uid) {
            continue;
        }
        if let Err(error) = crate::pod::clean(context.clone(), uid.clone(), None).await {
            tracing::warn!(error, uid, "clean up leftovers");
        }
    }
}

// --- logs ---

async fn rotate_logs(context: &Context) {
    let Ok(containers) = context.runtime.list_containers().await else { return };
    for container in containers.iter().filter(|c| c.state == ContainerState::Running) {
        let Some(log) = log_of(context, container) else { continue };
        let is_large =
            fs::metadata(&log).is_ok_and(|meta| meta.len() > context.config.container_log_max_size);
        if !is_large {
            continue;
        }
        if let Err(error) = rotate(&log, Timestamp::now(), context.config.container_log_max_files) {
            tracing::warn!(%error, log = %log.display(), "rotate log");
            continue;
        }
        if let Err(error) = context.runtime.reopen_log(&container.id).await {
            tracing::warn!(%error, "reopen log");
        }
    }
}

fn log_of(context: &Context, container: &Container) -> Option<PathBuf> {
    let label = |key: &str| container.labels.get(key);
    let dir = context.config.log_dir(label(POD_NAMESPACE)?, label(POD_NAME)?, label(POD_UID)?);
    Some(dir.join(label(CONTAINER_NAME)?).join(format!("{}.log", container.attempt)))
}

/// Renames a log and removes the oldest beyond `keep` files, the new one included.
fn rotate(log: &Path, now: Timestamp, keep: usize) -> std::io::Result<()> {
    let mut rotated = rotated_files(log);
    while rotated.len() + 2 > keep.max(2) {
        fs::remove_file(rotated.remove(0))?;
    }
    let stamp = now.strftime("%Y%m%d-%H%M%S%.3f").to_string();
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    fs::rename(log, name)
}

/// Earlier files of a log, the oldest first.
pub fn rotated_files(log: &Path) -> Vec<PathBuf> {
    let Some(name) = log.file_name().map(|name| format!("{}.", name.to_string_lossy())) else {
        return Vec::new();
    };
    let entries =
        log.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_oldest_first_until_enough_is_free() {
        let now = Timestamp::from_second(10_000).unwrap();
        let image =
            |id: &str, size, pinned| Image { id: id.into(), size, pinned, ..Image::default() };
        let images = [
            image("new", 10, false),
            image("old", 10, false),
            image("older", 10, false),
            image("pause", 10, true),
        ];
        let at = |second| Timestamp::from_second(second).unwrap();
        let used = [("new", 9_990), ("old", 5_000), ("older", 1_000), ("pause", 0)];
        let used = used.map(|(id, second)| (id.to_owned(), at(second))).into();
        assert_eq!(surplus(&images, &used, 10, now), ["older"]);
        assert_eq!(surplus(&images, &used, 100, now), ["older", "old"]);
        assert!(surplus(&images, &used, 0, now).is_empty());
        assert_eq!(to_free(1000, 200, 85, 80), 0);
        assert_eq!(to_free(1000, 100, 85, 80), 100);
    }

    #[test]
    fn rotation_keeps_so_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for second in 0..6 {
            fs::write(&log, format!("{second}")).unwrap();
            rotate(&log, Timestamp::from_second(second).unwrap(), 3).unwrap();
        }
        let files = rotated_files(&log);
        assert_eq!(files.len(), 2);
        assert_eq!(fs::read_to_string(&files[1]).unwrap(), "5");
    }
}
