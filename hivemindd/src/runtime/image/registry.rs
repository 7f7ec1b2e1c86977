//! Registries (OCI distribution specification 1.1), and their refusals in words.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use hivemind_core::event::OperationError;
use hivemind_spec::machine;
use hivemind_spec::secret::Credentials;
use oci_client::Reference;
use oci_client::client::BlobResponse;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use super::MANIFEST_TYPES;
use crate::registry;
use crate::runtime::client::{permanent, transient};

/// The registries there are.
pub(super) struct Registries {
    /// Asks as nobody. It remembers what it was let in with, so who has a password asks with a client of its own.
    anonymous: oci_client::Client,
    config: machine::Registries,
}

impl Registries {
    pub(super) fn new(config: machine::Registries) -> Result<Self, OperationError> {
        Ok(Self { anonymous: client(&config.insecure)?, config })
    }

    /// Where an image is: at the mirrors of its registry, and there, where a password is used if there is one.
    pub(super) fn source(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<Source, OperationError> {
        let reference = parse_reference(name)?;
        let anonymous = || (self.anonymous.clone(), RegistryAuth::Anonymous);
        let mirrors = self.config.mirrors_of(reference.registry()).iter().map(|mirror| {
            let mut reference = reference.clone();
            reference.set_mirror_registry(mirror.clone());
            let (client, auth) = anonymous();
            Place { reference, client, auth }
        });
        let mut places: Vec<Place> = mirrors.collect();
        let (client, auth) = match credentials {
            None => anonymous(),
            Some(Credentials { username, password }) => {
                (client(&self.config.insecure)?, RegistryAuth::Basic(username, password))
            }
        };
        places.push(Place { reference: reference.clone(), client, auth });
        Ok(Source { name: name.to_owned(), reference, places, failed: Mutex::default() })
    }
}

/// Where one image comes from, for one pull.
pub(super) struct Source {
    name: String,
    pub(super) reference: Reference,
    /// The mirrors, then the registry.
    places: Vec<Place>,
    /// What the mirrors said that are not asked any more.
    failed: Mutex<BTreeMap<usize, String>>,
}

/// A registry, or a mirror of it, and who asks.
struct Place {
    reference: Reference,
    client: oci_client::Client,
    auth: RegistryAuth,
}

/// A blob as it comes.
pub(super) struct FromRegistry {
    pub(super) host: String,
    pub(super) data: BoxStream<'static, std::io::Result<Bytes>>,
    /// How many bytes are to be skipped.
    pub(super) skip: u64,
}

impl Source {
    /// The bytes of the manifest for a tag or a digest.
    pub(super) async fn manifest(&self, digest: Option<&str>) -> Result<Vec<u8>, OperationError> {
        let mut index = self.first();
        loop {
            match self.places[index].manifest(digest).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => index = self.after(index, error)?,
            }
        }
    }

    /// Opens a blob at `start`, if the registry can.
    pub(super) async fn open_blob(&self, digest: &str, start: u64) -> Result<FromRegistry, OperationError> {
        let mut index = self.first();
        loop {
            match self.places[index].open_blob(digest, start).await {
                Ok(opened) => return Ok(opened),
                Err(error) => index = self.after(index, error)?,
            }
        }
    }

    /// What a mirror sent is no use. Returns whether it was one: the registry itself has to do.
    pub(super) fn is_useless(&self, host: &str, why: &str) -> bool {
        let mirrors = &self.places[..self.places.len() - 1];
        let found = mirrors.iter().position(|place| place.reference.resolve_registry() == host);
        if let Some(index) = found {
            self.failed().insert(index, why.to_owned());
        }
        found.is_some()
    }

    /// The first place that has not failed.
    fn first(&self) -> usize {
        let failed = self.failed();
        (0..self.places.len()).find(|index| !failed.contains_key(index)).unwrap_or(self.places.len() - 1)
    }

    /// The place that is asked after one that failed. The last one's failure is that of all.
    fn after(&self, index: usize, error: OciDistributionError) -> Result<usize, OperationError> {
        let reference = &self.places[index].reference;
        let error = explain(&self.name, reference, error);
        if index + 1 < self.places.len() {
            tracing::debug!(mirror = reference.resolve_registry(), %error, "asking the next");
            self.failed().insert(index, error.text);
            return Ok(self.first());
        }
        let mirrors: String = self.failed().values().map(|text| format!("; mirror: {text}")).collect();
        Err(OperationError { text: error.text + &mirrors, ..error })
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<usize, String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    async fn manifest(&self, digest: Option<&str>) -> Result<Vec<u8>, OciDistributionError> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_owned()),
            None => self.reference.clone(),
        };
        let (bytes, _) = self.client.pull_manifest_raw(&reference, &self.auth, MANIFEST_TYPES).await?;
        Ok(bytes.into())
    }

    async fn open_blob(&self, digest: &str, start: u64) -> Result<FromRegistry, OciDistributionError> {
        let Self { reference, client, auth } = self;
        let wanted = OciDescriptor { digest: digest.to_owned(), ..Default::default() };
        // Whoever has the manifest from another node has not been let in yet.
        client.store_auth_if_needed(reference.resolve_registry(), auth).await;
        let (stream, skip) = if start == 0 {
            (client.pull_blob_stream(reference, &wanted).await?, 0)
        } else {
            match client.pull_blob_stream_partial(reference, &wanted, start, None).await? {
                BlobResponse::Full(stream) => (stream, start),
                BlobResponse::Partial(stream) => (stream, 0),
            }
        };
        Ok(FromRegistry { host: reference.resolve_registry().to_owned(), data: stream.stream, skip })
    }
}

fn client(insecure: &[String]) -> Result<oci_client::Client, OperationError> {
    registry::client(insecure)
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
