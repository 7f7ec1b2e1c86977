use super::*;

const CONFIG: &str = r#"
[cluster]
id = "000102030405060708090a0b0c0d0e0f"
name = "edge"
root_ca = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
root_keys = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]

[token]
ca = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
ca_key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END PRIVATE KEY-----\n"
document = "{}"
"#;

/// A folder of its own for a test, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hivemindd-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    fn config(&self) -> MachineConfig {
        MachineConfig::parse_bytes(&read_from(&self.0).unwrap().unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn erasing_takes_the_key_and_nothing_else() {
    let folder = Folder::new("erase");
    folder.write(FILE_NAME, CONFIG.as_bytes());
    let before = folder.config();
    assert_eq!(erase_in(&folder.0).unwrap(), Erasure::Erased);
    assert_eq!(folder.config(), without_key(before));
    assert!(!folder.0.join(NEW_NAME).exists());
    assert_eq!(erase_in(&folder.0).unwrap(), Erasure::Absent);
}

#[test]
fn the_old_blocks_are_overwritten() {
    let folder = Folder::new("overwrite");
    folder.write(FILE_NAME, CONFIG.as_bytes());
    // A second name for the old blocks, which survives the rename.
    let old = folder.0.join("old");
    std::fs::hard_link(folder.0.join(FILE_NAME), &old).unwrap();
    erase_in(&folder.0).unwrap();
    assert_eq!(std::fs::read(old).unwrap(), vec![0; CONFIG.len()]);
}

#[test]
fn a_power_cut_while_erasing_loses_nothing_and_leaves_no_key() {
    let keyless = without_key(MachineConfig::parse(CONFIG).unwrap());
    // After the new file was written, before the old one was erased: the old one counts.
    let folder = Folder::new("cut");
    folder.write(FILE_NAME, CONFIG.as_bytes());
    folder.write(NEW_NAME, b"[clus");
    assert_eq!(folder.config(), MachineConfig::parse(CONFIG).unwrap());
    assert_eq!(erase_in(&folder.0).unwrap(), Erasure::Erased);
    assert_eq!(folder.config(), keyless);
    // After the old one was erased: the new one counts.
    folder.write(FILE_NAME, &vec![0; CONFIG.len()]);
    folder.write(NEW_NAME, keyless.to_toml().as_bytes());
    assert_eq!(folder.config(), keyless);
    assert_eq!(erase_in(&folder.0).unwrap(), Erasure::Erased);
    assert_eq!(folder.config(), keyless);
    assert!(!folder.0.join(NEW_NAME).exists());
}

#[test]
fn a_configuration_too_long_is_read_no_further_than_its_limit() {
    let folder = Folder::new("long");
    folder.write(FILE_NAME, &vec![b'#'; MAX_BYTES + 1000]);
    let bytes = read_from(&folder.0).unwrap().unwrap();
    assert_eq!(bytes.len(), MAX_BYTES + 1);
    assert!(MachineConfig::parse_bytes(&bytes).is_err());
    assert_eq!(read_from(Path::new("/nonexistent")).unwrap(), None);
}

#[test]
fn a_source_survives_its_line() {
    for source in [Source::Partition("/dev/vda4".into()), Source::Firmware, Source::Remembered] {
        assert_eq!(Source::from_line(&source.to_line()), Some(source));
    }
    assert_eq!(Source::from_line("elsewhere"), None);
}
