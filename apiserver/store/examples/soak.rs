//! Runs simulated clusters, seed after seed, for as long as told: `make soak`.
//!
//! Each seed is a run of its own with its own faults; a failure is printed with its seed, which
//! `RKUBE_SIM_SEED=n RKUBE_SIM_MEMBERS=m cargo test -p rkube-store clusters_keep` runs again with a
//! log. It says how much simulated time there was for the time that passed.

use rkube_store::sim::{Options, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Sum {
    runs: u64,
    simulated: Duration,
    acknowledged: u64,
    reads: u64,
    faults: u64,
    failed: Vec<(u64, usize)>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let minutes: f64 = args.next().map_or(1.0, |text| text.parse().expect("minutes"));
    let from: u64 = args.next().map_or(1_000, |text| text.parse().expect("the first seed"));
    let (begun, limit) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let (next, sum) = (AtomicU64::new(from), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.elapsed() < limit {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    one(seed, &sum);
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread died");
    let passed = begun.elapsed().as_secs_f64();
    println!(
        "{} runs from seed {from}: {:.1} h simulated in {:.1} min, {:.0} times as fast as time; \
         {} writes and {} reads checked, {} faults",
        sum.runs,
        sum.simulated.as_secs_f64() / 3600.0,
        passed / 60.0,
        sum.simulated.as_secs_f64() / passed,
        sum.acknowledged,
        sum.reads,
        sum.faults,
    );
    if !sum.failed.is_empty() {
        eprintln!("failed (seed, members): {:?}", sum.failed);
        std::process::exit(1);
    }
}

fn one(seed: u64, sum: &Mutex<Sum>) {
    // Every third cluster has five members.
    let members = if seed.is_multiple_of(3) { 5 } else { 3 };
    let options = Options { members, ..Options::default() };
    let ended = catch_unwind(AssertUnwindSafe(|| run(seed, &options)));
    let mut sum = sum.lock().expect("no thread died");
    sum.runs += 1;
    match ended {
        Ok(report) => {
            sum.simulated += report.simulated;
            sum.acknowledged += report.acknowledged;
            sum.reads += report.reads;
            sum.faults += report.faults;
        }
        Err(_) => sum.failed.push((seed, members)),
    }
}
