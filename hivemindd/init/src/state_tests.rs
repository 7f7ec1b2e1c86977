use std::collections::BTreeMap;
use std::io::Cursor;

use gpt::disk::LogicalBlockSize;
use gpt::partition_types;

use super::*;

const MIB: u64 = 1024 * 1024;

/// A disk with two partitions of 16 MiB, as long as an image, then made longer.
fn disk(size: u64) -> Cursor<Vec<u8>> {
    let image = 34 * MIB;
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(Cursor::new(vec![0; usize::try_from(image).unwrap()]), None)
        .unwrap();
    table.update_partitions(BTreeMap::new()).unwrap();
    for name in ["HIVECONF", "state"] {
        table.add_partition(name, 16 * MIB, partition_types::LINUX_FS, 0, Some(2048)).unwrap();
    }
    let mut bytes = table.write().unwrap().into_inner();
    bytes.resize(usize::try_from(size).unwrap(), 0);
    Cursor::new(bytes)
}

fn read(bytes: Vec<u8>) -> gpt::GptDisk<Cursor<Vec<u8>>> {
    GptConfig::new().only_valid_headers(true).open_from_device(Cursor::new(bytes)).unwrap()
}

#[test]
fn the_state_partition_grows_to_the_end_and_both_tables_say_so() {
    let mut device = disk(128 * MIB);
    let before = GptConfig::new().open_from_device(device.clone()).unwrap().partitions().clone();
    let grown = grow_table(&mut device, 128 * MIB, 512, 2).unwrap();
    let start = before[&2].first_lba * 512;
    assert_eq!(grown, Some((start, 127 * MIB - start)));

    let table = read(device.into_inner());
    assert_eq!(table.partitions()[&1], before[&1]);
    assert_eq!(table.partitions()[&2].part_guid, before[&2].part_guid);
    assert_eq!(table.partitions()[&2].last_lba, 127 * MIB / 512 - 1);
    let primary = table.primary_header().unwrap();
    assert_eq!(primary.backup_lba, 128 * MIB / 512 - 1);
    assert!(primary.last_usable >= table.partitions()[&2].last_lba);
    assert_eq!(table.backup_header().unwrap().current_lba, 128 * MIB / 512 - 1);
}

#[test]
fn a_partition_that_fills_its_disk_is_left_alone() {
    let mut device = disk(128 * MIB);
    grow_table(&mut device, 128 * MIB, 512, 2).unwrap();
    let before = device.get_ref().clone();
    assert_eq!(grow_table(&mut device, 128 * MIB, 512, 2), Ok(None));
    assert_eq!(device.get_ref(), &before);
}

#[test]
fn only_the_last_partition_may_grow() {
    let mut device = disk(128 * MIB);
    assert!(grow_table(&mut device, 128 * MIB, 512, 1).unwrap_err().contains("not the last"));
    assert!(grow_table(&mut device, 128 * MIB, 512, 7).is_err());
}

#[test]
fn a_program_that_hangs_is_ended() {
    let mut sleep = Command::new("/bin/sleep");
    sleep.arg("60");
    let start = Instant::now();
    let failure = run("/bin/sleep", sleep, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(failure, Failure::TooLong(_)));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(matches!(run("/bin/false", Command::new("/bin/false"), MKFS_LIMIT), Err(Failure::Exit(1))));
}
