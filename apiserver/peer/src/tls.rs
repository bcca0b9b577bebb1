//! What members show each other and whom they believe: certificates of the cluster's CA only.

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// A CA, certificate or key that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct TlsError {
    what: &'static str,
    why: String,
}

fn bad<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TlsError {
    move |why| TlsError { what, why: why.to_string() }
}

/// A member's certificate and the CA that it believes, for both ends of a connection.
#[derive(Clone)]
pub struct PeerTls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl PeerTls {
    /// With the cluster's CA and the member's own chain, its certificate first, and key. The
    /// certificate carries [`crate::peer_name`] and is good for client and server use.
    ///
    /// # Errors
    /// If one of them is unusable.
    pub fn new(
        ca: &CertificateDer<'_>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned()).map_err(bad("trusting the cluster's CA"))?;
        let roots = Arc::new(roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(bad("building the verifier of peers"))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(bad("choosing TLS versions"))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(bad("taking the member's certificate"))?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(bad("choosing TLS versions"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(bad("taking the member's certificate"))?;
        // Connections are few and live long, and each one is to be judged by its certificate.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(PeerTls { server: Arc::new(server), client: Arc::new(client) })
    }
}
