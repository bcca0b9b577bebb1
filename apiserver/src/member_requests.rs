//! Members that join and members that are removed: `POST /rkube/v1/members` with a token,
//! `DELETE /rkube/v1/members/<name or id>` as administrator.
//!
//! What is refused is decided by pure functions over the list of members. Any member may be asked,
//! for the store forwards.

use crate::authn::Identity as Caller;
use crate::body::{self, Body, RequestBody};
use crate::config::ApiServerConfig;
use crate::join::{TokenRole, check_name, check_token};
use crate::member_file::{HexId, ListedMember, SharedKeys};
use crate::negotiate::PLAIN;
use crate::response;
use crate::rest;
use crate::server::ApiServer;
use http::{Method, Request, Response, StatusCode};
use rkube_api::{ApiError, Reason};
use rkube_store::{Identity, Member, MemberChange, MemberInfo, Role, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the other members have to answer before one is removed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where members are added and, below it, removed.
pub const PATH: &str = "/rkube/v1/members";

/// What all members must have been told alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSettings {
    /// Pods' addresses.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// Services' addresses.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    /// The cluster's DNS server.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
}

impl ClusterSettings {
    /// Those of a member.
    pub fn of(config: &ApiServerConfig) -> Self {
        ClusterSettings {
            cluster_cidr: config.cluster_cidr.clone(),
            service_cidr: config.service_cidr.clone(),
            cluster_dns: config.cluster_dns.to_string(),
            cluster_domain: config.cluster_domain.clone(),
        }
    }

    /// Where a joiner's settings differ from these, in words; None if nowhere.
    fn difference(&self, joiner: &Self) -> Option<String> {
        let pairs = [
            ("--cluster-cidr", &self.cluster_cidr, &joiner.cluster_cidr),
            ("--service-cidr", &self.service_cidr, &joiner.service_cidr),
            ("the cluster's DNS server", &self.cluster_dns, &joiner.cluster_dns),
            ("the cluster's DNS domain", &self.cluster_domain, &joiner.cluster_domain),
        ];
        let differing = pairs.into_iter().filter(|(_, cluster, joiner)| cluster != joiner);
        let texts: Vec<String> = differing
            .map(|(what, cluster, joiner)| {
                format!("{what} is {joiner} here and {cluster} in the cluster")
            })
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// What a joining member sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRequest {
    /// Its name.
    pub name: String,
    /// Host and port of its peer service.
    pub peer_address: String,
    /// The URL of its API server.
    #[serde(rename = "apiURL")]
    pub api_url: String,
    /// The version of its program.
    pub version: String,
    /// What it was told.
    pub settings: ClusterSettings,
}

impl MemberRequest {
    /// Of a server that is about to join.
    pub fn of(config: &ApiServerConfig) -> Self {
        let MemberInfo { name, peer_address, api_url, version, .. } =
            crate::store_setup::member_info(config);
        let settings = ClusterSettings::of(config);
        MemberRequest { name, peer_address, api_url, version, settings }
    }

    fn info(self) -> MemberInfo {
        let MemberRequest { name, peer_address, api_url, version, .. } = self;
        // What it reads it says itself, once it runs.
        MemberInfo { name, peer_address, api_url, version, level: 0 }
    }
}

/// What a joining member is told.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberAnswer {
    /// The cluster that it is in.
    #[serde(rename = "clusterID")]
    pub cluster_id: HexId,
    /// Its id.
    #[serde(rename = "memberID")]
    pub member_id: HexId,
    /// What all members share.
    pub keys: SharedKeys,
    /// All members, itself among them.
    pub members: Vec<ListedMember>,
}

impl MemberAnswer {
    /// Who the joining member is from now on.
    pub fn identity(&self) -> Identity {
        Identity { cluster_id: self.cluster_id.0, member_id: self.member_id.0 }
    }
}

/// Answers `POST /rkube/v1/members`: who asks shows a token.
pub async fn answer_add(api: &ApiServer, request: Request<RequestBody>) -> Response<Body> {
    if request.method() != Method::POST {
        return response::error(&rest::method_not_allowed(), PLAIN);
    }
    match add(api, request).await.and_then(|a| serde_json::to_value(a).map_err(ApiError::internal))
    {
        Ok(answer) => response::json(StatusCode::CREATED, &answer),
        Err(error) => response::error(&error, PLAIN),
    }
}

