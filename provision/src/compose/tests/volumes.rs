//! Volumes of a file.

use hivemind_spec::namespace::Permission;
use hivemind_spec::volume::Per;
use hivemind_spec::workload::{HostPath, NfsMount};

use super::*;

fn told(text: &str) -> String {
    faults(text).into_iter().map(|(line, message)| format!("{line}: {message}\n")).collect()
}

#[test]
fn a_services_volumes_are_those_of_the_file_files_beside_it_and_memory() {
    let text = "services:
  db:
    image: a
    volumes:
      - data:/var/lib/db
      - logs:/logs:ro,nocopy
      - /cache
      - ./app.env:/etc/app.env:ro
      - ./pages:/srv/pages/
      - {type: volume, source: data, target: /again, read_only: true, volume: {nocopy: true}}
      - {type: tmpfs, target: /scratch, tmpfs: {size: 1m, mode: 0700}}
  backup:
    image: a
    volumes: [logs:/mine]
    volumes_from: ['db:ro']
  agent:
    image: a
    deploy: {mode: global}
    volumes: [state:/state]
volumes:
  data: {name: db-data, labels: {a: b}, x-hivemind: {size: 5g, per: replica}}
  logs:
  state: {driver: local}
  other: {external: true}
";
    let documents = compiled(text).documents;
    let volume = |name: &str| {
        let of = |document: &&Document| document.kind == Kind::Volume && document.metadata.name == name;
        let document = documents.iter().find(of).unwrap_or_else(|| panic!("{name}: {documents:#?}"));
        let Some(Spec::Volume(spec)) = &document.spec else { panic!() };
        (spec.per, spec.size_bytes)
    };
    assert_eq!(volume("db-data"), (Per::Replica, Some(5 << 30)));
    assert_eq!(volume("logs"), (Per::Cluster, None));
    assert_eq!(volume("db-cache"), (Per::Replica, None), "without a name each replica has its own");
    assert_eq!(volume("state"), (Per::Node, None), "each machine of a global service has its own");
    assert_eq!(
        documents.iter().filter(|d| d.kind == Kind::Volume).count(),
        4,
        "an external one is not pushed"
    );
    assert!(documents[..4].iter().all(|d| d.kind == Kind::Volume), "volumes first");
    let container = |name: &str| {
        let found = documents.iter().find(|d| d.kind == Kind::Workload && d.metadata.name == name);
        found.unwrap().workload().unwrap().container.clone()
    };
    let mounts = |name: &str| {
        let volumes = container(name).volumes;
        let shown = volumes.iter().map(|m| format!("{} {} {} {}", m.volume, m.path, m.read_only, m.no_copy));
        shown.collect::<Vec<_>>()
    };
    let db = [
        "db-data /var/lib/db false false",
        "logs /logs true true",
        "db-cache /cache false false",
        "db-data /again true true",
    ];
    assert_eq!(mounts("db"), db);
    assert_eq!(container("db").tmpfs, ["/srv/pages:size=64k,mode=755", "/scratch:size=1048576,mode=0700"]);
    let files: Vec<_> = container("db").files.into_iter().map(|file| (file.path, file.mode)).collect();
    let paths = ["/etc/app.env", "/srv/pages/de/index.html", "/srv/pages/index.html"];
    assert_eq!(files, paths.map(|path| (path.to_owned(), 0o555)));
    let backup = [
        "logs /mine false false",
        "db-data /var/lib/db true false",
        "logs /logs true true",
        "db-cache /cache true false",
        "db-data /again true true",
    ];
    assert_eq!(mounts("backup"), backup);
}

