//! Whom the client talks to: nodes of one cluster, whatever the dates of their certificates.
//!
//! A node's clock may say 1970 or 2099, and the command line is the only window into it. So the
//! chain is checked as nodes check each other's ([`certificate::verify_peer`]), without a clock,
//! and the leaf's dates only decide whom to ask first (decision 0085).

use std::sync::Arc;

use hivemind_spec::certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};

use crate::quantity::show_span;

/// Checks that a node belongs to the cluster.
#[derive(Debug)]
struct NodeVerifier {
    root: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect();
        // Every leaf of a node carries the cluster's name, so the name says no more than the chain.
        certificate::verify_peer(&self.root, &chain)
            .map(|_| ServerCertVerified::assertion())
            .map_err(|error| rustls::Error::Other(OtherError(Arc::new(error))))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("nodes speak TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// TLS 1.3 that trusts nodes below this root CA (DER) alone.
///
/// # Errors
/// When TLS cannot be set up.
pub(super) fn configuration(root: Vec<u8>) -> Result<ClientConfig, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NodeVerifier { root, algorithms }))
        .with_no_client_auth();
    Ok(config)
}

/// How far the clock that made a leaf is off, in words; `None` when the leaf is valid now.
pub(super) fn clock_doubt(leaf: &[u8], now_ms: u64) -> Option<String> {
    let (from_ms, until_ms) = certificate::validity_ms(leaf).ok()?;
    if now_ms < from_ms {
        Some(format!("its clock is at least {} ahead of this machine's", show_span(from_ms - now_ms)))
    } else if now_ms > until_ms {
        Some(format!("its clock is at least {} behind this machine's", show_span(now_ms - until_ms)))
    } else {
        None
    }
}
