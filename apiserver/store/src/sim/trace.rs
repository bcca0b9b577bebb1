//! What happened in a run: a hash over all of it, the last of it in words, and how often what.

use std::collections::{BTreeMap, VecDeque};

/// Notes kept for the report of a failure.
const KEPT: usize = 4000;
/// Notes that a failure prints.
const PRINTED: usize = 120;

/// One thing that happened. `who` is a member, or 0.
#[derive(Clone, Copy)]
struct Note {
    at: u64,
    who: u64,
    what: &'static str,
    a: u64,
    b: u64,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, micros) = (self.at / 1_000_000, self.at % 1_000_000);
        write!(f, "{seconds:3}.{micros:06} {:>6x} {} ", self.who & 0xff_ffff, self.what)?;
        write!(f, "{} {}", self.a, self.b)
    }
}

/// See the module.
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) events: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
    notes: VecDeque<Note>,
    aloud: bool,
}

impl Trace {
    pub(super) fn new(aloud: bool) -> Self {
        let (counts, notes) = (BTreeMap::new(), VecDeque::with_capacity(KEPT));
        Self { hash: 0, events: 0, counts, notes, aloud }
    }

    /// Notes what happened; it counts for the hash.
    pub(super) fn note(&mut self, at: u64, who: u64, what: &'static str, a: u64, b: u64) {
        let note = Note { at, who, what, a, b };
        for part in [at, who, what.len() as u64, u64::from(what.as_bytes()[0]), a, b] {
            self.hash = (self.hash.rotate_left(23) ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        self.events += 1;
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
        if self.aloud {
            eprintln!("{note}");
        }
    }

    /// Something that a set of runs must have seen.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The last notes about these members; about all if there are none.
    pub(super) fn last(&self, who: &[u64]) -> String {
        let told = |note: &&Note| who.is_empty() || note.who == 0 || who.contains(&note.who);
        let mut last: Vec<_> = self.notes.iter().rev().filter(told).take(PRINTED).collect();
        last.reverse();
        last.iter().map(|note| format!("{note}\n")).collect()
    }
}
