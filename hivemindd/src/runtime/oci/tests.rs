use super::*;
use hivemind_core::event::{ContainerId, ContainerLabels};
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_spec::id::Digest;
use hivemind_spec::workload::{ContainerSpec, Resources, Ulimit};

/// A plan of a container that asks for nothing special.
pub(in crate::runtime) fn plan() -> ContainerPlan {
    let spec: ContainerSpec = serde_json::from_value(json!({ "image": "registry.lab:5000/web:1" })).unwrap();
    let workload = WorkloadId { namespace: "default".into(), name: "web".into() };
    let labels = ContainerLabels {
        replica: ReplicaId { workload, slot: 0 },
        template: Digest::of(b"a document"),
        ip: "10.42.3.7".parse().unwrap(),
        restarts: 0,
        asks: Default::default(),
    };
    ContainerPlan {
        id: ContainerId("hm-0123456789abcdef".into()),
        ip: labels.ip,
        labels,
        spec,
        hostname: "web-0".into(),
        prefix: 24,
        gateway: "10.42.3.1".parse().unwrap(),
        search: "default.hive.internal".into(),
        mtu: 1450,
        volumes: BTreeMap::new(),
        secrets: BTreeMap::new(),
    }
}

fn strings(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|word| (*word).to_owned()).collect())
}

/// Where volumes are, of which there are none.
static NO_VOLUMES: BTreeMap<String, PathBuf> = BTreeMap::new();

fn around<'a>(execution: &'a Execution, identity: Identity, limits: bool) -> Surroundings<'a> {
    Surroundings {
        execution,
        identity,
        init_program: Path::new("/opt/hivemind/bin/hivemind-init"),
        netns: Path::new("/run/netns/hm-0123456789abcdef"),
        users: None,
        files: Path::new("/run/hivemind/containers/hm-0123456789abcdef"),
        volumes: &NO_VOLUMES,
        disk: None,
        host_paths: &[],
        devices: &[],
        cores: 4,
        limits,
        open_files: 4096,
    }
}

fn built(plan: &ContainerPlan, execution: &Execution, identity: Identity, limits: bool) -> Value {
    spec(plan, &around(execution, identity, limits)).unwrap()
}

fn shell() -> Execution {
    Execution { cmd: strings(&["sh"]), ..Execution::default() }
}

#[test]
fn entry_point_and_command_combine_as_in_docker() {
    let image =
        Execution { entrypoint: strings(&["/entry"]), cmd: strings(&["serve"]), ..Execution::default() };
    type Words<'a> = &'a [&'a str];
    let cases: [(Option<Words>, Option<Words>, Words); 7] = [
        (None, None, &["/entry", "serve"]),
        (None, Some(&["check", "-v"]), &["/entry", "check", "-v"]),
        (None, Some(&[]), &["/entry"]),
        // An entry point of the document's own drops the image's command.
        (Some(&["/other"]), None, &["/other"]),
        (Some(&["/other"]), Some(&["x"]), &["/other", "x"]),
        (Some(&[]), Some(&["sh", "-c", "true"]), &["sh", "-c", "true"]),
        (Some(&["a", "b"]), Some(&["c"]), &["a", "b", "c"]),
    ];
    for (entrypoint, command, expected) in cases {
        let mut plan = plan();
        plan.spec.entrypoint = entrypoint.and_then(strings);
        plan.spec.command = command.and_then(strings);
        assert_eq!(arguments(&plan, &image).unwrap(), expected, "{entrypoint:?} {command:?}");
    }
    assert_eq!(arguments(&plan(), &shell()).unwrap(), ["sh"]);
}

#[test]
fn nothing_to_run_is_a_permanent_error_that_says_what_to_do() {
    let mut empty_word = plan();
    empty_word.spec.command = strings(&[""]);
    for plan in [plan(), empty_word] {
        let error = arguments(&plan, &Execution::default()).unwrap_err();
        assert!(error.permanent && error.text.contains("set `command`"), "{}", error.text);
    }
}

#[test]
fn the_documents_environment_wins_over_the_images() {
    let mut execution = shell();
    execution.env = strings(&["PATH=/image", "A=image", "B=x=y", "broken"]);
    let mut plan = plan();
    plan.spec.env = [("A".to_owned(), "document".to_owned())].into();
    let identity = Identity { home: Some("/home/web".into()), ..Identity::default() };
    let spec = built(&plan, &execution, identity, true);
    let env = ["A=document", "B=x=y", "HOME=/home/web", "HOSTNAME=web-0", "PATH=/image"];
    assert_eq!(spec["process"]["env"], json!(env));
    let bare = built(&self::plan(), &shell(), Identity::default(), true);
    assert_eq!(bare["process"]["env"], json!(["HOME=/", "HOSTNAME=web-0", format!("PATH={DEFAULT_PATH}")]));
}

#[test]
fn limits_reach_the_kernel_in_its_own_units() {
    let mut plan = plan();
    plan.spec.resources = Resources {
        cpu_request_millis: Some(250),
        cpuset: Some("0-1".into()),
        cpu_limit_millis: Some(1500),
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(50),
        ..Resources::default()
    };
    let spec = built(&plan, &shell(), Identity::default(), true);
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["cpu"],
        json!({ "shares": 256, "cpus": "0-1", "period": 100_000, "quota": 150_000 })
    );
    assert_eq!(resources["memory"], json!({ "limit": 64 << 20, "swap": 64 << 20 }));
    assert_eq!(resources["pids"], json!({ "limit": 50 }));
    assert_eq!(spec["linux"]["cgroupsPath"], "/hivemind/workloads/hm-0123456789abcdef");
    plan.spec.resources.cgroup_parent = Some("batch".into());
    let together = built(&plan, &shell(), Identity::default(), true);
    let path = "/hivemind/workloads/parent.default.batch/hm-0123456789abcdef";
    assert_eq!(together["linux"]["cgroupsPath"], path);
    // Without limits of its own, a container can still not fork without end.
    let bare = built(&self::plan(), &shell(), Identity::default(), true);
    assert_eq!(bare["linux"]["resources"]["pids"], json!({ "limit": 4096 }));
    assert!(bare["linux"]["resources"]["memory"].is_null());
}

