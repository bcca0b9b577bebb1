//! The figures, each beside its target and, where there is one, a floor or a peer of the same run.
//!
//! `cargo bench --bench figures [-- NAME…]` runs all or those named. Needs root and an otherwise
//! quiet machine. How fast that is just then stands in each group's heading, since shared machines
//! change by a factor of three from one minute to the next. The load comes from a process of its
//! own (`load`), so that the server's CPU is the server's alone. A name stands for all groups that
//! begin with it: `kv` for `kv-puts`, `kv-memory` and `kv-failover`.

mod api;
mod connection;
mod cri;
mod kv;
mod load;
mod node;
mod process;
mod scale;
mod up;
mod yardstick;

use std::process::ExitCode;

/// That of rkube, for the members of the store that run in this program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One measured value.
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// What is aimed at; `Below` or `Above`.
    pub target: Target,
    /// What else is to be said: the floor, the spread.
    pub note: String,
}

/// What is aimed at.
pub enum Target {
    /// At most this.
    Below(f64),
    /// At least this.
    Above(f64),
}

impl Target {
    fn holds(&self, value: f64) -> bool {
        match self {
            Target::Below(limit) => value <= *limit,
            Target::Above(limit) => value >= *limit,
        }
    }
}

impl Figure {
    fn print(&self) {
        let (sign, limit) = match self.target {
            Target::Below(limit) => ("<=", limit),
            Target::Above(limit) => (">=", limit),
        };
        let verdict = if self.target.holds(self.value) { "met" } else { "MISSED" };
        println!(
            "{:<44} {:>10.1} {:<6} {sign} {limit:>8.1}  {verdict:<6}  {}",
            self.name, self.value, self.unit, self.note
        );
    }
}

/// Figures that are measured together.
struct Group {
    name: &'static str,
    /// Measures and prints them.
    run: fn(),
    /// It starts containers, so it runs in namespaces of its own.
    isolated: bool,
}

const fn group(name: &'static str, isolated: bool, run: fn()) -> Group {
    Group { name, run, isolated }
}

fn show(figures: Vec<Figure>) {
    figures.iter().for_each(Figure::print);
}

const GROUPS: &[Group] = &[
    group("start", false, || show(api::start())),
    group("creates", false, || show(api::creates())),
    group("get", false, || show(api::get())),
    group("list", false, || show(api::list())),
    group("watch", false, || show(api::watch())),
    group("scale", false, || show(scale::hollow())),
    group("kv-puts", false, kv::puts),
    group("kv-memory", false, kv::memory),
    group("kv-failover", false, kv::failover),
    group("pods", true, || show(node::pods())),
    group("idle", true, || show(node::idle())),
];

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().is_some_and(|a| a == "load") {
        load::main(&args[1..]);
        return ExitCode::SUCCESS;
    }
    if args.first().is_some_and(|a| a == "kv-server") {
        kv::server::main(&args[1..]);
        return ExitCode::SUCCESS;
    }
    let means = |arg: &String, group: &Group| {
        group.name.strip_prefix(arg.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('-'))
    };
    let chosen = |group: &&Group| args.is_empty() || args.iter().any(|arg| means(arg, group));
    for group in GROUPS.iter().filter(chosen) {
        if group.isolated && !up::is_isolated() {
            up::isolate(group.name);
            continue;
        }
        println!("# {}; {}", group.name, yardstick::reading());
        (group.run)();
    }
    ExitCode::SUCCESS
}
