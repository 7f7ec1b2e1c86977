//! What people do with registries.

use hivemind_qemu::{EmptyRegistry, Lab};
use hivemind_spec::id::Digest;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

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
    add(lab, registry, from, to, &[]);
}

/// The same with more layers, each with a file of so many random bytes.
///
/// # Panics
/// When it fails, with the reason.
pub fn add(lab: &Lab, registry: &EmptyRegistry, from: &str, to: &str, more: &[usize]) {
    let reference = |host: &str, name: &str| -> Reference {
        format!("{host}/{name}").parse().unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (own, other) = (format!("{}:{OWN_PORT}", lab.gateway()), registry.address(lab).to_string());
    let name = to.replace(':', "-");
    let copy = || {
        let (from, to) = (reference(&own, from), reference(&other, to));
        let anonymous = RegistryAuth::Anonymous;
        let (mut manifest, mut blobs, config) = talk(&own, async |client| {
            let (manifest, _) = client.pull_image_manifest(&from, &anonymous).await?;
            let pull = async |part: &OciDescriptor| {
                let mut blob = Vec::new();
                client.pull_blob(&from, part, &mut blob).await?;
                Ok::<_, OciDistributionError>(blob)
            };
            let mut blobs = Vec::new();
            for part in &manifest.layers {
                blobs.push((pull(part).await?, part.digest.clone()));
            }
            let config = pull(&manifest.config).await?;
            Ok((manifest, blobs, config))
        });
        let mut config: Value = serde_json::from_slice(&config).unwrap_or_else(|error| panic!("{error}"));
        for (number, bytes) in more.iter().enumerate() {
            let layer = random_layer(&format!("{name}-{number}"), *bytes);
            let digest = format!("sha256:{}", Digest::of(&layer));
            manifest.layers.push(OciDescriptor {
                // Whatever vocabulary the others are in.
                media_type: manifest.layers[0].media_type.replace("+gzip", "").replace(".gzip", ""),
                digest: digest.clone(),
                size: i64::try_from(layer.len()).unwrap_or(i64::MAX),
                ..OciDescriptor::default()
            });
            if let Some(ids) = config["rootfs"]["diff_ids"].as_array_mut() {
                ids.push(digest.clone().into());
            }
            blobs.push((layer, digest));
        }
        let config = config.to_string().into_bytes();
        manifest.config.digest = format!("sha256:{}", Digest::of(&config));
        manifest.config.size = i64::try_from(config.len()).unwrap_or(i64::MAX);
        blobs.push((config, manifest.config.digest.clone()));
        talk(&other, async |client| {
            for (blob, digest) in blobs {
                client.push_blob(&to, blob, &digest).await?;
            }
            client.push_manifest(&to, &OciManifest::Image(manifest)).await
        });
    };
    lab.enter(copy).unwrap_or_else(|error| panic!("{error}"));
}

/// How many bytes of answers a registry has sent of a repository (`shop`), by its log of requests in Apache's combined
/// format.
pub fn sent_bytes(log: &str, repository: &str) -> u64 {
    let asked = format!("\"GET /v2/{repository}/");
    let sent = |line: &str| {
        let (_, answer) = line.split_once(&asked)?.1.split_once("\" ")?;
        answer.split(' ').nth(1)?.parse::<u64>().ok()
    };
    log.lines().filter_map(sent).sum()
}

/// A layer with one file, which no other has by another name, as a tar archive.
fn random_layer(name: &str, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    ChaCha8Rng::from_seed(Digest::of(name.as_bytes()).0).fill_bytes(&mut content);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    let added = archive.append_data(&mut header, format!("random/{name}"), content.as_slice());
    added.and_then(|()| archive.into_inner()).unwrap_or_else(|error| panic!("{error}"))
}
