//! Pushes: an operator's document is judged, kept, spread, and answered for.
//!
//! ```text
//!   judged --refused--> answered
//!     | accepted
//!   being written --failed--> answered
//!     | durable here
//!   being copied --enough holders, or time is up--> answered
//! ```

use std::collections::BTreeSet;

use hivemind_spec::api::{Accepted, Severity};
use hivemind_spec::document::{Document, Kind, MAX_DOCUMENT_BYTES, Spec, SpecKey};
use hivemind_spec::dsse::{Envelope, EnvelopeError, Verified};
use hivemind_spec::id::{Digest, NodeId};
use hivemind_spec::key::PublicKey;
use hivemind_spec::problem::{Code, Problem};
use hivemind_spec::secret::of as secret_of;

use super::replication::{self, FANOUT};
use super::{Content, Node};
use crate::checking;
use crate::event::{Action, Actions, Message, RequestId};
use crate::mutation::{Mutation, is_on};
use crate::permission;
use crate::record::{Record, RecordKey, VolumeId, WorkloadId};
use crate::state::Entry;
use crate::time::Time;

/// Other nodes that should hold a document before its push is answered.
const WANTED_HOLDERS: usize = 2;

/// How long the answer waits for them, milliseconds: a slow node writes within a second, and a
/// CLI's user should not wait long for a dead one.
const ANSWER_AFTER_MS: u64 = 5000;

/// When those who have not answered are asked again, milliseconds.
const ASK_AGAIN_AFTER_MS: u64 = 1500;

/// Pushes under way at once.
const MAX_PENDING: usize = 256;

/// The latest revision accepted, milliseconds since 1970: the year 2100. A document from beyond
/// could never be replaced by one with an honest clock.
const MAX_REVISION: u64 = 4_102_444_800_000;

/// A push that is not answered yet.
#[derive(Debug)]
pub(super) struct PendingPush {
    request: RequestId,
    place: RecordKey,
    answer: Accepted,
    durable: bool,
    asked: Vec<NodeId>,
    ask_again_ms: Option<u64>,
    deadline_ms: u64,
}

impl PendingPush {
    pub(super) fn wake_at_ms(&self) -> u64 {
        self.ask_again_ms.unwrap_or(self.deadline_ms)
    }

    fn has_enough_holders(&self) -> bool {
        let alone = is_on(Mutation::PushesAreAnsweredAlone);
        self.durable && (alone || self.answer.held_by.len() > self.answer.wanted_holders as usize)
    }
}

impl Node {
    pub(super) fn push(&mut self, now: Time, request: RequestId, envelope: &Envelope, out: &mut Actions) {
        match self.accept(envelope) {
            Ok((place, changed)) => {
                if changed {
                    let text = format!("{} was accepted", replication::describe(&place));
                    self.note(now, Severity::Info, "document-accepted", text, out);
                }
                if changed {
                    self.remember_accepted(now, &place, out);
                }
                self.copy(now, request, place, changed, out);
            }
            Err(problem) => out.push(Action::Reply { request, result: Err(*problem) }),
        }
    }

    /// Judges a document and merges it. Says where it is and whether that changed anything.
    fn accept(&mut self, envelope: &Envelope) -> Result<(RecordKey, bool), Box<Problem>> {
        if self.pushes.len() >= MAX_PENDING {
            return Err(Box::new(
                Problem::new(Code::Busy, format!("{MAX_PENDING} pushes are under way"))
                    .advice("try again in some seconds"),
            ));
        }
        self.redraw_if_changed();
        let document = self.read_push(envelope)?;
        self.check_right(&document)?;
        check_content(document.value())?;
        self.check_exclusive(document.value())?;
        self.check_release(document.value())?;
        self.check_volume(document.value())?;
        self.check_secret(document.value())?;
        self.check_permissions(document.value())?;
        let place = checking::spec_key(envelope, &document);
        if let Some(held) = self.check_current(&document)?
            && held.record == Record::Spec(envelope.clone())
        {
            return Ok((place, false));
        }
        let entry = self
            .keyring
            .check(&place, &Record::Spec(envelope.clone()))
            .map_err(|e| Problem::new(Code::BadSignature, e.to_string()))?;
        let before = self.map.get(&place).cloned();
        let changed = self.take(place.clone(), entry, None);
        self.redraw_if_changed();
        if self.current_digest(&document.value().key()) != Some(document.digest()) {
            self.take_back(&place, before);
            return Err(Box::new(
                Problem::new(
                    Code::Forbidden,
                    format!("{} was decided by a key of higher authority", document.value().key()),
                )
                .advice("sign with that key, or with one nearer to the root keys"),
            ));
        }
        Ok((place, changed))
    }

