//! What the build needs to know of ELF files: libraries a program needs, and the notes in a kernel module.

use std::collections::{BTreeMap, BTreeSet};

use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, SectionHeader as _};
use object::{LittleEndian, read};

type Header = FileHeader64<LittleEndian>;

/// A file that is not the ELF file it should be.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not readable as 64-bit little-endian ELF.
    #[error("not a valid ELF file")]
    Format(#[from] read::Error),
    /// A kernel module without the section that describes it.
    #[error("not a kernel module: no .modinfo section")]
    NoModinfo,
}

/// The libraries and symbol versions a dynamically linked file asks for, and the versions it offers itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// File names from `DT_NEEDED`.
    pub libraries: BTreeSet<String>,
    /// (library file name, version), from `SHT_GNU_VERNEED`.
    pub versions: BTreeSet<(String, String)>,
    /// From `SHT_GNU_VERDEF`.
    pub offers: BTreeSet<String>,
}

/// Whether the bytes start like an ELF file.
#[must_use]
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads the linkage of a program or library. A static one has none.
///
/// # Errors
/// [`ElfError::Format`] for malformed files.
pub fn linkage(data: &[u8]) -> Result<Linkage, ElfError> {
    let header = Header::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut linkage = Linkage::default();
    if let Some((entries, link)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for entry in entries {
            if entry.tag(endian) == DT_NEEDED {
                linkage.libraries.insert(text(entry.string(endian, strings)?));
            }
        }
    }
    if let Some((needs, link)) = sections.gnu_verneed(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for need in needs {
            let (need, versions) = need?;
            let file = text(need.file(endian, strings)?);
            for version in versions {
                linkage.versions.insert((file.clone(), text(version?.name(endian, strings)?)));
            }
        }
    }
    if let Some((definitions, link)) = sections.gnu_verdef(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for definition in definitions {
            let (_, mut names) = definition?;
            if let Some(name) = names.next()? {
                linkage.offers.insert(text(name.name(endian, strings)?));
            }
        }
    }
    Ok(linkage)
}

/// What is missing for the files to start: `library` or `library (VERSION)`, each with who asks for it.
///
/// `files` maps file names, without folders, to their linkage.
#[must_use]
pub fn unmet(files: &BTreeMap<String, Linkage>) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, linkage) in files {
        for library in &linkage.libraries {
            if !files.contains_key(library) {
                missing.push(format!("{name} needs {library}"));
            }
        }
        for (library, version) in &linkage.versions {
            if files.get(library).is_some_and(|offered| !offered.offers.contains(version)) {
                missing.push(format!("{name} needs {library} with {version}"));
            }
        }
    }
    missing
}

/// The `key=value` notes of a kernel module, in the order of the file.
///
/// # Errors
/// When it is no ELF file or no kernel module.
pub fn modinfo(data: &[u8]) -> Result<Vec<(String, String)>, ElfError> {
    let header = Header::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let (_, section) = sections.section_by_name(endian, b".modinfo").ok_or(ElfError::NoModinfo)?;
    let notes = section.data(endian, data)?;
    let pairs = notes.split(|byte| *byte == 0).map(text);
    Ok(pairs.filter_map(|note| note.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linkage_of(libraries: &[&str], versions: &[(&str, &str)], offers: &[&str]) -> Linkage {
        Linkage {
            libraries: libraries.iter().map(|s| (*s).to_owned()).collect(),
            versions: versions.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect(),
            offers: offers.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn a_missing_library_and_a_too_old_one_are_named() {
        let files = BTreeMap::from([
            (
                "crun".to_owned(),
                linkage_of(&["libc.so.6", "libgone.so.1"], &[("libc.so.6", "GLIBC_2.99")], &[]),
            ),
            ("libc.so.6".to_owned(), linkage_of(&[], &[], &["GLIBC_2.41"])),
        ]);
        assert_eq!(unmet(&files), ["crun needs libgone.so.1", "crun needs libc.so.6 with GLIBC_2.99"]);
    }

    #[test]
    fn the_linkage_of_a_real_program_is_read() {
        let program = std::fs::read("/bin/ls").unwrap();
        let linkage = linkage(&program).unwrap();
        assert!(linkage.libraries.contains("libc.so.6"));
        assert!(
            linkage.versions.iter().any(|(library, v)| library == "libc.so.6" && v.starts_with("GLIBC_2."))
        );
    }

    #[test]
    fn junk_is_an_error_and_not_a_crash() {
        assert!(linkage(b"\x7fELF but then nothing").is_err());
        assert!(modinfo(&std::fs::read("/bin/ls").unwrap()).is_err());
    }
}
