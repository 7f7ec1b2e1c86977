//! `hivemind secrets`: sealed here, opened on the machines, and shown nowhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use hivemind_spec::api::{Accepted, Recipient, Secret, SpecItem};
use hivemind_spec::document::{Document, Kind, is_dns_label};
use hivemind_spec::id::NodeId;
use hivemind_spec::key::PublicKey;
use hivemind_spec::secret::{Content, Credentials, MAX_SECRET_BYTES, REGISTRY_LABEL, secret_key};
use serde_json::json;

use super::push::{held, send};
use crate::bundle;
use crate::cli::{Global, Output, SecretName, Secrets, SecretsList, SecretsLogin, SecretsSet};
use crate::client::{Client, percent, with_query};
use crate::compose::Compiled;
use crate::compose::secrets::Plain;
use crate::deploy::{self, Action};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{BAD, FAINT, STRONG, Table, caution, confirm, paint, say, say_json, styled};

const UNCHANGED: &str = "stopped; look with `hivemind secrets`";

pub(super) fn run(global: &Global, command: Option<&Secrets>) -> Result<Exit> {
    match command {
        None => list(global, &SecretsList::default()),
        Some(Secrets::List(options)) => list(global, options),
        Some(Secrets::Set(options)) => set(global, options),
        Some(Secrets::Login(options)) => login(global, options),
        Some(Secrets::Remove(options)) => remove(global, &options.secret, options.yes),
    }
}

/// The documents of a Compose file, its secrets first, so that no workload waits for one that is on its way.
pub(super) async fn with_secrets(
    client: &Client,
    compiled: &Compiled,
    namespace: &str,
    current: &[SpecItem],
) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    if !compiled.secrets.is_empty() {
        let nodes = recipients(client).await?;
        documents =
            deploy::seal(&compiled.secrets, namespace, current, &nodes, client.key(), bundle::random)?;
    }
    documents.extend(compiled.documents.iter().cloned());
    Ok(documents)
}

/// The machines that a secret is sealed to, each with the key that its certificates prove to be its.
async fn recipients(client: &Client) -> Result<BTreeMap<NodeId, PublicKey>> {
    let root = client.bundle().root_ca()?;
    let all: Vec<Recipient> = client.list("/v1/recipients").await?;
    let mut nodes = BTreeMap::new();
    for recipient in all {
        match recipient.key(&root) {
            Some(key) => drop(nodes.insert(recipient.node, key)),
            None => caution(&format!(
                "{} shows no certificates of this cluster; nothing is sealed to it",
                recipient.hostname
            )),
        }
    }
    Ok(nodes)
}

fn list(global: &Global, options: &SecretsList) -> Result<Exit> {
    let client = super::client(global)?;
    let path = with_query("/v1/secrets", &[("namespace", options.namespace.as_deref())]);
    let secrets: Vec<Secret> = super::block_on("nothing was changed", client.list(&path))?;
    if global.output == Output::Json {
        say_json(&json!({ "items": secrets }));
    } else if secrets.is_empty() {
        say(
            "No secrets. `hivemind secrets set NAME` makes one, or `secrets` at the top level of a Compose file",
        );
    } else {
        say(&table(&secrets));
    }
    Ok(Exit::Success)
}

fn table(secrets: &[Secret]) -> String {
    let mut table = Table::new(&["NAMESPACE", "SECRET", "VERSION", "CAN OPEN IT", "USED BY"]);
    for secret in secrets {
        let revoked: Vec<&str> =
            secret.nodes.iter().filter(|node| node.revoked).map(|node| node.hostname.as_str()).collect();
        let count = secret.nodes.len() - revoked.len();
        let machines = if count == 1 { "1 machine".to_owned() } else { format!("{count} machines") };
        let holders = match (count, revoked.as_slice()) {
            (0, []) => styled(BAD, "no machine"),
            (_, []) => machines.as_str().into(),
            (_, gone) => styled(BAD, format!("{machines}, and {} that was cut off", gone.join(", "))),
        };
        let mut users: Vec<String> = secret.workloads.clone();
        users.splice(0..0, secret.registry.as_ref().map(|host| format!("pulls from {host}")));
        let users = users.join(", ");
        table.row([
            secret.namespace.as_str().into(),
            secret.name.as_str().into(),
            secret.digest.to_string().chars().take(8).collect::<String>().into(),
            holders,
            if users.is_empty() { styled(FAINT, "nobody") } else { users.into() },
        ]);
    }
    table.render()
}

fn set(global: &Global, options: &SecretsSet) -> Result<Exit> {
    let SecretName { name, namespace } = &options.secret;
    for text in [name, namespace] {
        if !is_dns_label(text) {
            return Err(Failure::input("bad-name", format!("{text:?} cannot name a secret or a namespace"))
                .advice("use 1 to 63 lower-case letters, digits and hyphens"));
        }
    }
    let content = content(name, options.file.as_deref())?;
    push(global, &options.secret, content, None)
}

/// The secret with which images are pulled from a registry.
fn login(global: &Global, options: &SecretsLogin) -> Result<Exit> {
    let SecretsLogin { registry, user, password_file, namespace } = options;
    let host = registry.trim_end_matches('/').to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
    if host.is_empty() || !host.chars().all(fits) {
        return Err(Failure::input("bad-name", format!("{registry:?} is not a registry"))
            .advice("write it as in image references: registry.example or registry.example:5000"));
    }
    let typed = content(&format!("{user}'s password at {host}"), password_file.as_deref())?;
    // A file and `echo` end with a newline, which is of no password.
    let password =
        std::str::from_utf8(typed.bytes()).map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    let password = password.map_err(|_| Failure::input("bad-secret", "the password is not text"))?;
    let credentials = Credentials { username: user.clone(), password };
    let json = serde_json::to_vec(&credentials)
        .map_err(|error| Failure::local("secret", format!("cannot write it: {error}")))?;
    let name: String = host.replace(['.', ':'], "-").chars().take(50).collect();
    let name = SecretName {
        name: format!("registry-{name}").trim_end_matches('-').to_owned(),
        namespace: namespace.clone(),
    };
    push(global, &name, Content::new(json), Some((REGISTRY_LABEL.to_owned(), host)))
}

