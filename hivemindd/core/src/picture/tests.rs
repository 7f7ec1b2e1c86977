use hivemind_spec::document::{Ancestor, Document, SpecKey};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{Digest, KeyId, TokenId};
use hivemind_spec::key::SigningKey;
use hivemind_spec::release::Architecture;
use proptest::prelude::*;

use super::*;
use crate::checking::spec_key;
use crate::fixture::{node, node_id, replica_id, workload_id};
use crate::record::{GivenImage, JobProgress, Overtaken, Record, Rollout, Statement};
use crate::state::{Version, encode};
use crate::time::Hlc;

fn root() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn entry(writer: NodeId, order: Order, content: Content, salt: u64) -> Entry {
    let record = Record::Statement(Statement { writer, body: encode(&salt), signature: Vec::new() });
    Entry { version: Version { order, tie: Digest::of(&encode(&record)) }, record, content }
}

fn observation(n: u8, topic: Topic, observation: Option<Observation>, salt: u64) -> (RecordKey, Entry) {
    let order = Order::Observation { boot: 1, sequence: salt };
    let key = RecordKey::Observation(node_id(n), topic);
    (key, entry(node_id(n), order, Content::Observation(observation), salt))
}

fn decision(n: u8, matter: Matter, decision: Option<Decision>, salt: u64) -> (RecordKey, Entry) {
    let order = Order::Decision { clock: Hlc { wall_ms: salt, ..Hlc::default() } };
    (RecordKey::Decision(matter), entry(node_id(n), order, Content::Decision(decision), salt))
}

fn document(json: &str, revision: u64) -> (RecordKey, Entry) {
    let mut document = Document::parse(json.as_bytes()).unwrap();
    document.metadata.revision = revision;
    let envelope = Envelope::sign(&document.to_json(), &root());
    let verified = envelope.verify(|_| Some(root().public())).unwrap();
    let key = spec_key(&envelope, &verified);
    let order = Order::Spec { revision, digest: verified.digest(), signatures: 1 };
    let record = Record::Spec(envelope);
    let version = Version { order, tie: Digest::of(&encode(&record)) };
    (key, Entry { version, record, content: Content::Spec(verified) })
}

fn workload(name: &str, revision: u64) -> (RecordKey, Entry) {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"NAME","namespace":"default","revision":1},
        "spec":{"replicas":2,"container":{"image":"registry.test/app:1"}}}"#;
    let job = r#","restart":{"condition":"never"},"job":{"schedule":{"cron":"@daily"}}}}"#;
    let json =
        if revision.is_multiple_of(3) { json.replace("}}}", &format!("}}{job}")) } else { json.to_owned() };
    document(&json.replace("NAME", name), revision)
}

fn intent(n: u8, revoked: bool, revision: u64) -> (RecordKey, Entry) {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"NodeIntent","metadata":{"name":"NAME","revision":1},
        "spec":{"node":"NAME","revoked":REVOKED}}"#;
    let json = json.replace("NAME", &node_id(n).to_string());
    document(&json.replace("REVOKED", &revoked.to_string()), revision)
}

fn status(phase: Phase, salt: u64) -> ReplicaStatus {
    let template = Digest::of(b"template");
    let reason = String::new();
    ReplicaStatus { template, phase, reason, ip: None, restarts: 0, since_ms: salt, pull: None }
}

