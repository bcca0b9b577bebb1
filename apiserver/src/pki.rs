//! The cluster's keys and certificates.
//!
//! One CA signs everything: the server's certificate, the admin's, the one this server shows to
//! kubelets, and those of the nodes that join. It is made at the first start; what it signs is
//! renewed at a start when it is near its end or no longer fits.
//!
//! Files appear whole or not at all: each is written beside its place, synced, and renamed.

use crate::config::ApiServerConfig;
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
    /// kubeconfig.
    ///
    /// # Errors
    /// If a file can't be read or written or holds something else. A broken CA is never replaced.
    pub fn open(config: &ApiServerConfig, now: SystemTime) -> Result<Self, PkiError> {
        let dir = config.pki_dir();
        create_dir(&dir)?;
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
        let url = format!("https://{}", authority(reachable(config), config.secure_port));
        write_file(
            &config.data_dir.join("admin.kubeconfig"),
            pki.kubeconfig(&url, &pki.admin).as_bytes(),
            true,
        )?;
        Ok(pki)
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
        let (chain, _) = self.ca.der()?;
        let digest = Sha256::digest(&chain[0]);
        Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// A kubeconfig for a client certificate.
    pub fn kubeconfig(&self, server: &str, client: &Pair) -> String {
        use base64::Engine;
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: rkube\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: rkube\n  context:\n    cluster: rkube\n    user: kubernetes-admin\ncurrent-context: rkube\n",
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