async fn add(api: &ApiServer, request: Request<RequestBody>) -> Result<MemberAnswer, ApiError> {
    if check_token(api, request.headers()).await? != TokenRole::Any {
        return Err(ApiError::new(
            Reason::Forbidden,
            "this token is for nodes only: `rkube token create` makes one for members",
        ));
    }
    let body = body::read(request.into_body()).await?;
    let asked: MemberRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("decoding the request of a member: {e}")))?;
    check(&asked, &ClusterSettings::of(api.config())).map_err(ApiError::bad_request)?;
    if api.peers().is_none() {
        return Err(ApiError::new(
            Reason::ServiceUnavailable,
            "this member does not serve its peer port, so nobody can join: its log says why",
        ));
    }
    let storage = &api.storage;
    let members = storage.members();
    let replaced = replaces(&members, &asked).map_err(conflict)?;
    if let Some(old) = replaced {
        tracing::info!(name = asked.name, id = %HexId(old), "a member that never voted is replaced");
        storage.change_members(MemberChange::Remove(old)).await?;
    }
    let id = fresh_id(&members);
    let info = asked.info();
    tracing::info!(name = info.name, id = %HexId(id), address = info.peer_address, "a member joins");
    let listed = listed(&members, replaced, id, &info);
    storage.change_members(MemberChange::Add { id, info }).await?;
    Ok(MemberAnswer {
        cluster_id: HexId(storage.identity().cluster_id),
        member_id: HexId(id),
        keys: api.pki.shared_keys(),
        members: listed,
    })
}

fn conflict(why: String) -> ApiError {
    ApiError::new(Reason::Conflict, why)
}

/// Refuses a request that can't be of a member of this cluster.
fn check(asked: &MemberRequest, ours: &ClusterSettings) -> Result<(), String> {
    if check_name(&asked.name).is_err() {
        return Err(format!(
            "{:?} can't be the name of a member: a lowercase RFC 1123 subdomain is needed",
            asked.name
        ));
    }
    let authority: Option<http::uri::Authority> = asked.peer_address.parse().ok();
    if authority.is_none_or(|a| a.port_u16().is_none_or(|port| port == 0)) {
        return Err(format!("peer address {:?}: the form is HOST:PORT", asked.peer_address));
    }
    if !asked.api_url.starts_with("https://") {
        return Err(format!("API URL {:?}: it begins with https://", asked.api_url));
    }
    match ours.difference(&asked.settings) {
        Some(difference) => Err(format!("all members need the same settings: {difference}")),
        None => Ok(()),
    }
}

/// The member that a joining one replaces: one of the same name and address that never voted, as
/// after a crash between its answer and its first start.
fn replaces(members: &[Member], asked: &MemberRequest) -> Result<Option<u64>, String> {
    let address = &asked.peer_address;
    let Some(same) = members.iter().find(|m| m.info.name == asked.name) else {
        return match members.iter().find(|m| m.info.peer_address == *address) {
            Some(m) => Err(format!("{address} is the address of member {} already", m.info.name)),
            None => Ok(None),
        };
    };
    let name = &same.info.name;
    match same.role {
        Role::Voter => Err(format!(
            "member {name} exists; if its disk is lost remove it first: rkube member remove {name}"
        )),
        Role::Learner if same.info.peer_address == *address => Ok(Some(same.id)),
        Role::Learner => Err(format!(
            "member {name} is joining from {}; if that was given up remove it first: \
             rkube member remove {name}",
            same.info.peer_address
        )),
    }
}

/// An id that was never used, as far as chance goes: 63 bits, not 0.
fn fresh_id(members: &[Member]) -> u64 {
    let fits = |id: &u64| *id != 0 && members.iter().all(|m| m.id != *id);
    std::iter::repeat_with(|| rand::random::<u64>() >> 1).find(fits).unwrap_or(u64::MAX >> 1)
}

fn listed(
    members: &[Member],
    replaced: Option<u64>,
    id: u64,
    info: &MemberInfo,
) -> Vec<ListedMember> {
    let entry = |id: u64, info: &MemberInfo| ListedMember {
        id: HexId(id),
        name: info.name.clone(),
        peer_address: info.peer_address.clone(),
    };
    let others = members.iter().filter(|m| Some(m.id) != replaced);
    others.map(|m| entry(m.id, &m.info)).chain([entry(id, info)]).collect()
}

/// Answers `DELETE /rkube/v1/members/<name or id>`; the caller was authorized.
pub async fn answer_remove(
    api: &ApiServer,
    caller: &Caller,
    target: &str,
    force: bool,
) -> Response<Body> {
    match remove(api, caller, target, force).await {
        Ok(member) => {
            let answer = json!({"id": HexId(member.id), "name": member.info.name});
            response::json(StatusCode::OK, &answer)
        }
        Err(error) => response::error(&error, PLAIN),
    }
}

