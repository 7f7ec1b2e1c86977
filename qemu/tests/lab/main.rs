//! What the harness promises to every test that uses it, shown with machines that boot in seconds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod command;
mod tiny;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hivemind_qemu::{Config, Disk, DiskCache, Impairment, Lab, LabOptions, MachineOptions};
use tiny::{boot, eventually, machine, reaches, sh};

fn lab(name: &str, machines: usize) -> Lab {
    Lab::with_options(LabOptions { machines, ..LabOptions::new(name) }).unwrap()
}

#[test]
fn machines_of_a_lab_reach_each_other_until_a_partition_and_again_after_it() {
    let lab = lab("partition", 2);
    let (a, b) = (machine(&lab, "a"), machine(&lab, "b"));
    boot(&[&a, &b]);
    assert_eq!(a.wait_for_lease(Duration::ZERO).unwrap(), a.address());
    assert!(reaches(&lab, &a, &b));
    assert!(reaches(&lab, &b, &a));

    lab.partition(&[&a], &[&b]);
    assert!(!reaches(&lab, &a, &b));
    assert!(!reaches(&lab, &b, &a));

    lab.heal();
    assert!(reaches(&lab, &a, &b));

    // One way: what `a` sends still arrives, and what `b` answers does not.
    lab.partition_one_way(&[&b], &[&a]);
    let (_, sent_before) = b.frames();
    assert!(!reaches(&lab, &a, &b));
    let (_, sent_after) = b.frames();
    assert!(sent_after > sent_before, "b heard nothing, so it answered nothing");
}

#[test]
fn a_frozen_machine_is_silent_and_goes_on_when_thawed() {
    let lab = lab("freeze", 2);
    let (a, b) = (machine(&lab, "a"), machine(&lab, "b"));
    boot(&[&a, &b]);
    b.freeze().unwrap();
    let used = b.cpu_time().unwrap();
    assert!(!reaches(&lab, &a, &b));
    assert_eq!(b.cpu_time().unwrap(), used);
    b.thaw().unwrap();
    eventually("a thawed machine answers again", || reaches(&lab, &a, &b));
}

#[test]
fn a_power_cut_ends_a_machine_at_once_and_it_boots_again() {
    let lab = lab("power", 1);
    let a = machine(&lab, "a");
    boot(&[&a]);
    sh(&lab, &a, "echo before > /dev/ttyS0").unwrap();
    a.wait_for_line("before", Duration::from_secs(10)).unwrap();
    a.power_cut();
    assert!(!a.is_on());
    assert!(a.pid().is_none());
    boot(&[&a]);
    assert!(a.wait_for_line("before", Duration::ZERO).is_err(), "the search starts at the power-on");
    assert!(a.serial().contains("before"), "the log goes on over power cuts");
}

