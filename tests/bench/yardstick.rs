//! How fast this machine is just now, by work like the server's that does not depend on it.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Reads and writes one object over and over on one core; says what a round took.
pub fn reading() -> String {
    let text = object().to_string();
    let mut rounds = Vec::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        let round = Instant::now();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        std::hint::black_box(value.to_string());
        rounds.push(round.elapsed().as_secs_f64() * 1e6);
    }
    let micros = super::process::median(rounds);
    format!(
        "reading and writing {:.1} KB of JSON takes a core {micros:.0} µs",
        text.len() as f64 / 1e3
    )
}

/// Of a bound pod's size and depth.
fn object() -> Value {
    let conditions: Vec<Value> = (0..5)
        .map(|n| json!({"type": format!("Condition{n}"), "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
        .collect();
    let env: Vec<Value> = (0..8)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": format!("value-{n}")}))
        .collect();
    let owned: Value =
        (0..40).map(|n| (format!("f:field{n}"), json!({"f:a": {}, "f:b": {}}))).collect();
    json!({
        "metadata": {"name": "pod", "namespace": "default", "managedFields": [{"fieldsV1": owned}]},
        "spec": {"containers": [{"name": "c", "image": "registry.rkube.local/web:1", "env": env}]},
        "status": {"phase": "Running", "conditions": conditions},
    })
}