/// A record of a small cluster: three nodes, of which some are revoked or no members, and two workloads.
fn record(what: u8, n: u8, m: u8, says: bool, salt: u64) -> (RecordKey, Entry) {
    let name = ["a", "b"][usize::from(m % 2)];
    let spec = SpecKey {
        kind: hivemind_spec::document::Kind::Workload,
        namespace: "default".into(),
        name: name.into(),
    };
    match what {
        0 => {
            let mut enrolment = node(n).enrolment;
            enrolment.subnet = Some(salt as u16);
            observation(n, Topic::Enrolment, says.then_some(Observation::Enrolment(enrolment)), salt)
        }
        1 => {
            let admission = Observation::Admission { token: TokenId::of(b"token"), admitted_ms: salt };
            observation(n, Topic::Admission(node_id(m)), says.then_some(admission), salt)
        }
        2 => {
            let status = node(n)
                .status
                .map(|status| Observation::Node(crate::record::NodeStatus { started_ms: salt, ..status }));
            observation(n, Topic::Node, status.filter(|_| says), salt)
        }
        3 | 4 => {
            let phase = [Phase::Running, Phase::Starting, Phase::Stopping][(salt % 3) as usize];
            let status = Observation::Replica(status(phase, salt));
            let topic = Topic::Replica(replica_id(name, u32::from(what - 3)));
            observation(n, topic, says.then_some(status), salt)
        }
        5 => {
            let version = Ancestor { revision: salt, digest: Digest::of(b"a") };
            let (signer, by_signer) = (KeyId([1; 16]), KeyId([2; 16]));
            let overtaken = Overtaken { version, signer, by: Digest::of(b"b"), by_signer, since_ms: salt };
            observation(n, Topic::Overtaken(spec), says.then_some(Observation::Overtaken(overtaken)), salt)
        }
        6 => {
            let digest = says.then(|| Digest::of(b"document"));
            let slots = [(0, node_id(n)), (1, node_id(m))].into();
            let placement = Placement { digest, slots, pending: BTreeMap::new() };
            let made = (!salt.is_multiple_of(4)).then_some(Decision::Placement(placement));
            decision(n, Matter::Placement(workload_id(name)), made, salt)
        }
        7 => {
            let forgotten = Forgotten { records: [(salt, salt)].into(), until_revision: salt };
            decision(n, Matter::Forgotten, says.then_some(Decision::Forgotten(forgotten)), salt)
        }
        8 => intent(n, says, salt),
        9 => {
            let turns = [node_id(n), node_id(m)].into();
            let rollout = Rollout { digest: Digest::of(b"release"), turns, stopped: String::new() };
            decision(
                n,
                Matter::Rollout(Architecture::Amd64),
                says.then_some(Decision::Rollout(rollout)),
                salt,
            )
        }
        10 => {
            let progress = JobProgress {
                template: Digest::of(b"run"),
                run_ms: salt.is_multiple_of(2).then_some(salt),
                completed: [u32::from(m)].into(),
            };
            decision(n, Matter::Job(workload_id(name)), says.then_some(Decision::Job(progress)), salt)
        }
        11 => {
            let image = GivenImage { digest: Digest::of(&[m]), given_ms: salt };
            let images = Observation::Images([(name.to_owned(), image)].into());
            observation(n, Topic::Images, says.then_some(images), salt)
        }
        _ => workload(name, salt),
    }
}

/// What happens to the map: a record is taken, dropped, or both between two looks at it.
#[derive(Debug, Clone)]
struct Change {
    what: u8,
    n: u8,
    m: u8,
    says: bool,
    salt: u64,
    drops: bool,
    looks: bool,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (0u8..13, 1u8..4, 1u8..4, any::<bool>(), 1u64..9, 0u8..4, any::<bool>()).prop_map(
        |(what, n, m, says, salt, drops, looks)| Change {
            what,
            n,
            m,
            says: says || salt > 4,
            salt,
            drops: drops == 0,
            looks,
        },
    );
    proptest::collection::vec(change, 1..80)
}

proptest! {
    #[test]
    fn a_picture_that_follows_the_map_is_the_one_drawn_from_it(changes in changes()) {
        let mut map = Map::default();
        // All are members to begin with, or most of what follows would be about nobody.
        for n in 1..4 {
            for (what, m) in [(0, 1), (1, n % 3 + 1), (2, 1)] {
                let (key, entry) = record(what, n, m, true, 9);
                map.merge(key, entry);
            }
        }
        let drawn = |map: &Map| {
            let trust = Trust::evaluate(&[root().public()], map);
            let members = enrolment::members(map, node_id(1), &BTreeSet::new());
            draw(map, &trust, &members)
        };
        let mut cluster = drawn(&map);
        let mut changed = BTreeSet::new();
        for change in changes {
            let Change { what, n, m, says, salt, drops, looks } = change;
            let (key, entry) = record(what, n, m, says, salt);
            map.remove(&key);
            if !drops {
                map.merge(key.clone(), entry);
            }
            changed.insert(key);
            if looks {
                if !follow(&mut cluster, &map, &std::mem::take(&mut changed)) {
                    cluster = drawn(&map);
                }
                prop_assert_eq!(&cluster, &drawn(&map));
            }
        }
    }
}
