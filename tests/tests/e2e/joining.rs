//! Machines become a cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hivemind_qemu::MachineOptions;
use hivemind_tests::cluster::{Cluster, FORMING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::console::Console;
use hivemind_tests::wait;

#[test]
fn three_identical_machines_form_a_cluster_and_a_fourth_joins_within_five_seconds() {
    let mut cluster = Cluster::new("joining", 4).form(3);
    wait::until("one leader, and a subnet for each", FORMING, || {
        let nodes = items(&cluster.json(&["nodes"])?);
        let leaders = nodes.iter().filter(|node| node["leader"] == true).count();
        let subnets = nodes.iter().filter_map(|node| node["subnet"].as_str()).filter(|s| !s.is_empty());
        let subnets: BTreeSet<&str> = subnets.collect();
        if leaders == 1 && subnets.len() == 3 { Ok(()) } else { Err(format!("{nodes:#?}")) }
    });

    cluster.add("m4");
    let fourth = &cluster.machines[3];
    fourth.power_on().unwrap();
    fourth.wait_for_lease(FORMING).unwrap();
    let networked = Instant::now();
    wait::until("4 members", FORMING, || {
        let nodes = items(&cluster.json(&["nodes"])?);
        let live = nodes.iter().filter(|node| node["state"] != "down").count();
        if live == 4 { Ok(()) } else { Err(format!("{nodes:#?}")) }
    });
    let took = networked.elapsed();
    let limit = Duration::from_secs(5).mul_f64(Console::of(fourth).slowness());
    assert!(took < limit, "joined {took:?} after its network was up, of {limit:?}");
    // It is ready once its containerd is, which starts meanwhile.
    cluster.wait_for_ready(4);
}

#[test]
fn a_machine_with_a_foreign_a_used_up_or_an_expired_token_is_refused_with_a_line_in_both_logs() {
    let mut cluster = Cluster::new("refused", 4);
    let untouched = hivemind_qemu::Image::built().unwrap().disk;
    // One use, and the first machine takes it.
    cluster.hivemind(["token", "create", "--uses", "1"]).ok();
    cluster.configure(&cluster.image.disk, &[]);
    cluster.add("m1").power_on().unwrap();
    cluster.wait_for_ready(1);
    let seed = format!("{}:7946", cluster.machines[0].address());

    let second = cluster.image.disk.with_file_name("second.img");
    std::fs::copy(&cluster.image.disk, &second).unwrap();
    cluster.configure(&second, &["--seed", &seed]);
    refuse(&mut cluster, "used-up", second, "used up");

    let third = cluster.image.disk.with_file_name("third.img");
    std::fs::copy(&cluster.image.disk, &third).unwrap();
    cluster.hivemind(["token", "create", "--ttl", "5s"]).ok();
    let token = newest_token(&cluster);
    cluster.configure(&third, &["--seed", &seed, "--token", &token]);
    std::thread::sleep(Duration::from_secs(6));
    refuse(&mut cluster, "expired", third, "expired");

    let fourth = cluster.image.disk.with_file_name("fourth.img");
    std::fs::copy(&untouched, &fourth).unwrap();
    let home = cluster.folder().join("stranger");
    let stranger = |arguments: &[&str]| {
        let mut command = cluster.command(arguments);
        command.env("XDG_CONFIG_HOME", &home);
        Run::of(command).ok();
    };
    stranger(&["init", "stranger"]);
    stranger(&["image", "configure", &fourth.to_string_lossy(), "--seed", &seed]);
    refuse(&mut cluster, "foreign", fourth, "another cluster");

    assert_eq!(items(&cluster.json(&["nodes"]).unwrap()).len(), 1, "nobody got in");
}

fn newest_token(cluster: &Cluster) -> String {
    let tokens = items(&cluster.json(&["token", "list"]).unwrap());
    let newest = tokens.iter().max_by_key(|token| token["notBeforeMs"].as_u64());
    newest.and_then(|token| token["path"].as_str()).unwrap_or_else(|| panic!("{tokens:#?}")).to_owned()
}

/// Boots a machine from `disk` and waits for the refusal on both consoles.
fn refuse(cluster: &mut Cluster, name: &str, disk: std::path::PathBuf, why: &str) {
    let mut image = cluster.image.clone();
    image.disk = disk;
    cluster.add_with(MachineOptions::with_image(name, &image)).power_on().unwrap();
    let newcomer = &cluster.machines[cluster.machines.len() - 1];
    let address = newcomer.address().to_string();
    for (machine, who) in [(&cluster.machines[0], address.as_str()), (newcomer, "")] {
        wait::until(&format!("{} tells of the refusal of {name}", machine.name()), FORMING, || {
            let log = machine.serial();
            let told = log.lines().any(|l| l.contains("refused") && l.contains(why) && l.contains(who));
            if told { Ok(()) } else { Err(log) }
        });
    }
    newcomer.power_cut();
}
