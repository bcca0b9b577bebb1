//! The resource `members`: who belongs to the control plane and how they are, computed from Raft's
//! state on request. It needs no quorum: whoever is left tells what it knows.

use crate::server::ApiServer;
use futures::future::BoxFuture;
use rkube_store::{Leadership, Member, Progress, Role, Status};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// How long the other members have to tell how they are.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a member says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its Raft id.
    pub id: u64,
    /// Its Raft term.
    pub term: u64,
    /// Index of the last log entry that it knows to be committed.
    pub commit: u64,
    /// Index of the last log entry that it has applied.
    pub applied_index: u64,
    /// Revision of the last change that it has applied.
    pub revision: u64,
    /// Running hash of its state at `applied_index`, the same on all members.
    pub state_hash: u64,
    /// The leader's id as it knows it, 0 for none.
    pub leader: u64,
    /// The version of its program.
    pub version: String,
}

/// Asks other members how they are; the way between members is behind it.
pub trait PeerStatuses: Send + Sync {
    /// Asks all at once, each for at most `patience`: one answer for each, in their order, or why
    /// there is none.
    fn statuses(
        &self,
        members: Vec<Member>,
        patience: Duration,
    ) -> BoxFuture<'static, Vec<Result<PeerStatus, String>>>;
}

/// All that is known of the members at one time.
struct Known {
    own: u64,
    members: Vec<Member>,
    status: Status,
    leadership: Leadership,
    progress: Vec<Progress>,
    silence: Duration,
    answers: HashMap<u64, Result<PeerStatus, String>>,
}

/// The members as objects.
pub async fn list(api: &ApiServer) -> Vec<Value> {
    let storage = &api.storage;
    let (own, members) = (storage.identity().member_id, storage.members());
    let others: Vec<Member> = members.iter().filter(|m| m.id != own).cloned().collect();
    let ids: Vec<u64> = others.iter().map(|m| m.id).collect();
    let answers = match api.peers() {
        Some(peers) if !others.is_empty() => peers.statuses(others, PATIENCE).await,
        _ => Vec::new(),
    };
    let leadership = *storage.leadership().borrow();
    let known = Known {
        own,
        members,
        status: storage.status(),
        leadership,
        progress: storage.progress(),
        silence: storage.leader_contact(),
        answers: ids.into_iter().zip(answers).collect(),
    };
    objects(&known, storage.identity().cluster_id)
}

/// Its name among the objects.
fn name_of(member: &Member) -> String {
    match member.info.name.as_str() {
        "" => format!("{:x}", member.id),
        name => name.to_lowercase(),
    }
}

fn objects(known: &Known, cluster_id: u64) -> Vec<Value> {
    let statuses: Vec<Option<PeerStatus>> =
        known.members.iter().map(|member| known.status_of(member)).collect();
    let newest = statuses.iter().flatten().map(|s| s.commit.max(s.applied_index)).max();
    let newest = newest.unwrap_or(0).max(known.status.commit);
    let leader = known.leader(&statuses);
    let mut list: Vec<Value> = known
        .members
        .iter()
        .zip(&statuses)
        .map(|(member, status)| {
            let applied = status
                .as_ref()
                .map(|s| s.applied_index)
                .or_else(|| known.progress.iter().find(|p| p.id == member.id).map(|p| p.matched));
            let version = status.as_ref().map(|s| s.version.clone()).filter(|v| !v.is_empty());
            let mut state = json!({
                "role": role(member, leader),
                "health": known.health(member),
                "version": version.unwrap_or_else(|| member.info.version.clone()),
            });
            if let Some(applied) = applied {
                state["appliedIndex"] = applied.into();
                state["lag"] = newest.saturating_sub(applied).into();
            }
            if let Some(status) = status {
                state["term"] = status.term.into();
                state["revision"] = status.revision.into();
                state["stateHash"] = format!("{:016x}", status.state_hash).into();
            }
            json!({
                "apiVersion": "rkube.dev/v1", "kind": "Member",
                "metadata": {"name": name_of(member), "uid": uid(cluster_id, member.id)},
                "spec": {
                    "id": format!("{:x}", member.id),
                    "voter": member.role == Role::Voter,
                    "apiURL": member.info.api_url,
                    "peerAddress": member.info.peer_address,
                },
                "status": state,
            })
        })
        .collect();
    list.sort_by(|a, b| {
        let name = |v: &Value| v["metadata"]["name"].as_str().map(str::to_owned);
        name(a).cmp(&name(b))
    });
    list
}

