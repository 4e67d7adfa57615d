use std::fs;

use finegates_checkpoint::write::{copy_into, replace_folder, restore_folder, write_atomic, write_atomic_with};

use crate::support::{folder, write};

#[test]
fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
    let folder = folder();
    let path = folder.path().join("state.json");
    for content in ["first", "second, longer", "3"] {
        write_atomic(&path, content.as_bytes()).expect("write");
        assert_eq!(fs::read_to_string(&path).expect("read"), content);
    }
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
}

#[test]
fn a_failed_write_leaves_the_old_content() {
    let folder = folder();
    let path = folder.path().join("state.json");
    write_atomic(&path, b"old").expect("write");
    let error = write_atomic_with(&path, |_| Err(std::io::Error::other("the disk is full"))).expect_err("it failed");
    assert!(error.to_string().ends_with("state.json: cannot write: the disk is full"), "{error}");
    assert_eq!(fs::read(&path).expect("read"), b"old");
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    assert!(write_atomic(&folder.path().join("missing/state.json"), b"x").is_err());
}

#[test]
fn a_copy_of_a_read_only_file_can_be_written_and_moved() {
    let place = folder();
    let (original, beside) = (place.path().join("vocab.txt"), place.path().join("new"));
    fs::write(&original, "words").expect("write");
    let mut permissions = fs::metadata(&original).expect("permissions").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&original, permissions).expect("set permissions");
    fs::create_dir(&beside).expect("a folder");
    copy_into(&original, &beside).expect("copy");
    assert!(!fs::metadata(beside.join("vocab.txt")).expect("the copy").permissions().readonly());
    replace_folder(&beside, &place.path().join("model")).expect("move");
    assert_eq!(fs::read_to_string(place.path().join("model/vocab.txt")).expect("read"), "words");
}

#[cfg(unix)]
#[test]
fn a_written_file_is_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    write_atomic(&ours, b"").expect("write");
    fs::write(&plain, b"").expect("write");
    let mode = |path| fs::metadata(path).expect("examine").permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[test]
fn a_folder_is_replaced_whole() {
    let folder = folder();
    let (new, place) = (folder.path().join("new"), folder.path().join("place"));
    write(&new.join("a/b"), "1");
    replace_folder(&new, &place).expect("into an empty place");
    assert_eq!(fs::read(place.join("a/b")).expect("read"), b"1");
    write(&new.join("c"), "2");
    replace_folder(&new, &place).expect("over the old one");
    assert!(!place.join("a").exists());
    assert_eq!(fs::read(place.join("c")).expect("read"), b"2");
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    assert!(replace_folder(&folder.path().join("nothing"), &place).is_err());
    assert!(place.join("c").is_file(), "the old folder is still there after a failure");
}

#[test]
fn a_folder_left_aside_by_a_crash_is_put_back() {
    let folder = folder();
    let place = folder.path().join("best");
    assert!(!restore_folder(&place).expect("nothing to restore"));
    write(&folder.path().join(".best.old/weights"), "old");
    assert!(restore_folder(&place).expect("restore"));
    assert_eq!(fs::read(place.join("weights")).expect("read"), b"old");
    // A complete new folder wins over what is left aside.
    write(&folder.path().join(".best.old/weights"), "older");
    assert!(!restore_folder(&place).expect("nothing to restore"));
    assert_eq!(fs::read(place.join("weights")).expect("read"), b"old");
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_being_replaced_is_never_missing() {
    let folder = folder();
    let place = folder.path().join("place");
    write(&place.join("content"), "0");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0u32;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(place.is_dir(), "missing after {looks} looks");
                looks += 1;
            }
        });
        for number in 0..200 {
            let new = folder.path().join("new");
            write(&new.join("content"), number.to_string());
            replace_folder(&new, &place).expect("replace");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        watcher.join().expect("always there");
    });
}
