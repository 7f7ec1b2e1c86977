//! Images: by digest from push to start, and gone when the disk fills and nobody needs them.

use std::ffi::OsStr;
use std::time::Duration;

use hivemind_qemu::{Hardware, Machine, MachineOptions};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::key::SigningKey;
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::registry::{add, sent_bytes, tag};
use hivemind_tests::{disk, wait};

/// Says its version on port 80; one replica, or one on each of two machines.
fn shop(replicas: u32, more: &str) -> String {
    format!(
        "services:\n  shop:\n    image: registry.lab:5001/shop:1\n    ports: ['8080:80']\n    {more}\n    \
         deploy: {{replicas: {replicas}, placement: {{max_replicas_per_node: 1}}}}\n"
    )
}

/// The images that the replicas run, and how many replicas do.
fn running(cluster: &Cluster, count: usize) -> Vec<String> {
    cluster.wait_for_running("shop", count, STARTING);
    let replicas = items(&cluster.json(&["ps", "shop"]).unwrap());
    replicas.iter().map(|replica| replica["image"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn what_was_signed_is_what_runs_whatever_its_tag_names_later() {
    let cluster = Cluster::formed("pins", 2);
    let registry = cluster.lab.empty_registry().unwrap();
    let answers = |what: &str| {
        wait::until(&format!("every machine answers {what}"), STARTING, || {
            for machine in &cluster.machines {
                let said = cluster.get(&format!("http://{}:8080/", machine.address()))?;
                if !said.contains(what) {
                    return Err(said);
                }
            }
            Ok(())
        })
    };
    tag(&cluster.lab, "nginx:1", &registry, "shop:1");
    let told = cluster.push(&shop(1, "pull_policy: missing")).ok().stderr();
    assert_eq!(told, "", "it is looked up");
    let first = running(&cluster, 1);
    assert!(first[0].starts_with("registry.lab:5001/shop:1@sha256:"), "{first:?}");

    // The second machine fetches it when the tag names another image already.
    tag(&cluster.lab, "nginx:2", &registry, "shop:1");
    cluster.push(&shop(2, "pull_policy: missing")).ok();
    assert_eq!(running(&cluster, 2), [first[0].clone(), first[0].clone()]);
    answers("version 1");

    // A file that does not say otherwise takes what the tag names now, and its plan says so.
    let file = hivemind_tests::command::compose(cluster.folder(), &shop(2, ""));
    let plan = cluster.json(&["plan", &file.to_string_lossy()]).unwrap();
    let differences = items(&plan["changes"][0]["differences"]);
    assert_eq!(differences.len(), 1, "{plan}");
    assert_eq!(differences[0]["pointer"], "/spec/container/image");
    assert_eq!(differences[0]["before"], first[0].as_str());
    cluster.push(&shop(2, "")).ok();
    wait::until("both run what the tag names now", STARTING, || {
        let now = running(&cluster, 2);
        if now[0] == now[1] && now[0] != first[0] && differences[0]["after"] == now[0].as_str() {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    answers("version 2");

    // One with a password is asked with what `docker login` keeps.
    let guarded = cluster.lab.guarded_registry().unwrap();
    let text = format!("services:\n  guarded:\n    image: {}\n", guarded.reference("nginx:1"));
    let file = hivemind_tests::command::compose(cluster.folder(), &text);
    let plan = || {
        let mut command = cluster.command([OsStr::new("plan"), file.as_os_str()]);
        command.env("DOCKER_CONFIG", cluster.folder());
        Run::of(command).ok()
    };
    assert!(plan().stderr().contains("wants a password (401)"), "{}", plan().stderr());
    // `ci:open-sesame-once-more`, in base64.
    let login = r#"{"auths": {"registry.lab:5002": {"auth": "Y2k6b3Blbi1zZXNhbWUtb25jZS1tb3Jl"}}}"#;
    std::fs::write(cluster.folder().join("config.json"), login).unwrap();
    let digest = cluster.registry.digest("nginx:1").unwrap();
    assert!(plan().stdout().contains(&format!("nginx:1@{digest}")), "{}", plan().stderr());

    // Without its registry a push changes nothing of it, unless it must look.
    drop(registry);
    let pushed = cluster.push(&shop(2, "")).ok();
    assert!(pushed.stdout().contains("unchanged"), "{}", pushed.stdout());
    assert!(pushed.stderr().contains("stays what it was"), "{}", pushed.stderr());
    let refused = cluster.push(&shop(2, "pull_policy: always")).failed();
    assert!(refused.stderr().contains("registry registry.lab:5001"), "{}", refused.stderr());
    assert_eq!(refused.code(), Some(1));
}

/// Longer than an image must be unneeded to go, and than the machine takes to look at its disk.
const GOES: Duration = Duration::from_secs(150);

/// Nine tenths of the disk, so that there is need for room.
const FILLER: &str = "services:
  filler:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        set -- $$(df -k /data | tail -n 1)
        fallocate -l $$((($$3 + $$4) / 10 * 9 - $$3))k /data/much && df -k /data && echo filled
        exec sleep 1000000
    stop_grace_period: 0s
    volumes: [/data]
";

fn site(image: &str, command: &str) -> String {
    format!(
        "services:\n  site:\n    image: registry.lab:5000/{image}\n    {command}\n    stop_grace_period: 0s\n"
    )
}

#[test]
fn an_image_nobody_needs_goes_when_the_disk_fills_and_is_fetched_again_when_it_is_wanted() {
    let cluster = Cluster::formed("garbage", 1);
    let fetched = || cluster.registry.log().matches("GET /v2/nginx/blobs/").count();
    cluster.push(&site("nginx:1", "")).ok();
    cluster.wait_for_running("site", 1, STARTING);
    let blobs = fetched();
    assert!(blobs > 1, "{blobs}");
    cluster.push(&site("busybox:1", "command: sleep 1000000")).ok();
    cluster.push(FILLER).ok();
    cluster.wait_for_words("filler", &["filled"], STARTING);
    wait::until("nginx goes", GOES, || {
        let said = cluster.machines[0].serial();
        let told = said.lines().find(|line| line.contains("removing an image"));
        told.map(str::to_owned).ok_or_else(|| "it is still there".to_owned())
    });
    // What it removes is what nobody needs, and what runs is left alone.
    assert!(
        !cluster.machines[0]
            .serial()
            .lines()
            .any(|l| l.contains("removing an image") && l.contains("busybox"))
    );
    cluster.wait_for_running("site", 1, STARTING);
    assert_eq!(fetched(), blobs);
    cluster.push(&site("nginx:1", "")).ok();
    let look = || {
        let replicas = items(&cluster.json(&["ps", "site"])?);
        let runs = replicas.iter().any(|replica| {
            replica["phase"] == "running"
                && replica["image"].as_str().is_some_and(|image| image.contains("nginx"))
        });
        if runs && fetched() == 2 * blobs {
            Ok(())
        } else {
            Err(format!("{} blobs, {replicas:#?}", fetched()))
        }
    };
    wait::until("it is fetched again", STARTING, look);
}

/// What is fetched for a service on so many machines.
fn many(name: &str, replicas: u32) -> String {
    format!(
        "services:\n  {name}:\n    image: registry.lab:5001/{name}:1\n    stop_grace_period: 0s\n    \
         deploy: {{replicas: {replicas}, placement: {{max_replicas_per_node: 1}}}}\n"
    )
}

const MIB: usize = 1 << 20;

/// How many bytes an image has that machines have fetched, and how many of them came from other machines, as those say
/// that have fetched it.
fn fetched(cluster: &Cluster, image: &str) -> Vec<(u64, u64)> {
    let number = |line: &str, name: &str| {
        let text = line.split_once(&format!(" {name}="))?.1;
        text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let said = cluster.machines.iter().map(|machine| {
        let serial = machine.serial();
        let line = serial.lines().find(|line| line.contains("fetched an image") && line.contains(image))?;
        Some((number(line, "bytes")?, number(line, "from_peers")?))
    });
    said.flatten().collect()
}

#[test]
fn one_machine_fetches_an_image_and_the_others_have_it_from_there_also_without_the_registry() {
    let cluster = Cluster::formed("peers", 3);
    let registry = cluster.lab.empty_registry().unwrap();
    let layers = [8 * MIB, 4 * MIB, MIB];
    add(&cluster.lab, &registry, "nginx:1", "shop:1", &layers);
    cluster.push(&many("shop", 3)).ok();
    cluster.wait_for_running("shop", 3, STARTING);
    let fetched = fetched(&cluster, "shop");
    let size = fetched[0].0;
    assert!(size > layers.iter().sum::<usize>() as u64, "{size}");
    let sent = sent_bytes(&registry.log(), "shop");
    assert!(sent >= size, "{sent} of {size}: this test does not count");
    assert!(sent * 10 <= size * 12, "{sent} bytes of {size} crossed the link of the registry");
    let mut from_peers: Vec<_> = fetched.into_iter().map(|(_, from_peers)| from_peers).collect();
    from_peers.sort_unstable();
    assert_eq!(from_peers, [0, size, size]);

    // A machine that comes later needs no registry at all.
    add(&cluster.lab, &registry, "nginx:1", "late:1", &[MIB]);
    cluster.push(&many("late", 2)).ok();
    cluster.wait_for_running("late", 2, STARTING);
    drop(registry);
    cluster.push(&many("late", 3)).ok();
    cluster.wait_for_running("late", 3, STARTING);
}

#[test]
fn when_the_machine_that_fetches_an_image_loses_power_another_fetches_it() {
    let cluster = Cluster::formed("peer-dies", 3);
    let registry = cluster.lab.empty_registry().unwrap();
    add(&cluster.lab, &registry, "nginx:1", "shop:1", &[5 * MIB]);
    // Half a megabyte a second leaves the computer, which is where the registry is.
    let mut slow = cluster.lab.command("tc");
    slow.args([
        "qdisc", "add", "dev", "lab0", "root", "tbf", "rate", "4mbit", "burst", "64k", "latency", "1s",
    ]);
    Run::of(slow).ok();
    cluster.push(&many("shop", 3)).ok();
    let fetcher = wait::until("one machine fetches it", STARTING, || {
        let log = registry.log();
        // The image's configuration, which is small, comes first.
        let asked = log.lines().find(|line| line.contains("\"GET /v2/shop/blobs/")).map(str::to_owned);
        let asked = asked.ok_or("nobody has asked yet")?;
        let at = |machine: &&Machine| asked.starts_with(&format!("{} ", machine.address()));
        cluster.machines.iter().find(at).ok_or(asked.clone())
    });
    fetcher.0.power_cut();
    let look = || {
        let replicas = items(&cluster.json(&["ps", "shop"])?);
        let running = replicas.iter().filter(|replica| replica["phase"] == "running").count();
        if running == 2 { Ok(()) } else { Err(format!("{replicas:#?}")) }
    };
    wait::until("it runs on the two that are left", STARTING, look);
    let mut fetched = fetched(&cluster, "shop");
    fetched.sort_unstable_by_key(|(_, from_peers)| *from_peers);
    let [(_, once), (size, other)] = fetched[..] else { panic!("{fetched:?}") };
    // But for the configuration, which the one that is gone gave.
    assert!(once < size / 100 && other == size, "one has fetched it for both: {fetched:?}");
}

#[test]
fn a_mirror_gives_the_images_of_a_registry_that_cannot_be_reached() {
    let cluster = Cluster::new("mirror", 1);
    // The first does not answer.
    let mirror = |port: u16| format!("registry.example=registry.lab:{port}");
    cluster.configure(&cluster.image.disk, &["--mirror", &mirror(5003), "--mirror", &mirror(5000)]);
    let cluster = cluster.form(1);
    let pushed = cluster.push(
        "services:\n  shop:\n    image: registry.example/nginx:1\n    ports: ['8080:80']\n    stop_grace_period: 0s\n",
    );
    assert!(pushed.ok().stderr().contains("is pushed as a tag"), "this computer has no mirror");
    cluster.wait_for_running("shop", 1, STARTING);
    // The published port opens a moment after the container runs.
    let url = format!("http://{}:8080/", cluster.machines[0].address());
    let (said, _) = wait::until("it answers", STARTING, || cluster.get(&url));
    assert!(said.contains("version 1"), "{said}");
}

/// Copies an image to a file with another's program, and the file to this computer.
fn saved(cluster: &Cluster, image: &str, form: &str, name: &str) -> String {
    let copy = format!(
        "rm -f /tmp/image && skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://registry.lab:5000/{image} \
         {form}:/tmp/image{name}"
    );
    cluster.hivemind(["exec", "copier", "sh", "-c", &copy]).ok();
    let file = cluster.folder().join(form).to_string_lossy().into_owned();
    cluster.hivemind(["cp", "copier:/tmp/image", &file]).ok();
    file
}

#[test]
fn an_image_that_machines_were_given_runs_without_any_registry() {
    let mut cluster = Cluster::new("given", 2);
    // The second has sockets for sticks.
    for (name, hardware) in [("m1", Hardware::Virtual), ("m2", Hardware::Sata)] {
        let options = MachineOptions { hardware, ..MachineOptions::with_image(name, &cluster.image) };
        cluster.add_with(options).power_on().unwrap();
    }
    cluster.wait_for_ready_within(2, FORMING);
    let copier = "services:\n  copier:\n    image: registry.lab:5000/skopeo:1\n    command: sleep 1000000\n    \
                  stop_grace_period: 0s\n";
    cluster.push(copier).ok();
    cluster.wait_for_running("copier", 1, STARTING);
    // As `docker save` writes it, and as OCI has it. There is no registry of that name.
    let docker = saved(&cluster, "nginx:1", "docker-archive", ":given.example/shop:1");
    let oci = saved(&cluster, "nginx:2", "oci-archive", "");
    cluster.hivemind(["remove", "copier", "--yes"]).ok();
    let shop = |replicas: u32| {
        shop(replicas, "pull_policy: never").replace("registry.lab:5001/shop:1", "given.example/shop:1")
    };
    let refused = cluster.push(&shop(1)).failed().stderr();
    assert!(refused.contains("no machine was given it"), "{refused}");

    // One that is damaged is refused for what it is, and nothing of it is there.
    let mut damaged = std::fs::read(&docker).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let other = format!("{docker}.damaged");
    std::fs::write(&other, damaged).unwrap();
    let refused = cluster.hivemind(["images", "give", &other]).failed().stderr();
    assert!(refused.contains("digest"), "{refused}");
    assert_eq!(given(&cluster), []);

    let first = &cluster.machines[0];
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let hostname = |machine: &Machine| {
        let at = |node: &&serde_json::Value| node["address"] == machine.address().to_string();
        nodes.iter().find(at).unwrap()["hostname"].as_str().unwrap().to_owned()
    };
    let told = cluster.hivemind(["images", "give", &docker, "--on", &hostname(first)]).ok().stdout();
    assert!(told.contains("has given.example/shop:1"), "{told}");
    are_given(&cluster, &[hostname(first)]);

    // The other has it from there.
    let pushed = cluster.push(&shop(2)).ok().stderr();
    assert!(pushed.contains("is the one that machines were given"), "{pushed}");
    let images = running(&cluster, 2);
    assert!(images[0].starts_with("given.example/shop:1@sha256:") && images[0] == images[1], "{images:?}");
    for machine in &cluster.machines {
        let url = format!("http://{}:8080/", machine.address());
        let (said, _) = wait::until("it answers", STARTING, || cluster.get(&url));
        assert!(said.contains("version 1"), "{said}");
    }

    // Another takes its name, on all machines: what was given last counts.
    cluster.hivemind(["images", "give", &oci, "--name", "given.example/shop:1", "--all"]).ok();
    let mut both: Vec<String> = cluster.machines.iter().map(hostname).collect();
    both.sort();
    are_given(&cluster, &both);
    cluster.push(&shop(2)).ok();
    wait::until("the new one answers everywhere", STARTING, || {
        for machine in &cluster.machines {
            let said = cluster.get(&format!("http://{}:8080/", machine.address()))?;
            if !said.contains("version 2") {
                return Err(said);
            }
        }
        Ok(())
    });
    cluster.hivemind(["images", "take-back", "given.example/shop:1"]).ok();
    are_given(&cluster, &[]);
    cluster.wait_for_running("shop", 2, STARTING);
    a_stick_brings_images_by_the_word_of_an_admin(&cluster, &docker, &hostname(&cluster.machines[1]));
}

/// Without a network, and nothing that somebody else signed.
fn a_stick_brings_images_by_the_word_of_an_admin(cluster: &Cluster, docker: &str, hostname: &str) {
    let folder = cluster.folder().join("stick");
    std::fs::create_dir(&folder).unwrap();
    let (stick, foreign) = (cluster.folder().join("images.img"), cluster.folder().join("foreign.img"));
    cluster
        .hivemind([OsStr::new("images"), OsStr::new("stick"), folder.as_os_str(), OsStr::new(docker)])
        .ok();
    disk::stick_with(&stick, 128, "HIVEIMAGES", &folder);
    let list = std::fs::read_to_string(folder.join("images.json")).unwrap();
    let other = SigningKey::from_seed([9; 32]);
    let payload = serde_json::from_str::<Envelope>(&list).unwrap().payload().unwrap();
    let foreign_list = Envelope::sign_images(&serde_json::from_slice(&payload).unwrap(), &other);
    std::fs::write(folder.join("images.json"), foreign_list.to_json()).unwrap();
    disk::stick_with(&foreign, 128, "HIVEIMAGES", &folder);

    let machine = &cluster.machines[1];
    machine.link_down().unwrap();
    machine.plug_stick("foreign", &foreign).unwrap();
    machine.wait_for_line("no signature verifies under a key this cluster knows", STARTING).unwrap();
    machine.unplug("foreign").unwrap();
    machine.plug_stick("images", &stick).unwrap();
    machine.wait_for_line("the images of the stick are here", STARTING).unwrap();
    machine.unplug("images").unwrap();
    machine.link_up().unwrap();
    cluster.wait_for_ready(2);
    are_given(cluster, &[hostname.to_owned()]);
}

/// Waits until these machines were given the image, and no other image was given.
fn are_given(cluster: &Cluster, hostnames: &[String]) {
    let name = "given.example/shop:1".to_owned();
    let expected: Vec<_> = if hostnames.is_empty() { Vec::new() } else { vec![(name, hostnames.to_vec())] };
    wait::until("the machines have what they were given", STARTING, || {
        let found = given(cluster);
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// Images that machines were given, and which machines.
fn given(cluster: &Cluster) -> Vec<(String, Vec<String>)> {
    let images = items(&cluster.json(&["images"]).unwrap());
    let one = |image: &serde_json::Value| {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut nodes: Vec<String> =
            items(&image["nodes"]).iter().map(|node| text(&node["hostname"])).collect();
        nodes.sort();
        (text(&image["name"]), nodes)
    };
    images.iter().map(one).collect()
}
