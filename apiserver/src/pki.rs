//! The cluster's keys and certificates.
//!
//! One CA signs everything: the server's certificate, the admin's, the one this server shows to
//! kubelets, and those of the nodes that join. It is made at the first start; what it signs is
//! renewed at a start when it is near its end or no longer fits.
//!
//! Members share the CA and the key of service account tokens: who founds a cluster makes them, who
//! joins is given them ([`crate::member_file`]) and never makes its own. Every member issues what
//! it shows to others by itself.
//!
//! Files appear whole or not at all: each is written beside its place, synced, and renamed.

use crate::config::ApiServerConfig;
use crate::member_file::{MemberFile, SharedKeys};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A leaf with less than this left is renewed at the next start.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// What can go wrong with keys, certificates and their files.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{action} {path}")]
    File {
        /// `reading`, `writing`
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key or certificate could not be made or understood.
    #[error("{what}: {why}")]
    Crypto {
        /// What was being done.
        what: String,
        /// What is wrong.
        why: String,
    },
}

fn crypto(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = what.into();
    move |e| PkiError::Crypto { what, why: e.to_string() }
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Pair {
    /// The certificate, then the CA, in the form that rustls takes.
    ///
    /// # Errors
    /// If one of the PEM texts is broken.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let bad = |e: rustls::pki_types::pem::Error| PkiError::Crypto {
            what: "decoding a certificate and its key".into(),
            why: e.to_string(),
        };
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(bad)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(bad)?;
        Ok((chain, key))
    }
}

/// The keys and certificates of a cluster.
pub struct Pki {
    ca: Pair,
    issuer: Issuer<'static, KeyPair>,
    /// Shown to clients.
    pub server: Pair,
    /// The admin's.
    pub admin: Pair,
    /// Shown to kubelets.
    pub kubelet_client: Pair,
    /// Signs service account tokens.
    pub service_account_key: String,
}

/// What a certificate is for.
struct Subject<'a> {
    common_name: &'a str,
    organization: Option<&'a str>,
    sans: Vec<String>,
    server: bool,
    client: bool,
}

impl Pki {
    /// Loads the PKI, makes what is missing and renews what must be renewed; writes the admin's
    /// kubeconfig. A member that joined takes the shared keys that it was given.
    ///
    /// # Errors
    /// If a file can't be read or written or holds something else. A broken CA is never replaced,
    /// nor is a missing one by a member that joined.
    pub fn open(config: &ApiServerConfig, now: SystemTime) -> Result<Self, PkiError> {
        let dir = config.pki_dir();
        create_dir(&dir)?;
        if let Some(member) = MemberFile::load(&config.store_dir())? {
            take_shared_keys(&dir, &config.store_dir(), member)?;
        }
        let ca = load_or_make(&dir, "ca", |_| true, || make_ca(now))?;
        let issuer = issuer(&ca)?;
        let sans = server_sans(config);
        let fits = |pair: &Pair, sans: &[String]| is_good(pair, &ca, sans, now);
        let server = load_or_make(
            &dir,
            "server",
            |p| fits(p, &sans),
            || {
                let subject = Subject {
                    common_name: "kube-apiserver",
                    organization: None,
                    sans: sans.clone(),
                    server: true,
                    client: false,
                };
                issue(&issuer, &subject, now)
            },
        )?;
        let client = |name: &'static str, common_name: &'static str| {
            load_or_make(
                &dir,
                name,
                |p| fits(p, &[]),
                || {
                    let subject = Subject {
                        common_name,
                        organization: Some(crate::authn::MASTERS),
                        sans: Vec::new(),
                        server: false,
                        client: true,
                    };
                    issue(&issuer, &subject, now)
                },
            )
        };
        let admin = client("admin", "kubernetes-admin")?;
        let kubelet_client = client("apiserver-kubelet-client", "kube-apiserver-kubelet-client")?;
        let service_account_key = load_or_make_key(&dir.join("sa.key"))?;
        let pki = Pki { ca, issuer, server, admin, kubelet_client, service_account_key };
        pki.write_admin_kubeconfig(config, &[])?;
        Ok(pki)
    }

