//! What goes wrong: one fault after the other, those that the run's plan has.

use super::plan::{Fault, MS, SECOND};
use super::{Happening, Input, World};
use crate::disk::sim::Fault as DiskFault;

/// What ends a fault that lasts, or goes on with it.
#[derive(Clone, Copy)]
pub(super) enum Repair {
    /// Frames pass again in this direction.
    Link(u64, u64),
    /// The disk has room again.
    Room(u64),
    Clock(u64),
    /// None: the process dies, with the power or without.
    Death(u64, bool),
    /// A link that comes and goes: so many times yet.
    Flap(u64, u64, u32),
}

impl World {
    /// Lets something go wrong, and the next thing later.
    pub(super) fn trouble(&mut self) {
        if self.healed.is_some() {
            return;
        }
        let next = self.random.around(self.plan.trouble_every);
        self.at(next, Happening::Trouble);
        if let Some((fault, name)) = self.plan.first.last().copied()
            && self.go_wrong(fault)
        {
            self.plan.first.pop();
            return self.count(name);
        }
        let all: u64 = self.plan.faults.iter().map(|(.., weight)| weight).sum();
        let mut drawn = self.random.below(all);
        let mut faults = self.plan.faults.iter();
        let chosen = faults.find(|(.., weight)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        let Some((fault, name, _)) = chosen.copied() else { return };
        if self.go_wrong(fault) {
            self.count(name);
        }
    }

    /// False if it could not be done now.
    fn go_wrong(&mut self, fault: Fault) -> bool {
        let working = self.working();
        let Some(mut id) = self.random.pick(&working) else { return false };
        if self.random.permille(400) {
            // The leader is who matters most.
            id = self.leader().filter(|id| working.contains(id)).unwrap_or(id);
        }
        self.note(id, "fault", fault as u64, 0);
        match fault {
            Fault::Kill | Fault::PowerLoss => {
                let power = fault == Fault::PowerLoss;
                match self.random.permille(500) {
                    true => drop(self.dying.insert(id, power)),
                    false => self.kill(id, power),
                }
            }
            Fault::AllPowerLoss => working.iter().for_each(|id| self.kill(*id, true)),
            Fault::Stop => {
                self.at(0, Happening::Input { to: id, boot: 0, input: Input::Stop });
            }
            Fault::Pause => self.pause(id),
            Fault::PauseLeader => match self.leader().filter(|id| working.contains(id)) {
                Some(leader) => self.pause(leader),
                None => return false,
            },
            Fault::CutOne | Fault::CutOneWay | Fault::CutRing | Fault::CutHalf => {
                return self.cut(fault, id);
            }
            Fault::Break | Fault::Delay | Fault::Flap => return self.bad_link(fault, id),
            Fault::Eio | Fault::Full | Fault::SlowDisk => self.bad_disk(fault, id),
            Fault::Drift => self.drift(id),
            Fault::Flip => return self.begin_flip(),
            Fault::Election => return self.election(&working),
            Fault::Replace => return self.replace_one(id),
            Fault::RemoveLeader => return self.leader().is_some_and(|id| self.replace_one(id)),
        }
        true
    }

    // Processes.

    /// A write begins: if that was to be the end it comes before the write's.
    pub(super) fn write_begins(&mut self, id: u64, boot: u64) {
        if let Some(power) = self.dying.remove(&id) {
            let soon = self.random.below(self.plan.disk.max(2) / 2);
            self.at(soon, Happening::Die { id, boot, power });
        }
    }

    pub(super) fn die(&mut self, id: u64, boot: u64, power: bool) {
        let process = self.machines.get(&id).and_then(|machine| machine.process.as_ref());
        if self.healed.is_none() && process.is_some_and(|process| process.boot == boot) {
            self.kill(id, power);
        }
    }

    /// The process dies, perhaps in the middle of a write; with the power what was not synced is
    /// lost as well.
    pub(super) fn kill(&mut self, id: u64, power: bool) {
        let (within, seed) = (self.random.below(6), self.random.next());
        let (log, save, receive) =
            (self.random.permille(600), self.random.permille(500), self.random.permille(500));
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(mut process) = machine.process.take() else { return };
        let disk = machine.disk.clone();
        // One thread at a time gets somewhere.
        let mut working = true;
        if log && !process.log.tasks.is_empty() {
            process.log.die_within(within);
        } else if save && process.snapshot.is_some() {
            disk.fail_at(disk.operations() + 1 + within, DiskFault::Crash);
            let _ = process.save_snapshot(&disk);
        } else if receive && !process.chunks.is_empty() {
            disk.fail_at(disk.operations() + 1 + within, DiskFault::Crash);
            let _ = process.receive();
        } else {
            working = false;
        }
        if working {
            self.count("death in a write");
        }
        // What is dropped may clean up, which a dead process does not.
        disk.fail_at(disk.operations() + 1, DiskFault::Crash);
        self.bury(id, &process, !power);
        drop(process);
        match power {
            true => disk.power_loss(seed),
            false => disk.restart(),
        }
        let slow = self.random.around(if power { SECOND } else { 300 * MS });
        let wait = if self.random.permille(400) { slow / 50 } else { slow };
        self.at(wait, Happening::Boot(id));
    }

    fn pause(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.paused = Some(Default::default());
        let wait = self.random.between(100 * MS, 4 * SECOND);
        self.at(wait, Happening::Resume(id));
    }

    /// The leader is silent, and those who vote for another die meanwhile and come back.
    fn election(&mut self, working: &[u64]) -> bool {
        let Some(leader) = self.leader().filter(|id| working.contains(id)) else { return false };
        self.pause(leader);
        for id in working.iter().filter(|id| **id != leader) {
            for _ in 0..2 {
                let (wait, power) =
                    (self.random.between(400, 1600) * MS, self.random.permille(500));
                self.at(wait, Happening::Repair(Repair::Death(*id, power)));
            }
        }
        true
    }

    // Links.

    fn others(&self, id: u64) -> Vec<u64> {
        let alive = self.machines.values().filter(|m| !m.gone && !m.damaged && m.id != id);
        alive.map(|m| m.id).collect()
    }

    fn cut(&mut self, fault: Fault, id: u64) -> bool {
        let others = self.others(id);
        let mut cuts = Vec::new();
        match fault {
            Fault::CutOne => cuts.extend(others.iter().flat_map(|o| [(id, *o), (*o, id)])),
            Fault::CutOneWay => {
                let out = self.random.permille(500);
                for other in others {
                    if self.random.permille(700) {
                        cuts.push(if out { (id, other) } else { (other, id) });
                    }
                }
            }
            // Nobody sees all: each member is cut from one other.
            Fault::CutRing => {
                let mut ring = others;
                ring.push(id);
                if ring.len() < 3 {
                    return false;
                }
                let skip = self.random.below(ring.len() as u64) as usize;
                for place in (0..ring.len()).filter(|place| *place != skip || ring.len() > 3) {
                    let (a, b) = (ring[place], ring[(place + 2) % ring.len()]);
                    cuts.extend([(a, b), (b, a)]);
                }
            }
            _ => {
                let mut side: Vec<_> =
                    others.iter().copied().filter(|_| self.random.permille(500)).collect();
                side.push(id);
                for a in &side {
                    for b in others.iter().filter(|b| !side.contains(b)) {
                        cuts.extend([(*a, *b), (*b, *a)]);
                    }
                }
            }
        }
        let lasts = self.random.between(200 * MS, 5 * SECOND);
        for (from, to) in &cuts {
            self.net.cut(*from, *to, true);
            self.at(lasts, Happening::Repair(Repair::Link(*from, *to)));
            // Who hears nothing for long takes the connection for broken.
            let notice = self.random.between(SECOND, 4 * SECOND);
            if notice < lasts {
                self.net_lost(*from, *to, notice);
            }
        }
        !cuts.is_empty()
    }

    fn net_lost(&mut self, a: u64, b: u64, after: u64) {
        for (to, peer) in [(a, b), (b, a)] {
            self.at(after, Happening::Input { to, boot: 0, input: Input::LinkLost(peer) });
        }
    }

    fn bad_link(&mut self, fault: Fault, id: u64) -> bool {
        let others = self.others(id);
        let Some(other) = self.random.pick(&others) else { return false };
        match fault {
            Fault::Break => self.break_link(id, other),
            Fault::Flap => self.at(0, Happening::Repair(Repair::Flap(id, other, 6))),
            _ => {
                let extra = self.random.between(20 * MS, 10 * SECOND);
                let until = self.now + self.random.between(100 * MS, 3 * SECOND);
                self.net.delay(id, other, extra, until);
                if self.random.permille(500) {
                    self.net.delay(other, id, extra, until);
                }
            }
        }
        true
    }

    fn break_link(&mut self, a: u64, b: u64) {
        let until = self.now + self.random.between(MS, SECOND);
        self.net.break_link(a, b, until);
        self.net_lost(a, b, MS);
    }

    // Disks and clocks.

    fn bad_disk(&mut self, fault: Fault, id: u64) {
        let (soon, room) = (self.random.between(1, 12), self.random.between(400, 1100));
        let lasts = self.random.between(SECOND, 8 * SECOND);
        let until = self.now + lasts;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        match fault {
            Fault::Eio => machine.disk.fail_at(machine.disk.operations() + soon, DiskFault::Io),
            Fault::Full => {
                // Most of what is freed while it lasts is somebody else's at once.
                machine.disk.limit(Some(machine.disk.used() * room / 1000));
                self.at(lasts, Happening::Repair(Repair::Room(id)));
            }
            _ => machine.slow_until = until,
        }
    }

    fn drift(&mut self, id: u64) {
        let tick = self.random.between(20 * MS, 120 * MS);
        let lasts = self.random.between(SECOND, 8 * SECOND);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.tick = tick;
            self.at(lasts, Happening::Repair(Repair::Clock(id)));
        }
    }

