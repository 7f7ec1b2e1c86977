//! Registries (OCI distribution specification 1.1), and their refusals in words.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use hivemind_core::event::OperationError;
use hivemind_spec::secret::Credentials;
use oci_client::Reference;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use super::MANIFEST_TYPES;
use crate::runtime::client::{permanent, transient};

/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a registry may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The registries there are.
pub(super) struct Registries {
    /// Asks as nobody. It remembers what it was let in with, so who has a password asks with a client of its own.
    anonymous: oci_client::Client,
    insecure: Vec<String>,
}

impl Registries {
    /// `insecure`: registries (`host:port`) spoken to by plain HTTP.
    pub(super) fn new(insecure: &[String]) -> Result<Self, OperationError> {
        Ok(Self { anonymous: client(insecure)?, insecure: insecure.to_vec() })
    }

    /// The one that has an image, to be asked with a password if there is one.
    pub(super) fn source(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<Source, OperationError> {
        let reference = parse_reference(name)?;
        Ok(match credentials {
            None => Source { reference, client: self.anonymous.clone(), auth: RegistryAuth::Anonymous },
            Some(Credentials { username, password }) => {
                let auth = RegistryAuth::Basic(username, password);
                Source { reference, client: client(&self.insecure)?, auth }
            }
        })
    }
}

/// Where an image comes from, and who asks.
pub(super) struct Source {
    pub(super) reference: Reference,
    client: oci_client::Client,
    auth: RegistryAuth,
}

impl Source {
    /// The bytes of the manifest that a reference names.
    pub(super) async fn manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Vec<u8>, OperationError> {
        let answer = self.client.pull_manifest_raw(reference, &self.auth, MANIFEST_TYPES).await;
        let (bytes, _) = answer.map_err(|error| explain(name, reference, error))?;
        Ok(bytes.into())
    }

    /// Opens a blob at `start`, if the registry can. Returns how many bytes are to be skipped.
    pub(super) async fn open_blob(
        &self,
        digest: &str,
        start: u64,
    ) -> Result<(BoxStream<'static, std::io::Result<Bytes>>, u64), OperationError> {
        let wanted = OciDescriptor { digest: digest.to_owned(), ..Default::default() };
        let Self { reference, client, auth } = self;
        let explain = |error| explain(&reference.whole(), reference, error);
        // Whoever has the manifest from another node has not been let in yet.
        client.store_auth_if_needed(reference.resolve_registry(), auth).await;
        if start == 0 {
            let stream = client.pull_blob_stream(reference, &wanted).await.map_err(explain)?;
            return Ok((stream.stream, 0));
        }
        match client.pull_blob_stream_partial(reference, &wanted, start, None).await.map_err(explain)? {
            BlobResponse::Full(stream) => Ok((stream.stream, start)),
            BlobResponse::Partial(stream) => Ok((stream.stream, 0)),
        }
    }
}

/// A client of registries, of which those in `insecure` (`host:port`) are spoken to by plain HTTP.
fn client(insecure: &[String]) -> Result<oci_client::Client, OperationError> {
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("hivemindd/", env!("CARGO_PKG_VERSION")),
        ..Default::default()
    };
    oci_client::Client::try_from(config)
        .map_err(|error| permanent(format!("the registry client cannot be made: {error}")))
}

/// Reads an image reference.
pub(super) fn parse_reference(name: &str) -> Result<Reference, OperationError> {
    name.parse().map_err(|error| permanent(format!("{name:?} is not an image reference: {error}")))
}

/// The innermost cause of an error: `connection refused` instead of `error sending request`.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Says in words what a registry refused.
pub(super) fn explain(name: &str, reference: &Reference, error: OciDistributionError) -> OperationError {
    let host = reference.resolve_registry();
    match error {
        OciDistributionError::RequestError(error) if error.is_connect() || error.is_timeout() => {
            transient(format!("cannot reach registry {host}: {}", innermost(&error)))
        }
        OciDistributionError::RequestError(error) => {
            transient(format!("talking to registry {host} failed: {}", innermost(&error)))
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            transient(format!(
                "registry {host} does not let this node read {name} (401); if it is private, `hivemind secrets login \
                 {host}` gives the password, else it may be misspelt"
            ))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let first = envelope.errors.first();
            match first.map(|error| &error.code) {
                Some(OciErrorCode::ManifestUnknown | OciErrorCode::NotFound) => {
                    transient(format!("registry {host} has no {name} (404 manifest unknown)"))
                }
                Some(OciErrorCode::NameUnknown) => transient(format!(
                    "registry {host} has no repository {} (404 name unknown)",
                    reference.repository()
                )),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => transient(format!(
                    "registry {host} does not let this node read {name} (denied); the password of \
                         `hivemind secrets login {host}` is wrong or has no right to it"
                )),
                Some(OciErrorCode::Toomanyrequests) => {
                    transient(format!("registry {host} is limiting requests (429); trying again later"))
                }
                _ => transient(format!("registry {host} refused {name}: {envelope}")),
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            transient(format!("registry {host} has no {name} (404)"))
        }
        OciDistributionError::ServerError { code, .. } => {
            transient(format!("registry {host} failed with status {code}"))
        }
        OciDistributionError::DigestError(error) => transient(format!("digest mismatch in {name}: {error}")),
        error => transient(format!("registry {host}, {name}: {}", innermost(&error))),
    }
}