    /// Refuses a release that no node could take.
    fn check_release(&self, document: &Document) -> Result<(), Box<Problem>> {
        let Some(Spec::OsRelease(spec)) = &document.spec else { return Ok(()) };
        let refuse = |place: &str, detail: String, advice: &str| {
            Err(Box::new(Problem::new(Code::InvalidDocument, detail).advice(advice).at(place)))
        };
        let nodes = self.cluster.nodes.iter().filter(|(_, node)| !node.is_revoked());
        let running = nodes.filter_map(|(id, node)| Some((id, node.status.as_ref()?.release.as_ref()?)));
        let (own, others): (Vec<_>, Vec<_>) =
            running.partition(|(_, release)| release.architecture == spec.architecture);
        if own.is_empty() {
            let there: BTreeSet<&str> =
                others.iter().map(|(_, release)| release.architecture.name()).collect();
            let there = if there.is_empty() {
                "no node was started from a boot menu".to_owned()
            } else {
                format!("all nodes are {}", there.into_iter().collect::<Vec<_>>().join(" or "))
            };
            let detail = format!("the release is for {}, and {there}", spec.architecture.name());
            return refuse("/spec/architecture", detail, "push a release for the machines there are");
        }
        match own.iter().find(|(_, release)| !spec.may_follow(&release.minimum)) {
            Some((id, release)) => {
                let detail = format!(
                    "{} is older than {}, the oldest version that may follow what {} runs",
                    spec.version,
                    release.minimum,
                    self.name(id)
                );
                refuse("/spec/version", detail, "push that version or a newer one")
            }
            None => Ok(()),
        }
    }

    /// Refuses what would leave data behind where nothing finds it, or take it from what uses it.
    fn check_volume(&self, document: &Document) -> Result<(), Box<Problem>> {
        let Some(Spec::Volume(spec)) = &document.spec else { return Ok(()) };
        let id =
            VolumeId { namespace: document.metadata.namespace.clone(), name: document.metadata.name.clone() };
        let refuse = |place: &str, detail: String, advice: &str| {
            Err(Box::new(Problem::new(Code::InvalidDocument, detail).advice(advice).at(place)))
        };
        let held = self.cluster.parts_of(&id).next().is_some();
        if let Some(before) = self.cluster.volumes.get(&id)
            && (before.per != spec.per && held)
        {
            let detail = format!("volume {id} has data, and so stays one for each {}", before.per.name());
            return refuse("/spec/per", detail, "use a volume of another name, or remove this one first");
        }
        match self.cluster.users_of(&id).next() {
            Some(name) if spec.discard.is_some() => {
                let detail = format!("workload {} uses volume {id}", name.name);
                refuse("/spec/discard", detail, "remove the workload first, or push it without the volume")
            }
            _ => Ok(()),
        }
    }

