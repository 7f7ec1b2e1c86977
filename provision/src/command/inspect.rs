//! `hivemind inspect`: a document as it was signed, by whom, and what has become of it.

use hivemind_spec::api::{Replica, SpecItem};
use hivemind_spec::document::{Kind, SpecKey};
use hivemind_spec::key::PublicKey;
use serde::Serialize;
use serde_json::{Value, json};

use super::keys::{self, Known};
use super::prepare;
use super::watch::phase_name;
use crate::cli::{Global, Inspect, Output};
use crate::client::with_query;
use crate::failure::{Exit, Failure, Result};
use crate::quantity::show_span;
use crate::terminal::{BAD, FAINT, GOOD, STRONG, paint, printable, say, say_json};

/// Who signed a document, as far as is known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Signer {
    id: String,
    /// Its name in the cluster; absent when no document of the cluster names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `live`, `retired` or `revoked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

pub(super) fn run(global: &Global, options: &Inspect) -> Result<Exit> {
    let client = super::client(global)?;
    let namespace = if options.kind.is_namespaced() { options.namespace.clone() } else { String::new() };
    let key = SpecKey { kind: options.kind, namespace, name: options.name.clone() };
    let (item, known, replicas) = super::block_on("nothing was changed", async {
        let item = prepare::held(&client, &key).await?.filter(|item| !item.deleted);
        let item = item.ok_or_else(|| {
            Failure::new(Exit::Refused, "not-found", format!("there is no {key}"))
                .advice("--kind and --namespace say where to look; `hivemind ps` lists workloads")
        })?;
        let known = keys::known(client.bundle(), &keys::documents(&client).await?);
        let path =
            with_query("/v1/replicas", &[("namespace", Some(&key.namespace)), ("workload", Some(&key.name))]);
        let replicas: Vec<Replica> =
            if key.kind == Kind::Workload { client.list(&path).await? } else { Vec::new() };
        Ok((item, known, replicas))
    })?;
    let verified = is_verified(&item, &known);
    let signers = signers(&item, &known);
    let document: Value = item
        .envelope
        .payload()
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    if global.output == Output::Json {
        say_json(&json!({
            "digest": item.digest, "verified": verified, "signers": signers, "document": document,
            "replicas": replicas,
        }));
    } else {
        say(&head(&item, verified, &signers, &replicas, client.now_ms()));
        say_json(&document);
    }
    Ok(Exit::Success)
}

/// Checks the signatures here, by the keys that the cluster and the bundle name.
fn is_verified(item: &SpecItem, known: &[Known]) -> bool {
    let key = |id: &str| known.iter().find(|known| known.id == id);
    let public = |id: String| PublicKey::from_base64(&key(&id)?.public_key).ok();
    item.envelope.verify(|id| public(id.to_string())).is_ok_and(|verified| verified.digest() == item.digest)
}

fn signers(item: &SpecItem, known: &[Known]) -> Vec<Signer> {
    let signer = |id: String| {
        let key = known.iter().find(|known| known.id == id);
        Signer { name: key.map(|key| key.name.clone()), state: key.map(|key| key.state), id }
    };
    item.envelope.signatures.iter().map(|signature| signer(signature.keyid.to_string())).collect()
}

fn head(item: &SpecItem, verified: bool, signers: &[Signer], replicas: &[Replica], now_ms: u64) -> String {
    let by = signers.iter().map(|signer| {
        let id = signer.id.get(..8).unwrap_or(&signer.id);
        match (&signer.name, signer.state) {
            (Some(name), Some("live")) => format!("{name} ({id})"),
            (Some(name), Some(state)) => format!("{name} ({id}, {state})"),
            _ => format!("a key that is not known here ({id})"),
        }
    });
    let by = printable(&by.collect::<Vec<_>>().join(", "));
    let checked =
        if verified { paint(GOOD, "checked here") } else { paint(BAD, "could not be checked here") };
    let ago = show_span(now_ms.saturating_sub(item.revision));
    let mut lines = vec![
        paint(STRONG, &item.key.to_string()),
        format!("  signed    by {by}, {ago} ago; {checked}"),
        format!("  digest    {}", item.digest),
    ];
    for replica in replicas {
        let place = if replica.hostname.is_empty() { "nowhere" } else { &replica.hostname };
        let reason = if replica.reason.is_empty() { String::new() } else { format!(": {}", replica.reason) };
        let text = format!("{} on {place}, {}{reason}", replica.slot, phase_name(replica.phase));
        lines.push(format!("  replica   {}", printable(&text)));
    }
    lines.push(paint(FAINT, "as it was signed:"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use hivemind_spec::document::Document;
    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::key::SigningKey;

    use super::*;

    fn item(key: &SigningKey) -> SpecItem {
        let name = SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "web".into() };
        let envelope = Envelope::sign(&Document::tombstone(&name, 7000).to_json(), key);
        SpecItem { key: name, revision: 7000, digest: envelope.digest(), deleted: false, envelope }
    }

    fn known(key: &SigningKey, state: &'static str) -> Known {
        Known {
            name: "ci".to_owned(),
            id: key.public().id().to_string(),
            public_key: key.public().to_base64(),
            role: "deployer".to_owned(),
            state,
            namespaces: Vec::new(),
            owner: String::new(),
            here: false,
        }
    }

    #[test]
    fn who_signed_a_document_is_checked_here_and_named() {
        let (key, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let item = item(&key);
        let shown = |known: &[Known], item: &SpecItem| {
            let text = head(item, is_verified(item, known), &signers(item, known), &[], 12_000);
            anstream::adapter::strip_str(&text).to_string()
        };
        let text = shown(&[known(&key, "live")], &item);
        assert!(text.contains("by ci (") && text.contains("5s ago; checked here"), "{text}");
        let text = shown(&[known(&key, "revoked")], &item);
        assert!(text.contains(", revoked)"), "{text}");
        let text = shown(&[known(&other, "live")], &item);
        assert!(
            text.contains("a key that is not known here") && text.contains("could not be checked"),
            "{text}"
        );
        // Another document under the same signature.
        let mut forged = item.clone();
        forged.envelope.payload = self::item(&other).envelope.payload.replace('A', "B");
        assert!(shown(&[known(&key, "live")], &forged).contains("could not be checked"));
    }
}
