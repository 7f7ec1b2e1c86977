//! Whose version lost is told: operators on both sides of a partition may push the same document, and
//! everywhere the same version wins. The node that accepted the other one remembers it, and says so to
//! all when it finds the place taken by a version whose signer did not know it.

use hivemind_spec::api::Severity;
use hivemind_spec::document::{Ancestor, SpecKey};
use hivemind_spec::id::{Digest, KeyId};
use serde::{Deserialize, Serialize};

use super::{Content, Node, store};
use crate::event::Actions;
use crate::form;
use crate::record::{Observation, Overtaken, RecordKey, Topic};
use crate::report::overtaken_text;
use crate::time::Time;

/// How long people are told, milliseconds, unless they push again before: a working day and the night
/// around it.
const TOLD_FOR_MS: u64 = 24 * 3600 * 1000;

/// Starts the names of local items that hold [`Accepted`].
const PREFIX: &str = "accepted/";

/// A version that an operator pushed to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted {
    version: Ancestor,
    signer: KeyId,
}

/// What is known of the current version of a document.
struct Current {
    digest: Digest,
    revision: u64,
    signer: KeyId,
    overlooks: bool,
}

fn item(name: &SpecKey) -> Vec<u8> {
    store::local_key(&format!("{PREFIX}{name}"))
}

impl Node {
    /// Takes up an item of the store, if it is one of these.
    pub(super) fn load_accepted(&mut self, name: &str, value: &[u8]) {
        if name.starts_with(PREFIX)
            && let Ok((name, accepted)) = form::read(value)
        {
            self.accepted.insert(name, accepted);
        }
    }

    /// An operator's version is current, and this node has taken it in.
    pub(super) fn remember_accepted(&mut self, now: Time, place: &RecordKey, out: &mut Actions) {
        self.notice_overtaken(now, out);
        let (RecordKey::Spec(name, signer), Some(entry)) = (place, self.map.get(place)) else { return };
        let Content::Spec(document) = &entry.content else { return };
        let revision = document.value().metadata.revision;
        let accepted =
            Accepted { version: Ancestor { revision, digest: document.digest() }, signer: *signer };
        self.store.put(item(name), Some(form::write(&(name, accepted))));
        self.accepted.insert(name.clone(), accepted);
    }

    /// This version could not be stored, and the operator knows, or somebody has come after it. What was
    /// accepted since is another matter.
    pub(super) fn forget_accepted(&mut self, name: &SpecKey, digest: &Digest) {
        if self.accepted.get(name).is_some_and(|accepted| accepted.version.digest == *digest) {
            self.accepted.remove(name);
            self.store.put(item(name), None);
        }
    }

    /// Looks whether what operators pushed here is still in its place.
    pub(super) fn notice_overtaken(&mut self, now: Time, out: &mut Actions) {
        let mut ended = Vec::new();
        for (name, accepted) in &self.accepted {
            // Where its key lost its right to it, or it is not current for now, that is no one's version.
            let Some(current) = self.current_beside(name, &accepted.version) else { continue };
            if current.digest != accepted.version.digest && current.revision >= accepted.version.revision {
                ended.push((name.clone(), *accepted, current));
            }
        }
        for (name, accepted, current) in ended {
            if current.overlooks {
                let overtaken = Overtaken {
                    version: accepted.version,
                    signer: accepted.signer,
                    by: current.digest,
                    by_signer: current.signer,
                    since_ms: now.wall_ms,
                };
                self.note(
                    now,
                    Severity::Warning,
                    "version-overtaken",
                    overtaken_text(&name, &overtaken),
                    out,
                );
                self.say(now, Topic::Overtaken(name.clone()), Some(Observation::Overtaken(overtaken)));
            }
            self.forget_accepted(&name, &accepted.version.digest);
        }
    }

    fn current_beside(&self, name: &SpecKey, other: &Ancestor) -> Option<Current> {
        let place = self.trust.current(name)?;
        match (place, &self.map.get(place)?.content) {
            (RecordKey::Spec(_, signer), Content::Spec(document)) => Some(Current {
                digest: document.digest(),
                revision: document.value().metadata.revision,
                signer: *signer,
                overlooks: document.value().metadata.overlooks(other),
            }),
            _ => None,
        }
    }

    /// Takes back what was told long enough, or what the operator has acted on.
    pub(super) fn stop_telling(&mut self, now: Time) {
        let told = self.cluster.overtaken.keys().filter_map(|name| {
            let own = RecordKey::Observation(self.settings.me, Topic::Overtaken(name.clone()));
            match &self.map.get(&own)?.content {
                Content::Observation(Some(Observation::Overtaken(overtaken))) => Some((name, overtaken)),
                _ => None,
            }
        });
        let is_over = |name: &SpecKey, overtaken: &Overtaken| {
            let age_ms = now.wall_ms.abs_diff(overtaken.since_ms);
            let by_now = self.current_beside(name, &overtaken.version);
            let acted = by_now.is_some_and(|current| {
                current.digest != overtaken.by && (current.signer == overtaken.signer || !current.overlooks)
            });
            age_ms > TOLD_FOR_MS || acted || self.trust.current(name).is_none()
        };
        let over: Vec<_> =
            told.filter(|(name, told)| is_over(name, told)).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.say(now, Topic::Overtaken(name), None);
        }
    }
}
