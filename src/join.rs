//! How a node becomes one: token, certificate authority, certificate.
//!
//! A token is `<id>.<secret>:sha256:<hash>`, the hash being that of the cluster's CA certificate.
//! The node fetches the CA without trusting anybody, checks the hash, and from then on trusts that
//! CA alone. Its key never leaves it: it sends a signing request.

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use kube::config::{AuthInfo, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may take to be connected to; there may be another.
const CONNECT: Duration = Duration::from_secs(5);

/// A join token, taken apart.
pub struct Token {
    /// `<id>.<secret>`, what is shown to the server.
    pub bearer: String,
    /// Lower-case hex of the SHA-256 of the CA certificate's DER.
    pub ca_hash: String,
}

impl std::str::FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = "a token has the form <id>.<secret>:sha256:<hash>; see `rkube token create`";
        let (bearer, hash) = text.trim().split_once(":sha256:").context(form)?;
        ensure!(bearer.contains('.') && hash.len() == 64, form);
        Ok(Token { bearer: bearer.into(), ca_hash: hash.to_lowercase() })
    }
}

/// What the server tells a node that joins.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The node's certificate, PEM.
    pub certificate: String,
    /// The cluster's CA, PEM.
    pub ca: String,
    /// Pods' addresses.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: ipnet::Ipv4Net,
    /// Services' addresses.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: ipnet::Ipv4Net,
    /// The cluster's DNS server.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Ipv4Addr,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The cluster's identity, which outlives every certificate.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
}

/// A node's own files, below `pki/`: `node.key`, `cluster.json` with all that the cluster told it,
/// and from that `node.crt` and `ca.crt` for the kubelet's server.
pub struct NodeFiles {
    dir: PathBuf,
}

impl NodeFiles {
    /// Below the node's data directory.
    pub fn new(data_dir: &Path) -> Self {
        NodeFiles { dir: data_dir.join("pki") }
    }

    /// The file of the private key.
    pub fn key(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("node.crt")
    }

    /// The file of the cluster's CA.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The node's private key, PEM.
    pub fn read_key(&self) -> Result<String> {
        std::fs::read_to_string(self.key())
            .with_context(|| format!("reading {}", self.key().display()))
    }

    /// What the cluster told this node when it joined; None if it never did.
    pub fn membership(&self) -> Result<Option<Membership>> {
        let path = self.dir.join("cluster.json");
        match std::fs::read(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text)
                    .with_context(|| format!("reading {}", path.display()))?,
            )),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The API servers that this node has learned of; none if it never did.
    pub fn servers(&self) -> Result<Vec<String>> {
        let path = self.dir.join("servers.json");
        match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Keeps the API servers for the next start.
    pub fn save_servers(&self, servers: &[String]) -> Result<()> {
        write_private(&self.dir.join("servers.json"), &serde_json::to_vec_pretty(servers)?)
    }

    /// Keeps what makes this a node of the cluster; the key first, for nobody else to read.
    pub fn save(&self, key: &str, membership: &Membership) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        write_private(&self.key(), key.as_bytes())?;
        write_private(&self.certificate(), membership.certificate.as_bytes())?;
        write_private(&self.ca(), membership.ca.as_bytes())?;
        write_private(&self.dir.join("cluster.json"), &serde_json::to_vec_pretty(membership)?)
    }
}

/// Writes a file that appears whole and that only its owner may read.
fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("writing {}", temporary.display()))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))
}

/// Joins the cluster and keeps what it answers, unless this node has joined already.
pub async fn ensure_member(
    files: &NodeFiles,
    servers: &[String],
    token: Option<&str>,
    node_name: &str,
    addresses: &[Ipv4Addr],
) -> Result<Membership> {
    if let Some(membership) = files.membership()? {
        return Ok(membership);
    }
    let Some(token) = token else {
        bail!(
            "this node has not joined a cluster yet: give --token (`rkube token create` on a server makes one)"
        );
    };
    let token: Token = token.parse()?;
    let (key, csr) = signing_request(node_name, addresses)?;
    let mut answer = Err(anyhow::anyhow!("no API server is named"));
    for server in servers {
        let ask = async {
            let ca = fetch_ca(server, &token).await?;
            request(server, &token, ca, node_name, addresses, &csr).await
        };
        answer = ask.await;
        match &answer {
            Ok(_) => break,
            Err(error) => tracing::info!("{error:#}"),
        }
    }
    let membership = answer?;
    files.save(&key, &membership)?;
    Ok(membership)
}

fn config(server: &str) -> Result<Config> {
    let mut config = Config::new(https_url(server)?);
    config.connect_timeout = Some(CONNECT);
    config.default_retry = false;
    Ok(config)
}