#[test]
fn a_container_with_users_of_its_own_has_their_namespace_and_their_numbers() {
    let mut plan = plan();
    plan.spec.user_namespace = true;
    let path = PathBuf::from("/run/netns/hm-0123456789abcdef.users");
    let users = Users::of(&plan, path.clone(), PathBuf::new()).unwrap().unwrap();
    let shell = shell();
    let around = Surroundings { users: Some(&users), ..around(&shell, Identity::default(), true) };
    let spec = spec(&plan, &around).unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({ "type": "user", "path": path })));
    let mappings = json!([{ "containerID": 0, "hostID": 8 * 65_536, "size": 65_536 }]);
    assert_eq!(spec["linux"]["uidMappings"], mappings);
    assert_eq!(spec["linux"]["gidMappings"], mappings);
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ping_group_range"], "0 65535");
    // containerd refuses such mounts unless the shim tells it that they are understood, which the Rust shim does not.
    assert!(spec["mounts"].as_array().unwrap().iter().all(|mount| mount["uidMappings"].is_null()));
}

#[test]
fn only_root_gets_capabilities_and_nobody_gains_any() {
    let root = built(&plan(), &shell(), Identity::default(), true);
    assert_eq!(root["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
    let user = built(&plan(), &shell(), Identity { uid: 101, gid: 102, ..Identity::default() }, true);
    assert_eq!(user["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(user["process"]["user"], json!({ "uid": 101, "gid": 102, "additionalGids": [] }));
    for spec in [root, user] {
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        for owner_only in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE"] {
            assert!(!spec["process"]["capabilities"].to_string().contains(owner_only));
        }
    }
}

#[test]
fn a_container_joins_its_network_and_sees_its_own_names() {
    let mut plan = plan();
    plan.spec.read_only = true;
    plan.spec.tmpfs = vec!["/run".into()];
    plan.spec.resources.memory_limit_bytes = Some(8 << 20);
    let spec = built(&plan, &shell(), Identity::default(), true);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "web-0");
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({ "type": "network", "path": "/run/netns/hm-0123456789abcdef" })));
    let mounts = spec["mounts"].as_array().unwrap();
    let find = |path: &str| mounts.iter().find(|mount| mount["destination"] == path).unwrap();
    assert_eq!(find("/etc/hosts")["source"], "/run/hivemind/containers/hm-0123456789abcdef/hosts");
    assert_eq!(find("/etc/resolv.conf")["type"], "bind");
    assert!(find("/run")["options"].as_array().unwrap().contains(&json!("size=8388608")));
}

