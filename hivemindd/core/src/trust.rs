//! Which documents count: a pure function of the set of documents and the root keys, so that the
//! order in which they arrived never matters.
//!
//! Authority flows downwards in levels. Root keys (level 0, in the machine configuration) may do
//! everything, and no document changes them. A key document signed by a live admin key of one
//! level makes a key of the next. Where several levels speak about the same document, the higher
//! authority is heard, with one exception: an admin key may always retire or revoke, because
//! taking away power is safe where giving it is not. Two admin keys that revoke each other are
//! both revoked.
//!
//! Among documents of one name that count, the highest version is current.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::{Document, KeySpec, Kind, Role, Spec, SpecKey};
use hivemind_spec::dsse::Verified;
use hivemind_spec::id::KeyId;
use hivemind_spec::key::PublicKey;

use crate::mutation::{Mutation, is_on};
use crate::record::RecordKey;
use crate::state::{Content, Entry, Map, Version};

/// How many keys deep authority is passed on. Operators need two or three (root, admin,
/// deployer); the limit bounds the work a malicious admin can cause.
pub const MAX_LEVELS: u8 = 8;

/// A key and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The public key.
    pub public: PublicKey,
    /// What it may do.
    pub role: Role,
    /// Where; empty: everywhere.
    pub namespaces: Vec<String>,
    /// It signs nothing with this revision or a later one.
    pub retired_at: Option<u64>,
    /// It signs nothing, and nothing it signed counts.
    pub revoked: bool,
    /// Steps from the root keys.
    pub level: u8,
}

impl Holder {
    /// Whether it may sign requests and new documents now.
    pub fn is_live(&self) -> bool {
        !self.revoked && self.retired_at.is_none()
    }

    /// Whether a document counts that it signed.
    pub fn covers(&self, document: &Document) -> bool {
        if is_on(Mutation::KeysLiveForEver) {
            return self.allows(document.kind, &document.metadata.namespace);
        }
        !self.revoked
            && self.retired_at.is_none_or(|retired| document.metadata.revision < retired)
            && self.allows(document.kind, &document.metadata.namespace)
    }

    /// Whether its role lets it write documents of this kind in this namespace.
    pub fn allows(&self, kind: Kind, namespace: &str) -> bool {
        self.may_write(kind) && (self.namespaces.is_empty() || self.namespaces.iter().any(|n| n == namespace))
    }

    /// Whether its role lets it write documents of this kind in some namespace.
    pub fn may_write(&self, kind: Kind) -> bool {
        if is_on(Mutation::RolesDoNotMatter) {
            return true;
        }
        match self.role {
            Role::Admin => true,
            Role::Deployer => matches!(kind, Kind::Workload | Kind::Volume | Kind::Secret),
            Role::Viewer => false,
        }
    }
}

/// Who may do what, and which documents count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    keys: BTreeMap<KeyId, Holder>,
    current: BTreeMap<SpecKey, RecordKey>,
}

/// A document with its place, as trust is computed from it.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    place: &'a RecordKey,
    name: &'a SpecKey,
    version: &'a Version,
    document: &'a Verified<Document>,
}

impl Candidate<'_> {
    fn key_spec(&self) -> Option<(&KeySpec, PublicKey)> {
        match &self.document.value().spec {
            Some(Spec::Key(key)) => Some((key, PublicKey::from_base64(&key.public_key).ok()?)),
            _ => None,
        }
    }
}

fn candidate<'a>((place, entry): (&'a RecordKey, &'a Entry)) -> Option<Candidate<'a>> {
    match (place, &entry.content) {
        (RecordKey::Spec(name, _), Content::Spec(document)) => {
            Some(Candidate { place, name, version: &entry.version, document })
        }
        _ => None,
    }
}

impl Trust {
    /// Judges the documents in `map`.
    pub fn evaluate(roots: &[PublicKey], map: &Map) -> Self {
        let documents: Vec<_> = map
            .iter()
            .take_while(|(key, _)| matches!(key, RecordKey::Spec(..)))
            .filter_map(candidate)
            .collect();
        let mut trust = Self::default();
        for public in roots {
            let holder = Holder {
                public: *public,
                role: Role::Admin,
                namespaces: Vec::new(),
                retired_at: None,
                revoked: false,
                level: 0,
            };
            trust.keys.insert(public.id(), holder);
        }
        let (keys, others): (Vec<_>, Vec<_>) = documents.into_iter().partition(|d| d.name.kind == Kind::Key);
        for level in 1..=MAX_LEVELS {
            if !trust.pass_on(level, &keys) {
                break;
            }
        }
        let mut chosen = BTreeMap::new();
        for document in others.iter().filter(|d| trust.counts(d.document)) {
            keep_newest(&mut chosen, *document);
        }
        trust.current.extend(chosen.into_iter().map(|(name, c)| (name.clone(), c.place.clone())));
        trust
    }

