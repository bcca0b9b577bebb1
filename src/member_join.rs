//! How a server becomes a member of a control plane that runs: `rkube server --join`.
//!
//! It believes the server by the token's hash, as a node does, and asks to be added. What it is
//! answered, the cluster's keys among it, is written as one file before anything else happens; a
//! member whose file is there goes on from it, however often it is started.

use crate::cli::PeerArgs;
use crate::join::{self, Token};
use anyhow::{Context, Result, bail, ensure};
use rkube_apiserver::ApiServerConfig;
use rkube_apiserver::member_file::{HexId, MemberFile};
use rkube_apiserver::member_requests::{self, MemberAnswer, MemberRequest};
use rkube_apiserver::pki;
use rkube_apiserver::store_setup::member_in;

/// Joins the control plane that `--join` names, unless the data directory holds a member already.
pub async fn ensure_member(args: &PeerArgs, config: &ApiServerConfig) -> Result<()> {
    let token = args.token.as_deref().map(str::parse::<Token>).transpose()?;
    let member = member_in(config)?;
    let Some(server) = &args.join else {
        ensure!(args.token.is_none(), "--token goes with --join URL");
        return Ok(());
    };
    check_ca(config, token.as_ref())?;
    if let Some(member) = member {
        tracing::info!(
            dir = %config.data_dir.display(), member = %HexId(member.member_id),
            "the data directory holds a member already: --join is skipped"
        );
        return Ok(());
    }
    let Some(token) = token else {
        bail!("--join needs --token (`rkube token create` on a member makes one)");
    };
    let answer = ask(server, &token, config).await?;
    ensure!(
        pki::certificate_hash(&answer.keys.ca_certificate)? == token.ca_hash,
        "{server} answered with the CA of another cluster than the token's"
    );
    let names: Vec<String> = answer.members.iter().map(|m| m.name.clone()).collect();
    let file = MemberFile::joined(answer.identity(), answer.keys, answer.members);
    file.save(&config.store_dir())?;
    tracing::info!(
        cluster = %file.cluster_id, member = %file.member_id, members = names.join(", "),
        "joined the control plane; this member votes once it has caught up"
    );
    if let Some(warning) = member_requests::warning_of_two(names.len()) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// A directory with the keys of one cluster is no place for a member of another.
fn check_ca(config: &ApiServerConfig, token: Option<&Token>) -> Result<()> {
    let (Some(ca), Some(token)) = (pki::ca_in(config)?, token) else { return Ok(()) };
    let hash = pki::certificate_hash(&ca)
        .with_context(|| format!("reading the CA in {}", config.pki_dir().display()))?;
    ensure!(
        hash == token.ca_hash,
        "{} holds the keys of another cluster (CA {hash}) than the token names ({}): give another \
         --data-dir, or remove it",
        config.data_dir.display(),
        token.ca_hash
    );
    Ok(())
}

async fn ask(server: &str, token: &Token, config: &ApiServerConfig) -> Result<MemberAnswer> {
    ensure!(
        !config.advertise_address.is_loopback() || server_is_local(server),
        "the other members can't reach {}: give --advertise-address",
        config.advertise_address
    );
    let ca = join::fetch_ca(server, token).await?;
    let request = MemberRequest::of(config);
    join::post(server, token, ca, member_requests::PATH, &request).await.map_err(|error| {
        let refusal = error.downcast_ref::<kube::Error>().and_then(refusal);
        let doing = format!("joining the control plane of {server} as {}", config.member_name);
        match refusal {
            Some(why) => anyhow::anyhow!("{doing}: {why}"),
            None => error.context(doing),
        }
    })
}

/// The server's own words, where it said some.
fn refusal(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            Some("the token is unknown or at its end: `rkube token create` makes one".into())
        }
        kube::Error::Api(status) if status.code == 404 => {
            Some("the server there is too old to have several members".into())
        }
        kube::Error::Api(status) => Some(status.message.clone()),
        _ => None,
    }
}

/// All members of a cluster on one machine may use its loopback address.
fn server_is_local(server: &str) -> bool {
    let uri: Option<http::Uri> = server.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_apiserver::member_file::State;

    fn args(join: Option<&str>, token: Option<&str>) -> PeerArgs {
        PeerArgs {
            join: join.map(Into::into),
            token: token.map(Into::into),
            peer_port: 2380,
            encryption_key_file: None,
        }
    }

    fn token(hash_digit: &str) -> String {
        format!("abcdef.0123:sha256:{}", hash_digit.repeat(64))
    }

    async fn refused(args: PeerArgs, config: &ApiServerConfig) -> String {
        format!("{:#}", ensure_member(&args, config).await.expect_err("a refusal"))
    }

    #[tokio::test]
    async fn flags_that_do_not_fit_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        ensure_member(&args(None, None), &config).await.unwrap();
        let url = Some("https://127.0.0.1:1");
        let cases = [
            (args(None, Some(&token("0"))), "--token goes with --join"),
            (args(url, None), "--join needs --token"),
            (args(url, Some("rubbish")), "a token has the form"),
            (args(Some("http://127.0.0.1:1"), Some(&token("0"))), "https://HOST:6443"),
            (args(url, Some(&token("0"))), "asking https://127.0.0.1:1 for its certificate"),
            (args(Some("https://192.0.2.1:1"), Some(&token("0"))), "give --advertise-address"),
        ];
        for (args, why) in cases {
            let said = refused(args, &config).await;
            assert!(said.contains(why), "{said}");
        }
    }

    #[tokio::test]
    async fn a_removed_member_does_not_join_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        let file = MemberFile {
            cluster_id: HexId(1),
            member_id: HexId(2),
            state: State::Removed,
            keys: None,
            members: Vec::new(),
        };
        file.save(&config.store_dir()).unwrap();
        let said = refused(args(Some("https://127.0.0.1:1"), None), &config).await;
        assert!(said.contains("0000000000000002") && said.contains("was removed"), "{said}");
    }

    #[tokio::test]
    async fn a_directory_of_another_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        let pki = pki::Pki::open(&config, std::time::SystemTime::now()).unwrap();
        let url = Some("https://127.0.0.1:1");
        let said = refused(args(url, Some(&token("0"))), &config).await;
        assert!(said.contains("keys of another cluster"), "{said}");
        // The same CA, and a member that crashed between its answer and its start.
        let hash = pki.ca_hash().unwrap();
        let own = format!("abcdef.0123:sha256:{hash}");
        let file = MemberFile {
            cluster_id: HexId(1),
            member_id: HexId(2),
            state: State::Joined,
            keys: Some(pki.shared_keys()),
            members: Vec::new(),
        };
        file.save(&config.store_dir()).unwrap();
        ensure_member(&args(url, Some(&own)), &config).await.unwrap();
        ensure_member(&args(url, None), &config).await.unwrap();
        let other = refused(args(url, Some(&token("0"))), &config).await;
        assert!(other.contains("keys of another cluster"), "{other}");
    }
}
