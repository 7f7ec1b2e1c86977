use std::fs::File;

use super::*;

const OLD: &str = "00000000000000aa";
const NEW: &str = "00000000000000bb";

/// Where the partition is in the test's disk: not at its beginning.
const START: u64 = 1024 * 1024;
const LENGTH: u64 = 40 * 1024 * 1024;

fn menu() -> BootMenu {
    let disk: File = tempfile::tempfile().unwrap();
    disk.set_len(START + LENGTH).unwrap();
    let slice = StreamSlice::new(disk.try_clone().unwrap(), START, START + LENGTH).unwrap();
    fatfs::format_volume(slice, fatfs::FormatVolumeOptions::new()).unwrap();
    let menu = BootMenu::new(disk, START, LENGTH);
    let (path, text) = entry(OLD, "Hivemind 1", 1, Assessment::Good);
    menu.write(&path, text.as_bytes()).unwrap();
    menu.write(&image_path(OLD), &b"old"[..]).unwrap();
    menu
}

/// What systemd-boot does before it starts an entry.
fn count_a_try(menu: &BootMenu) -> String {
    let first = menu.entries().unwrap().remove(0);
    if let Assessment::Indeterminate { left, done } = first.assessment {
        let (left, done) = (left - 1, done + 1);
        let to = format!("{ENTRIES}/{PREFIX}{}+{left}-{done}{SUFFIX}", first.release);
        let volume = menu.volume().unwrap();
        let root = volume.root_dir();
        root.rename(&format!("{ENTRIES}/{}", first.file), &root, &to).unwrap();
    }
    first.release
}

fn files(menu: &BootMenu, folder: &str) -> Vec<String> {
    let volume = menu.volume().unwrap();
    let folder = volume.root_dir().open_dir(folder).unwrap();
    let names = folder.iter().map(|entry| entry.unwrap().file_name()).filter(|name| !name.starts_with('.'));
    names.collect()
}

#[test]
fn a_new_release_is_tried_three_times_and_then_the_old_one_starts() {
    let menu = menu();
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    let started: Vec<String> = (0..4).map(|_| count_a_try(&menu)).collect();
    assert_eq!(started, [NEW, NEW, NEW, OLD]);
    assert_eq!(menu.entry(NEW).unwrap().unwrap().assessment, Assessment::Bad);
}

#[test]
fn a_release_that_is_good_is_counted_no_more() {
    let menu = menu();
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    count_a_try(&menu);
    let trying = menu.entry(NEW).unwrap().unwrap();
    assert_eq!(trying.assessment, Assessment::Indeterminate { left: 2, done: 1 });
    menu.assess(NEW, Assessment::Good).unwrap();
    assert_eq!(files(&menu, ENTRIES), [format!("hivemind-{OLD}.conf"), format!("hivemind-{NEW}.conf")]);
    for _ in 0..20 {
        assert_eq!(count_a_try(&menu), NEW);
    }
    assert_eq!(menu.entry(NEW).unwrap().unwrap().order, 2);
}

#[test]
fn a_release_that_is_bad_starts_only_when_nothing_else_is_left() {
    let menu = menu();
    menu.assess(OLD, Assessment::Bad).unwrap();
    assert_eq!(count_a_try(&menu), OLD);
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    menu.assess(OLD, Assessment::Good).unwrap();
    menu.assess(NEW, Assessment::Bad).unwrap();
    assert_eq!(count_a_try(&menu), OLD);
}

#[test]
fn a_power_cut_between_the_two_names_of_an_entry_leaves_the_release_in_the_menu() {
    let menu = menu();
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    count_a_try(&menu);
    // The new name is there, and the old one still.
    let (path, text) = entry(NEW, "Hivemind 2", 2, Assessment::Good);
    menu.write(&path, text.as_bytes()).unwrap();
    assert_eq!(files(&menu, ENTRIES).len(), 3);
    menu.assess(NEW, Assessment::Good).unwrap();
    assert_eq!(files(&menu, ENTRIES), [format!("hivemind-{OLD}.conf"), format!("hivemind-{NEW}.conf")]);
}

#[test]
fn what_no_entry_names_is_swept_away_and_what_one_names_stays() {
    let menu = menu();
    menu.write(&image_path(NEW), &b"half"[..]).unwrap();
    menu.sweep().unwrap();
    assert_eq!(files(&menu, IMAGES), [format!("{OLD}.efi")]);
    menu.remove(OLD).unwrap();
    assert_eq!((files(&menu, IMAGES).len(), menu.entries().unwrap()), (0, Vec::new()));
}

#[test]
fn files_that_are_not_ours_and_halves_of_entries_are_no_entries() {
    let menu = menu();
    for name in [
        "debian.conf",
        "hivemind-.conf",
        "hivemind-00000000000000cc+x.conf",
        "hivemind-00000000000000dd.conf",
    ] {
        menu.write(&format!("{ENTRIES}/{name}"), &b""[..]).unwrap();
    }
    let entries = menu.entries().unwrap();
    assert_eq!(entries.iter().map(|entry| entry.release.as_str()).collect::<Vec<_>>(), [OLD]);
}

#[test]
fn a_release_that_does_not_fit_leaves_the_menu_as_it_was() {
    let menu = menu();
    let before = menu.entries().unwrap();
    assert!(menu.add(NEW, "Hivemind 2", io::repeat(7).take(LENGTH)).is_err());
    assert_eq!(menu.entries().unwrap(), before);
    menu.sweep().unwrap();
    menu.add(NEW, "Hivemind 2", io::repeat(7).take(LENGTH / 2)).unwrap();
}

#[test]
fn every_file_has_a_date_that_firmware_accepts() {
    let menu = menu();
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    let volume = menu.volume().unwrap();
    for folder in [ENTRIES, IMAGES] {
        for found in volume.root_dir().open_dir(folder).unwrap().iter().map(Result::unwrap) {
            for date in [found.created().date, found.modified().date, found.accessed()] {
                assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day), "{date:?}");
            }
        }
    }
}

#[test]
fn before_another_release_comes_only_the_running_one_and_the_names_of_bad_ones_stay() {
    let menu = menu();
    let id = |number: usize| format!("{number:016x}");
    for number in 0..MAX_BAD + 2 {
        menu.add(&id(number), "Hivemind", &b"image"[..]).unwrap();
        menu.assess(&id(number), Assessment::Bad).unwrap();
    }
    menu.add(NEW, "Hivemind 2", &b"new"[..]).unwrap();
    menu.keep_only(OLD).unwrap();
    let entries = menu.entries().unwrap();
    assert_eq!(entries[0].release, OLD);
    let bad: Vec<&str> = entries[1..].iter().map(|entry| entry.release.as_str()).collect();
    let newest: Vec<String> = (2..MAX_BAD + 2).rev().map(id).collect();
    assert_eq!(bad, newest, "the newest");
    assert_eq!(files(&menu, IMAGES), [format!("{OLD}.efi")]);
}
