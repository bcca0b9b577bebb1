//! The default runs, and that they see what they should.

use super::plan::FAULTS;
use super::{Options, Report, run};
use std::collections::BTreeMap;

/// What the default runs together must have seen, beside every fault.
const SEEN: [&str; 26] = [
    "answer from memory",
    "bit flip found",
    "client timeout",
    "created child",
    "death in a write",
    "died of its disk",
    "dropped frame",
    "duplicated frame",
    "entries of the next release",
    "fenced write",
    "forwarded write",
    "install after a restart",
    "install of a snapshot",
    "lagged watch",
    "no quorum",
    "no room for the log",
    "promoted",
    "removed",
    "reordered frame",
    "replaced member",
    "resumed watch",
    "retry",
    "snapshot",
    "stale read",
    "transfer",
    "watch compacted",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds that are run when nobody says which.
fn default_runs() -> Vec<Report> {
    let three = Options::default();
    let five = Options { members: 5, ..Options::default() };
    if let Some(seed) = number("RKUBE_SIM_SEED") {
        let members = number("RKUBE_SIM_MEMBERS").unwrap_or(3) as usize;
        return vec![run(seed, &Options { members, log: true, ..three })];
    }
    let threes = (10..17).map(|seed| run(seed, &three));
    let fives = (17..21).map(|seed| run(seed, &five));
    threes.chain(fives).collect()
}

#[test]
fn clusters_keep_their_promises() {
    let reports = default_runs();
    let mut counts = BTreeMap::<&str, u64>::new();
    for (what, count) in reports.iter().flat_map(|report| &report.counts) {
        *counts.entry(what).or_default() += count;
    }
    println!("{counts:#?}");
    if reports.len() == 1 {
        return;
    }
    let wanted = FAULTS.iter().map(|(_, name, _)| *name).chain(SEEN);
    let missing: Vec<_> = wanted.filter(|what| !counts.contains_key(what)).collect();
    assert!(missing.is_empty(), "no run has seen {missing:?}");
    let total = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (writes, reads, terms) =
        (total(|r| r.acknowledged), total(|r| r.reads), total(|r| r.terms));
    assert!(writes > 3000 && reads > 3000 && terms > 30, "{writes} {reads} {terms}");
}

#[test]
fn a_seed_replays_bit_by_bit() {
    let options = Options { seconds: 8, ..Options::default() };
    let (first, second) = (run(7, &options), run(7, &options));
    assert_eq!((first.trace, first.events), (second.trace, second.events));
    assert_eq!(first.counts, second.counts);
    assert_ne!(first.trace, run(8, &options).trace);
}
