//! TLS: what the server shows, and whom it believes.
//!
//! As upstream, the handshake only proves that a client has the key of the certificate that it
//! shows; whose word that certificate is comes after it, so that a bad one is answered with a 401
//! that every client can read, and the log says why. A resumed connection is judged anew.

use crate::authn::{Caller, Identity};
use crate::pki::{Pki, PkiError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Characters of a refusal that the log shows: what is in a certificate may be as long as a
/// stranger likes.
const LONGEST_REASON: usize = 300;

fn tls_error(what: &str, why: impl std::fmt::Display) -> PkiError {
    PkiError::Crypto { what: what.into(), why: why.to_string() }
}

fn roots(pki: &Pki) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    let (chain, _) = pki.ca_pair().der()?;
    for certificate in chain {
        roots.add(certificate).map_err(|e| tls_error("trusting the cluster's CA", e))?;
    }
    Ok(Arc::new(roots))
}

/// The server's side: HTTP/2 and HTTP/1.1, client certificates optional.
#[derive(Clone)]
pub struct ServerTls {
    /// What handshakes go by.
    pub config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl ServerTls {
    /// With the server's certificate and the cluster's CA.
    ///
    /// # Errors
    /// If a certificate or key is unusable.
    pub fn new(pki: &Pki) -> Result<Self, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots(pki)?, Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|e| tls_error("building the verifier of client certificates", e))?;
        let (chain, key) = pki.server.der()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls_error("choosing TLS versions", e))?
            .with_client_cert_verifier(Arc::new(Possession(Arc::clone(&clients))))
            .with_single_cert(chain, key)
            .map_err(|e| tls_error("taking the server's certificate", e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(ServerTls { config: Arc::new(config), clients })
    }

    /// Whom a client is taken for at a time, by the chain that it showed, its own certificate
    /// first. That it has the key was proved in the handshake.
    pub fn caller(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Caller {
        let Some((leaf, intermediates)) = chain.split_first() else { return Caller::anonymous() };
        let identity = Identity::from_certificate(leaf);
        if let Err(error) = self.clients.verify_client_cert(leaf, intermediates, now) {
            let user = identity.map(|i| i.user).unwrap_or_default();
            let why = format!("{error}: the certificate of {user:?}");
            return Caller::Refused(why.chars().take(LONGEST_REASON).collect());
        }
        match identity {
            Some(identity) => Caller::Known { identity, until: Some(end(chain, now)) },
            None => Caller::anonymous(),
        }
    }
}

/// When the first certificate of a valid chain expires. Those that have already were not needed
/// for it.
fn end(chain: &[CertificateDer<'_>], now: UnixTime) -> UnixTime {
    let ends = chain.iter().filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    });
    ends.filter(|end| *end >= now).min().unwrap_or(now)
}

/// Takes every certificate whose key the client proves to have. The signatures are checked as the
/// verifier within does, which also says what CAs clients are asked for.
#[derive(Debug)]
struct Possession(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The client's side towards kubelets: they must show a certificate of the cluster's CA, and get
/// to see ours.
///
/// # Errors
/// If a certificate or key is unusable.
pub fn kubelet_client_config(pki: &Pki) -> Result<Arc<ClientConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = pki.kubelet_client.der()?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls_error("choosing TLS versions", e))?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(chain, key)
        .map_err(|e| tls_error("taking the kubelet client certificate", e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiServerConfig;
    use crate::pki::Pair;
    use std::time::SystemTime;

    const DAY: u64 = 24 * 3600;
    /// When the PKIs of these tests are made.
    const MADE: u64 = 2_000_000_000;

    fn pki() -> (tempfile::TempDir, Pki) {
        let dir = tempfile::tempdir().unwrap();
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(MADE);
        let pki = Pki::open(&ApiServerConfig::new(dir.path()), made).unwrap();
        (dir, pki)
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// Why a pair's holder is refused at a time.
    fn refusal(tls: &ServerTls, pair: &Pair, seconds: u64) -> String {
        match tls.caller(&pair.der().unwrap().0, at(seconds)) {
            Caller::Refused(why) => why,
            known => panic!("{known:?}"),
        }
    }

    #[test]
    fn a_certificate_of_the_cluster_is_believed_to_its_end() {
        let (_dir, pki) = pki();
        let tls = ServerTls::new(&pki).unwrap();
        let end = MADE + 365 * DAY;
        let identity = Identity::new("kubernetes-admin", [crate::authn::MASTERS.to_owned()]);
        let known = Caller::Known { identity, until: Some(at(end)) };
        let (mut chain, _) = pki.admin.der().unwrap();
        for now in [MADE, end] {
            assert_eq!(tls.caller(&chain, at(now)), known);
        }
        // The CA outlives it, and changes nothing.
        chain.extend(pki.ca_pair().der().unwrap().0);
        assert_eq!(tls.caller(&chain, at(MADE)), known);
        assert_eq!(tls.caller(&[], at(MADE)), Caller::anonymous());
    }

    #[test]
    fn refusals_say_why() {
        let ((_dir, pki), (_other_dir, other)) = (pki(), pki());
        let tls = ServerTls::new(&pki).unwrap();
        let cases = [
            (&pki.admin, MADE + 365 * DAY + 1, "expired"),
            (&pki.admin, MADE - DAY, "not valid yet"),
            (&pki.server, MADE, "extended key usage"),
            (&other.admin, MADE, "BadSignature"),
        ];
        for (pair, now, why) in cases {
            let said = refusal(&tls, pair, now);
            assert!(said.contains(why), "{why}: {said}");
            assert!(said.contains("the certificate of \"kube"), "{said}");
        }
        let long = "x".repeat(10_000);
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(MADE);
        let said = refusal(&tls, &other.issue_client(&long, None, made).unwrap(), MADE);
        assert!(said.contains("BadSignature") && said.len() <= LONGEST_REASON, "{said}");
    }
}
