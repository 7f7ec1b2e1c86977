//! Leases at work: what this node grants others and asks of them for the exclusive workloads that are
//! placed on it ([`crate::lease`]).

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::{Document, Kind, Spec, SpecKey};
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::Problem;
use hivemind_spec::workload::Exclusive;

use super::pushing::conflict;
use super::{Content, Node, store};
use crate::event::{Actions, BatchId, Message, Peer};
use crate::form;
use crate::lease::{Addressed, Ballot, Forgot, Letter, Refusal, Standing, Word};
use crate::record::WorkloadId;
use crate::time::Time;

/// Starts the names of local items that hold [`Ballot`]s.
const BALLOT: &str = "ballot/";

/// The local item that holds [`Forgot`].
const FORGOT: &str = "grants-forgotten";

fn item(id: &WorkloadId) -> Vec<u8> {
    store::local_key(&format!("{BALLOT}{}/{}", id.namespace, id.name))
}

impl Node {
    /// Takes up an item of the store, if it is one of these.
    pub(super) fn load_grants(&mut self, now: Time, name: &str, value: &[u8]) {
        if name.starts_with(BALLOT) {
            match form::read::<(WorkloadId, Ballot)>(value) {
                Ok((id, ballot)) => self.leases.load(now.mono_ms, id, ballot),
                // To whom it granted is as good as forgotten.
                Err(_) => self.forget_grants(),
            }
        } else if name == FORGOT
            && let Ok(forgot) = form::read(value)
        {
            self.leases.forget(forgot);
        }
    }

    /// A node whose store is gone has forgotten what it granted.
    pub(super) fn forget_grants(&mut self) {
        self.note_forgotten(Forgot { until: 0, unsure: true });
    }

    /// Another node has said which documents there are: leases of those may have been granted.
    pub(super) fn learn_what_was_forgotten(&mut self) {
        if self.leases.forgot().is_some_and(|forgot| forgot.unsure) {
            let revisions = self.map.iter().filter_map(|(_, entry)| match &entry.content {
                Content::Spec(document) => Some(document.value().metadata.revision),
                _ => None,
            });
            self.note_forgotten(Forgot { until: revisions.max().unwrap_or(0), unsure: false });
        }
    }

    fn note_forgotten(&mut self, forgot: Forgot) {
        self.leases.forget(forgot);
        self.store.put(store::local_key(FORGOT), Some(form::write(&forgot)));
    }

    /// Hands what must not be forgotten to this step's batch of writes.
    pub(super) fn write_grants(&mut self, now: Time) {
        if self.disk_pauses(now) {
            return;
        }
        let batch = self.store.open_batch();
        for (id, ballot) in self.leases.write(batch) {
            let value = ballot.map(|ballot| form::write(&(&id, ballot)));
            self.store.put(item(&id), value);
        }
    }

    pub(super) fn grants_are_durable(&mut self, batch: BatchId) {
        self.stirred |= self.leases.persisted(self.clock.mono_ms(), batch);
    }

    pub(super) fn receive_letter(&mut self, now: Time, from: Peer, letter: Letter, out: &mut Actions) {
        // What cannot be written down cannot be granted.
        if self.disk_pauses(now) {
            return;
        }
        if let Word::Ask { round, .. } = letter.word
            && self.cluster.doubled.contains_key(&from.node)
        {
            let word = Word::Refused { round, refusal: Refusal::Doubled, voters: None };
            return self.send(from, Message::Lease(Letter { word, ..letter }), out);
        }
        let exclusive = self.cluster.workloads.get(&letter.workload);
        let exclusive = exclusive.and_then(|workload| workload.spec.exclusive.as_ref());
        let answer = self.leases.receive(now.mono_ms, from.node, letter, exclusive);
        self.stirred |= answer.is_none();
        self.write_grants(now);
        if let Some((_, letter)) = answer {
            self.send(from, Message::Lease(letter), out);
        }
    }