    /// Writes the admin's kubeconfig: this server, then the other members' to go on with.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_admin_kubeconfig(
        &self,
        config: &ApiServerConfig,
        others: &[String],
    ) -> Result<(), PkiError> {
        let url = format!("https://{}", authority(reachable(config), config.secure_port));
        let text = self.kubeconfig(&url, others, &self.admin);
        write_file(&config.data_dir.join("admin.kubeconfig"), text.as_bytes(), true)
    }

    /// What a member that joins is given.
    pub fn shared_keys(&self) -> SharedKeys {
        SharedKeys {
            ca_certificate: self.ca.certificate.clone(),
            ca_key: self.ca.key.clone(),
            service_account_key: self.service_account_key.clone(),
        }
    }

    /// The CA, with its key.
    pub fn ca_pair(&self) -> &Pair {
        &self.ca
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca.certificate
    }

    /// SHA-256 of the CA certificate's DER, in hexadecimal: what a join token pins.
    ///
    /// # Errors
    /// If the PEM is broken.
    pub fn ca_hash(&self) -> Result<String, PkiError> {
        certificate_hash(&self.ca.certificate)
    }

    /// A kubeconfig for a client certificate. `others` are further servers of the cluster, in an
    /// extension that rkubectl knows.
    pub fn kubeconfig(&self, server: &str, others: &[String], client: &Pair) -> String {
        use base64::Engine;
        let members = match others {
            [] => String::new(),
            _ => format!(
                "\n    extensions:\n    - name: rkube.dev/members\n      extension: {}",
                serde_json::json!({"servers": others}),
            ),
        };
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: rkube\n  cluster:\n    server: {server}\n    certificate-authority-data: {}{members}\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: rkube\n  context:\n    cluster: rkube\n    user: kubernetes-admin\ncurrent-context: rkube\n",
            b64(&self.ca.certificate),
            b64(&client.certificate),
            b64(&client.key),
        )
    }

    /// A client certificate for any identity, for tests and tools of the operator.
    ///
    /// # Errors
    /// If the key can't be made.
    pub fn issue_client(
        &self,
        user: &str,
        group: Option<&str>,
        not_before: SystemTime,
    ) -> Result<Pair, PkiError> {
        let subject = Subject {
            common_name: user,
            organization: group,
            sans: Vec::new(),
            server: false,
            client: true,
        };
        issue(&self.issuer, &subject, not_before)
    }

    /// Signs a joining node's key: `system:node:<name>` in `system:nodes`, for client and server
    /// use, with its name and addresses. Only the key of the request counts; whatever names,
    /// extensions or uses it asks for are ignored.
    ///
    /// # Errors
    /// If the request is broken or its signature is wrong.
    pub fn sign_node(
        &self,
        csr_pem: &str,
        node: &str,
        addresses: &[IpAddr],
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let what = format!("signing the certificate of node {node:?}");
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(crypto(what.clone()))?;
        let mut sans = vec![node.to_owned()];
        sans.extend(addresses.iter().map(ToString::to_string));
        let common_name = format!("system:node:{node}");
        request.params = leaf_params(
            &Subject {
                common_name: &common_name,
                organization: Some(crate::authn::NODES),
                sans,
                server: true,
                client: true,
            },
            now,
        )?;
        Ok(request.signed_by(&self.issuer).map_err(crypto(what))?.pem())
    }
}

/// What a member shows to the others and what it believes of them.
pub struct PeerPair {
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The member's own, good for client and server use.
    pub own: Pair,
}

/// The certificate of a member for others, under the name that says which member of which cluster
/// it is; made or renewed if need be. Nothing but the CA must be there: an offline command may ask
/// too.
///
/// # Errors
/// If there is no CA or the files can't be read or written.
pub fn peer(config: &ApiServerConfig, name: &str, now: SystemTime) -> Result<PeerPair, PkiError> {
    let dir = config.pki_dir();
    let must = |name: &str| {
        let path = dir.join(name);
        let none = std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = read_file(&path)?;
        text.ok_or(PkiError::File { action: "reading", path, source: none })
    };
    let ca = Pair { certificate: must("ca.crt")?, key: must("ca.key")? };
    let issuer = issuer(&ca)?;
    let sans = vec![name.to_owned()];
    let make = || {
        let subject = Subject {
            common_name: "rkube-member",
            organization: None,
            sans: sans.clone(),
            server: true,
            client: true,
        };
        issue(&issuer, &subject, now)
    };
    let own = load_or_make(&dir, "peer", |pair| is_good(pair, &ca, &sans, now), make)?;
    Ok(PeerPair { ca: ca.certificate, own })
}

/// SHA-256 of a certificate's DER, in hexadecimal.
///
/// # Errors
/// If the PEM is broken.
pub fn certificate_hash(pem: &str) -> Result<String, PkiError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Crypto {
        what: "decoding a certificate".into(),
        why: e.to_string(),
    })?;
    Ok(Sha256::digest(&der).iter().map(|b| format!("{b:02x}")).collect())
}

