//! The keys of volumes: those of the top level, and what a service says of them.

use super::Verdict::{Honoured, Refused};
use super::{LATER, Row};

/// An entry of the top level's `volumes`.
pub const VOLUME: &[Row] = &[
    ("driver", Honoured("`local` only: a folder on the disk of a machine")),
    ("external", Honoured("`true`: it was pushed before, and is as it was pushed")),
    ("labels", Honoured("the volume's labels")),
    ("name", Honoured("what it is called in its namespace; the key if not given, with `-` for `_`")),
    ("driver_opts", Honoured("that its data is elsewhere, or how much it may hold; see below")),
];

/// `driver_opts` of a volume.
pub const VOLUME_DRIVER: &[Row] = &[
    (
        "type",
        Honoured(
            "`nfs`: a folder of a server, which the machines of its services mount, by leave of the namespace (`nfs`); \
             `none`: a path of those machines, by leave of the namespace, as `source` of a service's volume has it",
        ),
    ),
    (
        "device",
        Honoured(
            "of `nfs`: `:/PATH` or `SERVER:/PATH`, what the server exports; of `none`: the absolute path",
        ),
    ),
    (
        "o",
        Honoured(
            "options, with commas between. Of `nfs`: `addr=SERVER`, an address or a name as containers look it up; `ro`, and \
             those of nfs(5) for version 4 that say how it is spoken (`nfsvers`, `soft`, `hard`, `timeo`, `retrans`, `rsize`, \
             `wsize`, `port`, `nconnect`, `noresvport`, `actimeo`, `noac`, …). Of `none`: `bind`, `ro` and `rslave`",
        ),
    ),
    ("size", Honoured("the most that it may hold on the disk of a machine, as `x-hivemind: {size}`")),
];

/// `x-hivemind` of a volume.
pub const VOLUME_EXTENSION: &[Row] = &[
    (
        "per",
        Honoured(
            "`cluster`: there is one, and all that use it run where it is; `node`: each machine has its own; `replica`: \
             each replica has its own, where it stays. `node` if not given and a global service uses it, else `cluster`",
        ),
    ),
    ("size", Honoured("the most that each may hold")),
];

/// An entry of a service's `volumes` in its long form.
pub const MOUNT: &[Row] = &[
    ("bind", Honoured("see below")),
    ("consistency", Honoured("for macOS; writes are seen by all at once anyway")),
    ("read_only", Honoured("whether the container may only read it")),
    (
        "source",
        Honoured(
            "the volume's name, a file or folder of text beside the Compose file, or an absolute path of the machine, by leave of the \
             namespace: `host-paths` to read what the machine shows of itself (`/sys`, `/dev`, `/etc`, `/usr`), `host-namespaces` for `/proc`, \
             else `privileged`",
        ),
    ),
    ("target", Honoured("where in the container")),
    ("tmpfs", Honoured("see below")),
    ("type", Honoured("`volume`, `bind` or `tmpfs`")),
    ("volume", Honoured("see below")),
    ("image", LATER),
];

/// `bind` of such an entry.
pub const MOUNT_BIND: &[Row] = &[
    ("create_host_path", Honoured("without effect: what is mounted must be there")),
    ("propagation", Honoured("`rslave`: what the machine mounts below later is seen too; else `rprivate`")),
    ("selinux", Honoured("`z` or `Z`, without effect: machines have no SELinux")),
    ("recursive", Refused("all that is mounted below comes with it, and to read only where that is")),
];

/// `volume` of such an entry.
pub const MOUNT_VOLUME: &[Row] = &[
    ("nocopy", Honoured("whether a new volume is empty; else it begins with what the image has there")),
    ("labels", Refused("a volume's labels are under the top level's `volumes`")),
    (
        "subpath",
        Honoured(
            "a folder of the volume, which is made if it is not there; it does not begin with what the image has",
        ),
    ),
];

/// `tmpfs` of such an entry.
pub const MOUNT_TMPFS: &[Row] =
    &[("mode", Honoured("its permissions, octal")), ("size", Honoured("the most it may hold"))];