#[test]
fn an_init_process_goes_before_the_command_and_hooks_are_kept_with_the_container() {
    let mut plan = plan();
    plan.spec.init = true;
    plan.spec.annotations = [("note".to_owned(), "x".to_owned())].into();
    let hook = Hook { command: vec!["drain".into()], ..Hook::default() };
    plan.spec.pre_stop = vec![hook.clone()];
    let spec = built(&plan, &shell(), Identity::default(), true);
    assert_eq!(spec["process"]["args"], json!([INIT, "reap", "sh"]));
    let mounts = spec["mounts"].as_array().unwrap();
    let init = mounts.iter().find(|mount| mount["destination"] == INIT).unwrap();
    assert_eq!(init["source"], "/opt/hivemind/bin/hivemind-init");
    assert_eq!(spec["annotations"]["note"], "x");
    assert_eq!(pre_stop(&spec), [hook]);
    assert_eq!(pre_stop(&built(&self::plan(), &shell(), Identity::default(), true)), []);
}

#[test]
fn what_a_container_may_do_on_the_disk_is_said_of_the_machines_own() {
    let limits =
        DiskLimits { write_bytes: Some(1 << 20), read_operations: Some(50), ..DiskLimits::default() };
    let told = disk_limits(limits, (254, 0));
    assert_eq!(told["throttleWriteBpsDevice"], json!([{ "major": 254, "minor": 0, "rate": 1 << 20 }]));
    assert_eq!(told["throttleReadIOPSDevice"], json!([{ "major": 254, "minor": 0, "rate": 50 }]));
    assert_eq!(told["throttleReadBpsDevice"], json!([]));
}

#[test]
fn a_working_directory_must_be_absolute() {
    let mut plan = plan();
    let mut execution = shell();
    execution.working_dir = Some("/srv".into());
    assert_eq!(built(&plan, &execution, Identity::default(), true)["process"]["cwd"], "/srv");
    plan.spec.working_dir = Some("tmp".into());
    assert!(spec(&plan, &around(&execution, Identity::default(), true)).unwrap_err().permanent);
}