fn push(
    global: &Global,
    secret: &SecretName,
    content: Content,
    label: Option<(String, String)>,
) -> Result<Exit> {
    let SecretName { name, namespace } = secret;
    let client = super::client(global)?;
    let accepted = super::block_on(UNCHANGED, async {
        let path = format!("/v1/specs?kind={}&namespace={}", Kind::Secret, percent(namespace));
        let current: Vec<SpecItem> = client.list(&path).await?;
        let before = current.iter().find(|item| item.key.name == *name).filter(|item| !item.deleted);
        let labels = before.and_then(SpecItem::document).map(|document| document.metadata.labels);
        let mut labels = labels.unwrap_or_default();
        labels.extend(label);
        let plain = Plain { name: name.clone(), labels, content };
        let nodes = recipients(&client).await?;
        // Sealed anew also when the content is the same: to the machines that there are now, and no others.
        let sealed = deploy::seal(&[plain], namespace, &[], &nodes, client.key(), bundle::random)?;
        let changes = deploy::compare(sealed, &current, &Default::default(), client.now_ms());
        let mut accepted = None;
        for change in &changes {
            accepted = Some((change.action, send(&client, &change.document).await?));
        }
        accepted.ok_or_else(|| Failure::local("nothing", "nothing was sealed"))
    })?;
    let (action, accepted) = accepted;
    let what = if action == Action::Create { "is set" } else { "is set anew" };
    report(global, name, what, &accepted);
    Ok(Exit::Success)
}

/// What is to be sealed: from a file, from standard input, or typed.
fn content(name: &str, file: Option<&Path>) -> Result<Content> {
    let stdin = std::io::stdin();
    let bytes = match file {
        Some(path) if path != Path::new("-") => {
            std::fs::read(path).map_err(|error| Failure::file("read", path, &error))?
        }
        None if stdin.is_terminal() => rpassword::prompt_password(format!("Content of {name}: "))
            .map_err(|error| Failure::local("secret", format!("cannot read it: {error}")))?
            .into_bytes(),
        _ => {
            let mut bytes = Vec::new();
            let limit = MAX_SECRET_BYTES as u64 + 1;
            let read = stdin.take(limit).read_to_end(&mut bytes);
            read.map_err(|error| Failure::local("file", format!("cannot read standard input: {error}")))?;
            bytes
        }
    };
    let content = Content::new(bytes);
    match content.bytes().len() {
        0 => {
            Err(Failure::input("empty-secret", "there is nothing in it").advice("type it, or name a --file"))
        }
        length if length > MAX_SECRET_BYTES => {
            let detail = format!("the content is over the limit of {MAX_SECRET_BYTES} bytes");
            Err(Failure::input("too-large", detail).advice("put what is no secret into an image or a volume"))
        }
        _ => Ok(content),
    }
}

fn remove(global: &Global, wanted: &SecretName, yes: bool) -> Result<Exit> {
    let SecretName { name, namespace } = wanted;
    let client = super::client(global)?;
    let path = format!("/v1/specs?kind={}&namespace={}", Kind::Secret, percent(namespace));
    let current: Vec<SpecItem> = super::block_on("nothing was removed", client.list(&path))?;
    let key = secret_key(namespace, name);
    let Some(item) = current.iter().find(|item| item.key == key && !item.deleted) else {
        let detail = format!("there is no secret {name:?} in namespace {namespace:?}");
        return Err(Failure::new(Exit::Refused, "not-found", detail).advice("`hivemind secrets` lists them"));
    };
    if !yes {
        confirm(&format!("Remove secret {name}? Its content cannot be had back"), "nothing was removed")?;
    }
    let accepted = super::block_on(UNCHANGED, send(&client, &deploy::removal(item, client.now_ms())))?;
    report(global, name, "is removed", &accepted);
    Ok(Exit::Success)
}

fn report(global: &Global, name: &str, what: &str, accepted: &Accepted) {
    if global.output == Output::Json {
        say_json(&json!({ "accepted": [accepted] }));
    } else {
        say(&format!("secret {} {what}, {}", paint(STRONG, name), held(accepted)));
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::api::SecretHolder;
    use hivemind_spec::id::Digest;

    use super::*;

    #[test]
    fn who_can_open_a_secret_is_shown_and_who_should_not_stands_out() {
        let holder =
            |n: u8, revoked| SecretHolder { node: NodeId([n; 16]), hostname: format!("edge-{n}"), revoked };
        let secret = |nodes, workloads: &[&str]| Secret {
            namespace: "default".into(),
            name: "password".into(),
            revision: 5,
            digest: Digest::of(b"x"),
            registry: None,
            workloads: workloads.iter().map(|name| (*name).to_owned()).collect(),
            nodes,
        };
        let shown = |secret| anstream::adapter::strip_str(&table(&[secret])).to_string();
        let text = shown(secret(vec![holder(1, false), holder(2, false)], &["db", "web"]));
        assert!(text.contains("2 machines") && text.contains("db, web"), "{text}");
        let text = shown(secret(vec![holder(1, false), holder(2, true)], &[]));
        assert!(text.contains("1 machine, and edge-2 that was cut off") && text.contains("nobody"), "{text}");
        assert!(shown(secret(vec![], &[])).contains("no machine"));
    }
}