    /// Refuses a secret that nobody here could open, and the removal of one that is used.
    fn check_secret(&self, document: &Document) -> Result<(), Box<Problem>> {
        let name = document.key();
        if name.kind != Kind::Secret {
            return Ok(());
        }
        let refuse = |place: &str, detail: String, advice: &str| {
            Err(Box::new(Problem::new(Code::InvalidDocument, detail).advice(advice).at(place)))
        };
        let enrolled = |id: &NodeId| self.cluster.nodes.get(id).is_some_and(|node| !node.is_revoked());
        // What only opens a registry may go: what is pulled is there.
        let mounts = |id: &&WorkloadId| {
            let workload = self.cluster.workloads.get(*id);
            workload.is_some_and(|workload| workload.spec.container.has_secret(&name.name))
        };
        match (secret_of(document), self.cluster.secret_users(&name).find(mounts)) {
            (Some(secret), _) if !secret.keys.keys().any(enrolled) => {
                let detail = "it is sealed to no node of this cluster".to_owned();
                refuse("/spec/keys", detail, "seal it to the nodes of `GET /v1/recipients`")
            }
            (None, Some(user)) => {
                let detail = format!("workload {} uses secret {}/{}", user.name, name.namespace, name.name);
                refuse("", detail, "remove the workload first, or push it without the secret")
            }
            _ => Ok(()),
        }
    }

    /// Refuses a workload that asks for more of its machines than its namespace allows.
    fn check_permissions(&self, document: &Document) -> Result<(), Box<Problem>> {
        let Some(Spec::Workload(spec)) = &document.spec else { return Ok(()) };
        let namespace = &document.metadata.namespace;
        let lacking = permission::lacking(&self.cluster, namespace, &spec.container);
        if lacking.is_empty() {
            return Ok(());
        }
        let (detail, advice) = permission::refusal(namespace, &lacking);
        Err(Box::new(Problem::new(Code::NotAllowed, detail).advice(advice).at("/spec/container")))
    }

    fn current_digest(&self, name: &SpecKey) -> Option<Digest> {
        match &self.map.get(self.trust.current(name)?)?.content {
            Content::Spec(document) => Some(document.digest()),
            _ => None,
        }
    }

    fn take_back(&mut self, place: &RecordKey, before: Option<Entry>) {
        self.drop_record(place);
        if let Some(entry) = before {
            self.take(place.clone(), entry, None);
        }
        self.redraw_if_changed();
    }

    fn read_push(&self, envelope: &Envelope) -> Result<Verified<Document>, Box<Problem>> {
        let unknown = envelope.signatures.iter().find(|s| self.keyring.operator(&s.keyid).is_none());
        match (envelope.verify(|id| self.keyring.operator(id)), unknown) {
            (Ok(_), Some(stranger)) => Err(Box::new(
                Problem::new(
                    Code::BadSignature,
                    format!("one signature is by the unknown key {}", stranger.keyid),
                )
                .advice("push that key's document first, or remove the signature"),
            )),
            (Ok(_), None) => self
                .keyring
                .check_envelope(envelope)
                .map_err(|e| Box::new(Problem::new(Code::BadSignature, e.to_string()))),
            (Err(error), _) => Err(Box::new(envelope_problem(error, envelope))),
        }
    }

    fn check_right(&self, document: &Verified<Document>) -> Result<(), Box<Problem>> {
        if self.trust.counts(document) {
            return Ok(());
        }
        let Some(signer) = document.signers().first() else {
            return Err(Box::new(Problem::new(Code::Unsigned, "nobody signed the document")));
        };
        let (name, kind) = (document.value().key(), document.value().kind);
        let problem = match self.trust.holder(signer) {
            None => Problem::new(
                Code::Forbidden,
                format!("key {signer} was made by a key that may not make keys"),
            )
            .advice("have an admin push the key's document"),
            Some(holder) if holder.revoked => {
                Problem::new(Code::Forbidden, format!("key {signer} was revoked"))
                    .advice("sign with a live key")
            }
            Some(holder)
                if !holder.is_live() && holder.allows(kind, &document.value().metadata.namespace) =>
            {
                Problem::new(
                    Code::Forbidden,
                    format!("key {signer} was retired before this document was signed"),
                )
                .advice("sign with a live key")
            }
            Some(holder) => {
                let role = format!("{:?}", holder.role).to_lowercase();
                let place = if holder.may_write(kind) { "/metadata/namespace" } else { "/kind" };
                Problem::new(
                    Code::Forbidden,
                    format!("key {signer} has the role \"{role}\", which may not write {name}"),
                )
                .advice("sign with an admin's key, or have an admin widen this key's role or namespaces")
                .at(place)
            }
        };
        Err(Box::new(problem))
    }

