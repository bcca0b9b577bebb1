//! Who asks: clients that do one thing after the other at some member and move on when it fails,
//! and controllers in the leader's scope on every member.

use super::check::{json, number};
use super::member::Process;
use super::plan::{MS, SECOND};
use super::{Happening, Input, World};
use crate::codec::{ITEM_HEAD, write_command};
use crate::command::{Command, Outcome, Precondition, Write};
use crate::error::StoreError;
use crate::member::MemberChange;
use crate::object::{Header, Key, NewObject, Object, Scope};
use crate::replica::Done;
use crate::view::View;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a member is asked for.
#[derive(Clone)]
pub(super) enum Request {
    /// An item with its request id.
    Write(Vec<u8>),
    /// Linearizable.
    Read(Vec<Key>),
    /// As the member has it.
    Stale(Vec<Key>),
    Change(MemberChange),
}

/// A key's revision and value as seen.
pub(super) type Seen = Vec<(Key, Option<(u64, u64)>)>;

/// What came back.
pub(super) enum Answer {
    Written(Result<Done, StoreError>),
    Read(Result<(u64, Seen), StoreError>),
    /// Nobody listens there: it was never taken.
    Nobody,
    /// The process died meanwhile.
    Gone,
}

/// A request under way.
pub(super) struct Call {
    who: Who,
    /// Whom it was given to: member and boot.
    at: Option<(u64, u64)>,
    keys: Vec<Key>,
    /// What was published when it was sent.
    floor: u64,
    stale: bool,
    /// A write that had been applied before it was asked for again.
    applied: bool,
}

impl Call {
    fn of(who: Who) -> Self {
        Self { who, at: None, keys: Vec::new(), floor: 0, stale: false, applied: false }
    }

    pub(super) fn sent_to(&self, id: u64, boot: u64) -> bool {
        self.at == Some((id, boot))
    }

    pub(super) fn arrived(&mut self, id: u64, boot: u64) {
        self.at = Some((id, boot));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Client(usize),
    /// For a parent, on a member.
    Controller(u64, u64),
    /// A write of the leader's scope.
    Lease(usize),
    Operator,
}

/// One client.
#[derive(Default)]
pub(super) struct Client {
    doing: Option<Doing>,
    /// It asks this member only: the last part of a run.
    pub(super) probe: Option<u64>,
    /// What a probe has got so far: a write, a read.
    pub(super) got: (bool, bool),
}

/// What a client waits for.
struct Doing {
    token: u64,
    request: Request,
    /// Of a write.
    operation: Option<usize>,
    tries: u32,
    /// A try before was lost sight of: it may have been applied.
    unsure: bool,
}

/// What the controllers wait for, by member and parent.
#[derive(Default)]
pub(super) struct Controllers {
    creating: BTreeMap<(u64, u64), Creating>,
}

struct Creating {
    boot: u64,
    operation: usize,
    item: Vec<u8>,
    term: u64,
    /// Nobody knows what came of the last try: it is made again.
    again: bool,
}

pub(super) fn item(command: &Command) -> Vec<u8> {
    let mut item = Vec::with_capacity(ITEM_HEAD + 256);
    write_command(&mut item, command);
    item
}

fn seen(object: &Arc<Object>) -> (u64, u64) {
    (object.revision, number(object))
}

/// True if the write was not applied and never will be.
fn is_definite(error: &StoreError) -> bool {
    !matches!(error, StoreError::Unknown)
}

impl World {
    pub(super) fn add_client(&mut self, probe: Option<u64>) {
        self.clients.push(Client { probe, ..Client::default() });
        let wait = self.random.below(50 * MS);
        self.at(wait, Happening::Act(self.clients.len() - 1));
    }

    // Operations.

    fn key(&mut self) -> Key {
        let name = self.random.below(self.plan.keys);
        Key::new("pods", ["x", "y"][name as usize % 2], &format!("k{name}"))
    }

    fn new_object(&mut self, number: usize) -> NewObject {
        let filler = self.random.below(self.plan.value_bytes);
        let json = json(number as u64, filler).into();
        NewObject { json, splice_at: 13, header: Header::default() }
    }

    fn request_id(&mut self) -> u128 {
        (u128::from(self.random.next()) << 64) | u128::from(self.random.next() | 1)
    }

