//! TLS of the kubelet's server.

use crate::KubeletError;
use crate::config::KubeletConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

const MASTERS: &str = "system:masters";

/// What greets clients; none if no certificate is configured.
pub fn acceptor(config: &KubeletConfig) -> Result<Option<TlsAcceptor>, KubeletError> {
    let (Some(cert), Some(key), Some(ca)) =
        (&config.tls_cert_file, &config.tls_private_key_file, &config.client_ca_file)
    else {
        return Ok(None);
    };
    let failed =
        |what: &Path, error: String| KubeletError::Tls(format!("{}: {error}", what.display()));
    let chain = certificates(cert).map_err(|error| failed(cert, error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca).map_err(|error| failed(ca, error))? {
        roots.add(certificate).map_err(|error| failed(ca, error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| failed(ca, error.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| KubeletError::Tls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| failed(cert, error.to_string()))?;
    // Upgraded streams need HTTP/1.1; nothing here gains from HTTP/2.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    all.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
}

/// Whether the client's certificate is for the organization that may do everything.
pub fn is_master(connection: &ServerConnection) -> bool {
    let Some(certificate) = connection.peer_certificates().and_then(|list| list.first()) else {
        return false;
    };
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    parsed.subject().iter_organization().any(|organization| organization.as_str() == Ok(MASTERS))
}