    /// Compares a document with the current one of its name, which is returned if it is the same.
    fn check_current(&self, document: &Verified<Document>) -> Result<Option<&Entry>, Box<Problem>> {
        let name = document.value().key();
        let metadata = &document.value().metadata;
        let current = self.trust.current(&name).and_then(|place| self.map.get(place));
        let held = current.and_then(|entry| match &entry.content {
            Content::Spec(held) => Some((entry, held)),
            _ => None,
        });
        let Some((entry, held)) = held else {
            return match metadata.replaces {
                Some(digest) => {
                    let detail = format!("{name} does not exist, and cannot replace {digest}");
                    Err(conflict(detail, "/metadata/replaces"))
                }
                None if metadata.revision <= self.cluster.forgotten.until_revision => {
                    let detail = format!(
                        "{name} has revision {}, from before deletions that are no longer remembered: it \
                         may have been deleted since",
                        metadata.revision
                    );
                    Err(conflict(detail, "/metadata/revision"))
                }
                None => Ok(None),
            };
        };
        if held.digest() == document.digest() {
            return Ok(Some(entry));
        }
        let (theirs, revision) = (metadata.revision, held.value().metadata.revision);
        if let Some(digest) = metadata.replaces
            && digest != held.digest()
        {
            let detail = format!(
                "{name} was to replace version {digest}, but version {} (revision {revision}) is current",
                held.digest()
            );
            return Err(conflict(detail, "/metadata/replaces"));
        }
        if theirs <= revision {
            let detail = format!(
                "{name} has revision {theirs}, but version {} with revision {revision} is current",
                held.digest()
            );
            return Err(conflict(detail, "/metadata/revision"));
        }
        Ok(Some(entry))
    }

    /// Has a document that is held here held by others too.
    fn copy(&mut self, now: Time, request: RequestId, place: RecordKey, changed: bool, out: &mut Actions) {
        let Some((revision, digest, key)) = self.map.get(&place).and_then(|entry| match &entry.content {
            Content::Spec(document) => {
                Some((document.value().metadata.revision, document.digest(), document.value().key()))
            }
            _ => None,
        }) else {
            return;
        };
        self.next_ack += 1;
        let ack = self.next_ack;
        let audience = self.shuffled_audience();
        let wanted_holders = u32::try_from(audience.len().min(WANTED_HOLDERS)).unwrap_or(0);
        let push = PendingPush {
            request,
            place: place.clone(),
            answer: Accepted {
                key,
                revision,
                digest,
                changed,
                held_by: vec![self.settings.me],
                wanted_holders,
            },
            durable: !self.store.hold_push(ack),
            asked: audience.iter().take(FANOUT).map(|peer| peer.node).collect(),
            ask_again_ms: Some(now.mono_ms + ASK_AGAIN_AFTER_MS),
            deadline_ms: now.mono_ms + ANSWER_AFTER_MS,
        };
        // Those asked to hold it need not be told again.
        self.fresh.remove(&place);
        self.pushes.insert(ack, push);
        self.ask_to_hold(ack, out);
        self.answer_if_held(ack, out);
    }

    fn ask_to_hold(&mut self, ack: u64, out: &mut Actions) {
        let Some(push) = self.pushes.get(&ack) else { return };
        let Some(entry) = self.map.get(&push.place) else { return };
        let record = (push.place.clone(), entry.record.clone());
        let missing: Vec<_> =
            push.asked.iter().filter(|n| !push.answer.held_by.contains(n)).copied().collect();
        for peer in self.audience() {
            if missing.contains(&peer.node) {
                self.send(peer, Message::Records { records: vec![record.clone()], ack: Some(ack) }, out);
            }
        }
    }

    pub(super) fn stored_by(&mut self, from: NodeId, ack: u64, out: &mut Actions) {
        if let Some(push) = self.pushes.get_mut(&ack)
            && push.asked.contains(&from)
            && !push.answer.held_by.contains(&from)
        {
            push.answer.held_by.push(from);
            self.answer_if_held(ack, out);
        }
    }

