//! The load generator: a process of its own, so that what it uses is not counted as the server's.
//! Each run prints numbers; what they mean stands at the function.

use crate::connection::{Connection, Credentials, Lines};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How the line of an event begins that tells of something new.
const ADDED: &[u8] = b"{\"type\":\"ADDED\"";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// `load KUBECONFIG WHAT NUMBER…`
pub fn main(args: &[String]) {
    let credentials = Credentials::read(Path::new(&args[0])).expect("a kubeconfig");
    let number = |at: usize| args.get(at).and_then(|n| n.parse::<usize>().ok()).expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        match args[1].as_str() {
            "creates" => creates(&credentials, number(2), number(3), &args[4]).await,
            "gets" => gets(&credentials, number(2), number(3)).await,
            "pods" => pods(&credentials, number(2)).await,
            "lists" => lists(&credentials, number(2), args.get(3).is_some()).await,
            "binds" => binds(&credentials, number(2)).await,
            "watchers" => watchers(&credentials, number(2), number(3)).await,
            other => panic!("no load {other:?}"),
        }
    });
}

fn configmap(name: &str) -> Bytes {
    let data = "x".repeat(850);
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}},\
         \"data\":{{\"key\":\"{data}\"}}}}"
    )
    .into()
}

/// Runs `each` for 0..total over some connections, one request in flight on each.
async fn over<F>(credentials: &Credentials, connections: usize, total: usize, each: F)
where
    F: AsyncFn(&mut Connection, usize) + Clone + 'static,
{
    let next = Arc::new(AtomicU64::new(0));
    let local = tokio::task::LocalSet::new();
    for _ in 0..connections {
        let (credentials, next, each) = (credentials.clone(), next.clone(), each.clone());
        local.spawn_local(async move {
            let mut connection = credentials.connect().await;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                if index >= total {
                    return;
                }
                each(&mut connection, index).await;
            }
        });
    }
    local.await;
}

/// Creates ConfigMaps of 1 KiB; prints creates per second.
async fn creates(credentials: &Credentials, connections: usize, total: usize, prefix: &str) {
    let began = Instant::now();
    let prefix = prefix.to_string();
    over(credentials, connections, total, async move |connection: &mut Connection, index| {
        connection.create(CONFIGMAPS, configmap(&format!("{prefix}-{index}"))).await;
    })
    .await;
    println!("{}", total as f64 / began.elapsed().as_secs_f64());
}

/// Reads one pod; prints reads per second.
async fn gets(credentials: &Credentials, connections: usize, total: usize) {
    let began = Instant::now();
    over(credentials, connections, total, async |connection: &mut Connection, _| {
        let (status, _) = connection.get(&format!("{PODS}/pod-0")).await.expect("an answer");
        assert_eq!(status, 200);
    })
    .await;
    println!("{}", total as f64 / began.elapsed().as_secs_f64());
}

/// A pod of about 2.4 KB once the server has filled it in.
fn pod(index: usize, scheduler: &str) -> Bytes {
    let env: Vec<String> = (0..8)
        .map(|n| format!("{{\"name\":\"VARIABLE_{n}\",\"value\":\"value-{n}-{index}\"}}"))
        .collect();
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{index}\",\
         \"labels\":{{\"app\":\"bench\"}}}},\"spec\":{{\"schedulerName\":\"{scheduler}\",\
         \"containers\":[{{\"name\":\"c\",\"image\":\"registry.rkube.local/web:1\",\
         \"env\":[{}]}}]}}}}",
        env.join(",")
    )
    .into()
}

/// Creates pods that nobody schedules; prints creates per second.
async fn pods(credentials: &Credentials, total: usize) {
    let began = Instant::now();
    over(credentials, 32, total, async |connection: &mut Connection, index| {
        connection.create(PODS, pod(index, "nobody")).await;
    })
    .await;
    println!("{}", total as f64 / began.elapsed().as_secs_f64());
}

/// Lists all pods some times; prints seconds a list and its bytes.
async fn lists(credentials: &Credentials, times: usize, gzip: bool) {
    let mut connection = credentials.connect().await;
    let headers: &[(&str, &str)] = if gzip { &[("accept-encoding", "gzip")] } else { &[] };
    let began = Instant::now();
    let mut bytes = 0;
    for _ in 0..times {
        let answer = connection.send("GET", PODS, headers, Bytes::new()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("content-encoding"), gzip);
        bytes = 0;
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            bytes += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
        }
    }
    println!("{} {bytes}", began.elapsed().as_secs_f64() / times as f64);
}

/// Watches ConfigMaps on many connections while one writer creates some; prints deliveries and the
/// seconds from the first write to the last delivery. Waits for a line on standard input before it
/// writes, after it has said `0` on standard output: whoever measures reads the server's CPU then.
async fn watchers(credentials: &Credentials, count: usize, writes: usize) {
    let delivered = Arc::new(AtomicU64::new(0));
    let expected = (count * writes) as u64;
    let done = Arc::new(tokio::sync::Notify::new());
    for _ in 0..count {
        let mut connection = credentials.connect().await;
        let path = format!(
            "{CONFIGMAPS}?watch=true&resourceVersion=0&timeoutSeconds=600&sendInitialEvents=true\
             &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
             &labelSelector=bench%3Dwatch"
        );
        let answer = connection.send("GET", &path, &[], Bytes::new()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let (delivered, done) = (delivered.clone(), done.clone());
        tokio::spawn(async move {
            let _connection = connection;
            let mut lines = Lines::new(answer.into_body());
            while let Some(line) = lines.next().await {
                let added = line.starts_with(ADDED);
                if added && delivered.fetch_add(1, Ordering::Relaxed) + 1 >= expected {
                    done.notify_one();
                }
            }
        });
    }
    println!("0");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the word to begin");
    let began = Instant::now();
    let mut writer = credentials.connect().await;
    for index in 0..writes {
        let text = String::from_utf8_lossy(&configmap(&format!("watched-{index}")))
            .replace("\"metadata\":{", "\"metadata\":{\"labels\":{\"bench\":\"watch\"},");
        writer.create(CONFIGMAPS, text.into()).await;
    }
    done.notified().await;
    println!("{} {}", delivered.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
}

/// Creates pods over 32 connections and watches until the last is bound; prints pods per second
/// from the first create to the last binding seen, and the seconds the creates alone took.
async fn binds(credentials: &Credentials, total: usize) {
    let mut connection = credentials.connect().await;
    let (_, list) = connection.get(&format!("{PODS}?limit=1")).await.expect("a list");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    let revision = list["metadata"]["resourceVersion"].as_str().expect("a revision");
    // A pod comes into the sight of this watch when it is bound.
    let path = format!(
        "{PODS}?watch=true&timeoutSeconds=600&fieldSelector=spec.nodeName%21%3D\
         &resourceVersion={revision}"
    );
    let answer = connection.send("GET", &path, &[], Bytes::new()).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let mut lines = Lines::new(answer.into_body());
    let began = Instant::now();
    let bound = async {
        let mut left = total;
        while left > 0 {
            let line = lines.next().await.expect("the watch goes on");
            left -= usize::from(line.starts_with(ADDED));
        }
        began.elapsed().as_secs_f64()
    };
    let created = async {
        over(credentials, 32, total, async |connection: &mut Connection, index| {
            connection.create(PODS, pod(index, "default-scheduler")).await;
        })
        .await;
        began.elapsed().as_secs_f64()
    };
    let (bound, created) = tokio::join!(bound, created);
    println!("{} {created}", total as f64 / bound);
}
