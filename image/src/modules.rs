//! Which kernel modules go into the image, in which order they have to be loaded, and for which hardware.
//!
//! There is no `modprobe` in the image: PID 1 hands each file to the kernel, one after the other. So what it reads must
//! hold all dependencies, each before what needs it, and the names of the hardware that a driver is for. All that is
//! taken from the modules' own notes, because Debian's packages hold no `modules.dep` and no `modules.alias` (they are
//! made at installation, which does not happen here).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::elf;

/// The lists of `rootfs/keep.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// In the initramfs, loaded by name when they are needed.
    pub early: Vec<String>,
    /// In the initramfs, loaded where the machine has the hardware, in this order and until the root is there.
    pub disks: Vec<String>,
    /// Loaded by PID 1 from the root, before it starts anything.
    pub boot: Vec<String>,
    /// In the root, loaded where the machine has the hardware and when it gets it.
    pub drivers: Vec<String>,
    /// Loaded by the agent, beside what it does otherwise.
    pub late: Vec<String>,
}

/// What the kernel package says about a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// Part of the kernel itself: nothing to load.
    Builtin,
    /// A file, which needs these modules loaded before.
    File(Vec<String>),
}

/// Why no order can be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrderError {
    /// Neither built in nor a file.
    #[error("this kernel has no module {name}{}", needed_by.as_ref().map_or_else(String::new, |by| format!(", which {by} needs")))]
    Unknown {
        /// The module.
        name: String,
        /// Who asks for it; none when the list itself does.
        needed_by: Option<String>,
    },
    /// Modules that need each other.
    #[error("the module {0} needs itself")]
    Cycle(String),
}

/// The kernel treats `-` and `_` in module names alike; file names do not.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules to load for `wanted`, dependencies first, each once, otherwise in the order wanted.
///
/// # Errors
/// [`OrderError`] for unknown modules and cycles.
pub fn order(wanted: &[String], known: &BTreeMap<String, Module>) -> Result<Vec<String>, OrderError> {
    let mut walk = Walk { known, done: BTreeSet::new(), open: BTreeSet::new(), order: Vec::new() };
    for name in wanted {
        walk.visit(&canonical(name), None)?;
    }
    Ok(walk.order)
}

struct Walk<'a> {
    known: &'a BTreeMap<String, Module>,
    done: BTreeSet<String>,
    open: BTreeSet<String>,
    order: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, needed_by: Option<&str>) -> Result<(), OrderError> {
        if self.done.contains(name) {
            return Ok(());
        }
        let module = self.known.get(name).ok_or_else(|| OrderError::Unknown {
            name: name.to_owned(),
            needed_by: needed_by.map(str::to_owned),
        })?;
        if !self.open.insert(name.to_owned()) {
            return Err(OrderError::Cycle(name.to_owned()));
        }
        if let Module::File(needs) = module {
            for need in needs {
                self.visit(need, Some(name))?;
            }
            self.order.push(name.to_owned());
        }
        self.open.remove(name);
        self.done.insert(name.to_owned());
        Ok(())
    }
}

