//! What people do with registries.

use hivemind_qemu::{EmptyRegistry, Lab};
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciManifest;
use oci_client::secrets::RegistryAuth;

/// Where this computer finds the lab's own registry, from inside its network.
const OWN_PORT: u16 = 5000;

/// Talks to a registry (`host:port`) that speaks plain HTTP.
///
/// # Panics
/// When it fails, with the reason.
pub fn talk<T>(registry: &str, work: impl AsyncFnOnce(&Client) -> Result<T, OciDistributionError>) -> T {
    // The client asks for the provider even where it speaks no TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(vec![registry.to_owned()]),
        ..Default::default()
    });
    let done = runtime.unwrap_or_else(|error| panic!("{error}")).block_on(work(&client));
    done.unwrap_or_else(|error| panic!("{registry}: {error}"))
}

/// Makes `to` (`shop:1`) of an empty registry name what `from` (`nginx:2`) names in the lab's own.
///
/// # Panics
/// When it fails, with the reason.
pub fn tag(lab: &Lab, from: &str, registry: &EmptyRegistry, to: &str) {
    let reference = |host: &str, name: &str| -> Reference {
        format!("{host}/{name}").parse().unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (own, other) = (format!("{}:{OWN_PORT}", lab.gateway()), registry.address(lab).to_string());
    let copy = || {
        let (from, to) = (reference(&own, from), reference(&other, to));
        let anonymous = RegistryAuth::Anonymous;
        let (manifest, blobs) = talk(&own, async |client| {
            let (manifest, _) = client.pull_image_manifest(&from, &anonymous).await?;
            let mut blobs = Vec::new();
            for part in manifest.layers.iter().chain([&manifest.config]) {
                let mut blob = Vec::new();
                client.pull_blob(&from, part, &mut blob).await?;
                blobs.push((blob, part.digest.clone()));
            }
            Ok((manifest, blobs))
        });
        talk(&other, async |client| {
            for (blob, digest) in blobs {
                client.push_blob(&to, blob, &digest).await?;
            }
            client.push_manifest(&to, &OciManifest::Image(manifest)).await
        });
    };
    lab.enter(copy).unwrap_or_else(|error| panic!("{error}"));
}
