//! Join tokens: a token CA and the signed document that says until when and how often it counts.
//!
//! A token file is a machine configuration with only `[cluster]` and `[token]`: it can be put on a
//! `HIVECONF` partition as it is.

use std::fs;
use std::path::PathBuf;

use hivemind_spec::certificate::{self, Signer};
use hivemind_spec::document::{Document, Kind, Metadata, Spec, TokenSpec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::TokenId;
use hivemind_spec::machine::{MachineConfig, Token};

use crate::bundle::{Bundle, Unlocked, certificate_failure, new_ca_key, read_config};
use crate::failure::{Failure, Result};
use crate::secret;

/// How long machines may join with a token unless the operator says otherwise, milliseconds: a
/// day, time enough to flash and power on a batch of machines.
pub const DEFAULT_TTL: &str = "24h";

/// How far before its making a token counts already, milliseconds: clocks of freshly flashed
/// machines are late.
const EARLY_MS: u64 = 60 * 60 * 1000;

/// What a new token may do.
#[derive(Debug, Clone, Default)]
pub struct NewToken {
    /// How long machines may join with it, milliseconds.
    pub ttl_ms: u64,
    /// How many machines may; none: any number.
    pub max_uses: Option<u32>,
    /// Members to ask first.
    pub seeds: Vec<String>,
}

/// A token on this machine.
#[derive(Debug, Clone)]
pub struct StoredToken {
    /// Its file.
    pub path: PathBuf,
    /// What it may do.
    pub spec: TokenSpec,
    /// The whole file.
    pub config: MachineConfig,
}

/// Makes a token and keeps it in the bundle. Needs no cluster: the document comes to it with the
/// first machine that joins.
///
/// # Errors
/// When the keys are not the cluster's, or the file cannot be written.
pub fn create(bundle: &Bundle, keys: &Unlocked, new: &NewToken, now_ms: u64) -> Result<StoredToken> {
    let root_ca = bundle.root_ca()?;
    let key = new_ca_key()?;
    let ca = certificate::token_ca(Signer { certificate: &root_ca, key: &keys.root_ca }, &key)
        .map_err(|e| certificate_failure(&e))?;
    let spec = TokenSpec {
        id: TokenId::of(&certificate::public_key_info(&key)),
        not_before_ms: now_ms.saturating_sub(EARLY_MS),
        not_after_ms: now_ms.saturating_add(new.ttl_ms),
        max_uses: new.max_uses,
    };
    let document = Document {
        metadata: Metadata {
            name: spec.id.to_string(),
            namespace: String::new(),
            labels: std::collections::BTreeMap::new(),
            revision: now_ms,
            replaces: None,
            ancestors: None,
            deleted: false,
        },
        kind: Kind::Token,
        spec: Some(Spec::Token(spec.clone())),
    };
    let envelope = Envelope::sign(&document.to_json(), &keys.signer);
    let mut config = bundle.machine_config();
    config.token = Some(Token {
        ca: certificate::to_pem(&ca),
        ca_key: Some(key.serialize_pem()),
        document: String::from_utf8_lossy(&envelope.to_json()).into_owned(),
        seeds: new.seeds.clone(),
    });
    let text = config.to_toml();
    MachineConfig::parse(&text).map_err(|e| Failure::input("bad-token", e.to_string()))?;
    secret::make_directory(&bundle.token_dir())?;
    let path = bundle.token_dir().join(format!("{}.toml", spec.id));
    secret::write_private(&path, text.as_bytes(), false)?;
    Ok(StoredToken { path, spec, config })
}

/// Reads a token file.
///
/// # Errors
/// When it is not one.
pub fn read(path: &std::path::Path) -> Result<StoredToken> {
    let config = read_config(path)?;
    let wrong = |what: &str| {
        Failure::input("bad-token", format!("{} {what}", path.display()))
            .advice("make a new one with `hivemind token create`")
    };
    let token = config.token.as_ref().ok_or_else(|| wrong("holds no token"))?;
    let envelope =
        Envelope::parse(token.document.as_bytes()).map_err(|e| wrong(&format!("is damaged: {e}")))?;
    let payload = envelope.payload().map_err(|e| wrong(&format!("is damaged: {e}")))?;
    match Document::parse(&payload).map_err(|e| wrong(&format!("is damaged: {e}")))?.spec {
        Some(Spec::Token(spec)) => Ok(StoredToken { path: path.to_owned(), spec, config }),
        _ => Err(wrong("holds another document than a token")),
    }
}

/// The tokens kept in the bundle, the latest first.
///
/// # Errors
/// When one of them is damaged.
pub fn list(bundle: &Bundle) -> Result<Vec<StoredToken>> {
    let mut tokens = Vec::new();
    for entry in fs::read_dir(bundle.token_dir()).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "toml") {
            tokens.push(read(&entry.path())?);
        }
    }
    tokens.sort_by_key(|token| (std::cmp::Reverse(token.spec.not_before_ms), token.spec.id));
    Ok(tokens)
}

/// The token to configure a machine with when none is named: the latest that is open.
///
/// # Errors
/// When none is open.
pub fn newest_open(bundle: &Bundle, now_ms: u64) -> Result<StoredToken> {
    list(bundle)?.into_iter().find(|token| token.spec.not_after_ms > now_ms).ok_or_else(|| {
        Failure::local("no-token", format!("cluster {:?} has no open token here", bundle.cluster.name))
            .advice("make one with `hivemind token create`")
    })
}

#[cfg(test)]
mod tests {
    use hivemind_spec::key::PublicKey;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_token_is_signed_by_the_root_key_and_chains_to_the_root_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, keys) = Bundle::create(dir.path(), "lab", None).unwrap();
        let new = NewToken { ttl_ms: 1000, max_uses: Some(3), seeds: vec!["10.0.0.1:7946".into()] };
        let made = create(&bundle, &keys, &new, NOW_MS).unwrap();
        let token = made.config.token.unwrap();

        let envelope = Envelope::parse(token.document.as_bytes()).unwrap();
        let root = PublicKey::from_base64(&bundle.cluster.root_keys[0]).unwrap();
        let verified = envelope.verify(|id| (*id == root.id()).then_some(root)).unwrap();
        assert_eq!(verified.value().metadata.name, made.spec.id.to_string());

        let ca = certificate::from_pem(&token.ca, "token CA").unwrap();
        assert_eq!(certificate::token_id(&bundle.root_ca().unwrap(), &ca).unwrap(), made.spec.id);
        assert!(token.ca_key.unwrap().contains("PRIVATE KEY"));
        assert_eq!(token.seeds, ["10.0.0.1:7946"]);
    }

    #[test]
    fn only_an_open_token_is_taken_by_default() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, keys) = Bundle::create(dir.path(), "lab", None).unwrap();
        assert_eq!(newest_open(&bundle, NOW_MS).unwrap_err().code, "no-token");
        let new = |ttl_ms| NewToken { ttl_ms, ..NewToken::default() };
        let long = create(&bundle, &keys, &new(1000), NOW_MS).unwrap();
        let short = create(&bundle, &keys, &new(10), NOW_MS + 1).unwrap();
        assert_eq!(newest_open(&bundle, NOW_MS + 5).unwrap().spec, short.spec);
        assert_eq!(newest_open(&bundle, NOW_MS + 500).unwrap().spec, long.spec);
        assert_eq!(newest_open(&bundle, NOW_MS + 1000).unwrap_err().code, "no-token");
        assert_eq!(list(&bundle).unwrap().len(), 2);
    }
}
