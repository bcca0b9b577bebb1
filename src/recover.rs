//! `rkube member recover`: when most members are lost for good, one of those left becomes a cluster
//! of its own.
//!
//! What may be lost is told before anything is done: every other member that can be reached says
//! how far its log goes. The new cluster has a new id, so the old members, should they come back,
//! are refused and can't bring their past into it.

use crate::cli::MemberRecoverArgs;
use crate::member::columns;
use crate::peers;
use anyhow::{Context, Result, bail};
use rkube_apiserver::ApiServerConfig;
use rkube_apiserver::member_file::{HexId, MemberFile};
use rkube_apiserver::store_setup::{self, Identity, LogEnd, Member, Role};
use rkube_peer::{Inbox, PeerStatus, Peers, Refusal};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How long the other members have to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Carries out the command.
pub async fn run(args: &MemberRecoverArgs) -> Result<()> {
    let config = ApiServerConfig::new(&args.data.data_dir);
    let key = args.encryption_key_file.clone();
    let dir = config.store_dir();
    if store_setup::member_in(&config)?.is_none() {
        bail!("there is no member in {}", config.data_dir.display());
    }
    let survey = store_setup::log_end(&dir, key.clone())
        .with_context(|| format!("looking into {}", config.data_dir.display()))?;
    let answers = ask(&config, &survey).await?;
    print!("{}", table(&survey, &answers));
    for line in judge(&survey, &answers, args.accept_loss)? {
        println!("{line}");
    }
    if !args.yes {
        confirm(&config)?;
    }
    // The store's files say who the member is, from now on somebody else.
    MemberFile::forget(&dir)?;
    let identity = store_setup::recover(&dir, key)
        .with_context(|| format!("recovering {}", config.data_dir.display()))?;
    print!("{}", farewell(&config, &survey, identity));
    Ok(())
}

/// How far another member's log goes, or why it does not say.
type Answer = (Member, Result<u64, String>);

async fn ask(config: &ApiServerConfig, survey: &LogEnd) -> Result<Vec<Answer>> {
    let own = survey.identity.member_id;
    let others: Vec<Member> = survey.members.iter().filter(|m| m.id != own).cloned().collect();
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let peers = Peers::new(peers::config(config, survey.identity)?, Asking(survey.identity));
    let answers = peers.statuses(&others, PATIENCE).await;
    let last = |answer: Result<PeerStatus, _>| match answer {
        Ok(status) => Ok(status.last_index.max(status.commit)),
        Err(error) => Err(rkube_peer::PeerError::to_string(&error)),
    };
    Ok(others.into_iter().zip(answers).map(|(m, (_, answer))| (m, last(answer))).collect())
}

/// A member that asks and takes nothing in.
struct Asking(Identity);

impl Inbox for Asking {
    fn identity(&self) -> Identity {
        self.0
    }

    fn admit(&self, _: u64) -> Result<(), Refusal> {
        Err(Refusal::Unknown)
    }

    async fn receive(&self, _: u64, _: bytes::Bytes) {}

    fn link_lost(&self, _: u64) {}

    fn told_removed(&self, _: u64) {}

    fn status(&self) -> PeerStatus {
        PeerStatus { identity: self.0, ..PeerStatus::default() }
    }
}

fn table(survey: &LogEnd, answers: &[Answer]) -> String {
    let row = |cells: [&str; 6]| cells.map(str::to_owned);
    let mut rows = vec![row(["ID", "NAME", "ROLE", "ADDRESS", "LAST INDEX", "STATUS"])];
    for member in &survey.members {
        let answer = answers.iter().find(|(m, _)| m.id == member.id).map(|(_, answer)| answer);
        let (last, status) = match answer {
            None => (survey.last_index.to_string(), format!("this one, term {}", survey.last_term)),
            Some(Ok(last)) => (last.to_string(), "answers".into()),
            Some(Err(why)) => ("-".into(), format!("unreachable: {why}")),
        };
        let role = match member.role {
            Role::Voter => "voter",
            Role::Learner => "learner",
        };
        let id = HexId(member.id).to_string();
        let (name, address) = (&member.info.name, &member.info.peer_address);
        rows.push(row([&id, name, role, address, &last, &status]));
    }
    columns(&rows)
}

