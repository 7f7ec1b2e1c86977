//! Registries, asked from this machine (OCI distribution specification 1.1).

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
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
    let said = asked.map_err(|error| explain(host, &error))?;
    Digest::from_oci(&said)
        .ok_or_else(|| format!("registry {host} names it by {said:?}, which machines cannot check"))
}

/// The password for a registry, where there is one. A helper that keeps them is a program, which takes its time.
async fn credentials(host: &str) -> Result<RegistryAuth, String> {
    let (host, files) = (host.to_owned(), login_files(|name| std::env::var_os(name).map(PathBuf::from)));
    let looked = tokio::task::spawn_blocking(move || look_into(&files, &host)).await;
    looked.map_err(|error| error.to_string())?
}

/// The folder of the Docker command line, from the variables of the environment.
pub fn docker_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")))
}

/// Where `docker login` and `podman login` keep passwords (containers-auth.json(5)).
fn login_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = |path: &str| Some(variable("HOME")?.join(path));
    let docker = docker_folder(&variable).map(|folder| folder.join("config.json"));
    let podman = variable("REGISTRY_AUTH_FILE");
    let runtime = variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    [docker, podman, runtime, home(".config/containers/auth.json")].into_iter().flatten().collect()
}

fn look_into(files: &[PathBuf], host: &str) -> Result<RegistryAuth, String> {
    let name = match host {
        // Docker keeps its own by an address of old.
        "index.docker.io" | "docker.io" => "https://index.docker.io/v1/",
        host => host,
    };
    for path in files {
        let cannot = |why: &dyn std::fmt::Display| format!("{}, {host}: {why}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.map_err(|error| cannot(&error))?,
        };
        match docker_credential::get_credential_from_reader(BufReader::new(file), name) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(RegistryAuth::Basic(user, password));
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                return Err(cannot(&"its identity token cannot be used here"));
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // As all helpers say it: Docker's own protocol knows no code for it.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") => {}
            Err(error) => return Err(cannot(&error)),
        }
    }
    Ok(RegistryAuth::Anonymous)
}

fn explain(host: &str, error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            format!("registry {host} wants a password (401); `docker login {host}` keeps one on this machine")
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            format!("registry {host} does not have it (404)")
        }
        OciDistributionError::ServerError { code, .. } => {
            format!("registry {host} failed with status {code}")
        }
        error => format!("registry {host} cannot be asked: {}", chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_where_docker_and_podman_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let variable = |name: &str| match name {
            "HOME" => Some(folder.path().to_owned()),
            "XDG_RUNTIME_DIR" => Some(at("run")),
            _ => None,
        };
        let files = login_files(variable);
        assert_eq!(look_into(&files, "one.example"), Ok(RegistryAuth::Anonymous), "there are no files");
        let write = |path: &str, text: &str| {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), text).unwrap();
        };
        // `ci:secret` and `me:hub`, in base64.
        let docker = r#"{"auths": {"one.example": {"auth": "Y2k6c2VjcmV0"}, "https://index.docker.io/v1/": {"auth": "bWU6aHVi"},
            "token.example": {"identitytoken": "x"}}}"#;
        write(".docker/config.json", docker);
        write("run/containers/auth.json", r#"{"auths": {"two.example:5000": {"auth": "Y2k6c2VjcmV0"}}}"#);
        let basic =
            |user: &str, password: &str| Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
        assert_eq!(look_into(&files, "one.example"), basic("ci", "secret"));
        assert_eq!(look_into(&files, "two.example:5000"), basic("ci", "secret"));
        assert_eq!(look_into(&files, "index.docker.io"), basic("me", "hub"));
        assert_eq!(look_into(&files, "other.example"), Ok(RegistryAuth::Anonymous));
        let refused = look_into(&files, "token.example").unwrap_err();
        assert!(refused.contains("identity token") && refused.contains("config.json"), "{refused}");
        write(".docker/config.json", "no JSON");
        assert!(look_into(&files, "one.example").unwrap_err().contains("config.json"));
    }
}
