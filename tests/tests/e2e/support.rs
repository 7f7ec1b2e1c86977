//! `hivemind support`: what helps to find out what is wrong.

use std::fs;
use std::process::Command;

use hivemind_tests::cluster::Cluster;
use hivemind_tests::command::{Run, items};

#[test]
fn one_file_has_the_logs_and_the_state_of_every_machine_that_answers_and_says_who_does_not() {
    let cluster = Cluster::formed("support", 2);
    cluster.machines[1].power_cut();
    let file = cluster.folder().join("support.tar.gz");
    let told = cluster.hivemind(["support", "--out", file.to_str().unwrap()]).ok();
    assert!(told.stdout().contains("1 machine"), "{}", told.stdout());
    let folder = cluster.folder().join("unpacked");
    fs::create_dir(&folder).unwrap();
    Run::of({
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&file).arg("-C").arg(&folder);
        tar
    })
    .ok();
    let gone = items(&cluster.json(&["nodes"]).unwrap())
        .iter()
        .find(|node| {
            node["address"]
                .as_str()
                .is_some_and(|at| at.starts_with(&cluster.machines[1].address().to_string()))
        })
        .map(|node| node["id"].as_str().unwrap_or_default().to_owned())
        .unwrap();
    assert!(fs::read_to_string(folder.join("missing.txt")).unwrap().contains(&gone));
    let machines: Vec<_> =
        fs::read_dir(&folder).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert_eq!(machines.len(), 1);
    let read = |name: &str| fs::read_to_string(machines[0].path().join(name)).unwrap();
    assert!(read("kernel.log").contains("Linux version"));
    assert!(read("agent.log").contains("this node"), "{}", read("agent.log"));
    assert!(read("nodes.json").contains(&gone));
    assert!(read("processes.txt").lines().any(|line| line.ends_with(" containerd")));
    assert!(read("proc/meminfo").contains("MemAvailable"));
}