/// The CA's certificate in a data directory, PEM; None if there is none.
///
/// # Errors
/// If the file can't be read.
pub fn ca_in(config: &ApiServerConfig) -> Result<Option<String>, PkiError> {
    read_file(&config.pki_dir().join("ca.crt"))
}

/// Puts the keys that a joined member was given where they belong; after that they are there alone.
/// The certificate comes last of the CA, as [`load_or_make`] goes by it.
fn take_shared_keys(dir: &Path, store_dir: &Path, member: MemberFile) -> Result<(), PkiError> {
    let bad = |why: String| Err(PkiError::Crypto { what: "taking the cluster's CA".into(), why });
    let Some(keys) = &member.keys else {
        for name in ["ca.crt", "ca.key", "sa.key"] {
            if read_file(&dir.join(name))?.is_none() {
                return bad(format!(
                    "{} is missing; bring it back, or wipe the data directory and join again",
                    dir.join(name).display()
                ));
            }
        }
        return Ok(());
    };
    let certificate = dir.join("ca.crt");
    if read_file(&certificate)?.is_some_and(|there| there != keys.ca_certificate) {
        return bad(format!("{} is that of another cluster", certificate.display()));
    }
    write_file(&dir.join("sa.key"), keys.service_account_key.as_bytes(), true)?;
    write_file(&dir.join("ca.key"), keys.ca_key.as_bytes(), true)?;
    write_file(&certificate, keys.ca_certificate.as_bytes(), false)?;
    MemberFile { keys: None, ..member }.save(store_dir)
}

/// Where clients on this machine reach the server.
fn reachable(config: &ApiServerConfig) -> IpAddr {
    if config.bind_address.is_unspecified() {
        IpAddr::from([127, 0, 0, 1])
    } else {
        config.bind_address
    }
}

/// `host:port`, with brackets around IPv6.
pub fn authority(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// The names and addresses of the server's certificate.
fn server_sans(config: &ApiServerConfig) -> Vec<String> {
    let mut sans: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned)
    .into();
    sans.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    sans.push(config.advertise_address.to_string());
    if !config.bind_address.is_unspecified() {
        sans.push(config.bind_address.to_string());
    }
    sans.extend(
        crate::admission::services::first_address(&config.service_cidr).map(|a| a.to_string()),
    );
    sans.extend(hostname());
    sans.extend(config.extra_sans.iter().cloned());
    sans.sort();
    sans.dedup();
    sans
}

fn hostname() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = text.trim().to_owned();
    (!name.is_empty() && name.is_ascii()).then_some(name)
}

fn make_ca(now: SystemTime) -> Result<Pair, PkiError> {
    let what = "making the cluster's CA";
    let key = KeyPair::generate().map_err(crypto(what))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "rkube-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    params.serial_number = Some(serial());
    let certificate = params.self_signed(&key).map_err(crypto(what))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn issuer(ca: &Pair) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let what = "loading the cluster's CA";
    let key = KeyPair::from_pem(&ca.key).map_err(crypto(what))?;
    Issuer::from_ca_cert_pem(&ca.certificate, key).map_err(crypto(what))
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive and not zero, as RFC 5280 wants it.
    bytes[0] = (bytes[0] & 0x7f) | 0x01;
    SerialNumber::from(bytes.to_vec())
}

fn leaf_params(subject: &Subject<'_>, now: SystemTime) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.common_name);
    if let Some(organization) = subject.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.subject_alt_names = subject.sans.iter().map(|s| san(s)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if subject.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if subject.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    // An hour back, for clocks that are behind.
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + LEAF_LIFE).into();
    params.serial_number = Some(serial());
    Ok(params)
}

fn san(text: &str) -> Result<SanType, PkiError> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(
            text.try_into().map_err(crypto(format!("taking {text:?} as a DNS name")))?,
        )),
    }
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    subject: &Subject<'_>,
    now: SystemTime,
) -> Result<Pair, PkiError> {
    let what = format!("issuing a certificate for {:?}", subject.common_name);
    let key = KeyPair::generate().map_err(crypto(what.clone()))?;
    let certificate = leaf_params(subject, now)?.signed_by(&key, issuer).map_err(crypto(what))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whether a leaf is of this CA, not near its end, and names exactly these.
fn is_good(pair: &Pair, ca: &Pair, sans: &[String], now: SystemTime) -> bool {
    let Ok((chain, _)) = pair.der() else { return false };
    let Ok((ca_chain, _)) = ca.der() else { return false };
    let (Some(leaf), Some(ca)) = (chain.first(), ca_chain.first()) else { return false };
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let Ok((_, ca)) = X509Certificate::from_der(ca) else { return false };
    let until = seconds_since_epoch(now) + RENEW_BEFORE.as_secs() as i64;
    let mut have = names_of(&leaf);
    have.sort();
    leaf.issuer() == ca.subject()
        && leaf.verify_signature(Some(ca.public_key())).is_ok()
        && leaf.validity().not_after.timestamp() > until
        && have == sans
}

fn seconds_since_epoch(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(name_text).collect()
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                Some(IpAddr::from(v4).to_string())
            } else {
                <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string())
            }
        }
        _ => None,
    }
}

