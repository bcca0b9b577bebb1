//! TLS: what the server shows, and whom it believes.

use crate::authn::Identity;
use crate::pki::{Pki, PkiError};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

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

/// The server's side: HTTP/2 and HTTP/1.1, client certificates of the cluster's CA optional. A
/// certificate that is expired or of another CA fails the handshake.
///
/// # Errors
/// If a certificate or key is unusable.
pub fn server_config(pki: &Pki) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(pki)?, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| tls_error("building the verifier of client certificates", e))?;
    let (chain, key) = pki.server.der()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls_error("choosing TLS versions", e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| tls_error("taking the server's certificate", e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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

/// Whom the peer proved to be; anonymous without a certificate.
pub fn identity(connection: &rustls::ServerConnection) -> Identity {
    connection
        .peer_certificates()
        .and_then(|chain| Identity::from_certificate(chain.first()?))
        .unwrap_or_else(Identity::anonymous)
}
