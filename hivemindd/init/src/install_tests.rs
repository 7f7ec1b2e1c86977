use gpt::partition_types::BASIC;

use super::*;

const BLOCK: u64 = 512;

/// Where the partitions of the test's disk are, MiB: the configuration's is large enough for a FAT of its kind.
const CONFIG: Range<u64> = 1..9;
const ROOT: Range<u64> = 9..12;
const STATE_AT: u64 = 12;

fn file(mib: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(mib * MIB).unwrap();
    file
}

/// A disk with our partitions, and a state that was used.
fn stick() -> File {
    let file = file(20);
    let mut target = &file;
    gpt::mbr::ProtectiveMBR::with_lb_size(40_959).overwrite_lba0(&mut target).unwrap();
    let mut table = GptConfig::new().writable(true).create_from_device(&file, None).unwrap();
    let entry = |name: &str, span: Range<u64>| Partition {
        part_type_guid: BASIC,
        part_guid: format!("00000000-0000-4000-8000-{:012}", span.start).parse().unwrap(),
        first_lba: span.start * MIB / BLOCK,
        last_lba: span.end * MIB / BLOCK - 1,
        flags: 0,
        name: name.to_owned(),
    };
    let entries = [entry("hiveconf", CONFIG), entry("root-a", ROOT), entry("state", STATE_AT..19)];
    table.update_partitions((1..).zip(entries).collect()).unwrap();
    table.write().unwrap();
    let slice = StreamSlice::new(file.try_clone().unwrap(), CONFIG.start * MIB, CONFIG.end * MIB).unwrap();
    fatfs::format_volume(slice, fatfs::FormatVolumeOptions::new()).unwrap();
    for (at, byte) in [(ROOT.start * MIB, 7), (ROOT.end * MIB - CHUNK as u64, 8), (STATE_AT * MIB, 9)] {
        target.seek(SeekFrom::Start(at)).unwrap();
        target.write_all(&vec![byte; CHUNK]).unwrap();
    }
    file
}

fn read(file: &File, at: u64) -> u8 {
    let (mut file, mut byte) = (file, [0]);
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0]
}

fn install(source: &File, target: &File, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let bytes = target.metadata().unwrap().len();
    Disks { source, target, bytes, block: BLOCK }.copy("installed", progress)
}

#[test]
fn what_is_on_the_one_disk_is_on_the_other_but_for_its_state_and_the_order() {
    let (source, target) = (stick(), file(2048));
    // What was there before, where the machine's state will be.
    (&target).seek(SeekFrom::Start(STATE_AT * MIB)).unwrap();
    (&target).write_all(&vec![5; CHUNK]).unwrap();
    let mut told = Vec::new();
    install(&source, &target, &mut |percent| told.push(percent)).unwrap();
    assert!(told.is_sorted() && told.last().is_some_and(|last| *last < 100), "{told:?}");
    assert_eq!([ROOT.start * MIB, ROOT.end * MIB - 1, STATE_AT * MIB].map(|at| read(&target, at)), [7, 8, 0]);
    let [before, table] = [&source, &target].map(|disk| GptConfig::new().open_from_device(disk).unwrap());
    let used = table.partitions().values().filter(|entry| entry.is_used());
    let span = |entry: &Partition| entry.first_lba * BLOCK / MIB..(entry.last_lba + 1) * BLOCK / MIB;
    let spans: Vec<(&str, Range<u64>)> = used.map(|entry| (entry.name.as_str(), span(entry))).collect();
    assert_eq!(spans, [("hiveconf", CONFIG), ("root-a", ROOT), ("state", STATE_AT..2047)]);
    assert_eq!(table.partitions()[&2].part_guid, before.partitions()[&2].part_guid, "it is found as before");
    assert_ne!(table.guid(), before.guid());
    let slice = StreamSlice::new(target.try_clone().unwrap(), CONFIG.start * MIB, CONFIG.end * MIB).unwrap();
    let volume = FileSystem::new(slice, FsOptions::new()).unwrap();
    let mut text = String::new();
    volume.root_dir().open_file(FILE_NAME).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "installed");
}

#[test]
fn an_installation_that_breaks_off_leaves_a_blank_disk_and_begins_anew() {
    let (source, target) = (stick(), file(2048));
    source.set_len(11 * MIB).unwrap();
    install(&source, &target, &mut |_| {}).unwrap_err();
    assert_eq!(read(&target, ROOT.start * MIB), 7, "some of it is there");
    assert!(is_blank(&mut &target, 2048 * MIB).unwrap());
    install(&stick(), &target, &mut |_| {}).unwrap();
    assert!(!is_blank(&mut &target, 2048 * MIB).unwrap());
}

#[test]
fn a_disk_that_is_too_small_or_no_image_of_ours_is_left_as_it_is() {
    let target = file(500);
    let error = install(&stick(), &target, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("needs a disk of 525 MiB at least"), "{error}");
    assert!(is_blank(&mut &target, 500 * MIB).unwrap());
    install(&file(20), &target, &mut |_| {}).unwrap_err();
    assert!(is_blank(&mut &target, 500 * MIB).unwrap());
}

#[test]
fn a_disk_with_anything_at_its_beginning_or_its_end_is_not_blank() {
    let disk = file(8);
    let blank = || is_blank(&mut &disk, 8 * MIB).unwrap();
    assert!(blank());
    for at in [0, 1080, MIB - 1, 7 * MIB, 8 * MIB - 1] {
        for (byte, is) in [(1, false), (0, true)] {
            (&disk).seek(SeekFrom::Start(at)).unwrap();
            (&disk).write_all(&[byte]).unwrap();
            assert_eq!(blank(), is, "{byte} at {at}");
        }
    }
}

#[test]
fn the_only_blank_disk_is_taken_or_the_one_that_is_named_and_no_other() {
    let disk = |name: &str, serial: &str, is_blank, is_stick| Candidate {
        name: name.to_owned(),
        serial: Some(serial.to_owned()).filter(|serial| !serial.is_empty()),
        bytes: 8 << 30,
        is_blank,
        is_stick,
    };
    let (data, blank, stick) =
        (disk("sda", "A", false, false), disk("nvme0n1", "B", true, false), disk("sdb", "", true, true));
    let chosen = |candidates: &[Candidate], wanted| choose(candidates, wanted).map(|disk| disk.name.clone());
    let all = [data.clone(), blank.clone(), stick.clone()];
    assert_eq!(chosen(&all, None).unwrap(), "nvme0n1");
    assert_eq!(chosen(&all, Some("A")).unwrap(), "sda", "whatever it has");
    let told = chosen(&all, Some("C")).unwrap_err();
    assert!(told.contains("serial number C: sda (8.0 GiB, serial A, with data), nvme0n1 (8.0 GiB, serial B, blank), sdb (8.0 GiB, no serial number, blank)"), "{told}");
    assert!(chosen(&[data.clone(), stick], None).unwrap_err().contains("no other disk is blank"));
    assert!(
        chosen(&[blank.clone(), disk("sdc", "D", true, false)], None).unwrap_err().contains("several disks")
    );
    assert!(
        chosen(&[data.clone(), disk("sdc", "A", true, false)], Some("A"))
            .unwrap_err()
            .contains("several disks")
    );
    assert!(chosen(&[], None).unwrap_err().contains("there is none"));
    for (name, is) in
        [("sda", true), ("nvme0n1", true), ("mmcblk0", true), ("mmcblk0boot0", false), ("loop0", false)]
    {
        assert_eq!(is_disk(name), is, "{name}");
    }
}
