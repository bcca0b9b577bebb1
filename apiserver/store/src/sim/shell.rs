//! What surrounds a replica: the driver's thread and those of log, snapshots and clock, as events.

use super::clients::{Answer, Request};
use super::member::{self, Process, Said};
use super::plan::{MS, SECOND};
use super::{Happening, Input, World};
use crate::codec::ENTRY_VERSION;
use crate::error::StoreError;
use crate::frame::Frame;
use crate::log_thread::LogTask;
use crate::replica::Effect;
use crate::upkeep::LogBytes;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use std::collections::VecDeque;
use std::time::Duration;

/// How a process goes on after an input.
#[derive(PartialEq, Eq)]
enum Then {
    Goes,
    /// It ends on its own: an error of the disk, removed, or stopped.
    Ends,
}

impl World {
    // Begin and end of processes.

    pub(super) fn boot(&mut self, id: u64) {
        self.boots += 1;
        let (boot, nonce) = (self.boots, self.random.next());
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.process.is_some() || machine.gone || machine.damaged {
            return;
        }
        let mut process = match member::open(machine, boot, nonce, &self.plan) {
            Ok(process) => process,
            Err(error) => return self.not_opened(id, &error),
        };
        let last = process.replica.core().last_index();
        if last < machine.applied {
            let applied = machine.applied;
            self.fail(id, &format!("its log ends at {last}, it had applied {applied}"));
        }
        let flipped = machine.flipped;
        // The first start is no restart.
        let begun = if machine.boot == 0 { 0 } else { self.now };
        process.begun = begun;
        if let Some(machine) = self.machines.get_mut(&id) {
            (machine.flipped, machine.closed, machine.boot) = (false, false, boot);
            machine.process = Some(process);
        }
        if flipped {
            self.count("harmless bit flip");
        }
        self.note(id, "boot", boot, last);
        self.tick_later(id, boot);
        let control = self.random.around(100 * MS);
        self.at(control, Happening::Input { to: id, boot, input: Input::Control });
        self.turn(id, VecDeque::new());
    }