#[test]
fn machines_share_an_image_that_none_of_them_changes() {
    let lab = lab("disk", 2);
    // On the file system of the machines, like a built image; `/tmp` is another one on Debian 13.
    let folder = lab.path().join("image");
    std::fs::create_dir_all(&folder).unwrap();
    let base = folder.join("base.img");
    let image = [b"from the image".as_slice(), &[0; (1 << 20) - 14]].concat();
    std::fs::write(&base, &image).unwrap();
    let with_disk = |name: &str, size| {
        let disk = Disk { base: Some(base.clone()), size, cache: DiskCache::Unsafe };
        lab.machine(MachineOptions { disk: Some(disk), ..tiny::options(name) }).unwrap()
    };
    let (a, b) = (with_disk("a", Some(64 << 20)), with_disk("b", None));
    boot(&[&a, &b]);
    let start = "dd if=/dev/vda bs=14 count=1 2> /dev/null";
    assert_eq!(sh(&lab, &a, start).unwrap(), "from the image");
    assert_eq!(sh(&lab, &a, "cat /sys/block/vda/size").unwrap().trim(), "131072");
    assert_eq!(sh(&lab, &b, "cat /sys/block/vda/size").unwrap().trim(), "2048");

    sh(&lab, &a, "printf 'from machine a' | dd of=/dev/vda conv=notrunc,fsync").unwrap();
    // A new build that replaces the image file does not reach machines that are already made.
    std::fs::remove_file(&base).unwrap();
    a.power_cut();
    b.power_cut();
    boot(&[&a, &b]);
    assert_eq!(sh(&lab, &a, start).unwrap(), "from machine a", "what was flushed survives a power cut");
    assert_eq!(sh(&lab, &b, start).unwrap(), "from the image");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_volatile_disk_loses_at_a_power_cut_what_was_not_flushed_and_nothing_else() {
    let lab = lab("volatile", 1);
    let disk = Disk { base: None, size: Some(8 << 20), cache: DiskCache::Volatile { seed: 1 } };
    let a = lab.machine(MachineOptions { disk: Some(disk), ..tiny::options("a") }).unwrap();
    boot(&[&a]);
    // 64 blocks of 4 KiB, each filled with one letter; the second time they reach the disk, but without a flush.
    let fill = |letter: &str, how: &str| {
        format!(
            "dd if=/dev/zero bs=4k count=64 2> /dev/null | tr '\\0' {letter} | dd of=/dev/vda bs=4k {how}"
        )
    };
    sh(&lab, &a, &fill("a", "conv=fsync")).unwrap();
    let unflushed = sh(&lab, &a, &fill("b", "oflag=direct iflag=fullblock")).unwrap();
    assert!(unflushed.contains("64+0 records out"), "{unflushed}");
    assert_eq!(
        sh(&lab, &a, "dd if=/dev/vda bs=4k count=64 2> /dev/null | tr -d b | wc -c").unwrap().trim(),
        "0"
    );
    a.power_cut();
    boot(&[&a]);
    let count = |letter: &str| -> usize {
        let command = format!("dd if=/dev/vda bs=4k count=64 2> /dev/null | tr -dc {letter} | wc -c");
        sh(&lab, &a, &command).unwrap().trim().parse().unwrap()
    };
    let (old, new) = (count("a"), count("b"));
    assert_eq!(old + new, 64 * 4096, "every block is the flushed or the later one");
    assert!(old > 0 && old % 4096 == 0, "{old} bytes are as they were flushed");
    assert!(new > 0, "a real disk has written some of its cache already");
}

#[test]
fn the_power_button_asks_the_system_to_shut_down() {
    let lab = lab("button", 1);
    let a = machine(&lab, "a");
    boot(&[&a]);
    a.press_power_button().unwrap();
    a.wait_for_off(Duration::from_secs(60)).unwrap();
    boot(&[&a]);
    a.reset().unwrap();
    a.wait_for_line("tiny: ready", tiny::BOOT).unwrap();
}

#[test]
fn a_bad_cable_delays_and_loses_frames_and_a_pulled_one_carries_none() {
    let lab = lab("cable", 2);
    let (a, b) = (machine(&lab, "a"), machine(&lab, "b"));
    boot(&[&a, &b]);
    assert!(reaches(&lab, &a, &b));

    b.impair(Impairment { delay: Duration::from_millis(200), ..Impairment::default() });
    let started = Instant::now();
    assert!(sh(&lab, &a, &format!("ping -c 1 -W 5 {}", b.address())).unwrap().contains(" 0% packet loss"));
    assert!(started.elapsed() >= Duration::from_millis(400), "a round trip crosses the cable twice");

    b.impair(Impairment { loss: 1.0, ..Impairment::default() });
    assert!(!reaches(&lab, &a, &b));
    b.impair(Impairment { loss: 0.3, ..Impairment::default() });
    let some = sh(&lab, &a, &format!("ping -A -c 20 -W 1 {}", b.address())).unwrap();
    let received =
        some.lines().find_map(|line| line.split(", ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
    // 20 round trips of which half succeed: all or none is one in half a million.
    assert!(received.is_some_and(|count| (1..20).contains(&count)), "{some}");
    b.impair(Impairment::default());
    assert!(reaches(&lab, &a, &b));

    b.link_down().unwrap();
    assert!(!reaches(&lab, &a, &b));
    b.link_up().unwrap();
    eventually("a cable that is back carries frames", || reaches(&lab, &a, &b));
}

#[test]
fn a_machine_gets_its_configuration_clock_and_names_from_the_lab() {
    let lab = lab("services", 1);
    let config = "cluster: example\n";
    let options = MachineOptions {
        config: Some(Config::Bytes(config.into())),
        clock_offset_s: -10 * 365 * 86_400,
        ..tiny::options("a")
    };
    let a = lab.machine(options).unwrap();
    lab.publish_name("upstream.test", "10.77.0.9".parse().unwrap()).unwrap();
    boot(&[&a]);
    let read = sh(&lab, &a, "cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.hivemind/config/raw").unwrap();
    assert_eq!(read, config);

    let year = |text: &str| text.trim().parse::<i32>().unwrap();
    let host =
        String::from_utf8(std::process::Command::new("date").arg("+%Y").output().unwrap().stdout).unwrap();
    let behind = year(&host) - year(&sh(&lab, &a, "date +%Y").unwrap());
    assert!((9..=11).contains(&behind), "{behind} years behind");

    for (name, address) in
        [("upstream.test", "10.77.0.9"), ("registry.lab", "10.77.0.1"), ("a.lab", "10.77.0.11")]
    {
        eventually(name, || sh(&lab, &a, &format!("nslookup {name}")).unwrap().contains(address));
    }
    let nobody = sh(&lab, &a, "nslookup nobody.lab").unwrap();
    assert!(nobody.contains("NXDOMAIN"), "{nobody}");
}

#[test]
fn programs_of_the_host_reach_a_machine_through_a_forward_until_it_is_dropped() {
    let lab = lab("forward", 1);
    let a = machine(&lab, "a");
    boot(&[&a]);
    sh(&lab, &a, "mkdir -p /www && echo served > /www/index.html && httpd -p 80 -h /www").unwrap();
    let forward = lab.forward(0, (a.address(), 80).into()).unwrap();
    let port = forward.local().port();
    let get = |host: &str| format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(get("a.lab").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    assert!(fetch().unwrap().contains("served"));
    drop(forward);
    assert!(fetch().is_err(), "nobody listens any more");

    // The lab's own programs need no forward, and know the lab's names.
    let output = lab.command("busybox").args(["wget", "-q", "-O", "-", "http://a.lab/"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "served\n", "{output:?}");
}

#[test]
fn a_test_that_panics_leaves_nothing_behind() {
    let (tell, told) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = lab("panic", 1);
        let a = machine(&lab, "a");
        a.power_on().unwrap();
        tell.send((lab.id().to_owned(), lab.path().to_owned(), a.pid().unwrap())).unwrap();
        panic!("as a failing assertion would");
    });
    assert!(panicked.join().is_err());
    let (id, path, pid) = told.recv().unwrap();
    assert!(!path.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(processes_of(&id), Vec::<String>::new());
    assert!(!hivemind_qemu::live_labs().unwrap().iter().any(|lab| lab.id == id));
}

/// The lab of the child process of the next test; only that process makes one.
#[test]
#[ignore = "started by the next test, in a process that is killed"]
fn child_that_is_killed() {
    let lab = lab("killed", 1);
    let a = machine(&lab, "a");
    a.power_on().unwrap();
    println!("lab {} {} {}", lab.id(), lab.path().display(), a.pid().unwrap());
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_killed_run_leaves_no_process_and_its_folder_goes_with_the_next_lab() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let made = lines.map_while(Result::ok).find(|line| line.contains("lab killed"));
    child.kill().unwrap();
    child.wait().unwrap();
    let made = made.expect("the child says which lab it made");
    let [id, path, pid] = made.split(' ').rev().take(3).collect::<Vec<_>>()[..] else { panic!("{made}") };
    let (pid, path, id) = (id, path, pid);
    eventually("QEMU dies with its owner", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    eventually("all processes die with their owner", || processes_of(id).is_empty());
    // A lab of another test may have begun since then, and have done it.
    hivemind_qemu::sweep().unwrap();
    assert!(!std::path::Path::new(path).exists());
}

/// Command lines of the processes that carry the lab's mark.
fn processes_of(lab: &str) -> Vec<String> {
    let mark = format!("HIVEMIND_LAB={lab}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let marked = processes.filter(|process| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    });
    marked.map(|process| std::fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

#[test]
fn the_registry_of_a_lab_serves_every_test_image_and_takes_none() {
    let lab = lab("registry", 1);
    let registry = lab.registry().unwrap();
    assert_eq!(registry.reference("nginx:1"), "registry.lab:5000/nginx:1");
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
    let curl = |arguments: &[&str]| {
        let output =
            lab.command("curl").args(["-sS", "--fail", "-H", accept]).args(arguments).output().unwrap();
        output.status.success().then_some(output.stdout)
    };
    for name in ["busybox:1", "layers:1", "misbehave:1", "misbehave:2", "nginx:1", "nginx:2", "redis:1"] {
        let image = registry.images().get(name).unwrap_or_else(|| panic!("no {name}"));
        let url = format!("http://registry.lab:5000/v2/{}", image.name);
        let manifest = curl(&[&format!("{url}/manifests/{}", image.tag)]).unwrap();
        let by_digest = curl(&[&format!("{url}/manifests/{}", image.digest)]).unwrap();
        assert_eq!(manifest, by_digest);
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            let blob = curl(&[&format!("{url}/blobs/{}", layer["digest"].as_str().unwrap())]).unwrap();
            assert_eq!(Some(blob.len() as u64), layer["size"].as_u64());
        }
    }
    assert!(curl(&["-X", "POST", "http://registry.lab:5000/v2/nginx/blobs/uploads/"]).is_none());
    assert!(registry.log().contains("/v2/nginx/manifests/1"));
    drop(registry);
    assert!(curl(&["http://registry.lab:5000/v2/"]).is_none());
}
