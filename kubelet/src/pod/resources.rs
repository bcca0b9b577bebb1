//! Requests and limits as the kernel takes them: shares, quota, memory, oom_score_adj.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rkube_cri::config::LinuxContainerResources;
use std::collections::BTreeMap;

/// The scheduler period of the kernel that quotas are given for, in microseconds.
pub const PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1_000;

/// CPU in thousandths of a core and memory in bytes; none where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Thousandths of a core.
    pub cpu_milli: Option<i64>,
    /// Bytes.
    pub memory: Option<i64>,
}

impl Amount {
    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let get = |name: &str| list.and_then(|list| list.get(name)).map(|q| q.0.as_str());
        Self {
            cpu_milli: get("cpu").and_then(milli).filter(|v| *v > 0),
            memory: get("memory").and_then(whole).filter(|v| *v > 0),
        }
    }
}

/// A container's requests; where one is missing its limit stands for it.
pub fn requests(container: &Container) -> Amount {
    let own = Amount::of(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let limits = limits(container);
    Amount { cpu_milli: own.cpu_milli.or(limits.cpu_milli), memory: own.memory.or(limits.memory) }
}

/// A container's limits.
pub fn limits(container: &Container) -> Amount {
    Amount::of(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// A quantity in thousandths, rounded up; none if it is not one.
pub fn milli(quantity: &str) -> Option<i64> {
    scaled(quantity, 1000)
}

/// A quantity in whole units, rounded up; none if it is not one.
pub fn whole(quantity: &str) -> Option<i64> {
    scaled(quantity, 1)
}

fn scaled(quantity: &str, factor: i128) -> Option<i64> {
    let end = quantity.find(|c: char| !(c.is_ascii_digit() || ".+-".contains(c)));
    let (number, suffix) = quantity.split_at(end.unwrap_or(quantity.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut divisor = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let mut multiplier = factor;
    match suffix {
        "" => {}
        "n" => divisor = divisor.checked_mul(1_000_000_000)?,
        "u" => divisor = divisor.checked_mul(1_000_000)?,
        "m" => divisor = divisor.checked_mul(1_000)?,
        _ => multiplier = multiplier.checked_mul(unit(suffix)?)?,
    }
    let product = digits.checked_mul(multiplier)?;
    let rounded = product.div_euclid(divisor) + i128::from(product.rem_euclid(divisor) != 0);
    i64::try_from(rounded).ok()
}

fn unit(suffix: &str) -> Option<i128> {
    let power = |letter: char| "kMGTPE".find(letter.to_ascii_uppercase()).or("kMGTPE".find(letter));
    let place = |letter: char| power(letter).and_then(|p| u32::try_from(p + 1).ok());
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|e| !e.is_empty()) {
        return 10i128.checked_pow(exponent.parse().ok()?);
    }
    match suffix.strip_suffix('i') {
        Some("K") => Some(1024),
        Some(letter) => 1024i128.checked_pow(place(letter.chars().next()?)?),
        None => 1000i128.checked_pow(place(suffix.chars().next()?)?),
    }
}

/// CPU shares of a request.
pub fn shares(cpu_milli: i64) -> i64 {
    (cpu_milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Microseconds of CPU in each period for a limit.
pub fn quota(cpu_milli: i64) -> i64 {
    (cpu_milli * PERIOD / 1000).max(MIN_QUOTA)
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    super::state::specs(pod).map(|(container, _)| container)
}

/// The pod's class of service.
pub fn qos_class(pod: &Pod) -> &'static str {
    let said = |a: Amount| a.cpu_milli.is_some() || a.memory.is_some();
    if !all(pod).any(|c| said(requests(c)) || said(limits(c))) {
        return "BestEffort";
    }
    let guaranteed = |c: &Container| {
        let limits = limits(c);
        limits.cpu_milli.is_some() && limits.memory.is_some() && requests(c) == limits
    };
    if all(pod).all(guaranteed) { "Guaranteed" } else { "Burstable" }
}

/// The order in which the kernel kills when the node runs out of memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    // Pods that the node can't do without.
    if priority >= 2_000_000_000 {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = requests(container).memory.unwrap_or(0);
            let share = 1000 - 1000 * i128::from(request) / i128::from(node_memory.max(1));
            i64::try_from(share).unwrap_or(999).clamp(2, 999)
        }
    }
}

/// A container's resources for the runtime.
pub fn linux_resources(
    pod: &Pod,
    container: &Container,
    node_memory: i64,
) -> LinuxContainerResources {
    let limits = limits(container);
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: limits.cpu_milli.map_or(0, quota),
        cpu_shares: shares(requests(container).cpu_milli.unwrap_or(0)),
        memory_limit_in_bytes: limits.memory.unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        ..LinuxContainerResources::default()
    }
}

/// Limits of the pod's own cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU shares.
    pub shares: i64,
    /// Microseconds a period; none if a container is unlimited.
    pub quota: Option<i64>,
    /// Bytes; none if a container is unlimited.
    pub memory: Option<i64>,
}

/// The sum over the pod's containers; init containers run alone, so the largest of them counts.
pub fn pod_limits(pod: &Pod) -> PodLimits {
    let sum = |get: fn(&Container) -> Option<i64>| -> Option<i64> {
        let (mut together, mut alone) = (Some(0), Some(0));
        for (container, role) in super::state::specs(pod) {
            let value = get(container);
            match role {
                super::state::Role::Init => {
                    alone = alone
                        .zip(value)
                        .zip(together)
                        .map(|((a, v), t): ((i64, i64), i64)| a.max(v + t));
                }
                _ => together = together.zip(value).map(|(t, v): (i64, i64)| t + v),
            }
        }
        together.zip(alone).map(|(t, a)| t.max(a))
    };
    let requested = sum(|c| Some(requests(c).cpu_milli.unwrap_or(0))).unwrap_or(0);
    PodLimits {
        shares: shares(requested),
        quota: sum(|c| limits(c).cpu_milli).map(quota),
        memory: sum(|c| limits(c).memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn quantities() {
        let cases = [
            ("100m", Some(100), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("2", Some(2000), Some(2)),
            ("1Ki", Some(1_024_000), Some(1024)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("3M", Some(3_000_000_000), Some(3_000_000)),
            ("2k", Some(2_000_000), Some(2000)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("100n", Some(1), Some(1)),
            ("x", None, None),
            ("1Q", None, None),
        ];
        for (text, as_milli, as_whole) in cases {
            assert_eq!((milli(text), whole(text)), (as_milli, as_whole), "{text}");
        }
    }

    #[test]
    fn classes() {
        let none = pod(json!([{"name": "a"}]));
        let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let full = pod(json!([{"name": "a", "resources": limits}]));
        let part = pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]));
        assert_eq!(
            [qos_class(&none), qos_class(&full), qos_class(&part)],
            ["BestEffort", "Guaranteed", "Burstable"]
        );
    }

    #[test]
    fn a_pod_is_limited_when_all_its_containers_are() {
        let both = pod(json!([
            {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}},
            {"name": "b", "resources": {"limits": {"cpu": "1500m"}}},
        ]));
        assert_eq!(
            pod_limits(&both),
            PodLimits { shares: 2048, quota: Some(200_000), memory: None }
        );
    }
}