    /// Only a minority may lose what it has: those whose data are gone, or who are on their way
    /// in or out.
    fn may_lose_one(&self) -> bool {
        !self.operator.is_busy()
            && self.flip_next.is_none()
            && !self.machines.values().any(|m| !m.gone && (m.damaged || m.flipped))
    }

    /// A bit of a member that was stopped changes; at its next start it refuses, or it is none
    /// that matters.
    fn begin_flip(&mut self) -> bool {
        if !self.may_lose_one() || self.flip_next.is_some() {
            return false;
        }
        let working = self.working();
        let Some(id) = self.random.pick(&working) else { return false };
        self.flip_next = Some(id);
        self.at(0, Happening::Input { to: id, boot: 0, input: Input::Stop });
        true
    }

    /// The member was stopped: this is the time.
    pub(super) fn flip_bit(&mut self, id: u64) {
        let Some(files) = self.machines.get(&id).map(super::Machine::files) else { return };
        let place = self.random.below(files.len() as u64) as usize;
        let bit = self.random.next();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(file) = files.get(place) else { return };
        let used = machine.disk.content(file);
        // Behind what was written there are only zeros.
        let bytes = used.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if bytes == 0 {
            return;
        }
        machine.disk.flip(file, (bit % (8 * bytes as u64)) as usize);
        machine.flipped = true;
    }

    fn replace_one(&mut self, id: u64) -> bool {
        let may = self.may_lose_one() && self.members().iter().any(|member| member.id == id);
        if may {
            self.operator.replace(id);
        }
        may
    }

    // The end of faults.

    pub(super) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Link(from, to) => self.net.cut(from, to, false),
            Repair::Death(id, power) if self.healed.is_none() => self.kill(id, power),
            Repair::Death(..) => {}
            Repair::Room(id) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.disk.limit(None);
                }
            }
            Repair::Clock(id) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.tick = 50 * MS;
                }
            }
            Repair::Flap(a, b, times) if times > 0 && self.healed.is_none() => {
                self.break_link(a, b);
                let wait = self.random.between(50 * MS, 600 * MS);
                self.at(wait, Happening::Repair(Repair::Flap(a, b, times - 1)));
            }
            Repair::Flap(..) => {}
        }
    }
}
