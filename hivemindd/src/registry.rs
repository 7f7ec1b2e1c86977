//! What asks registries, for images of containers and for releases (OCI distribution specification 1.1).

use std::time::Duration;

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;

/// How long a server may take to accept a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may be silent in the middle of an answer.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What this program calls itself.
pub(crate) const AGENT: &str = concat!("hivemindd/", env!("CARGO_PKG_VERSION"));

/// A client of registries, of which those in `insecure` (`host:port`) are spoken to by plain HTTP.
///
/// # Errors
/// When the system's certificates cannot be used.
pub(crate) fn client(insecure: &[String]) -> Result<Client, OciDistributionError> {
    Client::try_from(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: AGENT,
        ..Default::default()
    })
}
