//! `hivemind exec`: commands in containers, with somebody at their other end.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use hivemind_spec::exec::PING_EVERY;
use hivemind_spec::machine::API_PORT;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::{probe, wait};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// A terminal's answer comes within this: an emulated machine starts a process in a second.
const ANSWER: Duration = Duration::from_secs(30);

/// More than is under way in either direction, and than pipes hold.
const MUCH: usize = 3 << 20;

#[test]
fn tools_run_beside_a_container_that_has_none_and_nothing_of_them_stays() {
    let cluster = Cluster::formed("debug", 2);
    cluster
        .push(
            "services:\n  bare:\n    image: registry.lab:5000/misbehave:1\n    \
             deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}\n",
        )
        .ok();
    let before = cluster.wait_for_running("bare", 2, STARTING);
    let refused = cluster.hivemind(["exec", "bare", "sh"]).failed().stderr();
    assert!(refused.contains("sh"), "its image has no shell: {refused}");
    let debug = |replica: &str, script: &str| {
        let image = "registry.lab:5000/busybox:1";
        cluster.hivemind(["debug", replica, "--image", image, "--", "sh", "-c", script])
    };
    // One of the two is on the machine that is not asked.
    for slot in 0..2 {
        let look = "cat /proc/1/comm; hostname; timeout 3 wget -q -O - http://127.0.0.1:8080/; \
                    head -c 4 /proc/1/root/misbehave | tail -c 3; echo; id -u; exit 5";
        let ended = debug(&format!("bare/{slot}"), look);
        let said = ended.stdout();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.starts_with(&["misbehave", &format!("bare-{slot}")]), "{ended:?}");
        assert!(said.contains(&format!("hostname=bare-{slot}")), "its network: {ended:?}");
        assert!(lines.contains(&"ELF") && lines.last() == Some(&"0"), "its files: {ended:?}");
        assert_eq!(ended.code(), Some(5));
    }
    let unknown =
        cluster.hivemind(["debug", "bare", "--image", "registry.lab:5000/none:1"]).failed().stderr();
    assert!(unknown.contains("none:1"), "{unknown}");

    // Whoever goes away takes them along.
    let mut command =
        cluster.command(["debug", "bare/0", "--image", "registry.lab:5000/busybox:1", "--", "sleep", "4711"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let sleeps = || debug("bare/0", "ps | grep -v grep | grep -c 'sleep 4711'").stdout().trim() == "1";
    wait::until("it runs", ANSWER, || if sleeps() { Ok(()) } else { Err("not yet".to_owned()) });
    child.kill().unwrap();
    child.wait().unwrap();
    wait::until("it is gone", ANSWER, || if sleeps() { Err("it is there".to_owned()) } else { Ok(()) });
    assert_eq!(cluster.wait_for_running("bare", 2, STARTING), before, "the other goes on");
}

#[test]
fn a_command_runs_in_the_container_it_is_meant_for_asked_through_any_node_and_ends_as_it_ends() {
    let cluster = Cluster::formed("exec", 2);
    cluster.push(
        "services:\n  web:\n    image: registry.lab:5000/busybox:1\n    command: sleep 1000000\n    \
         working_dir: /tmp\n    environment: {COLOUR: blue}\n    deploy: {replicas: 2}\n",
    );
    cluster.wait_for_running("web", 2, STARTING);

    // From each machine to each replica, and so also to those of the other one.
    for machine in &cluster.machines {
        let node = format!("{}:{API_PORT}", machine.address());
        for slot in 0..2 {
            let name = cluster.hivemind(["exec", "--node", &node, &format!("web/{slot}"), "hostname"]).ok();
            assert_eq!(name.stdout().trim(), format!("web-{slot}"));
        }
    }

    // Who did what is told among what has happened.
    let events = items(&cluster.json(&["events", "web"]).unwrap());
    let runs: Vec<_> = events.iter().filter(|event| event["code"] == "exec").collect();
    let words = ["\"hostname\" is run in default/web-", ", by key "];
    let told = |event: &&serde_json::Value| {
        words.iter().all(|word| event["text"].as_str().is_some_and(|text| text.contains(word)))
    };
    assert!(runs.len() == 4 && runs.iter().all(told), "{events:#?}");

    let script = "echo $COLOUR $SIZE $PWD; echo complaint >&2; exit 7";
    let ended = cluster.hivemind(["exec", "-e", "SIZE=big", "web", "sh", "-c", script]).failed();
    assert_eq!((ended.stdout().trim(), ended.stderr().trim()), ("blue big /tmp", "complaint"));
    assert_eq!(ended.code(), Some(7));
    let ended =
        cluster.hivemind(["exec", "--output", "json", "-w", "/etc", "web", "sh", "-c", script]).failed();
    let json: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    let expected = serde_json::json!({ "exitCode": 7, "stdout": "blue /etc\n", "stderr": "complaint\n" });
    assert_eq!((json, ended.code()), (expected, Some(7)));
    let killed = cluster.hivemind(["exec", "web", "sh", "-c", "kill -9 $$"]).failed();
    assert_eq!(killed.code(), Some(137));

    let who =
        cluster.hivemind(["exec", "-u", "1234:5678", "web", "sh", "-c", "echo $(id -u) $(id -g) $HOME"]).ok();
    assert_eq!(who.stdout().trim(), "1234 5678 /");

    for (arguments, code, words) in [
        (&["-u", "nemo", "web", "true"][..], "not-started", "has no user"),
        (&["web", "no-such-program"][..], "not-started", "no-such-program"),
        (&["web/9", "true"][..], "not-found", "default/web/9 is not there"),
        (&["nothing", "true"][..], "not-found", "default/nothing is not there"),
        (&["-w", "tmp", "web", "true"][..], "malformed", "not absolute"),
    ] {
        let refused = cluster.hivemind([&["exec", "--output", "json"], arguments].concat()).failed();
        let told = refused.stderr();
        assert!(told.contains(code) && told.contains(words), "{refused}");
    }

    everything_passes_whole(&cluster);
    files_are_copied_there_and_back(&cluster);
    a_command_ends_with_its_client(&cluster);
    only_who_may_deploy_may(&cluster);
}

/// Input and output arrive whole, however much it is and however slow either side.
fn everything_passes_whole(cluster: &Cluster) {
    let noise: Vec<u8> =
        (0..MUCH as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(MUCH).collect();
    let file = cluster.folder().join("noise");
    fs::write(&file, &noise).unwrap();
    let with_input = |arguments: &[&str]| {
        let mut command = cluster.command([&["exec", "web"], arguments].concat());
        command.stdin(File::open(&file).unwrap());
        Run::of(command).ok()
    };
    assert!(with_input(&["cat"]).output.stdout == noise, "it came back otherwise");
    assert_eq!(with_input(&["sh", "-c", "sleep 3; wc -c"]).stdout().trim(), MUCH.to_string());
    // One that reads none of it.
    with_input(&["true"]);

    // The command has long ended when its output is read.
    let mut command = cluster.command(["exec", "web", "head", "-c", "200000", "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert_eq!((output.len(), child.wait().unwrap().code()), (200_000, Some(0)));
}

fn files_are_copied_there_and_back(cluster: &Cluster) {
    let folder = cluster.folder().join("copies");
    let site = folder.join("site");
    fs::create_dir_all(site.join("deep")).unwrap();
    fs::copy(cluster.folder().join("noise"), site.join("deep/noise")).unwrap();
    fs::write(site.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(site.join("run.sh"), PermissionsExt::from_mode(0o750)).unwrap();
    let at = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let copy = |from: &str, to: &str| cluster.hivemind(["cp", from, to, "--output", "json"]);

    let copied = copy(&at(&site), "web/1:/tmp/").ok().json().unwrap();
    assert_eq!(copied, serde_json::json!({ "files": 2, "bytes": MUCH + 10 }));
    let look = "stat -c '%a %u' /tmp/site/run.sh; wc -c < /tmp/site/deep/noise";
    let seen = cluster.hivemind(["exec", "web/1", "sh", "-c", look]).ok().stdout();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["750", "0", &MUCH.to_string()]);

    let back = folder.join("back");
    copy("web/1:/tmp/site", &at(&back)).ok();
    assert!(fs::read(back.join("deep/noise")).unwrap() == fs::read(site.join("deep/noise")).unwrap());
    // Into a folder that is there, and from the directory that the container works in.
    copy("web/1:site/run.sh", &at(&folder)).ok();
    assert_eq!(fs::read_to_string(folder.join("run.sh")).unwrap(), "#!/bin/sh\n");

    for (from, to, words) in [
        ("web/1:/tmp/none", at(&folder), "/tmp/none"),
        ("web/0:/tmp/site", at(&folder), "/tmp/site"),
        (&*at(&site), "web/1:/nowhere/x".to_owned(), "nowhere"),
        (&*at(&site), at(&folder), "one of the two is in a container"),
        (&*at(&folder.join("none")), "web:/tmp/".to_owned(), "cannot read"),
    ] {
        let refused = copy(from, &to).failed();
        let words = words.rsplit('/').next().unwrap();
        assert!(refused.stderr().contains(words), "{refused}");
    }
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["back", "run.sh", "site"], "what failed left nothing");
}

fn a_command_ends_with_its_client(cluster: &Cluster) {
    let sleeping = || {
        let run = cluster.hivemind(["exec", "web/0", "ps"]);
        if run.is_ok() { Ok(run.stdout().contains("sleep 4321")) } else { Err(run.to_string()) }
    };
    // Also one that does not want to.
    let deaf = "trap '' TERM HUP; sleep 4321; sleep 4321";
    let mut client = cluster.command(["exec", "web/0", "sh", "-c", deaf]);
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    wait::until("the command runs", ANSWER, || if sleeping()? { Ok(()) } else { Err("no".to_owned()) });
    client.kill().unwrap();
    client.wait().unwrap();
    wait::until("it is gone with all it started", ANSWER, || {
        if sleeping()? { Err("it sleeps".to_owned()) } else { Ok(()) }
    });
}

#[test]
fn a_command_ends_when_the_agent_is_killed_that_ran_it() {
    let cluster = Cluster::new("orphans", 1).with_probe().form(1);
    let machine = &cluster.machines[0];
    cluster
        .push("services:\n  web:\n    image: registry.lab:5000/busybox:1\n    command: cat\n    tty: true\n    stdin_open: true\n")
        .ok();
    cluster.wait_for_running("web", 1, STARTING);
    let (mut visitor, _stdin) = cluster.attach("web", "one\n", "one\none\n");
    let asleep = || probe::ask(&cluster.lab, machine, &["pids", "sleep 4321"]).unwrap();
    let mut client = cluster.command(["exec", "web", "sh", "-c", "sleep 4321; true"]);
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    wait::until("it sleeps", ANSWER, || if asleep().is_empty() { Err("no".to_owned()) } else { Ok(()) });
    let killed = probe::ask(&cluster.lab, machine, &["kill", "SIGKILL", "hivemindd agent"]).unwrap();
    assert!(!killed.is_empty());
    wait::until("it is gone", ANSWER, || if asleep().is_empty() { Ok(()) } else { Err(asleep()) });
    assert_eq!(client.wait().unwrap().code(), Some(3));
    assert_eq!(visitor.wait().unwrap().code(), Some(3));
    cluster.wait_for_ready(1);
    let after = cluster.wait_for_running("web", 1, STARTING);
    assert_eq!(after[0].restarts, 0, "its container runs on");
    // The next agent has its terminal too.
    let (mut visitor, _stdin) = cluster.attach("web", "two\n", "two\ntwo\n");
    visitor.kill().unwrap();
    visitor.wait().unwrap();
}

fn only_who_may_deploy_may(cluster: &Cluster) {
    for (key, options) in [
        ("viewer", &["--role", "viewer"][..]),
        ("stranger", &["--role", "deployer", "--namespace", "other"][..]),
        ("ci", &["--role", "deployer", "--namespace", "default"][..]),
    ] {
        cluster.hivemind(["keys", "generate", key]).ok();
        cluster.hivemind([&["keys", "add", key], options].concat()).ok();
        wait::until("its key is known everywhere", ANSWER, || {
            let known = cluster.machines.iter().all(|machine| {
                let node = format!("{}:{API_PORT}", machine.address());
                cluster.hivemind(["--node", &node, "--key", key, "ps"]).is_ok()
            });
            if known { Ok(()) } else { Err("no".to_owned()) }
        });
        let run = cluster.hivemind(["--key", key, "exec", "web", "true"]);
        assert_eq!(run.is_ok(), key == "ci", "{run}");
        assert!(run.is_ok() || run.stderr().contains("may not run commands"), "{run}");
    }
    // Nor does it go on when the key is revoked.
    let mut command = cluster.command(["--key", "ci", "exec", "web", "sleep", "100000"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "it runs");
    cluster.hivemind(["keys", "revoke", "--yes", "ci"]).ok();
    let (ended, _) = wait::until("the command of a revoked key ends", 2 * PING_EVERY, || {
        child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    assert_eq!(ended.code(), Some(4), "refused");
}

#[test]
fn a_shell_on_a_terminal_has_the_terminals_size_and_follows_it() {
    let cluster = Cluster::formed("terminal", 1);
    cluster
        .push("services:\n  web:\n    image: registry.lab:5000/busybox:1\n    command: sleep 1000000\n")
        .ok();
    cluster.wait_for_running("web", 1, STARTING);
    let mut terminal = Terminal::with(&cluster, &["exec", "web", "sh"], 80, 24);
    terminal.says("# ");
    terminal.types("tty; stty size; echo $TERM\n");
    terminal.says("/dev/pts/");
    terminal.says("24 80");
    terminal.says("test-terminal");
    terminal.resizes(132, 43);
    // The kernel tells the shell once the machine has heard of it.
    terminal.types("while ! stty size | grep '43 132'; do sleep 1; done; echo so be it\n");
    terminal.says("\nso be it");
    // What is pressed goes to the command, and ends neither the client nor the shell.
    terminal.types("sleep 1000\n");
    std::thread::sleep(Duration::from_secs(1));
    terminal.types("\x03");
    terminal.types("echo still $((40+2))\n");
    terminal.says("still 42");
    terminal.types("exit 5\n");
    assert_eq!(terminal.ends(), Some(5));
}

/// A terminal with a program in front.
struct Terminal {
    master: File,
    child: Child,
    /// What was printed and not looked at yet.
    printed: std::sync::mpsc::Receiver<Vec<u8>>,
    unread: String,
}

impl Terminal {
    fn with(cluster: &Cluster, arguments: &[&str], columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let master = File::from(master);
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = || File::options().read(true).write(true).open(&path).unwrap();
        resize(&master, columns, rows);
        // A session of its own, whose terminal this is.
        let command = cluster.command(arguments);
        let mut session = cluster.lab.command("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        session.env("TERM", "test-terminal");
        let child = session.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        let (sender, printed) = std::sync::mpsc::channel();
        let mut output = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, child, printed, unread: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until it prints this, and forgets what came before.
    fn says(&mut self, wanted: &str) {
        loop {
            if let Some((_, rest)) = self.unread.split_once(wanted) {
                self.unread = rest.to_owned();
                return;
            }
            match self.printed.recv_timeout(ANSWER) {
                Ok(more) => self.unread.push_str(&String::from_utf8_lossy(&more)),
                Err(_) => panic!("{wanted:?} does not come after {:?}", self.unread),
            }
        }
    }

    fn resizes(&self, columns: u16, rows: u16) {
        resize(&self.master, columns, rows);
    }

    /// Waits for its end. Returns its exit code; the terminal is as it was.
    fn ends(mut self) -> Option<i32> {
        let (code, _) = wait::until("it ends", ANSWER, || {
            self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        });
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "the terminal stays raw");
        code.code()
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    tcsetwinsize(terminal, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
