//! The end of a run: all is healed, and the cluster must serve again, have lost nothing, and
//! agree.

use super::plan::{MS, SECOND};
use super::{Happening, World};

/// How long the healed cluster may take until each member serves.
const SERVES_WITHIN: u64 = 10 * SECOND;
/// And until all have the same, once nobody asks for anything.
const SETTLES_WITHIN: u64 = 5 * SECOND;

impl World {
    /// Nothing goes wrong any more; what is down comes back.
    pub(super) fn heal(&mut self) {
        self.note(0, "heal", 0, 0);
        self.healed = Some(self.now);
        self.dying.clear();
        (self.plan.drop, self.plan.twice, self.plan.overtake) = (0, 0, 0);
        self.net.heal(self.now);
        let ids: Vec<_> = self.machines.keys().copied().collect();
        for id in ids {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            (machine.slow_until, machine.tick) = (0, 50 * MS);
            machine.disk.limit(None);
            machine.disk.no_fault();
            let down = machine.process.is_none() && !machine.gone && !machine.damaged;
            self.resume(id);
            let wait = self.random.below(500 * MS);
            if down {
                self.at(wait, Happening::Boot(id));
            }
        }
        for member in self.members() {
            if self.machines.get(&member.id).is_some_and(|m| !m.gone && !m.damaged) {
                self.add_client(Some(member.id));
            }
        }
        self.at(SERVES_WITHIN, Happening::Quiet);
    }

    /// By now each member has served; from now on nobody asks for anything.
    pub(super) fn quieten(&mut self) {
        self.quiet = true;
        self.at(SETTLES_WITHIN, Happening::End);
        let members = self.members();
        let listed = |id| members.iter().any(|member| member.id == id);
        for machine in self.machines.values() {
            let id = machine.id;
            if !listed(id) && machine.process.is_some() && !self.operator.is_coming(id) {
                self.fail(id, "it was removed and is there yet");
            }
            if listed(id) && !machine.works() && !machine.damaged {
                self.fail(id, "it is a member and does not work");
            }
        }
        if self.leader().is_none() {
            self.fail(0, "there is no leader ten seconds after all was healed");
        }
        for client in &self.clients {
            let Some(id) = client.probe.filter(|id| listed(*id)) else { continue };
            if client.got != (true, true) {
                let (write, read) = client.got;
                self.fail(id, &format!("healed, it served a write: {write}, a read: {read}"));
            }
        }
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
        let checked = self.check.end();
        self.must(0, checked);
        let members = self.members();
        let head = self.check.head();
        let mut states = Vec::new();
        for member in &members {
            let machine = self.machines.get(&member.id).filter(|m| !m.damaged);
            let Some(process) = machine.and_then(|m| m.process.as_ref()) else { continue };
            let state = process.replica.state();
            states.push((member.id, state.applied_index, state.root.revision, state.hash));
            self.bounded(member.id);
        }
        let Some((_, index, _, hash)) = states.first().copied() else {
            self.fail(0, "nobody is there");
        };
        for (id, applied, revision, state) in states {
            if (applied, state) != (index, hash) || revision != head {
                let reason =
                    format!("it ends at entry {applied}, revision {revision}; {index}, {head}");
                self.fail(id, &reason);
            }
        }
        self.note(0, "end", index, hash);
    }

    /// Nothing has grown beyond what content and settings explain.
    fn bounded(&self, id: u64) {
        let Some(machine) = self.machines.get(&id) else { return };
        let Some(process) = &machine.process else { return };
        let state = process.replica.state();
        let content: usize = state.root.clone().into_objects().map(|o| o.json.len() + 300).sum();
        let remembered = 40 * state.remembered.iter().count();
        let snapshots = 3 * (content + remembered + 4096) as u64;
        let log = 4 * self.plan.snapshot_every + 6 * self.plan.segment_bytes;
        let used = machine.disk.used();
        if used > snapshots + log {
            let reason = format!("{used} bytes on disk, expected {snapshots} and {log}");
            self.fail(id, &reason);
        }
        let waiting = process.replica.backlog();
        if waiting > 64 {
            self.fail(id, &format!("{waiting} things wait in it though nobody asks"));
        }
    }
}