#[test]
fn no_more_files_are_promised_than_the_machine_can_give() {
    let spec = built(&plan(), &shell(), Identity::default(), true);
    let files = |spec: &Value| spec["process"]["rlimits"][1].clone();
    assert_eq!(files(&spec), json!({ "type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096 }));
    let mut plan = plan();
    plan.spec.ulimits = [
        ("nofile".to_owned(), Ulimit { soft: Some(10), hard: None }),
        ("memlock".to_owned(), Ulimit { soft: None, hard: None }),
    ]
    .into();
    let spec = built(&plan, &shell(), Identity::default(), true);
    let limits = spec["process"]["rlimits"].as_array().unwrap();
    let find = |name: &str| limits.iter().find(|limit| limit["type"] == name).unwrap();
    assert_eq!(find("RLIMIT_NOFILE"), &json!({ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 4096 }));
    let all = json!({ "type": "RLIMIT_MEMLOCK", "soft": u64::MAX, "hard": u64::MAX });
    assert_eq!(find("RLIMIT_MEMLOCK"), &all);
    assert_eq!(find("RLIMIT_CORE"), &json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }));
}

#[test]
fn capabilities_can_be_taken_and_what_is_given_stays() {
    let mut plan = plan();
    plan.spec.capabilities.drop = ["ALL".to_owned()].into();
    plan.spec.capabilities.add = ["NET_BIND_SERVICE".to_owned(), "IPC_LOCK".to_owned()].into();
    let granted = |plan: &ContainerPlan| {
        let spec = built(plan, &shell(), Identity::default(), true);
        assert_eq!(spec["process"]["capabilities"]["bounding"], spec["process"]["capabilities"]["effective"]);
        spec["process"]["capabilities"]["bounding"].clone()
    };
    assert_eq!(granted(&plan), json!(["CAP_IPC_LOCK", "CAP_NET_BIND_SERVICE"]));
    plan.spec.capabilities.add.clear();
    plan.spec.capabilities.drop = ["NET_RAW".to_owned(), "MKNOD".to_owned()].into();
    assert_eq!(granted(&plan).as_array().unwrap().len(), 12);
}

#[test]
fn files_of_the_document_lie_over_its_memory_backed_directories() {
    let mut plan = plan();
    plan.spec.tmpfs = vec!["/etc/app:size=1m,mode=755,exec".into()];
    plan.spec.files =
        vec![serde_json::from_value(json!({ "path": "/etc/app/a.conf", "content": "a" })).unwrap()];
    plan.spec.shm_size_bytes = Some(1 << 20);
    let spec = built(&plan, &shell(), Identity::default(), true);
    let mounts = spec["mounts"].as_array().unwrap();
    let place = |path: &str| mounts.iter().position(|mount| mount["destination"] == path).unwrap();
    let options = |path: &str| mounts[place(path)]["options"].to_string();
    assert!(place("/etc/app") < place("/etc/app/a.conf"));
    assert!(options("/etc/app/a.conf").contains("\"ro\""));
    assert!(options("/etc/app").ends_with("\"size=1048576\",\"mode=755\",\"exec\"]"));
    assert!(options("/dev/shm").contains("size=1048576"));
}

#[test]
fn user_namespaces_and_kernel_doors_are_shut() {
    let profile = seccomp::profile().to_string();
    for call in ["bpf", "unshare", "setns", "mount", "kexec_load", "io_uring_setup", "userfaultfd", "clone3"]
    {
        assert!(profile.contains(&format!("\"{call}\"")), "{call}");
    }
}

#[test]
fn what_is_below_a_path_of_the_machine_is_no_more_writable_than_itself() {
    let host =
        |read_only, follows| HostPath { path: "/sys".into(), target: "/host/sys".into(), read_only, follows };
    let options = |host: HostPath| host_paths(&[("/sys".into(), &host)])[0]["options"].clone();
    assert_eq!(options(host(true, true)), json!(["rbind", "rslave", "rro", "nosuid"]));
    assert_eq!(options(host(false, false)), json!(["rbind", "rprivate", "rw", "nosuid"]));
}

#[test]
fn a_container_has_nothing_of_its_machine_unless_it_is_given_it() {
    let built = |change: &dyn Fn(&mut ContainerPlan)| {
        let mut plan = plan();
        change(&mut plan);
        built(&plan, &shell(), Identity::default(), true)
    };
    let own = built(&|_| {});
    let namespaces = |spec: &Value| {
        let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
        all.iter().map(|n| n["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(namespaces(&own), "pid ipc uts cgroup mount network");
    assert_eq!(own["linux"]["resources"]["devices"], json!([{ "allow": false, "access": "rwm" }]));
    assert_eq!(own["linux"]["devices"], json!([]));

    let shares = built(&|plan| {
        plan.spec.machine.host_namespaces = [HostNamespace::Pid, HostNamespace::Uts].into();
    });
    assert_eq!(namespaces(&shares), "ipc cgroup mount network");
    assert!(shares["hostname"].is_null(), "the machine's own name stays");

    let rules = built(&|plan| plan.spec.machine.device_rules = vec!["c 188:* rw".into()]);
    let expected = json!({ "allow": true, "type": "c", "major": 188, "access": "rw" });
    assert_eq!(rules["linux"]["resources"]["devices"][1], expected);

    let privileged = built(&|plan| plan.spec.machine.privileged = true);
    assert_eq!(privileged["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
    assert_eq!(privileged["process"]["noNewPrivileges"], false);
    for hidden in ["maskedPaths", "readonlyPaths", "seccomp"] {
        assert!(!own["linux"][hidden].is_null() && privileged["linux"][hidden].is_null(), "{hidden}");
    }
    let free = built(&|plan| plan.spec.machine.system_calls = Some(SystemCalls::Unconfined));
    assert!(free["linux"]["seccomp"].is_null() && !free["linux"]["maskedPaths"].is_null());
    let profile = json!({ "profile": { "defaultAction": "SCMP_ACT_LOG" } });
    let chosen = built(&|plan| {
        plan.spec.machine.system_calls = Some(serde_json::from_value(profile.clone()).unwrap())
    });
    assert_eq!(chosen["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_LOG");
    assert_eq!(built(&|plan| plan.spec.machine.outlasts_memory = true)["process"]["oomScoreAdj"], -1000);
    let cpu =
        |change: &dyn Fn(&mut ContainerPlan)| built(change)["linux"]["resources"]["cpu"]["quota"].clone();
    assert_eq!(
        cpu(&|plan| plan.spec.resources.cpu_limit_percent = Some(25)),
        100_000,
        "a quarter of four cores"
    );
    let both = |plan: &mut ContainerPlan| {
        plan.spec.resources.cpu_limit_percent = Some(50);
        plan.spec.resources.cpu_limit_millis = Some(500);
    };
    assert_eq!(cpu(&both), 50_000, "the lower of two limits");
}