/// Removes a member and says which.
///
/// # Errors
/// 404 for one that is not there, 409 if the cluster can't spare it, 503 without a leader.
pub async fn remove(
    api: &ApiServer,
    caller: &Caller,
    target: &str,
    force: bool,
) -> Result<Member, ApiError> {
    let members = api.storage.members();
    let active = active(api, &members).await;
    let member = removable(&members, target, &active, force)?;
    let (name, id) = (&member.info.name, HexId(member.id));
    tracing::info!(name, %id, by = caller.user, force, "a member is removed");
    api.storage.change_members(MemberChange::Remove(member.id)).await?;
    Ok(member.clone())
}

/// The members that answer: this one, those that say how they are, and those that the leader knows
/// to follow.
async fn active(api: &ApiServer, members: &[Member]) -> BTreeSet<u64> {
    let own = api.storage.identity().member_id;
    let progress = api.storage.store().progress();
    let mut active: BTreeSet<u64> = progress.iter().filter(|p| p.active).map(|p| p.id).collect();
    active.insert(own);
    let others: Vec<Member> = members.iter().filter(|m| m.id != own).cloned().collect();
    if let Some(peers) = api.peers() {
        let answers = peers.statuses(others, PATIENCE).await;
        active.extend(answers.into_iter().flatten().map(|status| status.id));
    }
    active
}

/// The member to remove by its name or id.
///
/// # Errors
/// If there is none, if it is the last one that votes, or if those left that answer were no
/// majority, unless forced. A member that does not answer may always go.
fn removable<'a>(
    members: &'a [Member],
    target: &str,
    active: &BTreeSet<u64>,
    force: bool,
) -> Result<&'a Member, ApiError> {
    let id = u64::from_str_radix(target, 16).ok();
    let by_name = members.iter().find(|m| m.info.name.eq_ignore_ascii_case(target));
    let member =
        by_name.or_else(|| members.iter().find(|m| Some(m.id) == id)).ok_or_else(|| {
            let names: Vec<&str> = members.iter().map(|m| &*m.info.name).collect();
            let why =
                format!("no member has the name or id {target:?}; there are {}", names.join(", "));
            ApiError::new(Reason::NotFound, why)
        })?;
    if member.role == Role::Learner {
        return Ok(member);
    }
    let left: Vec<&Member> =
        members.iter().filter(|m| m.role == Role::Voter && m.id != member.id).collect();
    let name = &member.info.name;
    if left.is_empty() {
        return Err(conflict(format!("{name} is the last member that votes: it can't be removed")));
    }
    let silent: Vec<&str> =
        left.iter().filter(|m| !active.contains(&m.id)).map(|m| &*m.info.name).collect();
    let majority = left.len() / 2 + 1;
    if active.contains(&member.id) && left.len() - silent.len() < majority && !force {
        return Err(conflict(format!(
            "without {name} there would be no quorum: of the {} members left {} answer no request \
             ({}); bring them back or remove them first, or give --force",
            left.len(),
            silent.len(),
            silent.join(", ")
        )));
    }
    Ok(member)
}

/// The name or id of the member that a request removes; None if it is another request.
pub fn removed<'a>(method: &Method, path: &'a str) -> Option<&'a str> {
    let target = path.strip_prefix(PATH)?.strip_prefix('/')?;
    (*method == Method::DELETE && !target.is_empty() && !target.contains('/')).then_some(target)
}

/// Whether a store stopped because its member was removed.
pub fn is_removal(error: &StoreError) -> bool {
    match error {
        StoreError::Removed => true,
        StoreError::Failed(cause) => is_removal(cause),
        _ => false,
    }
}

