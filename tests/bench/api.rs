//! The API server alone: start, writes, reads, lists, watches.

use crate::process::{Server, cpu_us, load, median, resident_mb};
use crate::{Figure, Target};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Process start to API ready, on a data directory that was used before and on a fresh one.
pub fn start() -> Vec<Figure> {
    // Once to warm the page cache.
    Server::start().0.stop();
    let fresh = median(
        (0..5)
            .map(|_| {
                let (server, took) = Server::start();
                server.stop();
                took.as_secs_f64() * 1000.0
            })
            .collect(),
    );
    vec![Figure {
        name: "process start to API ready (p50 of 5)",
        value: fresh,
        unit: "ms",
        target: Target::Below(150.0),
        note: "fresh data directory, certificates made".into(),
    }]
}

/// Durable creates from 64 connections.
pub fn creates() -> Vec<Figure> {
    let (server, _) = Server::start();
    load(&server.kubeconfig(), &["creates", "64", "5000", "warm"]);
    let before = cpu_us(server.pid());
    let total = 40_000;
    let rate = load(&server.kubeconfig(), &["creates", "64", &total.to_string(), "c"])[0];
    let cpu = (cpu_us(server.pid()) - before) / f64::from(total);
    server.stop();
    let floor = sync_floor();
    vec![
        Figure {
            name: "durable creates of 1 KiB, 64 connections",
            value: rate,
            unit: "/s",
            target: Target::Above(7500.0),
            note: format!("one fdatasync of 64 KiB at a time: {floor:.0}/s"),
        },
        Figure {
            name: "server CPU a create",
            value: cpu,
            unit: "µs",
            target: Target::Below(130.0),
            note: "TLS included".into(),
        },
    ]
}

/// How often this disk takes 64 KiB durably in a second.
fn sync_floor() -> f64 {
    let dir = tempfile::tempdir().expect("a folder");
    let mut file = std::fs::File::create(dir.path().join("f")).expect("a file");
    let began = std::time::Instant::now();
    for _ in 0..500 {
        file.write_all(&[0u8; 65536]).expect("a write");
        file.sync_data().expect("a sync");
    }
    500.0 / began.elapsed().as_secs_f64()
}

/// Reads of one pod.
pub fn get() -> Vec<Figure> {
    let (server, _) = Server::start();
    load(&server.kubeconfig(), &["pods", "1"]);
    load(&server.kubeconfig(), &["gets", "8", "2000"]);
    let before = cpu_us(server.pid());
    let total = 30_000;
    let rate = load(&server.kubeconfig(), &["gets", "8", &total.to_string()])[0];
    let cpu = (cpu_us(server.pid()) - before) / f64::from(total);
    server.stop();
    vec![Figure {
        name: "server CPU a GET of a pod",
        value: cpu,
        unit: "µs",
        target: Target::Below(25.0),
        note: format!("{rate:.0}/s from 8 connections"),
    }]
}

/// Lists of 10,000 pods, plain and compressed.
pub fn list() -> Vec<Figure> {
    let (server, _) = Server::start();
    load(&server.kubeconfig(), &["pods", "10000"]);
    let memory = resident_mb(server.pid());
    let measure = |name, gzip: &[&str], limit| {
        let args = [&["lists", "1"], gzip].concat();
        load(&server.kubeconfig(), &args);
        let before = cpu_us(server.pid());
        let took = load(&server.kubeconfig(), &[&["lists", "5"], gzip].concat());
        let cpu = (cpu_us(server.pid()) - before) / 5.0 / 1000.0;
        Figure {
            name,
            value: cpu,
            unit: "ms",
            target: Target::Below(limit),
            note: format!("{:.1} MB in {:.0} ms", took[1] / 1e6, took[0] * 1000.0),
        }
    };
    let plain = measure("server CPU a LIST of 10,000 pods", &[], 40.0);
    let gzip = measure("the same with gzip", &["gzip"], 250.0);
    server.stop();
    vec![
        plain,
        gzip,
        Figure {
            name: "memory of the server with 10,000 pods",
            value: memory,
            unit: "MB",
            target: Target::Below(300.0),
            note: "pods of 2.4 KB that nobody schedules".into(),
        },
    ]
}

/// One writer, 1,000 watchers.
pub fn watch() -> Vec<Figure> {
    let (server, _) = Server::start();
    let (watchers, writes) = (1000, 100);
    let own = std::env::current_exe().expect("a path of this program");
    let mut child = Command::new(own)
        .arg("load")
        .arg(server.kubeconfig())
        .args(["watchers", &watchers.to_string(), &writes.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the load generator");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "0");
    let before = cpu_us(server.pid());
    writeln!(child.stdin.take().expect("its input")).expect("the word to begin");
    let answer = line();
    let cpu = cpu_us(server.pid()) - before;
    child.wait().expect("its end");
    server.stop();
    let numbers: Vec<f64> = answer.split(' ').map(|n| n.parse().expect("a number")).collect();
    vec![Figure {
        name: "server CPU a delivery, 1 writer, 1,000 watchers",
        value: cpu / numbers[0],
        unit: "µs",
        target: Target::Below(15.0),
        note: format!("{:.0} deliveries in {:.1} s", numbers[0], numbers[1]),
    }]
}