/// The modules of an unpacked kernel package.
pub struct Catalogue {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Catalogue {
    /// Lists `usr/lib/modules/VERSION`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let name_of = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            canonical(file.split(".ko").next().unwrap_or(file))
        };
        let builtin = fs::read_to_string(dir.join("modules.builtin")).context("reading modules.builtin")?;
        let order = fs::read_to_string(dir.join("modules.order")).context("reading modules.order")?;
        let files = order.lines().map(|line| (name_of(line), dir.join(format!("{line}.xz"))));
        Ok(Self { files: files.collect(), builtin: builtin.lines().map(name_of).collect() })
    }

    /// The bytes of a module, decompressed: squashfs and the initramfs compress better than it was.
    ///
    /// # Errors
    /// When there is no such file or it is damaged.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.files.get(name).with_context(|| format!("no module {name}"))?;
        let packed = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut bytes = Vec::new();
        lzma_rust2::XzReader::new(packed, true)
            .read_to_end(&mut bytes)
            .with_context(|| format!("decompressing {}", path.display()))?;
        Ok(bytes)
    }

    /// The order for `wanted`; reads only the modules concerned.
    ///
    /// # Errors
    /// [`OrderError`], or when a module cannot be read.
    pub fn order(&self, wanted: &[String]) -> Result<Vec<String>> {
        let mut known: BTreeMap<String, Module> =
            self.builtin.iter().map(|name| (name.clone(), Module::Builtin)).collect();
        let mut open: Vec<String> = wanted.iter().map(|name| canonical(name)).collect();
        while let Some(name) = open.pop() {
            if known.contains_key(&name) || !self.files.contains_key(&name) {
                continue;
            }
            let notes = elf::modinfo(&self.bytes(&name)?).with_context(|| format!("module {name}"))?;
            let needs = self.needs(&notes);
            open.extend(needs.iter().cloned());
            known.insert(name, Module::File(needs));
        }
        Ok(order(wanted, &known)?)
    }

    /// The index of these modules as the machine reads it: for each its name and the files to load, its own as the last;
    /// and below it, each on a line of its own that begins with a space, what the hardware calls itself that it is for.
    /// `file` says where the file of a module is. One that is built into the kernel needs no entry.
    ///
    /// # Errors
    /// As [`Self::order`].
    pub fn index(&self, wanted: &[String], file: impl Fn(&str) -> String) -> Result<String> {
        let mut index = String::new();
        for name in wanted.iter().map(|name| canonical(name)) {
            let order = self.order(std::slice::from_ref(&name))?;
            if order.is_empty() {
                continue;
            }
            let files: Vec<String> = order.iter().map(|name| file(name)).collect();
            writeln!(index, "{name} {}", files.join(" "))?;
            let notes = elf::modinfo(&self.bytes(&name)?).with_context(|| format!("module {name}"))?;
            for (_, alias) in notes.iter().filter(|(key, value)| key == "alias" && value.contains(':')) {
                writeln!(index, " {alias}")?;
            }
        }
        Ok(index)
    }

    /// Hard dependencies, and those soft ones to be loaded before that this kernel has at all.
    fn needs(&self, notes: &[(String, String)]) -> Vec<String> {
        let mut needs = Vec::new();
        for (key, value) in notes {
            match key.as_str() {
                "depends" => needs.extend(value.split(',').filter(|name| !name.is_empty()).map(canonical)),
                "softdep" => needs.extend(soft_before(value).filter(|name| self.files.contains_key(name))),
                _ => {}
            }
        }
        needs
    }
}

/// The modules named after `pre:` in a soft dependency such as `pre: a b post: c`.
fn soft_before(note: &str) -> impl Iterator<Item = String> {
    let before = note.split("post:").next().unwrap_or_default();
    let names = before.split_once("pre:").map_or("", |(_, names)| names);
    names.split_whitespace().map(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(modules: &[(&str, &[&str])]) -> BTreeMap<String, Module> {
        let file = |needs: &[&str]| Module::File(needs.iter().map(|s| (*s).to_owned()).collect());
        modules.iter().map(|(name, needs)| ((*name).to_owned(), file(needs))).collect()
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn dependencies_come_before_what_needs_them_and_each_module_once() {
        let known = known(&[
            ("vxlan", &["udp_tunnel", "ip6_udp_tunnel"]),
            ("ip6_udp_tunnel", &["udp_tunnel"]),
            ("udp_tunnel", &[]),
            ("bridge", &["stp"]),
            ("stp", &["llc"]),
            ("llc", &[]),
        ]);
        let order = order(&names(&["bridge", "vxlan", "stp"]), &known).unwrap();
        assert_eq!(order, ["llc", "stp", "bridge", "udp_tunnel", "ip6_udp_tunnel", "vxlan"]);
    }

    #[test]
    fn a_built_in_module_satisfies_without_being_loaded() {
        let mut known = known(&[("virtio_blk", &["virtio_pci"])]);
        known.insert("virtio_pci".into(), Module::Builtin);
        assert_eq!(order(&names(&["virtio_pci", "virtio-blk"]), &known).unwrap(), ["virtio_blk"]);
    }

    #[test]
    fn an_unknown_module_is_named_with_who_needs_it() {
        let known = known(&[("overlay", &["gone"])]);
        let error = order(&names(&["overlay"]), &known).unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no module gone, which overlay needs");
        assert!(order(&names(&["misspelt"]), &known).is_err());
    }

    #[test]
    fn modules_that_need_each_other_are_an_error_and_not_a_hang() {
        let known = known(&[("a", &["b"]), ("b", &["a"])]);
        assert_eq!(order(&names(&["a"]), &known), Err(OrderError::Cycle("a".into())));
    }

    #[test]
    fn only_soft_dependencies_to_be_loaded_before_count() {
        let before: Vec<String> = soft_before("pre: crc32c gf128mul post: extra").collect();
        assert_eq!(before, ["crc32c", "gf128mul"]);
        assert_eq!(soft_before("post: extra").count(), 0);
    }
}
