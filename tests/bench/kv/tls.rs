//! Certificates for one run: a CA, one certificate a member for its clients and its peers, one for
//! the clients.

use super::Fault;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CLIENT: &str = "client";

/// The folder with the files `ca.pem`, `ca.key`, `client.pem`, `client.key`, `member-N.pem`, `member-N.key`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes all of them, with P-256 keys.
    pub fn make(dir: PathBuf, members: usize) -> Result<Self, Fault> {
        std::fs::create_dir(&dir)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        std::fs::write(dir.join("ca.pem"), params.self_signed(&key)?.pem())?;
        std::fs::write(dir.join("ca.key"), key.serialize_pem())?;
        let issuer = Issuer::new(params, key);
        let certificates = Certificates(dir);
        certificates.issue(&issuer, CLIENT)?;
        for member in 0..members {
            certificates.issue(&issuer, &member_name(member))?;
        }
        Ok(certificates)
    }

    fn issue(&self, issuer: &Issuer<'_, KeyPair>, name: &str) -> Result<(), Fault> {
        let mut params = CertificateParams::new(["localhost".to_owned()])?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        params.subject_alt_names.push(SanType::IpAddress(loopback));
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A member is its peers' client too.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        std::fs::write(self.certificate(name), params.signed_by(&key, issuer)?.pem())?;
        std::fs::write(self.key(name), key.serialize_pem())?;
        Ok(())
    }

    /// One of our members' towards its peers, made anew at each start as our server does.
    pub fn peer(&self, name: &str) -> Result<Pair, Fault> {
        let key = KeyPair::from_pem(&std::fs::read_to_string(self.0.join("ca.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(self.ca())?, key)?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "bench-peer");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.der().clone();
        Ok((vec![certificate], PrivateKeyDer::try_from(key.serialize_der())?))
    }

    /// The CA's certificate.
    pub fn authority(&self) -> Result<CertificateDer<'static>, Fault> {
        Ok(CertificateDer::from_pem_file(self.ca()).map_err(|e| format!("{e:?}"))?)
    }

    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    fn key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }

    pub fn member_certificate(&self, member: usize) -> PathBuf {
        self.certificate(&member_name(member))
    }

    pub fn member_key(&self, member: usize) -> PathBuf {
        self.key(&member_name(member))
    }

    /// Of a client of any member. It offers one cipher suite, so that both servers encrypt alike.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Fault> {
        let (chain, key) = read(&self.certificate(CLIENT), &self.key(CLIENT))?;
        let mut config = ClientConfig::builder_with_provider(provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// Of a member towards its clients, which have to show a certificate.
    pub fn server(&self, member: usize) -> Result<Arc<ServerConfig>, Fault> {
        let (chain, key) = read(&self.member_certificate(member), &self.member_key(member))?;
        let provider = Arc::new(provider());
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, Fault> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority()?)?;
        Ok(roots)
    }
}

fn member_name(member: usize) -> String {
    format!("member-{member}")
}

/// The suite that Go's servers choose on a machine with AES instructions.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..ring::default_provider()
    }
}

pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(certificate: &Path, key: &Path) -> Result<Pair, Fault> {
    let certificate = CertificateDer::from_pem_file(certificate).map_err(|e| format!("{e:?}"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{e:?}"))?;
    Ok((vec![certificate], key))
}
