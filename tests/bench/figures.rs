//! The figures, each beside its target and, where there is one, a floor or a peer of the same run.
//!
//! `cargo bench --bench figures [-- NAME…]` runs all or those named. Needs root and an otherwise
//! quiet machine. How fast that is just then stands in each group's heading, since shared machines
//! change by a factor of three from one minute to the next. The load comes from a process of its
//! own (`load`), so that the server's CPU is the server's alone.

mod api;
mod connection;
mod cri;
mod load;
mod node;
mod process;
mod scale;
mod up;
mod yardstick;

use std::process::ExitCode;

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

impl Figure {
    fn met(&self) -> bool {
        match self.target {
            Target::Below(limit) => self.value <= limit,
            Target::Above(limit) => self.value >= limit,
        }
    }

    fn print(&self) {
        let (sign, limit) = match self.target {
            Target::Below(limit) => ("<=", limit),
            Target::Above(limit) => (">=", limit),
        };
        let verdict = if self.met() { "met" } else { "MISSED" };
        println!(
            "{:<44} {:>10.1} {:<6} {sign} {limit:>8.1}  {verdict:<6}  {}",
            self.name, self.value, self.unit, self.note
        );
    }
}

/// Figures that are measured together.
struct Group {
    name: &'static str,
    figures: fn() -> Vec<Figure>,
    /// It starts containers, so it runs in namespaces of its own.
    isolated: bool,
}

const fn group(name: &'static str, isolated: bool, figures: fn() -> Vec<Figure>) -> Group {
    Group { name, figures, isolated }
}

const GROUPS: &[Group] = &[
    group("start", false, api::start),
    group("creates", false, api::creates),
    group("get", false, api::get),
    group("list", false, api::list),
    group("watch", false, api::watch),
    group("scale", false, scale::hollow),
    group("pods", true, node::pods),
    group("idle", true, node::idle),
];

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().is_some_and(|a| a == "load") {
        load::main(&args[1..]);
        return ExitCode::SUCCESS;
    }
    let chosen = |group: &&Group| args.is_empty() || args.iter().any(|a| a == group.name);
    for group in GROUPS.iter().filter(chosen) {
        if group.isolated && !up::is_isolated() {
            up::isolate(group.name);
            continue;
        }
        println!("# {}; {}", group.name, yardstick::reading());
        (group.figures)().iter().for_each(Figure::print);
    }
    ExitCode::SUCCESS
}