fn load_or_make(
    dir: &Path,
    name: &str,
    fits: impl Fn(&Pair) -> bool,
    make: impl FnOnce() -> Result<Pair, PkiError>,
) -> Result<Pair, PkiError> {
    let certificate_path = dir.join(format!("{name}.crt"));
    let key_path = dir.join(format!("{name}.key"));
    if let (Some(certificate), Some(key)) = (read_file(&certificate_path)?, read_file(&key_path)?) {
        let pair = Pair { certificate, key };
        if fits(&pair) {
            return Ok(pair);
        }
    }
    let pair = make()?;
    write_file(&key_path, pair.key.as_bytes(), true)?;
    write_file(&certificate_path, pair.certificate.as_bytes(), false)?;
    Ok(pair)
}

fn load_or_make_key(path: &Path) -> Result<String, PkiError> {
    if let Some(key) = read_file(path)? {
        return Ok(key);
    }
    let key =
        KeyPair::generate().map_err(crypto("making the service account key"))?.serialize_pem();
    write_file(path, key.as_bytes(), true)?;
    Ok(key)
}

fn create_dir(dir: &Path) -> Result<(), PkiError> {
    std::fs::create_dir_all(dir).map_err(|source| PkiError::File {
        action: "creating",
        path: dir.into(),
        source,
    })
}

fn read_file(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { action: "reading", path: path.into(), source }),
    }
}

fn is_written(path: &Path, bytes: &[u8], secret: bool) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let open_to_others = |m: std::fs::Metadata| m.permissions().mode() & 0o077 != 0;
    let fits = std::fs::metadata(path).is_ok_and(|m| !(secret && open_to_others(m)));
    fits && std::fs::read(path).is_ok_and(|there| there == bytes)
}