#[test]
fn paths_of_the_machine_are_mounted_and_its_time_zone_is_none() {
    let monitor = "volumes: ['/sys:/host/sys:ro', '/:/rootfs:ro,rslave', '/etc/localtime:/etc/localtime:ro',\n  \
                   {type: bind, source: /dev/serial/, target: /serial, bind: {propagation: rslave}}]";
    let compiled = compiled(&service(monitor));
    let container = &compiled.documents[0].workload().unwrap().container;
    let host = |path: &str, target: &str, read_only, follows| HostPath {
        path: path.into(),
        target: target.into(),
        read_only,
        follows,
    };
    let expected = [
        host("/sys", "/host/sys", true, false),
        host("/", "/rootfs", true, true),
        host("/dev/serial", "/serial", false, true),
    ];
    assert_eq!(container.machine.host_paths, expected);
    assert!(container.files.is_empty() && container.volumes.is_empty());
    assert_eq!(container.permissions(), [Permission::HostPaths, Permission::Privileged].into());
    assert!(compiled.warnings[0].message.contains("at UTC"), "{:?}", compiled.warnings);
}

#[test]
fn volumes_whose_data_is_elsewhere_are_mounted_from_there_and_have_no_document() {
    let text = "\
services:
  web:
    image: a
    volumes:
      - pages:/srv:ro
      - {type: volume, source: media, target: /media, volume: {subpath: films/new}}
      - ports:/serial
      - cache:/cache
  backup:
    image: a
    volumes_from: ['web:ro']
volumes:
  pages:
    driver_opts: {type: nfs, o: 'addr=10.40.0.199,nolock,soft,rw,timeo=30', device: ':/docker/example'}
  media:
    driver: local
    driver_opts: {type: nfs4, o: nfsvers=4.1, device: 'nas.example.org:/export/media/'}
  ports:
    driver_opts: {type: none, o: 'bind,rslave', device: /dev/serial/}
  cache:
    driver_opts: {size: 64m}
";
    let compiled = compiled(text);
    let documents: Vec<&str> =
        compiled.documents.iter().map(|document| document.metadata.name.as_str()).collect();
    assert_eq!(documents, ["cache", "web", "backup"]);
    let Some(Spec::Volume(cache)) = &compiled.documents[0].spec else { panic!("{documents:?}") };
    assert_eq!(cache.size_bytes, Some(64 << 20));
    let nfs = |server: &str, path: &str, target: &str, read_only, options: &[&str]| NfsMount {
        server: server.into(),
        path: path.into(),
        target: target.into(),
        read_only,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    for (document, read_only) in [(&compiled.documents[1], false), (&compiled.documents[2], true)] {
        let container = &document.workload().unwrap().container;
        let expected = [
            nfs("10.40.0.199", "/docker/example", "/srv", true, &["soft", "timeo=30"]),
            nfs("nas.example.org", "/export/media/films/new", "/media", read_only, &["vers=4.1"]),
        ];
        assert_eq!(container.machine.nfs, expected);
        let [host] = &container.machine.host_paths[..] else { panic!("{:?}", container.machine) };
        assert_eq!((host.path.as_str(), host.target.as_str()), ("/dev/serial", "/serial"));
        assert_eq!((host.read_only, host.follows), (read_only, true));
        let volumes: Vec<&str> = container.volumes.iter().map(|mount| mount.volume.as_str()).collect();
        assert_eq!(volumes, ["cache"]);
        assert_eq!(container.permissions(), [Permission::HostPaths, Permission::Nfs].into());
    }
    assert!(compiled.warnings[0].message.contains("`nolock` changes nothing"), "{:?}", compiled.warnings);
    // Who its users are only the machine can say.
    let own = told(&text.replacen("    image: a\n", "    image: a\n    userns_mode: auto\n", 1));
    assert!(own.contains("cannot have folders of an NFS server"), "{own}");
}

#[test]
fn what_is_wrong_with_volumes_is_told_with_its_line() {
    let more = "volumes: {data: {}}\n";
    for (volumes, wanted) in [
        ("[nothing:/a]", "not under `volumes`"),
        ("[data:a]", "path from the root"),
        ("[data]", "path from the root"),
        ("[data:/a:rshared]", "`ro`, `nocopy` and `rslave` are"),
        ("[data:/proc/x]", "shows the kernel"),
        ("[data:/a, data:/a/]", "is there twice"),
        ("['/var/run/docker.sock:/var/run/docker.sock']", "no Docker"),
        ("[data:/a:rslave]", "of the machine only"),
        ("['~/x:/x']", "use a volume"),
        ("['/sys:/sys:ro']", "shows the kernel"),
        ("['/sys/../var:/a']", "no absolute path"),
        ("['/sys:/a', '/dev:/a/']", "is there twice"),
        ("[{type: bind, source: /sys, target: /a, bind: {propagation: rshared}}]", "not one of"),
        ("['./missing:/x']", "there is no file"),
        ("['./empty:/x']", "empty folder; for data, use a volume"),
        ("['./pages/missing:/x']", "for data, use a volume"),
        ("['a:b:c:d']", "SOURCE:PATH"),
        ("[{source: data, target: /a}]", "`type` is missing"),
        ("[{type: npipe, target: /a}]", "not one of"),
        ("[{type: volume, source: data}]", "`target` is missing"),
        ("[{type: bind, target: /a}]", "`source` is missing"),
        ("[{type: tmpfs, source: data, target: /a}]", "no `source`"),
        ("[{type: volume, source: data, target: /a, volume: {subpath: /}}]", "all of the volume"),
        ("[{type: volume, source: data, target: /a, volume: {subpath: a/../../b}}]", "no folder within"),
        ("['/']", "gives no name"),
    ] {
        let text = told(&(service(&format!("volumes: {volumes}")) + more));
        assert!(text.contains(wanted), "{volumes}: {text}");
    }
    for (volumes, wanted) in [
        ("{'a b': {}}", "cannot name a volume"),
        ("{data: {driver: nfs}}", "not one of `local`"),
        ("{data: {driver_opts: {type: nfs}}}", "`device` is missing"),
        ("{data: {driver_opts: {type: nfs, device: ':/a'}}}", "the server is missing"),
        ("{data: {driver_opts: {type: nfs, device: 'files:a'}}}", "the server is missing"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a/../b'}}}", "no path on a server"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a', o: nfsvers=3}}}", "4.2, 4.1, 4.0 are"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a', o: sec=krb5}}}", "no option for NFS"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a', size: 1g}}}", "on the disk of a machine"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a'}, labels: {a: b}}}", "not Hivemind's"),
        ("{data: {driver_opts: {type: nfs, device: 'files:/a'}, external: true}}", "external"),
        ("{data: {driver_opts: {type: cifs, device: '//files/a'}}}", "not one of"),
        ("{data: {driver_opts: {device: /srv}}}", "`type` is missing"),
        ("{data: {driver_opts: {type: none, device: srv, o: bind}}}", "no absolute path"),
        ("{data: {driver_opts: {type: none, device: /srv}}}", "with `o: bind`"),
        (
            "{data: {driver_opts: {type: none, device: /srv, o: 'bind,sync'}}}",
            "`bind`, `ro` and `rslave` are",
        ),
        ("{data: {driver_opts: {mountpoint: /srv}}}", "not a key here"),
        ("{data: {external: true, labels: {a: b}}}", "external"),
        ("{data: {x-hivemind: {per: machine}}}", "not one of"),
        ("{data: {x-hivemind: {size: 1}}}", "at least"),
    ] {
        let text = told(&(service("user: '1'") + &format!("volumes: {volumes}\n")));
        assert!(text.contains(wanted), "{volumes}: {text}");
    }
    let circle = "services:\n  a: {image: a, volumes_from: [b]}\n  b: {image: b, volumes_from: [a]}\n";
    assert!(told(circle).contains("its own volumes"));
    assert!(told(&service("volumes_from: [nobody]")).contains("no service"));
    assert!(told(&service("volumes_from: ['container:x']")).contains("other projects"));
}