/// What is to be known before going on.
///
/// # Errors
/// If there is a quorum without this member, or another one has more than this one and its loss
/// was not accepted.
fn judge(survey: &LogEnd, answers: &[Answer], accept_loss: bool) -> Result<Vec<String>> {
    let voters = survey.members.iter().filter(|m| m.role == Role::Voter).count();
    let majority = voters / 2 + 1;
    let answer = answers.iter().filter(|(m, a)| m.role == Role::Voter && a.is_ok()).count();
    if answer >= majority {
        bail!(
            "the quorum is not lost: {answer} of {voters} voting members answer. To be rid of this \
             one: rkube member remove, on one of them"
        );
    }
    let mut lines = Vec::new();
    let ahead = answers.iter().filter_map(|(m, a)| Some((m, *a.as_ref().ok()?)));
    let ahead = ahead.filter(|(_, last)| *last > survey.last_index).max_by_key(|(_, last)| *last);
    if let Some((member, last)) = ahead {
        let name = &member.info.name;
        let lost = last - survey.last_index;
        if !accept_loss {
            bail!(
                "member {name} has {lost} log entries that this one lacks: recover there, or accept \
                 the loss of at most {lost} entries with --accept-loss"
            );
        }
        lines.push(format!("At most {lost} log entries that {name} has are lost: accepted."));
    }
    let silent: Vec<&str> =
        answers.iter().filter(|(_, a)| a.is_err()).map(|(m, _)| &*m.info.name).collect();
    if !silent.is_empty() {
        lines.push(format!("What only {} may have is lost too.", silent.join(", ")));
    }
    if survey.members.iter().any(|m| m.id == survey.identity.member_id && m.role == Role::Voter)
        && answer + 1 >= majority
        && voters > 1
    {
        lines.push(
            "With this member started there would be a quorum again: try that before you go on."
                .into(),
        );
    }
    Ok(lines)
}

fn confirm(config: &ApiServerConfig) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("recovering can't be undone: give --yes");
    }
    print!(
        "{} becomes a new cluster of one member; the others can't come back into it. \
         Type \"recover\" to go on: ",
        config.data_dir.display()
    );
    std::io::stdout().flush()?;
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed)?;
    match typed.trim() {
        "recover" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}

fn farewell(config: &ApiServerConfig, survey: &LogEnd, identity: Identity) -> String {
    let own = survey.identity.member_id;
    let others: Vec<&str> =
        survey.members.iter().filter(|m| m.id != own).map(|m| &*m.info.name).collect();
    let mut text = format!(
        "{} is now cluster {} with one member.\nStart it: rkube server --data-dir {} (and the flags \
         that it had)\n",
        config.data_dir.display(),
        HexId(identity.cluster_id),
        config.data_dir.display()
    );
    if !others.is_empty() {
        text.push_str(&format!(
            "The others ({}) are refused from now on: stop them, remove their data directories, and \
             let them join: rkube server --join URL --token TOKEN\n",
            others.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_apiserver::store_setup::MemberInfo;

    fn survey(voters: u64) -> LogEnd {
        let member = |id: u64| Member {
            id,
            role: Role::Voter,
            info: MemberInfo {
                name: format!("m{id}"),
                peer_address: format!("10.0.0.{id}:2380"),
                ..MemberInfo::default()
            },
        };
        LogEnd {
            identity: Identity { cluster_id: 7, member_id: 1 },
            last_index: 100,
            last_term: 5,
            commit: 100,
            members: (1..=voters).map(member).collect(),
        }
    }

    fn answers(survey: &LogEnd, last: &[Option<u64>]) -> Vec<Answer> {
        let others = survey.members.iter().skip(1).cloned();
        let told = last.iter().map(|l| l.ok_or_else(|| "connection refused".to_owned()));
        others.zip(told).collect()
    }

    #[test]
    fn a_quorum_that_is_there_is_not_replaced() {
        let survey = survey(3);
        let said = judge(&survey, &answers(&survey, &[Some(90), Some(90)]), true).unwrap_err();
        assert!(said.to_string().contains("2 of 3 voting members answer"), "{said}");
    }

    #[test]
    fn a_loss_is_told_and_must_be_accepted() {
        let survey = survey(5);
        let behind = answers(&survey, &[Some(90), None, None, None]);
        let lines = judge(&survey, &behind, false).unwrap();
        assert_eq!(lines, ["What only m3, m4, m5 may have is lost too."]);
        let ahead = answers(&survey, &[Some(123), None, None, None]);
        let said = judge(&survey, &ahead, false).unwrap_err().to_string();
        assert!(said.contains("m2 has 23 log entries") && said.contains("--accept-loss"), "{said}");
        let lines = judge(&survey, &ahead, true).unwrap();
        assert!(lines[0].contains("At most 23 log entries"), "{lines:?}");
    }

    #[test]
    fn what_may_heal_by_itself_is_told() {
        let survey = survey(3);
        let lines = judge(&survey, &answers(&survey, &[Some(100), None]), false).unwrap();
        assert!(lines.iter().any(|l| l.contains("With this member started")), "{lines:?}");
        let lines = judge(&survey, &answers(&survey, &[None, None]), false).unwrap();
        assert_eq!(lines, ["What only m2, m3 may have is lost too."]);
    }

    #[test]
    fn a_table_of_what_is_known() {
        let survey = survey(3);
        let expected = "\
ID                NAME  ROLE   ADDRESS        LAST INDEX  STATUS
0000000000000001  m1    voter  10.0.0.1:2380  100         this one, term 5
0000000000000002  m2    voter  10.0.0.2:2380  90          answers
0000000000000003  m3    voter  10.0.0.3:2380  -           unreachable: connection refused
";
        assert_eq!(table(&survey, &answers(&survey, &[Some(90), None])), expected);
    }
}
