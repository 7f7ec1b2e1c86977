//! `hivemind keys`.

use hivemind_spec::api::{Accepted, SpecItem};
use hivemind_spec::document::{Document, KeySpec, Kind, Role, Spec, is_dns_label};
use hivemind_spec::key::{PublicKey, SigningKey};
use serde_json::json;

use super::push::{held, send};
use crate::bundle::{self, Bundle};
use crate::cli::{self, Global, KeyName, Keys, KeysAdd, KeysGenerate, Output};
use crate::client::Client;
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::secret::Passphrase;
use crate::terminal::{BAD, FAINT, GOOD, STRONG, Table, confirm, paint, say, say_json, styled};

const UNCHANGED: &str = "stopped; look with `hivemind keys list`";

pub(super) fn run(global: &Global, command: &Keys) -> Result<Exit> {
    match command {
        Keys::List => list(global),
        Keys::Generate(options) => generate(global, options),
        Keys::Add(options) => add(global, options),
        Keys::Retire(options) => end(global, options, false),
        Keys::Revoke(options) => end(global, options, true),
    }
}

fn generate(global: &Global, options: &KeysGenerate) -> Result<Exit> {
    let bundle = super::open_bundle(global)?;
    let key = SigningKey::from_seed(bundle::random()?);
    let passphrase = match options.passphrase {
        true => Some(Passphrase::ask(&format!("key {}", options.name), true)?),
        false => None,
    };
    let path = bundle.store_operator_key(&options.name, &key, passphrase.as_ref())?;
    let public = key.public();
    if global.output == Output::Json {
        say_json(&json!({
            "name": options.name, "id": public.id(), "publicKey": public.to_base64(), "file": path,
        }));
    } else {
        say(&format!("Key {} is made: {}", paint(STRONG, &options.name), path.display()));
        say(&format!("Its public half is {}", public.to_base64()));
        say(&format!("It may do nothing yet. Next: hivemind keys add {} --role deployer", options.name));
    }
    Ok(Exit::Success)
}

/// A key as the cluster or this machine knows it.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) public_key: String,
    pub(super) role: String,
    pub(super) state: &'static str,
    pub(super) namespaces: Vec<String>,
    pub(super) owner: String,
    /// Whether its private half is on this machine.
    pub(super) here: bool,
}

fn list(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let items = super::block_on(UNCHANGED, documents(&client))?;
    let known = known(client.bundle(), &items);
    if global.output == Output::Json {
        say_json(&json!({ "items": known }));
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["KEY", "ROLE", "STATE", "HERE", "ID", "NAMESPACES", "OWNER"]);
    for key in &known {
        let style = if key.state == "live" { GOOD } else { BAD };
        let namespaces = if key.namespaces.is_empty() { "all".to_owned() } else { key.namespaces.join(",") };
        table.row([
            key.name.as_str().into(),
            key.role.as_str().into(),
            styled(style, key.state),
            if key.here { "yes".into() } else { styled(FAINT, "no") },
            key.id.get(..8).unwrap_or_default().into(),
            namespaces.into(),
            key.owner.as_str().into(),
        ]);
    }
    say(&table.render());
    Ok(Exit::Success)
}

pub(super) async fn documents(client: &Client) -> Result<Vec<SpecItem>> {
    client.list(&format!("/v1/specs?kind={}", Kind::Key)).await
}

/// The key document in an item, unless it is a tombstone.
fn key_spec(item: &SpecItem) -> Option<(String, KeySpec)> {
    let document = item.document()?;
    match document.spec {
        Some(Spec::Key(spec)) => Some((document.metadata.name, spec)),
        _ => None,
    }
}