/// The URL of an API server; a token or a key goes over TLS alone.
pub fn https_url(server: &str) -> Result<http::Uri> {
    let url: http::Uri = server
        .parse()
        .with_context(|| format!("{server:?} is no URL such as https://HOST:6443"))?;
    ensure!(
        url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty()),
        "{server:?}: the URL of an API server has the form https://HOST:6443"
    );
    Ok(url)
}

/// Fetches the CA from a server that nobody vouches for, and checks it against the token.
pub async fn fetch_ca(server: &str, token: &Token) -> Result<Vec<u8>> {
    let mut config = config(server)?;
    config.accept_invalid_certs = true;
    let request = http::Request::get("/rkube/v1/ca").body(Vec::new())?;
    let pem = Client::try_from(config)?
        .request_text(request)
        .await
        .with_context(|| format!("asking {server} for its certificate authority"))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| anyhow::anyhow!("the certificate authority of {server}: {e:?}"))?;
    let hash: String = Sha256::digest(&der).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(
        hash == token.ca_hash,
        "{server} has another certificate authority ({hash}) than the token names ({}): \
         is it the right server?",
        token.ca_hash
    );
    Ok(der.to_vec())
}

fn signing_request(node_name: &str, addresses: &[Ipv4Addr]) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut names = vec![node_name.to_string()];
    names.extend(addresses.iter().map(ToString::to_string));
    let mut params = rcgen::CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node_name}"));
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr))
}

async fn request(
    server: &str,
    token: &Token,
    ca: Vec<u8>,
    node_name: &str,
    addresses: &[Ipv4Addr],
    csr: &str,
) -> Result<Membership> {
    let body = serde_json::json!({"nodeName": node_name, "addresses": addresses, "csr": csr});
    post(server, token, ca, "/rkube/v1/join", &body)
        .await
        .with_context(|| format!("joining the cluster of {server} as {node_name}"))
}

/// Sends to a server that shows a certificate of the CA, with the token.
pub async fn post<T: DeserializeOwned>(
    server: &str,
    token: &Token,
    ca: Vec<u8>,
    path: &str,
    body: &impl Serialize,
) -> Result<T> {
    let mut config = config(server)?;
    config.root_cert = Some(vec![ca]);
    config.auth_info = AuthInfo { token: Some(token.bearer.clone().into()), ..AuthInfo::default() };
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(body)?)?;
    Ok(Client::try_from(config)?.request(request).await?)
}

/// How this node speaks to an API server; the URL of one is still missing.
pub fn node_config(files: &NodeFiles, membership: &Membership) -> Result<Config> {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut config = Config::new(http::Uri::from_static("https://kubernetes"));
    let ca = CertificateDer::from_pem_slice(membership.ca.as_bytes())
        .map_err(|e| anyhow::anyhow!("the cluster's certificate authority: {e:?}"))?;
    config.root_cert = Some(vec![ca.to_vec()]);
    config.auth_info = AuthInfo {
        client_certificate_data: Some(encode(&membership.certificate)),
        client_key_data: Some(encode(&files.read_key()?).into()),
        ..AuthInfo::default()
    };
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_its_hash_is_refused() {
        assert!("abcdef.0123".parse::<Token>().is_err());
        assert!("abcdef:sha256:00".parse::<Token>().is_err());
        let hash = "0A".repeat(32);
        let token: Token = format!("abcdef.0123:sha256:{hash}\n").parse().unwrap();
        assert_eq!(token.bearer, "abcdef.0123");
        assert_eq!(token.ca_hash, hash.to_lowercase());
    }

    #[test]
    fn a_token_goes_over_tls_alone() {
        for bad in ["http://h:6443", "h:6443", "h", "", "https://", "ftp://h", "a b"] {
            let error = config(bad).err().unwrap_or_else(|| panic!("{bad}")).to_string();
            assert!(error.contains("https://HOST:6443"), "{bad}: {error}");
        }
        assert!(config("https://h:6443").is_ok());
    }

    #[test]
    fn files_are_private_and_read_back() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let files = NodeFiles::new(dir.path());
        assert!(files.membership().unwrap().is_none());
        let membership = Membership {
            certificate: "c".into(),
            ca: "a".into(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_dns: "10.43.0.10".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            cluster_id: "x".into(),
        };
        files.save("key", &membership).unwrap();
        assert_eq!(files.membership().unwrap().unwrap().cluster_id, "x");
        assert!(files.servers().unwrap().is_empty());
        files.save_servers(&["https://h:6443".into()]).unwrap();
        assert_eq!(files.servers().unwrap(), ["https://h:6443"]);
        let mode = std::fs::metadata(files.key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
