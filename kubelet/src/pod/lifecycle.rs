//! Hooks of a container's life: postStart and preStop.

use super::prober::Prober;
use super::probes::{Check, ask, http_check};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::time::Duration;

/// A hook without a time limit of its own ends at the latest after this.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// Runs a hook to its end or until `limit`.
///
/// # Errors
/// What the command wrote or the server answered.
pub async fn run(
    prober: &Prober,
    handler: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    ip: &str,
    limit: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(());
    }
    let check = match (&handler.exec, &handler.http_get) {
        (Some(exec), _) => Check::Exec(exec.command.clone().unwrap_or_default()),
        (None, Some(http)) => http_check(http, container, ip)?,
        (None, None) => return Ok(()),
    };
    ask(prober, &check, container_id, limit).await.map(|_| ())
}

/// The container's postStart hook.
pub fn post_start(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.post_start.as_ref()
}

/// The container's preStop hook.
pub fn pre_stop(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}
