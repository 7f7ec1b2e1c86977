//! Folders of an NFS server, which containers of all machines have in common. The server is none of ours: NFS-Ganesha.

use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::wait;

/// A server in a container, with what it exports in a volume.
const SERVER: &str = "
services:
  files:
    image: registry.lab:5000/ganesha:1
    cap_add: [DAC_READ_SEARCH]
    security_opt: ['seccomp:unconfined']
    volumes: ['exported:/export', 'recovery:/var/lib/nfs/ganesha']
    stop_grace_period: 2s
volumes:
  exported: {}
  recovery: {}
";

/// One on each machine; each writes a line a second under its name, for as long as it can.
const WRITERS: &str = "
services:
  writer:
    image: registry.lab:5000/busybox:1
    user: '1000:1000'
    command:
      - sh
      - -c
      - |
        n=0
        while n=$$((n + 1)) && echo $$n >>/shared/$$HOSTNAME; do sleep 1; done
        echo stopped at $$n
        exec sleep 100000
    stop_grace_period: 0s
    volumes: ['shared:/shared']
    deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}
  reader:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        touch /shared/reader 2>&1
        while sleep 1; do stat -c '%u:%g %n' /shared/*; done
    stop_grace_period: 0s
    volumes: ['shared:/shared:ro']
volumes:
  shared:
    driver_opts: {type: nfs, o: 'addr=files', device: ':/export/shared'}
";

#[test]
fn a_folder_of_an_nfs_server_is_one_on_all_machines_and_waits_for_its_server() {
    let cluster = Cluster::formed("nfs", 2);
    let refused = cluster.push(WRITERS).failed().stderr();
    assert!(refused.contains("hivemind namespaces allow default nfs"), "{refused}");
    cluster.hivemind(["namespaces", "allow", "default", "capabilities", "nfs"]).ok();
    cluster.push(SERVER).ok();
    cluster.wait_for_running("files", 1, STARTING);

    // What is not there is told, and looked for again.
    cluster.push(WRITERS).ok();
    both_wait(&cluster, "the NFS server files has no /export/shared");
    cluster
        .hivemind(["exec", "files", "--", "sh", "-c", "mkdir /export/shared; chown 1000 /export/shared"])
        .ok();
    let writers = cluster.wait_for_running("writer", 2, STARTING);
    assert_ne!(writers[0].node, writers[1].node);
    cluster.wait_for_words(
        "reader",
        &["Read-only file system", "1000:1000 /shared/writer-0", "1000:1000 /shared/writer-1"],
        STARTING,
    );

    // Without its server everybody waits, and goes on where they were.
    let lines = |slot: u32| {
        let script = format!("cat /export/shared/writer-{slot}");
        let said = cluster.hivemind(["exec", "files", "--", "sh", "-c", &script]).ok().stdout();
        said.lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>()
    };
    let before = [0, 1].map(|slot| lines(slot).len());
    cluster.hivemind(["restart", "files"]).ok();
    cluster.wait_for_running("files", 1, STARTING);
    wait::until("they write again", Duration::from_secs(90), || {
        let now = [0, 1].map(|slot| lines(slot).len());
        if now[0] > before[0] + 3 && now[1] > before[1] + 3 {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}"))
        }
    });
    for slot in 0..2 {
        let lines = lines(slot);
        assert!(lines.iter().copied().eq(1..=lines.len() as u32), "none is lost, none twice: {lines:?}");
    }
    assert_eq!(cluster.wait_for_running("writer", 2, STARTING), writers, "nobody has started again");

    // Whose server is away for good can be removed all the same, and who is new says so.
    cluster.hivemind(["remove", "files", "--yes"]).ok();
    cluster.wait_for_running("files", 0, STARTING);
    cluster.hivemind(["remove", "writer", "reader", "--yes"]).ok();
    cluster.wait_for_running("writer", 0, STARTING);
    cluster.push(WRITERS).ok();
    both_wait(&cluster, "the NFS server files is not found");
}

/// Waits until both writers say this of why they do not run.
fn both_wait(cluster: &Cluster, reason: &str) {
    wait::until(reason, STARTING, || {
        let replicas = cluster.replicas("writer")?;
        let told = replicas.iter().all(|r| r.reason.contains(reason));
        if told && replicas.len() == 2 { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
}