    fn some_write(&mut self) -> Request {
        let number = self.check.operations.len();
        let key = self.key();
        let put = Write::Put(key.clone(), self.new_object(number));
        let request_id = self.request_id();
        let mut command = Command::unconditional(request_id, vec![put]);
        match self.random.below(100) {
            0..35 => {}
            35..50 => command.preconditions.push(Precondition::Absent(key)),
            50..70 => {
                // What some client may have seen lately.
                let back = self.random.below(3);
                let at = self.check.at(&key, self.check.head().saturating_sub(back));
                let revision = at.map_or(1, |(revision, _)| revision);
                command.preconditions.push(Precondition::RevisionIs(key, revision));
            }
            70..85 => command.writes = vec![Write::Delete(key)],
            85..95 => {
                let other = self.key();
                if other != key {
                    command.writes.push(match self.random.permille(500) {
                        true => Write::Delete(other),
                        false => Write::Put(other, self.new_object(number)),
                    });
                }
            }
            _ => {
                if let Some(child) = self.some_child() {
                    command.writes = vec![Write::Delete(child)];
                }
            }
        }
        let item = item(&command);
        self.check.begin(command);
        Request::Write(item)
    }

    /// A child that is there somewhere, to be deleted.
    fn some_child(&mut self) -> Option<Key> {
        let working = self.working();
        let id = self.random.pick(&working)?;
        let process = self.machines.get(&id)?.process.as_ref()?;
        let view = View(Arc::new(process.replica.state().root.clone()));
        let children: Vec<_> = view.range(&Scope::all("children"), None).collect();
        let place = self.random.below(children.len() as u64) as usize;
        children.get(place).map(|child| child.key.clone())
    }

    // Clients.

    /// A client begins something.
    pub(super) fn act(&mut self, client: usize) {
        let probe = self.clients[client].probe;
        if self.quiet || self.clients[client].doing.is_some() {
            return;
        }
        let wanted = match (probe, self.clients[client].got) {
            (Some(_), (true, true)) => return,
            (Some(_), (false, _)) => 0,
            (Some(_), _) => 60,
            (None, _) => self.random.below(100),
        };
        let operation = self.check.operations.len();
        let (request, operation) = match wanted {
            0..60 => (self.some_write(), Some(operation)),
            60..85 => (Request::Read(vec![self.key(), self.key()]), None),
            _ => (Request::Stale(vec![self.key(), self.key()]), None),
        };
        let doing = Doing { token: 0, request, operation, tries: 0, unsure: false };
        self.clients[client].doing = Some(doing);
        self.try_at(client);
    }

    /// Sends what a client wants to some member.
    pub(super) fn try_at(&mut self, client: usize) {
        let ids: Vec<_> =
            self.machines.values().filter(|m| !m.gone && !m.damaged).map(|m| m.id).collect();
        let probe = self.clients[client].probe;
        let Some(to) = probe.or(self.random.pick(&ids)) else { return };
        self.tokens += 1;
        let token = self.tokens;
        let Some(doing) = &mut self.clients[client].doing else { return };
        doing.token = token;
        doing.tries += 1;
        let (request, operation) = (doing.request.clone(), doing.operation);
        let (keys, stale) = match &request {
            Request::Read(keys) => (keys.clone(), false),
            Request::Stale(keys) => (keys.clone(), true),
            _ => (Vec::new(), false),
        };
        let floor = self.check.head();
        let applied = operation.is_some_and(|o| self.check.operations[o].revision.is_some());
        let call = Call { who: Who::Client(client), at: None, keys, floor, stale, applied };
        self.calls.insert(token, call);
        let wait = self.random.around(self.plan.client);
        self.at(wait, Happening::Ask { to, token, request });
        let patience = self.random.around(self.plan.patience);
        self.at(patience, Happening::Timeout { token });
    }

    /// A request arrives at a machine.
    pub(super) fn asked(&mut self, to: u64, token: u64, request: Request) {
        let boot = self.machines.get(&to).and_then(|m| m.process.as_ref()).map(|p| p.boot);
        let Some(boot) = boot else {
            let wait = self.random.around(self.plan.client);
            return self.at(wait, Happening::Answer { token, answer: Answer::Nobody });
        };
        if let Some(call) = self.calls.get_mut(&token) {
            call.at = Some((to, boot));
        }
        self.input(to, boot, Input::Call { token, request });
    }

    /// An answer leaves a member.
    pub(super) fn reply(&mut self, token: u64, answer: Answer) {
        let controller = self
            .calls
            .get(&token)
            .is_some_and(|c| matches!(c.who, Who::Controller(..) | Who::Lease(_)));
        let wait = if controller { 0 } else { self.random.around(self.plan.client) };
        self.at(wait, Happening::Answer { token, answer });
    }