pub(super) fn known(bundle: &Bundle, items: &[SpecItem]) -> Vec<Known> {
    // An encrypted key is not asked for its public half; its name has to do.
    let here = |name: &str| bundle.has_operator_key(name);
    let root = |text: &String| {
        let id = PublicKey::from_base64(text).map(|key| key.id().to_string()).unwrap_or_default();
        Known {
            name: bundle::ROOT_KEY.to_owned(),
            id,
            public_key: text.clone(),
            role: "root".to_owned(),
            state: "live",
            namespaces: Vec::new(),
            owner: String::new(),
            here: here(bundle::ROOT_KEY),
        }
    };
    let document = |(name, spec): (String, KeySpec)| Known {
        id: PublicKey::from_base64(&spec.public_key).map(|key| key.id().to_string()).unwrap_or_default(),
        here: here(&name),
        name,
        public_key: spec.public_key,
        role: format!("{:?}", spec.role).to_lowercase(),
        state: match (spec.revoked, spec.retired) {
            (true, _) => "revoked",
            (false, true) => "retired",
            (false, false) => "live",
        },
        namespaces: spec.namespaces,
        owner: spec.owner,
    };
    let roots = bundle.cluster.root_keys.iter().map(root);
    roots.chain(items.iter().filter_map(key_spec).map(document)).collect()
}

fn add(global: &Global, options: &KeysAdd) -> Result<Exit> {
    if !is_dns_label(&options.name) {
        return Err(Failure::input("bad-name", format!("{:?} cannot name a key", options.name))
            .advice("use 1 to 63 lower-case letters, digits and hyphens"));
    }
    let client = super::client(global)?;
    let public = match &options.public_key {
        Some(text) => PublicKey::from_base64(text).map_err(|e| {
            Failure::input("bad-key", e.to_string()).advice("copy what `hivemind keys generate` printed")
        })?,
        None => client.bundle().operator_key(&options.name)?.public(),
    };
    let spec = KeySpec {
        public_key: public.to_base64(),
        role: match options.role {
            cli::Role::Admin => Role::Admin,
            cli::Role::Deployer => Role::Deployer,
            cli::Role::Viewer => Role::Viewer,
        },
        owner: options.owner.clone(),
        namespaces: options.namespaces.clone(),
        retired: false,
        revoked: false,
    };
    let accepted = super::block_on(UNCHANGED, async {
        let items = documents(&client).await?;
        let before = items.iter().find(|item| item.key.name == options.name);
        if before.and_then(key_spec).is_some_and(|(_, old)| old.public_key != spec.public_key) {
            return Err(Failure::input("exists", format!("there is another key called {:?}", options.name))
                .advice("choose another name: what the old key signed is tied to it"));
        }
        send(&client, &document(&options.name, spec, before, client.now_ms())).await
    })?;
    report(global, &options.name, "may act now", &accepted);
    Ok(Exit::Success)
}

fn end(global: &Global, options: &KeyName, revoke: bool) -> Result<Exit> {
    let client = super::client(global)?;
    let question = format!("Revoke {}? Everything it ever signed becomes void and stops.", options.name);
    if revoke && !options.yes {
        confirm(&question, "nothing was revoked")?;
    }
    let accepted = super::block_on(UNCHANGED, async {
        let items = documents(&client).await?;
        let item = items.iter().find(|item| item.key.name == options.name);
        let Some((item, (name, mut spec))) = item.and_then(|item| Some((item, key_spec(item)?))) else {
            let failure =
                Failure::new(Exit::Refused, "not-found", format!("there is no key {:?}", options.name));
            return Err(
                failure.advice("`hivemind keys list` lists them; root keys are in the machine configuration")
            );
        };
        spec.retired |= !revoke;
        spec.revoked |= revoke;
        send(&client, &document(&name, spec, Some(item), client.now_ms())).await
    })?;
    report(global, &options.name, if revoke { "is revoked" } else { "is retired" }, &accepted);
    Ok(Exit::Success)
}

fn document(name: &str, spec: KeySpec, before: Option<&SpecItem>, now_ms: u64) -> Document {
    deploy::of_cluster(Kind::Key, name.to_owned(), Spec::Key(spec), before, now_ms)
}

fn report(global: &Global, name: &str, what: &str, accepted: &Accepted) {
    if global.output == Output::Json {
        say_json(&json!({ "accepted": [accepted] }));
    } else {
        say(&format!("Key {} {what}, {}", paint(STRONG, name), held(accepted)));
    }
}
