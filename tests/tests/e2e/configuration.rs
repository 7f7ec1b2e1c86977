//! Machine configurations with faults, on real boots.

use std::process::Command;

use hivemind_qemu::{Config, Machine, MachineOptions};
use hivemind_spec::machine::{FILE_NAME, VOLUME_LABEL};
use hivemind_tests::cluster::{Cluster, FORMING};
use hivemind_tests::command::Run;
use hivemind_tests::{disk, wait};

/// Every boot costs half a minute, so each shows several faults: one for each place a machine looks
/// for its configuration, on two machines at a time.
#[test]
fn a_machine_tells_the_faults_of_its_configuration_and_joins_once_it_is_corrected() {
    let mut cluster = Cluster::new("bad-config", 3);
    let blank = hivemind_qemu::Image::built().unwrap();
    cluster.add("m1").power_on().unwrap();
    let good = cluster
        .hivemind(["image", "configure", "--stdout", "--insecure-registry", "registry.lab:5000"])
        .ok()
        .stdout();

    // Three sources, each with a fault; and a machine with none at all.
    let unknown = with(&good, "[cluster]", "[cluster]\ncolour = \"red\"");
    let wrong = with(&good, "name = \"bad-config\"", "name = 7");
    let broken = with(&good, "[token]", "[token");
    let mut options = MachineOptions::with_image("m2", &blank);
    options.config = Some(Config::Bytes(broken.clone().into_bytes()));
    let stick = stick(&cluster, &wrong);
    options.extra_args = ["-drive", &format!("if=none,id=stick,format=raw,file={stick}")]
        .into_iter()
        .chain(["-device", "virtio-blk-pci,drive=stick"])
        .map(Into::into)
        .collect();
    cluster.add_with(options);
    cluster.add_with(MachineOptions::with_image("m3", &blank));
    let [first, second, third] = &cluster.machines[..] else { panic!("three machines") };
    disk::configure(second, &unknown);
    second.power_on().unwrap();
    third.power_on().unwrap();
    says(second, &["config-unknown-key", &place(&unknown, "colour"), "`cluster.colour`", "remove it"]);
    says(second, &["config-wrong-type", &place(&wrong, "name = 7"), "`cluster.name`", "change the value"]);
    says(second, &["config-syntax", &place(&broken, "[token"), "correct the TOML"]);
    for machine in [second, third] {
        says(machine, &["config-missing", "hivemind image configure"]);
    }
    stop_without_identity(&[second, third]);

    // Well-formed, and wrong all the same: found by the agent, before it makes itself an identity.
    cluster.hivemind(["token", "create"]).ok();
    let other = cluster.hivemind(["image", "configure", "--stdout"]).ok().stdout();
    let foreign_key = with(&good, value(&good, "ca_key"), value(&other, "ca_key"));
    let foreign_document = with(&good, value(&good, "document"), value(&other, "document"));
    disk::configure(second, &foreign_key);
    disk::configure(third, &foreign_document);
    second.power_on().unwrap();
    third.power_on().unwrap();
    let next = "write it anew with `hivemind image configure`";
    says(second, &["config-bad-value", &place(&foreign_key, "ca_key"), "`token.ca_key`", next]);
    says(third, &["config-bad-value", &place(&foreign_document, "document"), "`token.document`", next]);
    stop_without_identity(&[second, third]);

    // A member whose configuration is spoilt goes on with the one it remembers.
    cluster.wait_for_ready(1);
    first.power_cut();
    disk::configure(first, &unknown);
    disk::configure(second, &good);
    disk::configure(third, &good);
    for machine in &cluster.machines {
        machine.power_on().unwrap();
    }
    says(first, &["config-unknown-key"]);
    says(first, &["configuration from remembered"]);
    cluster.wait_for_ready(3);
    second.power_cut();
    assert!(disk::has(second, disk::IDENTITY), "the same look finds what there is");
}

/// Replaces what must be there exactly once.
fn with(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old} in {text}");
    text.replace(old, new)
}

/// The value of a key as it is written, on one line or on many.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{key} = ")).unwrap_or_else(|| panic!("no {key} in {text}"));
    let end = match ["\"\"\"", "'''"].into_iter().find(|quotes| rest.starts_with(quotes)) {
        Some(quotes) => rest[3..].find(quotes).unwrap() + 6,
        None => rest.find('\n').unwrap_or(rest.len()),
    };
    &rest[..end]
}

/// The file and line where `what` stands, as faults name it.
fn place(text: &str, what: &str) -> String {
    let line = text.lines().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("no {what}"));
    format!("{FILE_NAME}:{}:", line + 1)
}

/// Waits for a line on the console that has all the words.
fn says(machine: &Machine, words: &[&str]) {
    wait::until(&format!("{} says {words:?}", machine.name()), FORMING, || {
        let log = machine.serial();
        let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if told { Ok(()) } else { Err(log) }
    });
}

fn stop_without_identity(machines: &[&Machine]) {
    for machine in machines {
        // Its agent had its chance.
        says(machine, &["agent ended with status 1"]);
        machine.power_cut();
        assert!(!disk::has(machine, disk::IDENTITY), "no identity was made");
    }
}

/// A USB stick's content: a FAT file system with the label and the file.
fn stick(cluster: &Cluster, text: &str) -> String {
    let (file, stick) = (cluster.folder().join("stick.toml"), cluster.folder().join("stick.img"));
    std::fs::write(&file, text).unwrap();
    disk::stick(&stick, 8, VOLUME_LABEL);
    let mut copy = Command::new("mcopy");
    copy.arg("-i").args([&stick, &file]).arg(format!("::{FILE_NAME}"));
    Run::of(copy).ok();
    stick.to_string_lossy().into_owned()
}
