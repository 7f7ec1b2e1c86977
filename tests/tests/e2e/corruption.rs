//! Documents and stores that were changed on the disk while the machine was off.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use hivemind_core::record::Record;
use hivemind_core::state::encode;
use hivemind_spec::document::{Document, Kind, Spec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::key::SigningKey;
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::{disk, probe, wait};
use hivemindd::store::{SledStore, Store as _};

const STEADY: &str = "services:\n  steady:\n    image: registry.lab:5000/redis:1\n";
const WEB: &str = "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 2}\n";

#[test]
fn what_was_corrupted_on_a_disk_is_never_run_and_comes_again_from_the_peers() {
    let cluster = Cluster::new("corrupted", 2).with_probe().form(2);
    cluster.push(STEADY).ok();
    cluster.push(WEB).ok();
    cluster.wait_for_running("web", 2, STARTING);
    cluster.wait_for_running("steady", 1, STARTING);
    let (keeper, victim) = (&cluster.machines[0], &cluster.machines[1]);

    // A disk that changes bytes: sled's own checksums find it, and the store is set aside.
    victim.power_cut();
    disk::change_store(victim, flip_a_byte);
    victim.power_on().unwrap();
    let damaged = victim.wait_for_line("the store was damaged and set aside", FORMING).unwrap();
    assert!(damaged.contains("peers bring back what is missing"), "{damaged}");
    // It was away so shortly that the keeper may not have noticed: what counts is what it holds itself.
    wait::until("it holds what its peer does", FORMING, || {
        let [kept, refilled] = [keeper, victim].map(|machine| {
            let address = machine.address().to_string();
            cluster.json(&["status", "--node", &address])
        });
        let (kept, refilled) = (kept?, refilled?);
        let alike = kept["mapDigest"] == refilled["mapDigest"] && refilled["nodesReady"] == 2;
        if alike { Ok(()) } else { Err(format!("{kept:#} {refilled:#}")) }
    });
    cluster.wait_for_running("web", 2, STARTING);

    // Somebody who writes to the disk: whole to sled, yet not what was signed. Alone, so that
    // nobody can tell the machine better.
    keeper.power_cut();
    victim.power_cut();
    disk::change_store(victim, forge);
    victim.power_on().unwrap();
    let refused = victim.wait_for_line("stored-record-refused", FORMING).unwrap();
    assert!(refused.contains("Workload/default/web") && refused.contains("does not match"), "{refused}");
    // It runs what is as it was signed, so it is past waiting for others; and nothing else.
    let here = |program: &str| probe::ask(&cluster.lab, victim, &["pids", program]);
    wait::until("the untouched workload runs", STARTING, || match here("redis-server")?.as_str() {
        "" => Err(format!("{:?}", cluster.json(&["ps", "--node", &victim.address().to_string()]))),
        _ => Ok(()),
    });
    wait::throughout("nothing forged runs", Duration::from_secs(5), || {
        let running = here("misbehave")? + &here("nginx")?;
        if running.is_empty() { Ok(()) } else { Err(running) }
    });

    keeper.power_on().unwrap();
    cluster.wait_for_ready(2);
    cluster.wait_for_running("web", 2, STARTING);
    cluster.wait_for_running("steady", 1, STARTING);
    // The peer may have taken over both while it was alone, and keeps them; of two more one comes here.
    cluster.push(&WEB.replace("replicas: 2", "replicas: 4")).ok();
    cluster.wait_for_running("web", 4, STARTING);
    wait::until("the right version runs here", STARTING, || match here("nginx")?.as_str() {
        "" => Err(format!("{:?}", cluster.replicas("web"))),
        _ => Ok(()),
    });
    assert!(here("misbehave").unwrap().is_empty(), "and the forged one does not");
}

/// One bit of sled's own description of the store.
fn flip_a_byte(store: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(store.join("conf")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 3).unwrap();
}

/// Lets the stored workload `web` run another image, under the signature it had.
fn forge(folder: &Path) {
    let opened = SledStore::open(folder).unwrap();
    assert!(opened.set_aside.is_none(), "{:?}", opened.set_aside);
    let mut forged = 0;
    for (key, value) in opened.store.scan(b"").unwrap() {
        let Ok(Record::Spec(mut envelope)) = postcard::from_bytes(&value) else { continue };
        let mut document = Document::parse(&envelope.payload().unwrap()).unwrap();
        if (document.kind, document.metadata.name.as_str()) != (Kind::Workload, "web") {
            continue;
        }
        let Some(Spec::Workload(workload)) = &mut document.spec else { panic!("{document:?}") };
        workload.container.image = "registry.lab:5000/misbehave:1".to_owned();
        envelope.payload = Envelope::sign(&document.to_json(), &SigningKey::from_seed([1; 32])).payload;
        opened.store.apply(&[(key, Some(encode(&Record::Spec(envelope))))]).unwrap();
        forged += 1;
    }
    opened.store.flush().unwrap();
    assert_eq!(forged, 1, "the document was found");
}
