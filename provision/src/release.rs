//! Update bundles where people have them: in a folder, in a folder of a web server, in a registry. The first two are
//! OCI image layouts, the third is what such a layout was pushed to (OCI image and distribution specification 1.1).

use std::fmt;
use std::fs;
use std::path::PathBuf;

use futures_util::{Stream, StreamExt as _};
use hivemind_spec::document::MAX_DOCUMENT_BYTES;
use hivemind_spec::id::Digest;
use hivemind_spec::release::OsReleaseSpec;
use hivemind_spec::words::chain;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde::Deserialize;

use crate::failure::{Failure, Result};
use crate::registry::{self, AGENT, CONNECT_TIMEOUT, READ_TIMEOUT};

/// Where an update bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A folder of a web server, without a slash at its end.
    Web(String),
    /// A repository and a tag or digest.
    Registry(Reference),
}

impl Place {
    /// Reads what a person wrote: `http://` and `https://` begin a web server's folder; a registry's name has a dot or
    /// a port and is followed by a repository; all else is a folder.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Self::Web(text.trim_end_matches('/').to_owned());
        }
        let host = text.split_once('/').map(|(host, _)| host);
        let names_host = host.is_some_and(|host| {
            !host.starts_with('.') && (host.contains('.') || host.contains(':') || host == "localhost")
        });
        match text.parse() {
            Ok(reference) if names_host => Self::Registry(reference),
            _ => Self::Folder(text.into()),
        }
    }

    /// Where machines find it as well; none for a folder of this machine.
    pub fn source(&self) -> Option<String> {
        match self {
            Self::Folder(_) => None,
            Self::Web(_) | Self::Registry(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Web(url) => url.fmt(f),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

/// What an OCI image layout says of its content, as far as it matters here.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

/// The description of the release in a bundle. `insecure`: registries (`host:port`) that are spoken to by plain HTTP.
///
/// # Errors
/// `bundle-unreachable` when a server does not answer or refuses, `not-a-bundle` for all else.
pub async fn read(place: &Place, insecure: &[String]) -> Result<OsReleaseSpec> {
    // There is one provider; another caller may have set it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let reader = Reader { place, ways: Ways::to(place, insecure)? };
    let manifest = match &reader.ways {
        Ways::Registry(client, reference) => reader.pull_manifest(client, reference).await?,
        Ways::Folder(_) | Ways::Web(..) => {
            let index: Index = reader.parse("index.json", &reader.file("index.json").await?)?;
            let [manifest] = index.manifests.as_slice() else {
                return Err(reader.no_bundle("index.json", &"it names not one manifest"));
            };
            reader.blob(manifest).await?
        }
    };
    let manifest: Manifest = reader.parse("the manifest", &manifest)?;
    reader.parse("the description", &reader.blob(&manifest.config).await?)
}

/// What it takes to read a place.
enum Ways {
    Folder(PathBuf),
    Web(reqwest::Client, String),
    Registry(Box<oci_client::Client>, Reference),
}

impl Ways {
    fn to(place: &Place, insecure: &[String]) -> Result<Self> {
        let cannot = |error: &dyn std::error::Error| {
            Failure::local("bundle-unreachable", format!("{place}: {}", chain(error)))
        };
        Ok(match place {
            Place::Folder(folder) => Self::Folder(folder.clone()),
            Place::Web(url) => {
                let builder = reqwest::Client::builder()
                    .user_agent(AGENT)
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT);
                Self::Web(builder.build().map_err(|error| cannot(&error))?, url.clone())
            }
            Place::Registry(reference) => {
                let client = registry::client(insecure).map_err(|error| cannot(&error))?;
                Self::Registry(Box::new(client), reference.clone())
            }
        })
    }
}

struct Reader<'a> {
    place: &'a Place,
    ways: Ways,
}

impl Reader<'_> {
    async fn pull_manifest(&self, client: &oci_client::Client, reference: &Reference) -> Result<Vec<u8>> {
        let anonymous = RegistryAuth::Anonymous;
        client
            .auth(reference, &anonymous, RegistryOperation::Pull)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let got = client.pull_manifest_raw(reference, &anonymous, &[OCI_IMAGE_MEDIA_TYPE]).await;
        Ok(got.map_err(|error| self.unreachable(&error))?.0.to_vec())
    }

    /// Reads a blob, which has to be what it is called.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let hex = descriptor.digest.strip_prefix("sha256:").unwrap_or_default();
        let digest: Digest = hex.parse().map_err(|error| self.no_bundle(&descriptor.digest, &error))?;
        let bytes = self.file(&format!("blobs/sha256/{digest}")).await?;
        if Digest::of(&bytes) != digest {
            return Err(self.no_bundle(&descriptor.digest, &"it was changed: its content has another digest"));
        }
        Ok(bytes)
    }

    /// Reads a file of the layout, by its path.
    async fn file(&self, name: &str) -> Result<Vec<u8>> {
        match &self.ways {
            Ways::Folder(folder) => fs::read(folder.join(name)).map_err(|error| self.no_bundle(name, &error)),
            Ways::Web(client, url) => {
                let answer = client.get(format!("{url}/{name}")).send().await;
                let answer = answer.map_err(|error| self.unreachable(&error))?;
                if !answer.status().is_success() {
                    return Err(self.no_bundle(name, &format!("the server answered {}", answer.status())));
                }
                self.collect(name, answer.bytes_stream()).await
            }
            Ways::Registry(client, reference) => {
                let digest = format!("sha256:{}", name.rsplit('/').next().unwrap_or_default());
                let blob = OciDescriptor { digest, ..Default::default() };
                let opened = client.pull_blob_stream(reference, &blob).await;
                self.collect(name, opened.map_err(|error| self.unreachable(&error))?.stream).await
            }
        }
    }

    /// Nothing that is read here is longer than a document may be: the description becomes one.
    async fn collect<B: AsRef<[u8]>, E: std::error::Error>(
        &self,
        name: &str,
        stream: impl Stream<Item = std::result::Result<B, E>>,
    ) -> Result<Vec<u8>> {
        let mut stream = std::pin::pin!(stream);
        let mut all = Vec::new();
        while let Some(part) = stream.next().await {
            all.extend_from_slice(part.map_err(|error| self.unreachable(&error))?.as_ref());
            if all.len() > MAX_DOCUMENT_BYTES {
                return Err(self.no_bundle(name, &format!("it has over {MAX_DOCUMENT_BYTES} bytes")));
            }
        }
        Ok(all)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| self.no_bundle(name, &error))
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failure {
        Failure::local("bundle-unreachable", format!("{} cannot be read: {}", self.place, chain(error)))
            .advice("look at the address; for a registry without TLS give `--insecure-registry HOST:PORT`")
    }

    fn no_bundle(&self, name: &str, why: &dyn fmt::Display) -> Failure {
        Failure::input("not-a-bundle", format!("{} is no update bundle: {name}: {why}", self.place))
            .advice("give the folder `bundle` that `image/build` writes, or where it was put")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_is_a_folder_unless_it_names_a_server() {
        for folder in ["build/bundle", "./a.b/c", "../x:1/y", "/srv/os", "bundle"] {
            assert_eq!(Place::parse(folder), Place::Folder(folder.into()), "{folder}");
        }
        let web = Place::parse("https://example.org/hivemind/bundle/");
        assert_eq!(web.source().as_deref(), Some("https://example.org/hivemind/bundle"));
        for name in ["registry.example.org/hivemind/os:0.2.0", "localhost/os:1", "host:5000/hivemind/os:2"] {
            let Place::Registry(reference) = Place::parse(name) else { panic!("{name}") };
            assert_eq!(reference.to_string(), name);
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_no_bundle_is_refused_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().to_owned());
        assert!(read(&place, &[]).await.unwrap_err().detail.contains("index.json"));
        let digest = Digest::of(b"manifest");
        let index = json!({ "manifests": [{ "digest": format!("sha256:{digest}") }] });
        fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(digest.to_string()), "another").unwrap();
        let said = read(&place, &[]).await.unwrap_err().detail;
        assert!(said.contains("another digest"), "{said}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for place in [format!("http://{closed}/bundle"), format!("{closed}/os:1")] {
            let failure = read(&Place::parse(&place), &[closed.to_string()]).await.unwrap_err();
            assert_eq!(failure.code, "bundle-unreachable");
            assert!(failure.detail.contains(&closed.to_string()), "{}", failure.detail);
        }
    }
}
