//! Who the members are, as the log says: how each is found, and which ids are used up.
//!
//! Which of them vote stands in Raft's conf state. Both change with the same log entry, and there
//! is no other list, so the two can't tell different stories (etcd 20967).

use crate::codec::{OLDEST_ENTRY_VERSION, Reader, put_count, put_u64, write_info};
use crate::member::{Member, MemberChange, MemberInfo, Role};
use raft::eraftpb::ConfState;
use std::collections::{BTreeMap, BTreeSet};

/// Part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    infos: BTreeMap<u64, MemberInfo>,
    removed: BTreeSet<u64>,
}

impl Roster {
    /// The members by id. A founder that has not said yet how it is found is there without it.
    pub(crate) fn members(&self, conf_state: &ConfState) -> Vec<Member> {
        let roles = [(&conf_state.voters, Role::Voter), (&conf_state.learners, Role::Learner)];
        let all = roles.iter().flat_map(|(ids, role)| ids.iter().map(|id| (*id, *role)));
        let info = |id| self.infos.get(&id).cloned().unwrap_or_default();
        let mut members: Vec<_> =
            all.map(|(id, role)| Member { id, role, info: info(id) }).collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// The newest form of log entries that all members read.
    pub(crate) fn entry_version(&self, conf_state: &ConfState) -> u8 {
        let ids = conf_state.voters.iter().chain(&conf_state.learners);
        let level = |id| self.infos.get(id).map_or(0, |info| info.level);
        ids.map(level).min().unwrap_or(0).max(OLDEST_ENTRY_VERSION)
    }

    pub(crate) fn info(&self, id: u64) -> Option<&MemberInfo> {
        self.infos.get(&id)
    }

    pub(crate) fn removed(&self) -> &BTreeSet<u64> {
        &self.removed
    }

    pub(crate) fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// Why a change makes no sense, if so. Every member comes to the same answer, since it depends
    /// on the log alone.
    pub(crate) fn check(
        &self,
        change: &MemberChange,
        conf_state: &ConfState,
    ) -> Result<(), String> {
        let votes = |id| conf_state.voters.contains(id);
        let learns = |id| conf_state.learners.contains(id);
        match change {
            MemberChange::Add { id, .. } if *id == 0 => Err("0 is nobody's id".into()),
            MemberChange::Add { id, .. } if votes(id) || learns(id) => {
                Err(format!("member {id:x} is there already"))
            }
            MemberChange::Add { id, .. } if self.is_removed(*id) => {
                Err(format!("member {id:x} was removed; its id can't come back"))
            }
            MemberChange::Add { id, info } | MemberChange::Update { id, info } => {
                let same =
                    |(other, known): &(&u64, &MemberInfo)| *other != id && known.name == info.name;
                match self.infos.iter().find(same) {
                    Some((other, _)) => {
                        Err(format!("member {other:x} has the name {:?} already", info.name))
                    }
                    None if matches!(change, MemberChange::Update { .. })
                        && !votes(id)
                        && !learns(id) =>
                    {
                        Err(format!("there is no member {id:x}"))
                    }
                    None => Ok(()),
                }
            }
            MemberChange::Promote(id) if votes(id) => Err(format!("member {id:x} votes already")),
            MemberChange::Promote(id) | MemberChange::Remove(id) if !votes(id) && !learns(id) => {
                Err(format!("there is no member {id:x}"))
            }
            MemberChange::Remove(id) if conf_state.voters == [*id] => {
                Err(format!("member {id:x} is the last that votes"))
            }
            MemberChange::Promote(_) | MemberChange::Remove(_) => Ok(()),
        }
    }

    /// Takes a change that was checked.
    pub(crate) fn apply(&mut self, change: &MemberChange) {
        match change {
            MemberChange::Add { id, info } | MemberChange::Update { id, info } => {
                self.infos.insert(*id, info.clone());
            }
            MemberChange::Promote(_) => {}
            MemberChange::Remove(id) => {
                self.infos.remove(id);
                self.removed.insert(*id);
            }
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.infos.len());
        for (id, info) in &self.infos {
            put_u64(out, *id);
            write_info(out, info);
        }
        put_count(out, self.removed.len());
        self.removed.iter().for_each(|id| put_u64(out, *id));
    }

    /// None if the bytes are not what [`Roster::encode`] wrote.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let mut roster = Self::default();
        for _ in 0..reader.count().ok()? {
            roster.infos.insert(reader.u64().ok()?, reader.info().ok()?);
        }
        for _ in 0..reader.count().ok()? {
            roster.removed.insert(reader.u64().ok()?);
        }
        Some(roster)
    }

    /// The members of a cluster that begins anew with `new_id` alone, found as `info` says or as
    /// `old_id` was: all other ids are used up.
    pub(crate) fn alone(&self, old_id: u64, new_id: u64, info: Option<MemberInfo>) -> Self {
        let mut roster = Self { removed: self.removed.clone(), ..Self::default() };
        roster.removed.extend(self.infos.keys().filter(|id| **id != new_id));
        if let Some(info) = info.or_else(|| self.infos.get(&old_id).cloned()) {
            roster.infos.insert(new_id, info);
        }
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str) -> MemberInfo {
        MemberInfo { name: name.into(), ..MemberInfo::default() }
    }

    fn conf_state(voters: &[u64], learners: &[u64]) -> ConfState {
        ConfState::from((voters.to_vec(), learners.to_vec()))
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut roster = Roster::default();
        roster.apply(&MemberChange::Update { id: 1, info: info("a") });
        roster.apply(&MemberChange::Add { id: 2, info: info("b") });
        roster.apply(&MemberChange::Add { id: 3, info: info("c") });
        roster.apply(&MemberChange::Remove(3));
        let conf = conf_state(&[1], &[2]);
        let refused = [
            MemberChange::Add { id: 0, info: info("x") },
            MemberChange::Add { id: 1, info: info("x") },
            MemberChange::Add { id: 2, info: info("x") },
            MemberChange::Add { id: 3, info: info("x") },
            MemberChange::Add { id: 4, info: info("b") },
            MemberChange::Update { id: 1, info: info("b") },
            MemberChange::Update { id: 4, info: info("d") },
            MemberChange::Promote(1),
            MemberChange::Promote(4),
            MemberChange::Remove(1),
            MemberChange::Remove(3),
        ];
        for change in refused {
            assert!(roster.check(&change, &conf).is_err(), "{change:?}");
        }
        let accepted = [
            MemberChange::Add { id: 4, info: info("c") },
            MemberChange::Update { id: 1, info: info("z") },
            MemberChange::Promote(2),
            MemberChange::Remove(2),
        ];
        for change in accepted {
            assert_eq!(roster.check(&change, &conf), Ok(()), "{change:?}");
        }
        let members = roster.members(&conf);
        assert_eq!(
            members.iter().map(|m| (m.id, m.role)).collect::<Vec<_>>(),
            [(1, Role::Voter), (2, Role::Learner)]
        );
        let mut bytes = Vec::new();
        roster.encode(&mut bytes);
        assert_eq!(Roster::decode(&mut Reader::new(&bytes)), Some(roster.clone()));
        let alone = roster.alone(2, 9, None);
        assert_eq!(alone.info(9), Some(&info("b")));
        assert!([1, 2, 3].iter().all(|id| alone.is_removed(*id)));
    }
}