    /// A disk that fails or is full is tried again; damage that nobody did is a bug.
    fn not_opened(&mut self, id: u64, error: &StoreError) {
        self.note(id, "not opened", 0, 0);
        let flipped = self.machines.get(&id).is_some_and(|m| m.flipped);
        let disk = matches!(error, StoreError::Io { .. } | StoreError::DiskFull { .. });
        if !disk && !flipped {
            self.fail(id, &format!("it can't be opened: {error}"));
        }
        if disk && !flipped {
            let wait = self.random.between(300, 1500) * MS;
            return self.at(wait, Happening::Boot(id));
        }
        self.count("bit flip found");
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.damaged = true;
        }
        self.operator.replace(id);
    }

    fn tick_later(&mut self, id: u64, boot: u64) {
        let tick = self.machines.get(&id).map_or(0, |machine| machine.tick);
        let late = self.random.below(2 * MS);
        self.at(tick + late, Happening::Input { to: id, boot, input: Input::Tick });
    }

    /// The process is gone: who waits for it and who is connected to it notices.
    pub(super) fn bury(&mut self, id: u64, process: &Process, at_once: bool) {
        self.flip_next.take_if(|next| *next == id);
        self.dying.remove(&id);
        self.note(id, "end", process.boot, u64::from(at_once));
        let lost: Vec<_> = self
            .calls
            .iter()
            .filter(|(_, c)| c.sent_to(id, process.boot))
            .map(|(t, _)| *t)
            .collect();
        let core = process.replica.core();
        let applied = core.state().applied_index.min(core.last_index());
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.applied = machine.applied.max(applied);
            machine.paused = None;
        }
        for token in lost {
            let wait = self.random.around(self.plan.client);
            self.at(wait, Happening::Answer { token, answer: Answer::Gone });
        }
        let others: Vec<_> = self.machines.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            // A dead machine says nothing; a dead process's connections are reset.
            let wait = match at_once {
                true => self.random.between(MS / 10, 3 * MS),
                false => self.random.between(SECOND, 3 * SECOND),
            };
            self.net.break_link(id, other, self.now + wait);
            self.at(wait, Happening::Input { to: other, boot: 0, input: Input::LinkLost(id) });
        }
    }

    // Inputs.

    pub(super) fn input(&mut self, to: u64, boot: u64, input: Input) {
        let Some(machine) = self.machines.get_mut(&to) else { return };
        if !machine.process.as_ref().is_some_and(|p| boot == 0 || p.boot == boot) {
            return;
        }
        if let Some(waiting) = &mut machine.paused {
            // After a pause there is one tick, not a burst.
            if !matches!(input, Input::Tick) || !waiting.iter().any(|i| matches!(i, Input::Tick)) {
                waiting.push_back(input);
            }
            return;
        }
        self.turn(to, VecDeque::from([input]));
    }

    pub(super) fn resume(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(inputs) = machine.paused.take() {
            self.note(id, "resume", inputs.len() as u64, 0);
            self.turn(id, inputs);
        }
    }

    /// Takes inputs and carries out what follows, as the driver does.
    fn turn(&mut self, id: u64, inputs: VecDeque<Input>) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(mut process) = machine.process.take() else { return };
        let mut outcome = Ok(Then::Goes);
        for input in inputs {
            outcome = self.take(id, &mut process, input);
            if !matches!(outcome, Ok(Then::Goes)) {
                break;
            }
        }
        if matches!(outcome, Ok(Then::Goes)) {
            outcome = self.drive(id, &mut process);
        }
        match outcome {
            Ok(Then::Goes) if !process.is_finished() => {
                self.begin_snapshot(id, &mut process);
                self.watch_log(id, &process);
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.process = Some(process);
                }
            }
            Ok(Then::Goes) => self.finish(id, process),
            Ok(Then::Ends) => self.bury(id, &process, true),
            Err(error) => self.died(id, process, &error),
        }
    }

    /// The clean end.
    fn finish(&mut self, id: u64, mut process: Process) {
        let closed = process.log.close().is_ok();
        let flips = self.flip_next.take_if(|next| *next == id).is_some();
        self.note(id, "stopped", u64::from(closed), 0);
        self.bury(id, &process, true);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.closed = closed;
            machine.disk.restart();
        }
        if flips && closed {
            self.flip_bit(id);
        }
        let wait = self.random.between(100, 1500) * MS;
        self.at(wait, Happening::Boot(id));
    }

    /// An error that is final: the process ends and is started again.
    fn died(&mut self, id: u64, process: Process, error: &StoreError) {
        let disk = matches!(error, StoreError::Io { .. } | StoreError::DiskFull { .. });
        if !disk {
            self.fail(id, &format!("it died: {error}"));
        }
        self.count("died of its disk");
        self.bury(id, &process, true);
        drop(process);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.disk.restart();
        }
        let wait = self.random.between(100, 1500) * MS;
        self.at(wait, Happening::Boot(id));
    }

    fn take(&mut self, id: u64, p: &mut Process, input: Input) -> Result<Then, StoreError> {
        match input {
            Input::Frame { from, frame } => {
                p.known.insert(from);
                if p.replica.state().roster.is_removed(from) {
                    self.tell_removed(id, from);
                } else {
                    self.note(id, "frame", from & 0xffff, frame.len() as u64);
                    p.replica.frame(from, &frame);
                }
            }
            Input::Tick => {
                self.watch_bounds(id, p);
                if !p.replica.core().is_alone() {
                    p.replica.tick();
                    let core = p.replica.core();
                    if core.is_leader() && core.entry_version() > ENTRY_VERSION {
                        self.count("entries of the next release");
                    }
                    if let Some(ticks) = &mut p.closing {
                        *ticks += 1;
                    }
                }
                self.tick_later(id, p.boot);
            }
            Input::LinkLost(peer) => p.replica.link_lost(peer),
            Input::Call { token, request } => self.call(id, p, token, request),
            Input::Log => return self.log_done(id, p),
            Input::Snapshot => self.snapshot_done(id, p),
            Input::Chunk => {
                if let Some((transfer, number, result)) = p.receive() {
                    p.replica.received(transfer, number, result);
                }
                if !p.chunks.is_empty() {
                    self.disk_later(id, p.boot, Input::Chunk);
                }
            }
            Input::Control => self.control(id, p),
            Input::Removed => return Ok(self.removed(id)),
            Input::Stop => {
                self.count("transfer on a clean stop");
                p.closing.get_or_insert(0);
                p.replica.leave();
            }
        }
        Ok(Then::Goes)
    }

    /// A member that was removed is told so by whom it speaks to.
    fn tell_removed(&mut self, id: u64, from: u64) {
        if self.net.passes(id, from) {
            let wait = self.random.around(self.plan.net);
            self.at(wait, Happening::Input { to: from, boot: 0, input: Input::Removed });
        }
    }

    fn removed(&mut self, id: u64) -> Then {
        self.count("removed");
        self.note(id, "removed", 0, 0);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.gone = true;
        }
        Then::Ends
    }

    fn call(&mut self, id: u64, p: &mut Process, token: u64, request: Request) {
        if let Some(call) = self.calls.get_mut(&token) {
            call.arrived(id, p.boot);
        }
        match request {
            Request::Write(item) => {
                if !p.replica.core().is_leader() {
                    self.count("forwarded write");
                }
                p.replica.propose(item, token);
            }
            Request::Change(change) => p.replica.change(&change, token),
            Request::Read { .. } => p.replica.read(token),
            Request::Stale(keys) => self.serve(token, p, &keys, true),
        }
    }

    // Threads.

    fn disk_time(&mut self, id: u64) -> u64 {
        let slow = self.machines.get(&id).is_some_and(|m| m.slow_until > self.now);
        match slow {
            true => self.random.between(SECOND, 5 * SECOND),
            false => self.random.around(self.plan.disk),
        }
    }

    fn disk_later(&mut self, id: u64, boot: u64, input: Input) {
        let wait = self.disk_time(id);
        self.at(wait, Happening::Input { to: id, boot, input });
    }

    fn log_task(&mut self, id: u64, p: &mut Process, task: LogTask) {
        p.log.tasks.push_back(task);
        if p.log.tasks.len() == 1 {
            self.disk_later(id, p.boot, Input::Log);
            self.write_begins(id, p.boot);
        }
    }

    fn log_done(&mut self, id: u64, p: &mut Process) -> Result<Then, StoreError> {
        let said = p.log.work()?;
        for said in said {
            match said {
                Said::Persisted { number, room } => {
                    self.note(id, "persisted", number, room.current);
                    while let Some((_, last)) = p.writing.pop_front_if(|(n, _)| *n <= number) {
                        p.durable = last;
                    }
                    p.replica.persisted(number, room);
                }
                Said::Prepared(prepared) => {
                    if prepared.is_err() {
                        self.count("no room for the log");
                    }
                    p.replica.prepared(prepared);
                }
            }
        }
        if !p.log.tasks.is_empty() {
            self.disk_later(id, p.boot, Input::Log);
        }
        Ok(Then::Goes)
    }

    fn begin_snapshot(&mut self, id: u64, p: &mut Process) {
        if p.begin_snapshot(self.plan.snapshot_every) {
            // It is large and takes its time.
            let wait = self.disk_time(id) * self.random.between(1, 40);
            let most = wait.min(8 * SECOND);
            self.at(most, Happening::Input { to: id, boot: p.boot, input: Input::Snapshot });
        }
    }

    fn snapshot_done(&mut self, id: u64, p: &mut Process) {
        let Some(machine) = self.machines.get(&id) else { return };
        let disk = machine.disk.clone();
        let idle = p.log.tasks.is_empty();
        let Some(taken) = p.save_snapshot(&disk) else { return };
        self.count(if taken.is_ok() { "snapshot" } else { "failed snapshot" });
        self.note(id, "snapshot", u64::from(taken.is_ok()), 0);
        p.snapshot_taken(taken);
        if idle && !p.log.tasks.is_empty() {
            self.disk_later(id, p.boot, Input::Log);
        }
    }

    // Effects.

    fn drive(&mut self, id: u64, p: &mut Process) -> Result<Then, StoreError> {
        loop {
            let effect = p.replica.step()?;
            self.watch_over(id, p);
            let Some(effect) = effect else { return Ok(Then::Goes) };
            match effect {
                Effect::Send(to, frame) => self.send(id, p, to, frame),
                Effect::Write(write) => {
                    p.log_bytes.grow(&write.entries);
                    p.writes(&write);
                    let (number, entries) = (write.number, write.entries.len() as u64);
                    self.note(id, "write", number, entries);
                    self.log_task(id, p, LogTask::Append(Box::new(write)));
                }
                Effect::Prepare => self.log_task(id, p, LogTask::Prepare),
                Effect::Installed => self.installed(id, p),
                Effect::Publish { revisions, .. } => self.publish(id, p, revisions),
                Effect::Members => {
                    self.note(id, "members", p.replica.core().members().len() as u64, 0);
                }
                Effect::Written(token, result) => self.reply(token, Answer::Written(result)),
                Effect::Read(token, result) => self.served(token, p, result),
                Effect::Receive(received) => {
                    p.chunks.push_back(received);
                    if p.chunks.len() == 1 {
                        self.disk_later(id, p.boot, Input::Chunk);
                    }
                }
                Effect::Removed => return Ok(self.removed(id)),
            }
        }
    }

    /// What must hold of a member at any time.
    fn watch_over(&mut self, id: u64, p: &Process) {
        let core = p.replica.core();
        let state = core.state();
        let checked = self.check.state(state.applied_index, state.hash);
        self.must(id, checked);
        if core.is_leader() {
            let checked = self.check.leads(core.term(), id);
            self.must(id, checked);
        }
    }

    /// Clients wait for one thing at a time, so little can gather, whatever goes wrong.
    fn watch_bounds(&mut self, id: u64, p: &Process) {
        let (waiting, tasks) = (p.replica.backlog(), p.log.tasks.len());
        if tasks > 64 {
            self.count("long queue of the log");
        }
        // The log thread's queue has room for so many, and the driver must not wait for it.
        if waiting > 3000 || tasks > 1000 {
            self.fail(id, &format!("{waiting} things and {tasks} tasks of the log wait in it"));
        }
    }

    /// Whatever went wrong with the last snapshot, the next one is begun in time.
    fn watch_log(&self, id: u64, p: &Process) {
        let behind = p.log_bytes.since_snapshot;
        let works = p.snapshot.is_some() || p.closing.is_some();
        if !works && behind >= self.plan.snapshot_every {
            self.fail(id, &format!("no snapshot is in work, with {behind} bytes on disk behind"));
        }
    }

    fn installed(&mut self, id: u64, p: &mut Process) {
        let state = p.replica.state();
        let revision = state.root.revision;
        if revision < p.revision || revision > self.check.head() {
            let from = p.revision;
            self.fail(id, &format!("an install takes it from revision {from} to {revision}"));
        }
        self.count("install of a snapshot");
        if p.begun > 0 && self.now - p.begun < 3 * SECOND {
            self.count("install after a restart");
        }
        self.note(id, "installed", state.applied_index, revision);
        let snapshot_index = state.applied_index;
        p.revision = revision;
        p.history.restart(revision);
        p.log_bytes = LogBytes::new(snapshot_index, 0);
    }

    fn publish(
        &mut self,
        id: u64,
        p: &mut Process,
        revisions: Vec<Vec<std::sync::Arc<crate::Event>>>,
    ) {
        for events in &revisions {
            let revision = events[0].revision;
            if revision != p.revision + 1 {
                let last = p.revision;
                self.fail(id, &format!("it publishes revision {revision} after {last}"));
            }
            p.revision = revision;
            let checked = self.check.published(events);
            self.must(id, checked);
        }
        let (applied, durable) = (p.replica.state().applied_index, p.durable);
        if applied > durable {
            self.fail(id, &format!("it has applied {applied}, its disk has {durable} for sure"));
        }
        self.note(id, "publish", p.revision, p.replica.state().hash);
        let now = self.base + Duration::from_micros(self.now);
        p.history.publish(revisions, now);
    }

    // The network.

    fn send(&mut self, id: u64, p: &Process, to: u64, frame: Bytes) {
        let members = p.replica.core().members();
        // Who is no member is spoken to only if it spoke first.
        if !p.known.contains(&to) && !members.is_empty() && !members.iter().any(|m| m.id == to) {
            return self.count("nobody there");
        }
        if !self.machines.contains_key(&to) {
            return;
        }
        let message = match Frame::decode(&frame) {
            Ok(Frame::Raft(message)) => Some(message),
            Ok(_) => None,
            Err(error) => self.fail(id, &format!("it sends nonsense: {error}")),
        };
        let raft = message.is_some();
        if let Some(message) = message {
            self.look_at(id, &message);
        }
        let (drop, twice, overtake) = (self.plan.drop, self.plan.twice, self.plan.overtake);
        let harsh = raft && self.healed.is_none();
        if harsh && self.random.permille(drop) {
            return self.count("dropped frame");
        }
        let overtakes = harsh && self.random.permille(overtake);
        let copies = 1 + u64::from(harsh && self.random.permille(twice));
        if copies == 2 {
            self.count("duplicated frame");
        }
        for _ in 0..copies {
            let mean = self.plan.net;
            let sent = self.net.send((id, to), self.now, mean, overtakes, &mut self.random);
            if let Some((at, epoch)) = sent {
                if overtakes {
                    self.count("reordered frame");
                }
                let frame = frame.clone();
                self.at(at - self.now, Happening::Frame { from: id, to, epoch, frame });
            }
        }
    }

    fn look_at(&mut self, id: u64, message: &Message) {
        match message.get_msg_type() {
            // Raft passes on what another member asked it when it led; that one is not heard.
            MessageType::MsgReadIndex if message.from == id => {
                let context = message.entries.first().map(|e| e.data.to_vec()).unwrap_or_default();
                if !self.contexts.insert(context) {
                    self.fail(id, "a read's context comes twice");
                }
            }
            MessageType::MsgTimeoutNow => self.count("transfer"),
            _ => {}
        }
    }

    pub(super) fn arrived(&mut self, from: u64, to: u64, epoch: u64, frame: Bytes) {
        if self.net.arrives(from, to, epoch) {
            self.input(to, 0, Input::Frame { from, frame });
        }
    }
}