    /// A read was confirmed, or not: the state is looked at now.
    pub(super) fn served(&mut self, token: u64, p: &Process, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                let keys = self.calls.get(&token).map(|c| c.keys.clone()).unwrap_or_default();
                self.serve(token, p, &keys, false);
            }
            Err(error) => self.reply(token, Answer::Read(Err(error))),
        }
    }

    pub(super) fn serve(&mut self, token: u64, p: &Process, keys: &[Key], stale: bool) {
        let root = &p.replica.state().root;
        let value = |key: &Key| (key.clone(), root.get(key).map(seen));
        let read = (root.revision, keys.iter().map(value).collect());
        if stale {
            self.count("stale read");
        }
        self.reply(token, Answer::Read(Ok(read)));
    }

    pub(super) fn timed_out(&mut self, token: u64) {
        let Some(Call { who: Who::Client(client), .. }) = self.calls.get(&token) else { return };
        let client = *client;
        self.count("client timeout");
        self.lost_sight(client, token, true);
    }

    /// The client does not know what came of this try.
    fn lost_sight(&mut self, client: usize, token: u64, taken: bool) {
        self.calls.remove(&token);
        let Some(doing) = self.clients[client].doing.as_mut().filter(|d| d.token == token) else {
            return;
        };
        doing.unsure |= taken;
        let (tries, operation, unsure) = (doing.tries, doing.operation, doing.unsure);
        let again = self.plan.retries || !taken || operation.is_none();
        if again && tries < 5 && self.random.permille(800) {
            self.count("retry");
            let wait = self.random.around(20 * MS);
            return self.at(wait, Happening::Retry(client));
        }
        if let Some(operation) = operation.filter(|_| !unsure) {
            let checked = self.check.failed(operation);
            self.must(0, checked);
        }
        self.next(client);
    }

    /// The client goes on to something else.
    fn next(&mut self, client: usize) {
        self.clients[client].doing = None;
        let wait = self.random.around(self.plan.think);
        self.at(wait, Happening::Act(client));
    }

    pub(super) fn answered(&mut self, token: u64, answer: Answer) {
        let Some(call) = self.calls.remove(&token) else { return };
        match call.who {
            Who::Client(client) => self.client_answered(client, token, &call, answer),
            Who::Controller(id, parent) => self.created(id, parent, &answer),
            Who::Lease(operation) => match answer {
                Answer::Written(Ok(Done::Command(outcome))) => self.outcome(operation, &outcome),
                Answer::Written(Err(error)) if is_definite(&error) => {
                    let checked = self.check.failed(operation);
                    self.must(0, checked);
                }
                _ => {}
            },
            Who::Operator => self.changed(answer),
        }
    }

    fn client_answered(&mut self, client: usize, token: u64, call: &Call, answer: Answer) {
        let Some(doing) = self.clients[client].doing.as_ref().filter(|d| d.token == token) else {
            return;
        };
        let (operation, unsure) = (doing.operation, doing.unsure);
        match (answer, operation) {
            (Answer::Gone, _) => return self.lost_sight(client, token, true),
            (Answer::Nobody, _) => return self.lost_sight(client, token, false),
            (Answer::Written(Ok(Done::Command(outcome))), Some(operation)) => {
                if call.applied {
                    self.count("answer from memory");
                }
                self.outcome(operation, &outcome);
                self.clients[client].got.0 |= matches!(outcome, Outcome::Applied { .. });
            }
            (Answer::Written(Err(error)), Some(operation)) => {
                self.count(match &error {
                    StoreError::NoQuorum { .. } => "no quorum",
                    StoreError::DiskFull { .. } => "refused: disk full",
                    StoreError::Unknown => "unknown",
                    _ => "other error",
                });
                if is_definite(&error) && !unsure {
                    let checked = self.check.failed(operation);
                    self.must(0, checked);
                }
            }
            (Answer::Read(Ok((revision, seen))), None) => {
                let floor = if call.stale { 0 } else { call.floor };
                let checked = self.check.read(floor, revision, &seen);
                self.must(call.at.map_or(0, |(id, _)| id), checked);
                self.clients[client].got.1 |= !call.stale;
            }
            (Answer::Read(Err(_)), None) => self.count("failed read"),
            _ => self.fail(0, "an answer to something else"),
        }
        self.next(client);
    }

    fn outcome(&mut self, operation: usize, outcome: &Outcome) {
        self.note(0, "outcome", operation as u64, 0);
        let checked = match outcome {
            Outcome::Applied { revision, objects } => {
                // The answer to a repeated request names what stands there now.
                let found = objects.first().and_then(|o| o.as_ref()).map(|o| o.revision);
                self.check.acknowledged(operation, *revision, found == Some(*revision))
            }
            Outcome::Refused { precondition, .. } => self.check.refused(operation, *precondition),
            Outcome::Fenced { .. } => {
                self.count("fenced write");
                self.check.failed(operation)
            }
        };
        self.must(0, checked);
    }

    // Controllers.

    /// A controller looks at the state of its member and creates what is missing.
    pub(super) fn control(&mut self, id: u64, p: &mut Process) {
        let wait = self.random.around(60 * MS);
        self.at(wait, Happening::Input { to: id, boot: p.boot, input: Input::Control });
        let leadership = p.replica.leadership();
        if leadership.leads && !self.quiet && self.random.permille(400) {
            self.put_lease(id, p, leadership.term);
        }
        for parent in 0..self.plan.parents {
            let place = (id, parent);
            if self.controllers.creating.get(&place).is_some_and(|c| c.boot != p.boot) {
                self.controllers.creating.remove(&place);
            }
            match self.controllers.creating.get_mut(&place) {
                Some(creating) if creating.again => {
                    creating.again = false;
                    let item = creating.item.clone();
                    if creating.term != leadership.term || !leadership.leads {
                        self.controllers.creating.remove(&place);
                    } else {
                        self.create(id, parent, p, item);
                    }
                }
                None if leadership.leads && !self.quiet => {
                    let scope = Scope::namespace("children", &format!("p{parent}"));
                    let view = View(Arc::new(p.replica.state().root.clone()));
                    if view.range(&scope, None).count() < self.plan.children {
                        self.begin_creating(id, parent, p, leadership.term);
                    }
                }
                _ => {}
            }
        }
    }

    /// What leader scopes write all the time; nobody waits for it.
    fn put_lease(&mut self, id: u64, p: &mut Process, term: u64) {
        let number = self.check.operations.len();
        let request_id = self.request_id();
        let put = Write::Put(Key::new("leases", "x", "leader"), self.new_object(number));
        let mut command = Command::unconditional(request_id, vec![put]);
        command.term = Some(term);
        let item = item(&command);
        self.check.begin(command);
        self.propose_here(Who::Lease(number), id, p, item);
    }

    fn begin_creating(&mut self, id: u64, parent: u64, p: &mut Process, term: u64) {
        let name = format!("c{:x}", self.random.next());
        let key = Key::new("children", &format!("p{parent}"), &name);
        let number = self.check.operations.len();
        let request_id = self.request_id();
        let put = Write::Put(key, self.new_object(number));
        let mut command = Command::unconditional(request_id, vec![put]);
        command.term = Some(term);
        let item = item(&command);
        let operation = self.check.begin(command);
        let creating = Creating { boot: p.boot, operation, item: item.clone(), term, again: false };
        self.controllers.creating.insert((id, parent), creating);
        self.create(id, parent, p, item);
    }

    fn create(&mut self, id: u64, parent: u64, p: &mut Process, item: Vec<u8>) {
        self.propose_here(Who::Controller(id, parent), id, p, item);
    }

    fn propose_here(&mut self, who: Who, id: u64, p: &mut Process, item: Vec<u8>) {
        self.tokens += 1;
        let mut call = Call::of(who);
        call.at = Some((id, p.boot));
        self.calls.insert(self.tokens, call);
        p.replica.propose(item, self.tokens);
    }

    fn created(&mut self, id: u64, parent: u64, answer: &Answer) {
        let place = (id, parent);
        let Some(creating) = self.controllers.creating.get_mut(&place) else { return };
        let operation = creating.operation;
        match answer {
            Answer::Written(Ok(Done::Command(outcome))) => {
                self.controllers.creating.remove(&place);
                self.count("created child");
                self.outcome(operation, outcome);
            }
            // Whether it was applied shows later, so nothing else may be created meanwhile.
            Answer::Written(Err(_)) => creating.again = true,
            _ => {
                self.controllers.creating.remove(&place);
            }
        }
    }

    // The operator's calls.

    /// Asks a member for a change of members.
    pub(super) fn ask_change(&mut self, to: u64, change: MemberChange) {
        self.tokens += 1;
        let token = self.tokens;
        let call = Call {
            who: Who::Operator,
            at: None,
            keys: Vec::new(),
            floor: 0,
            stale: false,
            applied: false,
        };
        self.calls.insert(token, call);
        self.at(MS, Happening::Ask { to, token, request: Request::Change(change) });
        self.operator.token = token;
        self.at(10 * SECOND, Happening::Timeout { token });
    }
}
