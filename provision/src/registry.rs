//! Registries, asked from this machine (OCI distribution specification 1.1).

use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use hivemind_spec::id::Digest;
use hivemind_spec::words::chain;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;

/// How long a server may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to send the next bytes.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What this program calls itself.
pub const AGENT: &str = concat!("hivemind/", env!("CARGO_PKG_VERSION"));

/// What asks registries. `insecure`: those (`host:port`) that are spoken to by plain HTTP.
///
/// # Errors
/// When the system's certificates cannot be used.
pub fn client(insecure: &[String]) -> Result<Client, OciDistributionError> {
    // There is one provider; another caller may have set it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: AGENT,
        ..Default::default()
    })
}

/// The digest of what a reference names now: of its manifest, or of the index of manifests for several platforms.
/// Asks with the password that `docker login` keeps on this machine, where there is one.
///
/// # Errors
/// What stands in the way, in words.
pub async fn digest(client: &Client, reference: &Reference) -> Result<Digest, String> {
    let host = reference.resolve_registry();
    let asked = client.fetch_manifest_digest(reference, &credentials(host).await?).await;
    let said = asked.map_err(|error| explain(host, reference, &error))?;
    let hex = said.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    hex.ok_or_else(|| format!("registry {host} names it by {said:?}, which machines cannot check"))
}

/// Looks where `docker login` and `podman login` keep passwords; a helper that they use is a program, which takes time.
async fn credentials(host: &str) -> Result<RegistryAuth, String> {
    let name = match host {
        // Docker keeps its own by an address of old.
        "index.docker.io" | "docker.io" => "https://index.docker.io/v1/".to_owned(),
        host => host.to_owned(),
    };
    let found = tokio::task::spawn_blocking(move || docker_credential::get_credential(&name)).await;
    match found.map_err(|error| error.to_string())? {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => {
            Err(format!("the identity token for {host} in Docker's configuration cannot be used here"))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {
            Ok(RegistryAuth::Anonymous)
        }
        Err(error) => Err(format!("Docker's configuration has no password for {host} to use: {error}")),
    }
}

fn explain(host: &str, reference: &Reference, error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            format!("registry {host} wants a password (401); `docker login {host}` keeps one on this machine")
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            format!("registry {host} has no {reference} (404)")
        }
        OciDistributionError::ServerError { code, .. } => {
            format!("registry {host} failed with status {code}")
        }
        error => format!("registry {host} cannot be asked: {}", chain(error)),
    }
}