/// The word about a cluster that has grown no safer; None for other numbers of voters.
pub fn warning_of_two(voters: usize) -> Option<&'static str> {
    (voters == 2).then_some(
        "the cluster has two voting members: losing either one stops all writes; add a third",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, role: Role) -> Member {
        let info = MemberInfo {
            name: format!("m{id}"),
            peer_address: format!("10.0.0.{id}:2380"),
            api_url: format!("https://10.0.0.{id}:6443"),
            version: "0.1.0".into(),
            ..MemberInfo::default()
        };
        Member { id, role, info }
    }

    fn request(name: &str, peer_address: &str) -> MemberRequest {
        let mut config = ApiServerConfig::new("/nowhere");
        config.member_name = name.into();
        MemberRequest { peer_address: peer_address.into(), ..MemberRequest::of(&config) }
    }

    #[test]
    fn who_may_join() {
        let members = [member(1, Role::Voter), member(2, Role::Learner)];
        let decide = |name: &str, address: &str| replaces(&members, &request(name, address));
        assert_eq!(decide("m3", "10.0.0.3:2380"), Ok(None));
        assert_eq!(decide("m2", "10.0.0.2:2380"), Ok(Some(2)));
        assert_eq!(
            decide("m1", "10.0.0.1:2380").unwrap_err(),
            "member m1 exists; if its disk is lost remove it first: rkube member remove m1"
        );
        let moved = decide("m2", "10.0.0.9:2380").unwrap_err();
        assert!(moved.contains("joining from 10.0.0.2:2380"), "{moved}");
        let taken = decide("m3", "10.0.0.1:2380").unwrap_err();
        assert!(taken.contains("address of member m1"), "{taken}");
    }

    #[test]
    fn bad_requests_are_told_apart() {
        let ours = ClusterSettings::of(&ApiServerConfig::new("/nowhere"));
        assert_eq!(check(&request("m3", "10.0.0.3:2380"), &ours), Ok(()));
        assert_eq!(check(&request("m3", "[fd00::3]:2380"), &ours), Ok(()));
        let refused = |asked: MemberRequest| check(&asked, &ours).unwrap_err();
        assert!(refused(request("M 3", "10.0.0.3:2380")).contains("\"M 3\""));
        for address in ["", "10.0.0.3", "10.0.0.3:0", "10.0.0.3:x", "a b:1"] {
            assert!(refused(request("m3", address)).contains("HOST:PORT"), "{address}");
        }
        let mut plain = request("m3", "10.0.0.3:2380");
        plain.api_url = "http://10.0.0.3:6443".into();
        assert!(refused(plain).contains("https://"));
        let mut differs = request("m3", "10.0.0.3:2380");
        differs.settings.cluster_cidr = "10.1.0.0/16".into();
        assert_eq!(
            refused(differs),
            "all members need the same settings: \
             --cluster-cidr is 10.1.0.0/16 here and 10.42.0.0/16 in the cluster"
        );
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let keys = SharedKeys {
            ca_certificate: "c".into(),
            ca_key: "k".into(),
            service_account_key: "s".into(),
        };
        let members = [member(1, Role::Voter), member(2, Role::Learner)];
        let answer = MemberAnswer {
            cluster_id: HexId(u64::MAX),
            member_id: HexId(7),
            keys,
            members: listed(&members, Some(2), 7, &member(7, Role::Learner).info),
        };
        let value = serde_json::to_value(&answer).unwrap();
        assert_eq!(
            value,
            json!({
                "clusterID": "ffffffffffffffff", "memberID": "0000000000000007",
                "keys": {"caCertificate": "c", "caKey": "k", "serviceAccountKey": "s"},
                "members": [
                    {"id": "0000000000000001", "name": "m1", "peerAddress": "10.0.0.1:2380"},
                    {"id": "0000000000000007", "name": "m7", "peerAddress": "10.0.0.7:2380"}],
            })
        );
        let read: MemberAnswer = serde_json::from_value(value).unwrap();
        assert_eq!(read.identity(), Identity { cluster_id: u64::MAX, member_id: 7 });
    }

    #[test]
    fn ids_are_fresh() {
        for _ in 0..1000 {
            let id = fresh_id(&[member(1, Role::Voter)]);
            assert!(id > 1 && id >> 63 == 0);
        }
    }

    fn decide(
        members: &[Member],
        target: &str,
        active: &[u64],
        force: bool,
    ) -> Result<u64, String> {
        let active = active.iter().copied().collect();
        let found = removable(members, target, &active, force);
        found.map(|m| m.id).map_err(|e| e.message)
    }

    #[test]
    fn a_removal_keeps_the_quorum() {
        let three = [1, 2, 3].map(|id| member(id, Role::Voter));
        assert_eq!(decide(&three, "m2", &[1, 2, 3], false), Ok(2));
        for id in ["2", "0000000000000002"] {
            assert_eq!(decide(&three, id, &[1, 2, 3], false), Ok(2));
        }
        // Of the two left one is silent, and two are the majority of two.
        let refused = decide(&three, "m2", &[1, 2], false).unwrap_err();
        assert!(refused.contains("no quorum") && refused.contains("(m3)"), "{refused}");
        assert_eq!(decide(&three, "m2", &[1, 2], true), Ok(2));
        // The silent one itself is no loss.
        assert_eq!(decide(&three, "m3", &[1, 2], false), Ok(3));
        let unknown = decide(&three, "m4", &[1, 2, 3], false).unwrap_err();
        assert!(unknown.contains("there are m1, m2, m3"), "{unknown}");
    }

    #[test]
    fn the_last_voter_stays() {
        let members = [member(1, Role::Voter), member(2, Role::Learner)];
        for force in [false, true] {
            let refused = decide(&members, "m1", &[1, 2], force).unwrap_err();
            assert!(refused.contains("last member"), "{refused}");
        }
        assert_eq!(decide(&members, "m2", &[1], false), Ok(2));
        let two = [1, 2].map(|id| member(id, Role::Voter));
        assert_eq!(decide(&two, "m2", &[1, 2], false), Ok(2));
        assert!(warning_of_two(2).is_some() && warning_of_two(3).is_none());
    }
}