    /// Hears what keys one level up say about keys. Returns whether there was anything.
    fn pass_on(&mut self, level: u8, documents: &[Candidate<'_>]) -> bool {
        let above = level - 1;
        let mut made = BTreeMap::new();
        let mut tightened = BTreeMap::new();
        for document in documents.iter().filter(|d| self.signed_at(d.document, above)) {
            if !self.current.contains_key(document.name) {
                keep_newest(&mut made, *document);
            } else if self.takes_power_from_its_key(document) {
                keep_newest(&mut tightened, *document);
            }
        }
        // First what takes power away, then what gives it, and what lost its signer meanwhile
        // gives nothing.
        let before: BTreeSet<_> = self.keys.keys().copied().collect();
        for document in made.values().chain(tightened.values()) {
            if let Some((spec, public)) = document.key_spec()
                && before.contains(&public.id())
            {
                self.tighten(spec, public.id(), document.document.value().metadata.revision);
            }
        }
        let heard = !made.is_empty();
        for (name, document) in tightened {
            self.current.insert(name.clone(), document.place.clone());
        }
        for (name, document) in made {
            let takes_away = document
                .key_spec()
                .is_none_or(|(spec, public)| (spec.revoked || spec.retired) && before.contains(&public.id()));
            if !takes_away && !self.signed_at(document.document, above) {
                continue;
            }
            self.current.insert(name.clone(), document.place.clone());
            if let Some((spec, public)) = document.key_spec() {
                self.add(spec, public, level, document.document.value().metadata.revision);
            }
        }
        heard
    }

    /// Whether a live admin key of exactly this level signed the key document.
    fn signed_at(&self, document: &Verified<Document>, level: u8) -> bool {
        let covering = |id| self.keys.get(id).filter(|holder: &&Holder| holder.covers(document.value()));
        document.signers().iter().filter_map(covering).map(|holder| holder.level).min() == Some(level)
    }

    fn takes_power_from_its_key(&self, document: &Candidate<'_>) -> bool {
        document.key_spec().is_some_and(|(spec, public)| {
            (spec.revoked || spec.retired) && self.keys.get(&public.id()).is_some_and(|h| h.level > 0)
        })
    }

    fn tighten(&mut self, spec: &KeySpec, id: KeyId, revision: u64) {
        let Some(holder) = self.keys.get_mut(&id).filter(|holder| holder.level > 0) else { return };
        holder.revoked |= spec.revoked;
        if spec.retired {
            holder.retired_at = Some(holder.retired_at.map_or(revision, |r| r.min(revision)));
        }
    }

    fn add(&mut self, spec: &KeySpec, public: PublicKey, level: u8, revision: u64) {
        self.keys.entry(public.id()).or_insert_with(|| Holder {
            public,
            role: spec.role,
            namespaces: spec.namespaces.clone(),
            retired_at: spec.retired.then_some(revision),
            revoked: spec.revoked,
            level,
        });
    }

    /// Whether some signer of the document may write it.
    pub fn counts(&self, document: &Verified<Document>) -> bool {
        document
            .signers()
            .iter()
            .filter_map(|id| self.keys.get(id))
            .any(|holder| holder.covers(document.value()))
    }

    /// The key with this id, if any document that counts, or the machine configuration, has it.
    pub fn holder(&self, id: &KeyId) -> Option<&Holder> {
        self.keys.get(id)
    }

    /// Every key known to this cluster.
    pub fn holders(&self) -> impl Iterator<Item = (&KeyId, &Holder)> {
        self.keys.iter()
    }

    /// Where the current version of a document is, tombstones included.
    pub fn current(&self, name: &SpecKey) -> Option<&RecordKey> {
        self.current.get(name)
    }

    /// All current documents and where they are, tombstones included.
    pub fn all_current(&self) -> impl Iterator<Item = (&SpecKey, &RecordKey)> {
        self.current.iter()
    }
}

fn keep_newest<'a>(chosen: &mut BTreeMap<&'a SpecKey, Candidate<'a>>, document: Candidate<'a>) {
    chosen
        .entry(document.name)
        .and_modify(|held| {
            if (document.version, document.place) > (held.version, held.place) {
                *held = document;
            }
        })
        .or_insert(document);
}

#[cfg(test)]
mod tests;