    pub(super) fn push_is_durable(&mut self, ack: u64, out: &mut Actions) {
        if let Some(push) = self.pushes.get_mut(&ack) {
            push.durable = true;
            self.answer_if_held(ack, out);
        }
    }

    pub(super) fn push_failed(&mut self, ack: u64, reason: &str, out: &mut Actions) {
        if let Some(push) = self.pushes.remove(&ack) {
            self.forget_accepted(&push.answer.key, &push.answer.digest);
            let problem = Problem::new(Code::Storage, format!("the document could not be stored: {reason}"))
                .advice("push it to another node, and look at this node's disk");
            out.push(Action::Reply { request: push.request, result: Err(problem) });
        }
    }

    /// Asks again, and answers pushes whose time is up.
    pub(super) fn push_on(&mut self, now: Time, out: &mut Actions) {
        let due: Vec<_> =
            self.pushes.iter().filter(|(_, p)| p.wake_at_ms() <= now.mono_ms).map(|(ack, _)| *ack).collect();
        for ack in due {
            let Some(push) = self.pushes.get_mut(&ack) else { continue };
            if push.ask_again_ms.take().is_some() && push.deadline_ms > now.mono_ms {
                self.ask_to_hold(ack, out);
            } else if push.durable {
                self.answer(ack, out);
            } else {
                let reason = "the disk did not answer in time; it may yet be kept";
                self.push_failed(ack, reason, out);
            }
        }
    }

    fn answer_if_held(&mut self, ack: u64, out: &mut Actions) {
        if self.pushes.get(&ack).is_some_and(PendingPush::has_enough_holders) {
            self.answer(ack, out);
        }
    }

    fn answer(&mut self, ack: u64, out: &mut Actions) {
        if let Some(push) = self.pushes.remove(&ack) {
            out.push(Action::Reply { request: push.request, result: Ok(push.answer) });
        }
    }
}

pub(super) fn conflict(detail: String, place: &str) -> Box<Problem> {
    Box::new(
        Problem::new(Code::Conflict, detail)
            .advice("read the current version, apply your change to it, and push again")
            .at(place),
    )
}

fn envelope_problem(error: EnvelopeError, envelope: &Envelope) -> Problem {
    match error {
        EnvelopeError::Malformed(text) => Problem::new(Code::Malformed, text),
        EnvelopeError::Unsigned => {
            Problem::new(Code::Unsigned, error.to_string()).advice("push with `hivemind push`, which signs")
        }
        EnvelopeError::Untrusted(_) => Problem::new(Code::BadSignature, error.to_string())
            .advice("sign with a key of this cluster; `hivemind keys` lists them"),
        EnvelopeError::BadSignature(_) => Problem::new(Code::BadSignature, error.to_string())
            .advice("the document was changed after it was signed; sign it again"),
        EnvelopeError::Document(_) if envelope.payload.len() > MAX_DOCUMENT_BYTES / 3 * 4 + 4 => {
            Problem::new(
                Code::TooLarge,
                format!("the document is over the limit of {MAX_DOCUMENT_BYTES} bytes"),
            )
        }
        EnvelopeError::Document(e) => Problem::new(Code::InvalidDocument, e.message).at(e.pointer),
    }
}

/// Checks what can be told from a document alone but is no part of its form.
fn check_content(document: &Document) -> Result<(), Box<Problem>> {
    if document.metadata.revision > MAX_REVISION {
        return Err(Box::new(
            Problem::new(Code::InvalidDocument, "the revision lies after the year 2100")
                .at("/metadata/revision")
                .advice("set the clock of the machine that signs"),
        ));
    }
    if let Some(Spec::Key(key)) = &document.spec
        && let Err(e) = PublicKey::from_base64(&key.public_key)
    {
        return Err(Box::new(Problem::new(Code::InvalidDocument, e.to_string()).at("/spec/publicKey")));
    }
    Ok(())
}