impl Known {
    /// How a member is, by its own word.
    fn status_of(&self, member: &Member) -> Option<PeerStatus> {
        if member.id != self.own {
            return self.answers.get(&member.id)?.as_ref().ok().cloned();
        }
        Some(PeerStatus {
            id: self.own,
            term: self.status.term,
            commit: self.status.commit,
            applied_index: self.status.applied_index,
            revision: self.status.revision,
            state_hash: self.status.state_hash,
            leader: self.leadership.leader,
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// Who leads: the word of the newest term counts.
    fn leader(&self, statuses: &[Option<PeerStatus>]) -> u64 {
        let claims = statuses.iter().flatten().filter(|s| s.leader != 0);
        claims.max_by_key(|s| s.term).map_or(0, |s| s.leader)
    }

    /// What is wrong with a member, if anything.
    fn health(&self, member: &Member) -> String {
        if member.id == self.own {
            let silence = self.silence.as_secs();
            return match silence {
                0..=2 => "Ok".into(),
                _ => format!("NoLeader: none heard of for {silence} s"),
            };
        }
        match self.answers.get(&member.id) {
            Some(Ok(status)) if status.leader == 0 => "NoLeader".into(),
            Some(Ok(_)) => "Ok".into(),
            Some(Err(why)) => format!("Unreachable: {why}"),
            None => {
                let progress = self.progress.iter().find(|p| p.id == member.id);
                let active = progress.map(|p| p.active);
                match active {
                    Some(true) => "Ok".into(),
                    Some(false) => "Unreachable".into(),
                    None => String::new(),
                }
            }
        }
    }
}

fn role(member: &Member, leader: u64) -> &'static str {
    match member.role {
        _ if member.id == leader => "leader",
        Role::Voter => "voter",
        Role::Learner => "learner",
    }
}

/// A uid that no other member of any cluster has.
fn uid(cluster_id: u64, member_id: u64) -> String {
    let bytes = (u128::from(cluster_id) << 64) | u128::from(member_id);
    let hex = format!("{bytes:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_store::MemberInfo;

    fn member(id: u64, role: Role) -> Member {
        let info = MemberInfo {
            name: format!("m{id}"),
            peer_address: format!("192.0.2.{id}:2380"),
            api_url: format!("https://192.0.2.{id}:6443"),
            version: "old".into(),
            ..MemberInfo::default()
        };
        Member { id, role, info }
    }

    /// As member 1 sees it: 2 leads, 3 does not answer, 4 is on its way.
    fn known() -> Known {
        let answer = |id, applied_index| PeerStatus {
            id,
            term: 5,
            commit: 100,
            applied_index,
            revision: 90,
            state_hash: 0xabc,
            leader: 2,
            version: "new".into(),
        };
        Known {
            own: 1,
            members: vec![
                member(1, Role::Voter),
                member(2, Role::Voter),
                member(3, Role::Voter),
                member(4, Role::Learner),
            ],
            status: Status { term: 4, commit: 80, applied_index: 80, ..Status::default() },
            leadership: Leadership { term: 4, leader: 1, leads: false },
            progress: Vec::new(),
            silence: Duration::ZERO,
            answers: HashMap::from([
                (2, Ok(answer(2, 100))),
                (3, Err("connection refused".into())),
                (4, Ok(answer(4, 40))),
            ]),
        }
    }

    #[test]
    fn roles_lag_and_health_are_what_the_newest_term_says() {
        let list = objects(&known(), 7);
        let column = |part: &str, field: &str| -> Vec<Value> {
            list.iter().map(|m| m[part][field].clone()).collect()
        };
        assert_eq!(column("status", "role"), ["voter", "leader", "voter", "learner"]);
        assert_eq!(column("status", "lag"), [json!(20), json!(0), Value::Null, json!(60)]);
        assert_eq!(column("status", "term"), [json!(4), json!(5), Value::Null, json!(5)]);
        let health = ["Ok", "Ok", "Unreachable: connection refused", "Ok"];
        assert_eq!(column("status", "health"), health);
        assert_eq!(column("status", "version")[2], "old");
        assert_eq!(column("status", "stateHash")[1], "0000000000000abc");
        assert_eq!(column("metadata", "uid")[0], "00000000-0000-0007-0000-000000000001");
    }

    #[test]
    fn a_member_without_a_leader_says_so() {
        let mut known = known();
        known.silence = Duration::from_secs(12);
        known.leadership.leader = 0;
        known.answers.clear();
        let list = objects(&known, 7);
        assert_eq!(list[0]["status"]["health"], "NoLeader: none heard of for 12 s");
        assert_eq!(list[1]["status"]["role"], "voter");
        // Nobody was asked: nothing is claimed.
        assert_eq!(list[1]["status"]["health"], "");
    }
}
