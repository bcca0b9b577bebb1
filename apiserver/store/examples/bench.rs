//! Measures the store on this machine's disk beside the disk's own floor.
//!
//! `cargo run --release -p rkube-store --example bench [DIR [no-archive]]`

use rkube_store::{Command, Header, Key, NewObject, Scope, Store, StoreConfig, Write};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = dir.join(format!("rkube-store-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make directory");
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    threads.expect("start runtime").block_on(measure(&dir));
    std::fs::remove_dir_all(&dir).expect("remove directory");
}

async fn measure(dir: &Path) {
    sync_floor(dir);
    let begun = Instant::now();
    let store = Store::open(config(dir)).expect("open");
    println!("open empty          {:>10.2?}", begun.elapsed());
    println!("rss idle            {:>10} KiB", rss());
    single(&store).await;
    for tasks in [64, 1000] {
        concurrent(&store, tasks, Duration::from_secs(4)).await;
    }
    reads(&store).await;
    fan_out(&store).await;
    memory(&store).await;
    store.shutdown().await.expect("shut down");
    let bytes: u64 =
        store.view().range(&Scope::all("fill"), None).map(|o| o.json.len() as u64).sum();
    drop(store);
    let begun = Instant::now();
    let store = Store::open(config(dir)).expect("open again");
    println!("open {:>4} MB         {:>10.2?}", bytes / 1_000_000, begun.elapsed());
    store.shutdown().await.expect("shut down");
}

fn config(dir: &Path) -> StoreConfig {
    let archive = std::env::args().nth(2).is_none_or(|word| word != "no-archive");
    StoreConfig { archive, ..StoreConfig::new(dir.join("store")) }
}

fn sync_floor(dir: &Path) {
    let file = std::fs::File::create(dir.join("floor")).expect("create");
    (&file).write_all(&vec![0; 4 << 20]).expect("write");
    file.sync_all().expect("sync");
    let mut times = Vec::new();
    for place in 0..300 {
        let begun = Instant::now();
        file.write_all_at(&[1; 1100], place * 1100).expect("write");
        file.sync_data().expect("sync");
        times.push(begun.elapsed());
    }
    report("fdatasync floor", &mut times);
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("{what:<19} {:>10.2?} min {:>10.2?} p50 {:>10.2?} p99", times[0], at(50), at(99));
}

fn command(key: &Key, n: u64, bytes: usize) -> Command {
    let json = format!(r#"{{"metadata":{{"n":{n}}},"f":"{}"}}"#, "f".repeat(bytes - 40));
    let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
    let request_id = u128::from(rand::random::<u64>()) + 1;
    Command::unconditional(request_id, vec![Write::Put(key.clone(), new)])
}

async fn single(store: &Store) {
    let key = Key::new("single", "x", "a");
    let mut times = Vec::new();
    for n in 0..500 {
        let begun = Instant::now();
        store.propose(command(&key, n, 1024)).await.expect("propose");
        times.push(begun.elapsed());
    }
    report("single propose", &mut times);
}

async fn concurrent(store: &Store, tasks: u64, time: Duration) {
    let batches = store.metrics().batches.load(Ordering::Relaxed);
    let cpu = cpu_seconds();
    let begun = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let mut running = Vec::new();
    for task in 0..tasks {
        let (store, done) = (store.clone(), done.clone());
        running.push(tokio::spawn(async move {
            let mut n = 0;
            while begun.elapsed() < time {
                let key = Key::new("many", "x", &format!("{task}-{}", n % 20));
                store.propose(command(&key, n, 1024)).await.expect("propose");
                n += 1;
            }
            done.fetch_add(n, Ordering::Relaxed);
        }));
    }
    for task in running {
        task.await.expect("join");
    }
    let done = done.load(Ordering::Relaxed) as f64;
    let seconds = begun.elapsed().as_secs_f64();
    let batches = store.metrics().batches.load(Ordering::Relaxed) - batches;
    println!(
        "{tasks:>5} tasks         {:>10.0} /s, {:.1} per batch, {:.1} us CPU each",
        done / seconds,
        done / batches as f64,
        (cpu_seconds() - cpu) * 1e6 / done
    );
}

async fn reads(store: &Store) {
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begun = Instant::now();
        store.read_barrier().await.expect("read");
        times.push(begun.elapsed());
    }
    report("read barrier", &mut times);
}

async fn fan_out(store: &Store) {
    let revision = store.view().revision();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..1000 {
        let mut watch = store.watch(Scope::all("fan"), revision).expect("watch");
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Ok(events) = watch.next_batch().await {
                for event in events {
                    let line = event.json_line(event.watch_type());
                    if heard.send(line.len()).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let mut times = Vec::new();
    for n in 0..50 {
        store.propose(command(&Key::new("fan", "x", "a"), n, 1024)).await.expect("propose");
        let begun = Instant::now();
        for _ in 0..1000 {
            hears.recv().await.expect("hear");
        }
        times.push(begun.elapsed());
    }
    report("to 1000 watchers", &mut times);
}

async fn memory(store: &Store) {
    let before = rss();
    let count = 100_000u64;
    let mut running = Vec::new();
    for task in 0..100 {
        let store = store.clone();
        running.push(tokio::spawn(async move {
            for n in 0..count / 100 {
                let key = Key::new("fill", "x", &format!("object-{task}-{n}"));
                store.propose(command(&key, n, 1024)).await.expect("propose");
            }
        }));
    }
    for task in running {
        task.await.expect("join");
    }
    let grown = (rss() - before) as f64 * 1024.0 / count as f64;
    println!("memory per object   {grown:>10.0} B of 1024 B JSON (history, log and archive in it)");
    println!("snapshots           {:>10}", store.metrics().snapshots.load(Ordering::Relaxed));
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("read status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// User and system time of this process, by the kernel's clock ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("read stat");
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