/// Writes a file so that a crash leaves the old one or the new one. A secret is for the owner
/// alone. One that is there as it should be is left alone: a restart needs no room on the disk.
pub fn write_file(path: &Path, bytes: &[u8], secret: bool) -> Result<(), PkiError> {
    if is_written(path, bytes, secret) {
        return Ok(());
    }
    let attempt = || {
        use std::os::unix::fs::OpenOptionsExt;
        let beside = path.with_extension("new");
        let mode = if secret { 0o600 } else { 0o644 };
        let _ = std::fs::remove_file(&beside);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    attempt().map_err(|source| PkiError::File { action: "writing", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> ApiServerConfig {
        ApiServerConfig::new(dir)
    }

    #[test]
    fn kept_over_restarts_and_renewed_when_due() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = Pki::open(&config(dir.path()), now).unwrap();
        let again = Pki::open(&config(dir.path()), now).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.server.certificate, again.server.certificate);
        let later = Pki::open(&config(dir.path()), now + 320 * DAY).unwrap();
        assert_eq!(first.ca_pem(), later.ca_pem());
        assert_ne!(first.server.certificate, later.server.certificate);
        let mut other = config(dir.path());
        other.extra_sans.push("example.org".into());
        let renamed = Pki::open(&other, now).unwrap();
        assert_ne!(later.server.certificate, renamed.server.certificate);
        assert_eq!(later.admin.certificate, renamed.admin.certificate);
    }

    /// A directory of a founder, and one of a member that was just given its keys.
    fn joined() -> (tempfile::TempDir, tempfile::TempDir, SharedKeys) {
        let (founder, joiner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let keys = Pki::open(&config(founder.path()), SystemTime::now()).unwrap().shared_keys();
        let identity = rkube_store::Identity { cluster_id: 1, member_id: 2 };
        let file = MemberFile::joined(identity, keys.clone(), Vec::new());
        file.save(&config(joiner.path()).store_dir()).unwrap();
        (founder, joiner, keys)
    }

    #[test]
    fn a_joined_member_takes_the_keys_it_was_given_wherever_it_crashed() {
        let files = |keys: &SharedKeys| {
            [
                ("sa.key", keys.service_account_key.clone()),
                ("ca.key", keys.ca_key.clone()),
                ("ca.crt", keys.ca_certificate.clone()),
            ]
        };
        for written in 0..=3 {
            let (_founder, dir, keys) = joined();
            let config = config(dir.path());
            std::fs::create_dir_all(config.pki_dir()).unwrap();
            for (name, content) in &files(&keys)[..written] {
                std::fs::write(config.pki_dir().join(name), content).unwrap();
            }
            for _ in 0..2 {
                let pki = Pki::open(&config, SystemTime::now()).unwrap();
                assert!(pki.shared_keys() == keys, "after {written} files");
                let file = MemberFile::load(&config.store_dir()).unwrap().unwrap();
                assert!(file.keys.is_none());
            }
        }
    }

    #[test]
    fn a_joined_member_never_makes_a_ca() {
        for lost in ["ca.crt", "ca.key", "sa.key"] {
            let (_founder, dir, _) = joined();
            let config = config(dir.path());
            Pki::open(&config, SystemTime::now()).unwrap();
            std::fs::remove_file(config.pki_dir().join(lost)).unwrap();
            let error = Pki::open(&config, SystemTime::now()).err().unwrap().to_string();
            assert!(error.contains(lost) && error.contains("missing"), "{error}");
        }
        let (_founder, dir, _) = joined();
        let other = tempfile::tempdir().unwrap();
        Pki::open(&config(other.path()), SystemTime::now()).unwrap();
        let pki_dir = config(dir.path()).pki_dir();
        std::fs::create_dir_all(&pki_dir).unwrap();
        std::fs::copy(config(other.path()).pki_dir().join("ca.crt"), pki_dir.join("ca.crt"))
            .unwrap();
        let error = Pki::open(&config(dir.path()), SystemTime::now()).err().unwrap().to_string();
        assert!(error.contains("another cluster"), "{error}");
    }

    #[test]
    fn a_peer_certificate_says_which_member_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (config, now) = (config(dir.path()), SystemTime::now());
        let name = |id: u32| format!("member-{id}.cluster-2.rkube.internal");
        let error = peer(&config, &name(1), now).err().unwrap().to_string();
        assert!(error.contains("ca.crt"), "{error}");
        let pki = Pki::open(&config, now).unwrap();
        let certificate = |id, now| {
            let pair = peer(&config, &name(id), now).unwrap();
            assert_eq!(pair.ca, pki.ca_pem());
            pair.own.der().unwrap().0.remove(0)
        };
        let first = certificate(1, now);
        assert_eq!(first, certificate(1, now));
        let (_, parsed) = X509Certificate::from_der(&first).unwrap();
        assert_eq!(names_of(&parsed), [name(1)]);
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth);
        let other = certificate(3, now);
        assert_ne!(first, other);
        assert_ne!(other, certificate(3, now + 320 * DAY));
    }

    #[test]
    fn the_admins_kubeconfig_names_the_other_members() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let pki = Pki::open(&config, SystemTime::now()).unwrap();
        let read = || -> serde_json::Value {
            let text = std::fs::read_to_string(dir.path().join("admin.kubeconfig")).unwrap();
            serde_yaml::from_str(&text).unwrap()
        };
        assert!(read()["clusters"][0]["cluster"]["extensions"].is_null());
        let others = ["https://192.0.2.2:6443".to_owned()];
        pki.write_admin_kubeconfig(&config, &others).unwrap();
        let extension = &read()["clusters"][0]["cluster"]["extensions"][0];
        assert_eq!(extension["name"], "rkube.dev/members");
        assert_eq!(extension["extension"]["servers"], serde_json::json!(others));
        assert_eq!(read()["users"][0]["name"], "kubernetes-admin");
    }

    #[test]
    fn secrets_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(&config(dir.path()), SystemTime::now()).unwrap();
        for name in ["admin.kubeconfig", "server/pki/ca.key", "server/pki/sa.key"] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_node_gets_its_own_name_whatever_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&config(dir.path()), SystemTime::now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let address = IpAddr::from([10, 0, 0, 7]);
        let pem = pki.sign_node(&csr, "n1", &[address], SystemTime::now()).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let identity = crate::authn::Identity::from_certificate(&der).unwrap();
        assert_eq!(identity.node_name(), Some("n1"));
        assert!(!identity.is_in(crate::authn::MASTERS));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(names_of(&certificate), ["n1", "10.0.0.7"]);
        assert!(pki.sign_node("rubbish", "n1", &[], SystemTime::now()).is_err());
    }
}
