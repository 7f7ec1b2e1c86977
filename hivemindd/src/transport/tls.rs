//! TLS 1.3 between nodes: both sides show leaf, node CA and token CA, and both check the chain up
//! to the root CA without asking a clock. Also where the HTTPS API takes its certificate from.

use std::sync::{Arc, PoisonError, RwLock};

use hivemind_spec::certificate::{self, CertificateError, NodeIdentity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};

use super::TransportError;
use super::wire::ALPN;
use crate::identity::Leaf;

/// The provider of TLS's cryptography: ring, and nothing else.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The leaf in use. Shared by everything that speaks TLS as this node, so that a renewed leaf
/// takes effect everywhere with the next handshake.
#[derive(Debug)]
pub struct CurrentLeaf {
    current: RwLock<Arc<CertifiedKey>>,
}

impl CurrentLeaf {
    /// Starts with a leaf.
    ///
    /// # Errors
    /// When its key is of a kind that the provider does not know.
    pub fn new(leaf: &Leaf) -> Result<Arc<Self>, TransportError> {
        Ok(Arc::new(Self { current: RwLock::new(certified(leaf)?) }))
    }

    /// Takes another leaf into use.
    ///
    /// # Errors
    /// As for [`CurrentLeaf::new`]; the one before then stays.
    pub fn set(&self, leaf: &Leaf) -> Result<(), TransportError> {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified(leaf)?;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn certified(leaf: &Leaf) -> Result<Arc<CertifiedKey>, TransportError> {
    CertifiedKey::from_der(leaf.chain().to_vec(), leaf.key(), &provider())
        .map(Arc::new)
        .map_err(TransportError::Tls)
}

impl ResolvesServerCert for CurrentLeaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for CurrentLeaf {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Checks peers in both directions.
#[derive(Debug)]
struct PeerVerifier {
    root: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<NodeIdentity, rustls::Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect();
        // `Other` keeps the words: they travel to the peer in the QUIC close frame.
        certificate::verify_peer(&self.root, &chain)
            .map_err(|error| rustls::Error::Other(OtherError(Arc::new(error))))
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not configured; a signature of it is never asked for.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken between nodes".to_owned()))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Neither name nor time count: the node is its node CA's key.
        self.verify(leaf, rest).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, rest).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// TLS for both roles. Sessions are never resumed: each connection proves the whole chain.
pub(super) fn configurations(
    root: &[u8],
    leaf: &Arc<CurrentLeaf>,
) -> Result<(ServerConfig, ClientConfig), TransportError> {
    let provider = provider();
    let verifier = Arc::new(PeerVerifier {
        root: root.to_vec(),
        algorithms: provider.signature_verification_algorithms,
    });
    let versions = [&rustls::version::TLS13];
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(TransportError::Tls)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(leaf.clone());
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(TransportError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(leaf.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    Ok((server, client))
}

/// Who is at the other end of a connection, with node CA and token CA as DER.
pub(super) fn peer_of(
    root: &[u8],
    connection: &quinn::Connection,
) -> Result<(NodeIdentity, Vec<Vec<u8>>), CertificateError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .unwrap_or_default();
    let [_, node_ca, token_ca, ..] = chain.as_slice() else {
        return Err(CertificateError::Length { found: chain.len() });
    };
    // The handshake has verified the whole chain; this names who it is.
    let identity = certificate::verify_node_chain(root, node_ca, token_ca)?;
    Ok((identity, vec![node_ca.to_vec(), token_ca.to_vec()]))
}
