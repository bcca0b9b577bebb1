//! What a run is like: sizes, speeds, and which faults it has. All of it is drawn from the seed, a
//! random subset of the faults for each run (Groce et al., "Swarm Testing", 2012).

use super::random::Random;

/// Milliseconds in the simulation's unit of time.
pub(super) const MS: u64 = 1000;
pub(super) const SECOND: u64 = 1000 * MS;

/// What is done to members, disks and links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    PowerLoss,
    AllPowerLoss,
    Stop,
    Pause,
    PauseLeader,
    CutOne,
    CutOneWay,
    CutRing,
    CutHalf,
    Break,
    Delay,
    Eio,
    Full,
    SlowDisk,
    Drift,
    Flip,
    Replace,
    RemoveLeader,
    Flap,
    Election,
}

pub(super) const FAULTS: [(Fault, &str, u64); 21] = [
    (Fault::Kill, "kill", 10),
    (Fault::PowerLoss, "power loss", 10),
    (Fault::AllPowerLoss, "power loss of all", 3),
    (Fault::Stop, "clean stop", 5),
    (Fault::Pause, "pause", 6),
    (Fault::PauseLeader, "pause of the leader", 6),
    (Fault::CutOne, "cut", 8),
    (Fault::CutOneWay, "cut one way", 8),
    (Fault::CutRing, "cut ring", 5),
    (Fault::CutHalf, "cut in halves", 4),
    (Fault::Break, "link break", 8),
    (Fault::Delay, "delay", 6),
    (Fault::Eio, "EIO", 5),
    (Fault::Full, "disk full", 5),
    (Fault::SlowDisk, "slow disk", 5),
    (Fault::Drift, "clock drift", 4),
    (Fault::Flip, "bit flip", 4),
    (Fault::Replace, "replace", 4),
    (Fault::RemoveLeader, "remove the leader", 4),
    (Fault::Flap, "flapping link", 4),
    (Fault::Election, "deaths in an election", 6),
];

/// See the module. Times are in microseconds.
pub(super) struct Plan {
    pub(super) faults: Vec<(Fault, &'static str, u64)>,
    /// What goes wrong first, as soon as it can: two for each seed, so that eleven have them all.
    pub(super) first: Vec<(Fault, &'static str)>,
    /// Processes from this one on are of the next release.
    pub(super) upgrade: u64,
    /// Mean time between two faults.
    pub(super) trouble_every: u64,
    /// Of a thousand Raft frames; 0 where links are like TCP.
    pub(super) drop: u64,
    pub(super) twice: u64,
    pub(super) overtake: u64,
    pub(super) net: u64,
    pub(super) disk: u64,
    pub(super) client: u64,
    pub(super) segment_bytes: u64,
    pub(super) snapshot_every: u64,
    pub(super) keep_bytes: usize,
    pub(super) entry_bytes: usize,
    pub(super) bytes_per_tick: usize,
    pub(super) remember: u64,
    /// Clients ask again with the same request id. That is safe for as long as it is remembered.
    pub(super) retries: bool,
    pub(super) history_bytes: usize,
    pub(super) value_bytes: u64,
    pub(super) keys: u64,
    pub(super) parents: u64,
    pub(super) children: usize,
    /// How long a client waits for an answer.
    pub(super) patience: u64,
    /// Mean time between two of a client's operations.
    pub(super) think: u64,
}

impl Plan {
    pub(super) fn draw(random: &mut Random, seed: u64) -> Self {
        let mut faults: Vec<_> = FAULTS.iter().filter(|_| random.permille(450)).copied().collect();
        if faults.is_empty() {
            faults.push(FAULTS[0]);
        }
        let harsh = random.permille(350);
        let mut rate = |most: u64| if harsh { random.below(most) } else { 0 };
        let (drop, twice, overtake) = (rate(100), rate(100), rate(200));
        let retries = random.permille(600);
        let fault = |number: u64| FAULTS[(2 * seed + number) as usize % FAULTS.len()];
        let first = [fault(0), fault(1)].map(|(fault, name, _)| (fault, name)).into();
        Self {
            faults,
            first,
            upgrade: if seed.is_multiple_of(2) { random.between(1, 20) } else { u64::MAX },
            trouble_every: random.between(300, 1800) * MS,
            drop,
            twice,
            overtake,
            net: random.between(100, 2000),
            disk: random.between(100, 4000),
            client: random.between(50, 1000),
            segment_bytes: random.between(40, 96) << 10,
            snapshot_every: random.between(8, 80) << 10,
            keep_bytes: random.between(1, 40) as usize * 1000,
            entry_bytes: random.between(1, 8) as usize * 1000,
            bytes_per_tick: random.between(2, 40) as usize * 1000,
            remember: if retries { random.between(3000, 6000) } else { random.between(20, 200) },
            retries,
            history_bytes: random.between(20, 200) as usize * 1000,
            value_bytes: random.between(10, 600),
            keys: random.between(3, 12),
            parents: random.between(1, 4),
            children: random.between(1, 6) as usize,
            patience: random.between(300, 3000) * MS,
            think: random.between(5, 60) * MS,
        }
    }
}
