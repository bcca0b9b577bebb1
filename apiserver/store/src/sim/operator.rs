//! The operator: makes the cluster as large as it should be, and replaces members.

use super::clients::Answer;
use super::member::{Machine, info};
use super::plan::MS;
use super::{Happening, World};
use crate::error::StoreError;
use crate::files::Begin;
use crate::member::{Identity, Member, MemberChange, Role};
use std::collections::VecDeque;

/// What is to be done, one thing after the other.
#[derive(Default)]
pub(super) struct Operator {
    /// Members still to be added.
    pub(super) grow: usize,
    victims: VecDeque<u64>,
    doing: Doing,
    /// Of the call under way, 0 if there is none.
    pub(super) token: u64,
    tries: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    Removing(u64),
    Adding(u64),
    /// Until the member votes.
    Joining(u64),
}

impl Operator {
    /// The member is to be removed, and another to come in its place.
    pub(super) fn replace(&mut self, id: u64) {
        if !self.victims.contains(&id) && self.doing != Doing::Removing(id) {
            self.victims.push_back(id);
        }
    }

    /// The member may not be listed yet.
    pub(super) fn is_coming(&self, id: u64) -> bool {
        matches!(self.doing, Doing::Adding(other) | Doing::Joining(other) if other == id)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.grow > 0 || !self.victims.is_empty() || self.doing != Doing::Nothing
    }
}

impl World {
    /// The members as the member knows them that has applied most.
    pub(super) fn members(&self) -> Vec<Member> {
        let cores = self.machines.values().filter(|m| !m.gone);
        let cores = cores.filter_map(|m| m.process.as_ref()).map(|p| p.replica.core());
        let newest = cores.max_by_key(|core| core.state().applied_index);
        newest.map(|core| core.members()).unwrap_or_default()
    }

    pub(super) fn operate(&mut self) {
        let wait = self.random.around(150 * MS);
        self.at(wait, Happening::Operate);
        if self.operator.token != 0 || self.quiet {
            return;
        }
        let members = self.members();
        let change = match self.operator.doing {
            Doing::Nothing => return self.begin_task(),
            Doing::Removing(id) => MemberChange::Remove(id),
            Doing::Adding(id) => MemberChange::Add { id, info: info(id) },
            Doing::Joining(id) => {
                let votes = |m: &Member| m.id == id && m.role == Role::Voter;
                if members.iter().any(votes) {
                    self.count("promoted");
                    self.note(id, "promoted", 0, 0);
                    self.operator.doing = Doing::Nothing;
                } else if self.machines.get(&id).is_none_or(|m| m.damaged) {
                    self.operator.doing = Doing::Nothing;
                }
                return;
            }
        };
        let mut working = self.working();
        working.retain(|id| members.iter().any(|member| member.id == *id));
        if let Some(to) = self.random.pick(&working) {
            self.ask_change(to, change);
        }
    }

    fn begin_task(&mut self) {
        self.operator.tries = 0;
        if let Some(victim) = self.operator.victims.pop_front() {
            self.operator.doing = Doing::Removing(victim);
        } else if self.operator.grow > 0 {
            self.operator.grow -= 1;
            let id = self.random.next().max(1);
            self.operator.doing = Doing::Adding(id);
        }
    }

    pub(super) fn changed(&mut self, answer: Answer) {
        self.operator.token = 0;
        self.operator.tries += 1;
        let done = match answer {
            Answer::Written(Ok(_)) => true,
            Answer::Written(Err(StoreError::Members(reason))) => {
                // Asked for before, and done, though nobody said so.
                reason.contains("is there already") || reason.contains("there is no member")
            }
            _ => false,
        };
        match self.operator.doing {
            Doing::Removing(id) if done => {
                self.note(id, "was removed", 0, 0);
                self.count("replaced member");
                self.operator.grow += 1;
                self.operator.doing = Doing::Nothing;
            }
            Doing::Removing(id) if self.operator.tries > 40 => {
                // Too many others are away: later, or not at all if it is alive.
                self.operator.doing = Doing::Nothing;
                if self.machines.get(&id).is_some_and(|m| m.damaged) {
                    self.operator.replace(id);
                }
            }
            Doing::Adding(id) if done => {
                self.note(id, "was added", 0, 0);
                let identity = Identity { cluster_id: self.cluster, member_id: id };
                self.machines.insert(id, Machine::new(id, Begin::Join(identity)));
                self.operator.doing = Doing::Joining(id);
                let wait = self.random.below(500 * MS);
                self.at(wait, Happening::Boot(id));
            }
            _ => {}
        }
    }
}