    /// Asks for the leases of what is placed here, renews them, and gives back the others. Says how each
    /// stands, and why so.
    pub(super) fn hold_leases(
        &mut self,
        now: Time,
        out: &mut Actions,
    ) -> BTreeMap<WorkloadId, (Standing, String)> {
        let wanted = self.exclusive_here();
        if !wanted.is_empty() || !self.leases.is_idle() {
            let here = self.replicas.workloads_here();
            let enrolled = self.enrolled();
            let letters = self.leases.claim(now.mono_ms, &wanted, &here, &enrolled, &self.liveness.alive);
            self.write_grants(now);
            self.post(letters, out);
        }
        let hostname = |id: &NodeId| self.cluster.hostname(id);
        let standing = |id: WorkloadId| {
            let standing = self.leases.standing(now.mono_ms, &id);
            let why = match standing {
                Standing::Held { .. } => String::new(),
                Standing::Never | Standing::Lost { .. } => self.leases.explain(&id, hostname),
            };
            (id, (standing, why))
        };
        wanted.into_keys().map(standing).collect()
    }

    /// The exclusive workloads that are placed here. Looks at the slots of no others: it is asked at every
    /// step.
    fn exclusive_here(&self) -> BTreeMap<WorkloadId, Exclusive> {
        let exclusive = self.cluster.workloads.iter();
        let exclusive = exclusive.filter_map(|(id, workload)| Some((id, workload.spec.exclusive.as_ref()?)));
        let is_here = |id: &WorkloadId| {
            let placement = self.cluster.placements.get(id);
            placement.is_some_and(|placement| placement.slots.values().any(|node| *node == self.settings.me))
        };
        exclusive
            .filter(|(id, _)| is_here(id))
            .map(|(id, exclusive)| (id.clone(), exclusive.clone()))
            .collect()
    }

    fn post(&mut self, letters: Vec<Addressed>, out: &mut Actions) {
        let addresses: BTreeMap<NodeId, Peer> =
            self.audience().into_iter().map(|peer| (peer.node, peer)).collect();
        for (to, letter) in letters {
            if let Some(peer) = addresses.get(&to) {
                self.send(*peer, Message::Lease(letter), out);
            }
        }
    }

    /// The nodes that count when it is asked who is more than half.
    fn enrolled(&self) -> BTreeSet<NodeId> {
        self.cluster.nodes.iter().filter(|(_, node)| !node.is_revoked()).map(|(id, _)| *id).collect()
    }

    /// Forgets grants of workloads of which nothing is held any more, not even a deletion.
    pub(super) fn drop_old_grants(&mut self, now: Time) {
        let map = &self.map;
        self.leases.keep(now.mono_ms, |id| {
            let (namespace, name) = (id.namespace.clone(), id.name.clone());
            map.has_document(&SpecKey { kind: Kind::Workload, namespace, name })
        });
    }

    /// Whether an exclusive workload names the nodes that have a say, and keeps them.
    pub(super) fn check_exclusive(&self, document: &Document) -> Result<(), Box<Problem>> {
        let Some(Spec::Workload(spec)) = &document.spec else { return Ok(()) };
        let id = WorkloadId {
            namespace: document.metadata.namespace.clone(),
            name: document.metadata.name.clone(),
        };
        let held = self.cluster.workloads.get(&id).and_then(|workload| workload.spec.exclusive.as_ref());
        let wrong = |detail: &str| Err(conflict(detail.to_owned(), "/spec/exclusive"));
        match (held, &spec.exclusive) {
            (None, None) => Ok(()),
            (Some(held), Some(exclusive)) if held == exclusive => Ok(()),
            (Some(_), Some(_)) => wrong("an exclusive workload keeps its voters; it was pushed with others"),
            (Some(_), None) => wrong(
                "an exclusive workload stays exclusive, since another instance may run where nobody has \
                 heard of this version; remove it first",
            ),
            (None, Some(exclusive)) if exclusive.since != document.metadata.revision => {
                wrong("its leases begin with another revision than its own")
            }
            (None, Some(exclusive)) if exclusive.voters != self.enrolled() => {
                wrong("its voters are not the nodes that are enrolled now; push again")
            }
            (None, Some(exclusive)) => {
                let away: Vec<String> = exclusive
                    .voters
                    .iter()
                    .filter(|node| !self.liveness.alive.contains(*node))
                    .map(|node| self.name(node))
                    .collect();
                if away.is_empty() {
                    return Ok(());
                }
                let detail = format!(
                    "an exclusive workload is begun while all nodes are there, and {} cannot be heard",
                    away.join(", ")
                );
                let problem = *conflict(detail, "/spec/exclusive");
                Err(Box::new(
                    problem.advice("wait until they are back, or revoke those that are gone for good"),
                ))
            }
        }
    }
}
