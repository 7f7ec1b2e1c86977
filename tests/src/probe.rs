//! Looking into machines: the image has no shell, so tests boot it with a probe beside it (see the
//! package `hivemind-probe`).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hivemind_qemu::{Boot, Image, Lab, Machine, target_dir};

use crate::command::Run;

/// Where the probe answers.
const PORT: u16 = 7999;

/// How long an answer may take: `run` includes the program's own time on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

const TARGET: &str = "x86_64-unknown-linux-musl";

/// The image with the probe appended to its initial RAM disk, which is made in `folder`.
///
/// # Panics
/// When the probe cannot be built, or the image is not booted directly.
pub fn beside(image: Image, folder: &Path) -> Image {
    let Boot::Direct { kernel, initrd, cmdline } = image.boot else {
        panic!("only a directly booted image can carry the probe");
    };
    let mut bytes = fs::read(&initrd).unwrap_or_else(|error| panic!("{}: {error}", initrd.display()));
    // Archives follow each other at multiples of four bytes (kernel, initramfs buffer format).
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let probe = built();
    bytes.extend(archive(
        "probe",
        &fs::read(&probe).unwrap_or_else(|error| panic!("{}: {error}", probe.display())),
    ));
    let with_probe = folder.join("initrd-with-probe.img");
    fs::write(&with_probe, bytes).unwrap_or_else(|error| panic!("{}: {error}", with_probe.display()));
    let boot = Boot::Direct { kernel, initrd: with_probe, cmdline: format!("{cmdline} rdinit=/probe") };
    Image { boot, ..image }
}

/// What the probe prints on the console when it is the only program there is.
pub const ALONE: &str = "probe: nothing else to do";

/// The image's kernel with the probe as its only program: the floor of all boot times.
///
/// # Panics
/// As [`beside`].
pub fn alone(image: Image, folder: &Path) -> Image {
    let Boot::Direct { kernel, cmdline, .. } = image.boot else {
        panic!("only a directly booted image can carry the probe");
    };
    let probe = built();
    let initrd = folder.join("initrd-probe-alone.img");
    let content = fs::read(&probe).unwrap_or_else(|error| panic!("{}: {error}", probe.display()));
    fs::write(&initrd, archive("probe", &content))
        .unwrap_or_else(|error| panic!("{}: {error}", initrd.display()));
    let boot = Boot::Direct { kernel, initrd, cmdline: format!("{cmdline} rdinit=/probe") };
    Image { boot, ..image }
}

fn built() -> PathBuf {
    let target = target_dir().unwrap_or_else(|error| panic!("{error}"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "hivemind-probe",
        "--target",
        TARGET,
    ]);
    cargo.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"), "--target-dir"]);
    cargo.arg(&target);
    Run::of(cargo).ok();
    target.join(TARGET).join("release/probe")
}

/// An archive of one executable file, in the "newc" format of cpio.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &[][..])] {
        // Inode, mode, owner, group, links, time, size, device and special device (major, minor),
        // length of the name, no checksum.
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        bytes.extend(b"070701");
        bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        bytes.extend(name.bytes().chain([0]));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Asks the probe in a machine.
///
/// # Errors
/// When it does not answer, or says that it failed, in words.
pub fn ask(lab: &Lab, machine: &Machine, words: &[&str]) -> Result<String, String> {
    talk(lab, machine, (words.join("\t") + "\n").as_bytes()).map_err(|error| format!("{words:?}: {error}"))
}

/// Has the probe make a program of a file's bytes, at a path in the machine.
///
/// # Errors
/// When the file cannot be read, or as [`ask`].
pub fn put(lab: &Lab, machine: &Machine, file: &Path, path: &str) -> Result<(), String> {
    let content = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut request = format!("put\t{path}\t{}\n", content.len()).into_bytes();
    request.extend(content);
    talk(lab, machine, &request).map(drop)
}

fn talk(lab: &Lab, machine: &Machine, request: &[u8]) -> Result<String, String> {
    let address = (machine.address(), PORT).into();
    let talk = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = lab.enter(talk).map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.split_once('\n') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        _ => Err(answer),
    }
}
