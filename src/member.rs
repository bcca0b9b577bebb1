//! `rkube member`: who belongs to the control plane, who has to go, and what is left after a
//! disaster ([`crate::recover`]).

use crate::cli::{AdminArgs, MemberCommand, MemberRemoveArgs};
use crate::{client, recover};
use anyhow::{Context, Result, bail};
use kube::Client;
use rkube_apiserver::member_requests::{self, warning_of_two};
use serde::Deserialize;
use std::fmt::Write;

/// Carries out a subcommand.
pub async fn run(command: MemberCommand) -> Result<()> {
    match command {
        MemberCommand::List(args) => list(&args).await,
        MemberCommand::Remove(args) => remove(&args).await,
        MemberCommand::Recover(args) => recover::run(&args).await,
    }
}

/// What the API says of the members, as far as it is shown.
#[derive(Deserialize)]
struct Members {
    items: Vec<Member>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Member {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    id: String,
    voter: bool,
    peer_address: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    role: String,
    health: String,
    version: String,
    term: Option<u64>,
    applied_index: Option<u64>,
    lag: Option<u64>,
}

impl Member {
    fn is_reachable(&self) -> bool {
        self.status.health.is_empty() || !self.status.health.starts_with("Unreachable")
    }
}

async fn list(args: &AdminArgs) -> Result<()> {
    let client = client::admin(args).await?;
    let request = http::Request::get("/apis/rkube.dev/v1/members").body(Vec::new())?;
    let members: Members = client.request(request).await.context("asking for the members")?;
    print!("{}", table(&members.items));
    for remark in remarks(&members.items) {
        eprintln!("{remark}");
    }
    Ok(())
}

const HEAD: [&str; 9] =
    ["ID", "NAME", "ROLE", "TERM", "APPLIED", "LAG", "VERSION", "ADDRESS", "STATUS"];

fn table(members: &[Member]) -> String {
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(members.iter().map(|m| {
        [
            m.spec.id.clone(),
            m.metadata.name.clone(),
            m.status.role.clone(),
            number(m.status.term),
            number(m.status.applied_index),
            number(m.status.lag),
            m.status.version.clone(),
            m.spec.peer_address.clone(),
            m.status.health.clone(),
        ]
        .map(|text| if text.is_empty() { "-".into() } else { text })
    }));
    columns(&rows)
}

/// Rows under each other, columns as wide as their widest entry.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// What the table means, where it means trouble.
fn remarks(members: &[Member]) -> Vec<String> {
    let mut remarks = Vec::new();
    let voters: Vec<&Member> = members.iter().filter(|m| m.spec.voter).collect();
    let silent: Vec<&str> =
        voters.iter().filter(|m| !m.is_reachable()).map(|m| &*m.metadata.name).collect();
    if voters.len() - silent.len() < voters.len() / 2 + 1 {
        remarks.push(format!(
            "No quorum: {} of {} voting members answer, {} are needed; missing: {}. If they are \
             lost for good: rkube member recover",
            voters.len() - silent.len(),
            voters.len(),
            voters.len() / 2 + 1,
            silent.join(", ")
        ));
    } else if !voters.is_empty() && members.iter().all(|m| m.status.role != "leader") {
        remarks.push("No leader at present: an election is under way.".into());
    }
    remarks.extend(warning_of_two(voters.len()).map(|w| format!("Warning: {w}")));
    remarks
}

#[derive(Deserialize)]
struct Removed {
    id: String,
    name: String,
}

async fn remove(args: &MemberRemoveArgs) -> Result<()> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if args.member.is_empty() || !args.member.bytes().all(valid) {
        bail!("{:?} is neither the name nor the id of a member", args.member);
    }
    let client = client::admin(&args.admin).await?;
    let removed = ask_to_remove(&client, &args.member, args.force).await?;
    println!("member {} ({}) removed", removed.name, removed.id);
    Ok(())
}

async fn ask_to_remove(client: &Client, member: &str, force: bool) -> Result<Removed> {
    let path = format!("{}/{member}?force={force}", member_requests::PATH);
    let request = http::Request::delete(path).body(Vec::new())?;
    client.request(request).await.map_err(|error| match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        error => anyhow::Error::new(error).context(format!("removing member {member}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn members(health: [&str; 3], leader: usize) -> Vec<Member> {
        let items: Vec<_> = (0..3)
            .map(|i| {
                let unreachable = health[i].starts_with("Unreachable");
                let mut status = json!({
                    "role": if i == leader { "leader" } else { "voter" },
                    "health": health[i], "version": "0.1.0",
                });
                if !unreachable {
                    status["term"] = 5.into();
                    status["appliedIndex"] = (100 - i).into();
                    status["lag"] = i.into();
                }
                json!({
                    "metadata": {"name": format!("m{}", i + 1)},
                    "spec": {"id": format!("a{i}"), "voter": true, "apiURL": "https://h:6443",
                        "peerAddress": format!("10.0.0.{}:2380", i + 1)},
                    "status": status,
                })
            })
            .collect();
        serde_json::from_value::<Members>(json!({"kind": "MemberList", "items": items}))
            .unwrap()
            .items
    }

    #[test]
    fn a_table_of_members() {
        let text = table(&members(["Ok", "Ok", "Unreachable: connection refused"], 0));
        let expected = "\
ID  NAME  ROLE    TERM  APPLIED  LAG  VERSION  ADDRESS        STATUS
a0  m1    leader  5     100      0    0.1.0    10.0.0.1:2380  Ok
a1  m2    voter   5     99       1    0.1.0    10.0.0.2:2380  Ok
a2  m3    voter   -     -        -    0.1.0    10.0.0.3:2380  Unreachable: connection refused
";
        assert_eq!(text, expected);
    }

    #[test]
    fn trouble_is_told() {
        assert!(remarks(&members(["Ok", "Ok", "Unreachable: x"], 0)).is_empty());
        let lost = remarks(&members(["NoLeader: for 9 s", "Unreachable: x", "Unreachable: y"], 9));
        assert_eq!(lost.len(), 1);
        assert!(lost[0].contains("1 of 3 voting members answer, 2 are needed"), "{}", lost[0]);
        assert!(lost[0].contains("missing: m2, m3"), "{}", lost[0]);
        let elects = remarks(&members(["NoLeader", "NoLeader", "Ok"], 9));
        assert!(elects[0].contains("No leader"), "{elects:?}");
        let two = remarks(&members(["Ok", "Ok", "Ok"], 0)[..2]);
        assert!(two[0].contains("two voting members"), "{two:?}");
        assert!(remarks(&members(["Ok", "Ok", "Ok"], 0)[..1]).is_empty());
    }
}
