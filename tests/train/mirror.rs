//! Copies of checkpoints: whole or none, made while the drive works, missed while it does not, and never waited for.

use super::checkpoint::{assert_loads_as, snapshot, store};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tests::faults::{Fault, FaultyDisk};
use train::atomic::{Disk, DiskFile, RealDisk};
use train::checkpoint::{
    CheckpointError, Copied, Copying, Keep, Mirror, RECORDS, Retention, Saver, fetch_records, files,
    latest_good, steps, verify,
};
use train::config::MirrorDisk;

const KEPT: Retention = Retention { keep_last: 2, keep_epochs: 2, keep_best: 0, keep_every: None };

/// Long enough for any copy here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk on which files of a drive are created only while the gate is open; it hangs until then.
#[derive(Clone)]
struct Gate {
    drive: PathBuf,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    fn closed(drive: &Path) -> Gate {
        Gate { drive: drive.into(), open: Arc::default() }
    }

    fn open(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
    }
}

impl Disk for Gate {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if path.starts_with(&self.drive) {
            let guard = self.open.0.lock().unwrap();
            drop(self.open.1.wait_while(guard, |open| !*open).unwrap());
        }
        RealDisk.create(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        RealDisk.available(path)
    }
}

/// Each as soon as may be, to any disk.
const COPYING: Copying =
    Copying { retention: KEPT, every: None, settle: Duration::ZERO, disk: MirrorDisk::Any, records: None };

/// A run's folders: its checkpoints, and a drive beside them.
struct Folders {
    _folder: tempfile::TempDir,
    run: PathBuf,
    root: PathBuf,
    drive: PathBuf,
}

impl Folders {
    fn new() -> Folders {
        let folder = tempfile::tempdir().unwrap();
        let (run, drive) = (folder.path().join("run"), folder.path().join("drive"));
        fs::create_dir(&run).unwrap();
        Folders { root: run.join("checkpoints"), _folder: folder, run, drive }
    }

    fn mirror(&self, disk: impl Disk + 'static) -> Result<Mirror, CheckpointError> {
        Mirror::open(Arc::new(disk), &self.drive, &self.root, COPYING)
    }

    fn saver(&self, mirror: Mirror) -> Saver {
        Saver::new(store(RealDisk, &self.root).unwrap(), KEPT, Some(mirror))
    }

    fn local(&self) -> Vec<u64> {
        numbers(&self.root)
    }

    fn copied(&self) -> Vec<u64> {
        numbers(&self.drive)
    }
}

fn numbers(folder: &Path) -> Vec<u64> {
    steps(folder).unwrap().into_iter().map(|(step, _)| step).collect()
}

/// Saves and waits for the checkpoint, but not for its copy.
fn save(saver: &mut Saver, step: u64) {
    saver.save(snapshot(step)).unwrap();
    saver.finish().unwrap().unwrap();
}

/// Waits for all copies, and says briefly what was copied and what failed.
fn finish(saver: &mut Saver) -> Vec<String> {
    saver.finish_copies(PATIENCE, |_| ControlFlow::Continue(())).unwrap();
    said(&saver.copies())
}

fn said(copies: &[Copied]) -> Vec<String> {
    let step = |path: &Path| {
        path.file_name().unwrap().to_string_lossy().trim_start_matches("step_0000000").to_owned()
    };
    let one = |copied: &Copied| match copied {
        Copied::Whole { path, .. } => format!("whole {}", step(path)),
        Copied::LeftOut(path) => format!("left out {}", step(path)),
        Copied::Failed { what, reason } => format!("failed {}: {reason}", step(what)),
    };
    copies.iter().map(one).collect()
}

/// Copies one checkpoint over a disk, to the end.
fn copy(folders: &Folders, disk: impl Disk + 'static) -> Vec<String> {
    let mut saver = folders.saver(folders.mirror(disk).unwrap());
    let good = latest_good(&folders.root).unwrap().good.unwrap();
    saver.catch_up(good.path(), Keep::Rolling);
    finish(&mut saver)
}

#[test]
fn a_copy_is_complete_or_no_checkpoint() {
    let folders = Folders::new();
    store(RealDisk, &folders.root).unwrap().save(&snapshot(1)).unwrap();
    let counting = FaultyDisk::new(Fault::None);
    assert_eq!(copy(&folders, counting.clone()), ["whole 1"]);
    let mut failed = 0;
    for k in 0..counting.operations() {
        for fault in [Fault::Once(k), Fault::Crash(k), Fault::FullFrom(k)] {
            fs::remove_dir_all(&folders.drive).unwrap();
            let copied = copy(&folders, FaultyDisk::new(fault));
            failed += usize::from(copied != ["whole 1"]);
            let there = latest_good(&folders.drive).unwrap().good;
            assert!(copied != ["whole 1"] || there.is_some(), "{fault:?}");
            assert_eq!(copy(&folders, RealDisk), ["whole 1"], "{fault:?}");
            assert_loads_as(&folders.drive, 1);
        }
    }
    println!("{failed} faults over {} operations", counting.operations());
    assert!(failed > 2 * counting.operations(), "{failed}");
    fs::remove_dir_all(folders.drive.join("step_00000001")).unwrap();
    let full = copy(&folders, FaultyDisk::new(Fault::Room(100)));
    assert!(full[0].contains("no room for a checkpoint"), "{full:?}");
}

/// The drive hangs from the first byte on: checkpoints are saved and removed all the same, only the one that is being copied
/// stays. When it comes back the newest is next.
#[test]
fn a_drive_that_hangs_holds_nothing_up() {
    let folders = Folders::new();
    let gate = Gate::closed(&folders.drive);
    let mut saver = folders.saver(folders.mirror(gate.clone()).unwrap());
    save(&mut saver, 1);
    // Its copy has begun when the folder is there.
    while !folders.drive.join("step_00000001").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for step in 2..=5 {
        save(&mut saver, step);
    }
    assert_eq!(folders.local(), [1, 4, 5], "the one being copied stays");
    assert_eq!(said(&saver.copies()), ["left out 2", "left out 3", "left out 4"]);
    gate.open();
    assert_eq!(finish(&mut saver), ["whole 1", "whole 5"]);
    assert_eq!((folders.local(), folders.copied()), (vec![4, 5], vec![1, 5]));
    assert_loads_as(&folders.drive, 5);
}

#[test]
fn the_wait_at_the_end_has_an_end() {
    let folders = Folders::new();
    let gate = Gate::closed(&folders.drive);
    let mut saver = folders.saver(folders.mirror(gate.clone()).unwrap());
    save(&mut saver, 1);
    let start = Instant::now();
    saver.finish_copies(Duration::from_millis(200), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(said(&saver.copies()), ["failed 1: nothing moved for 0 s"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(saver);

    // Another process would come too: this one's lock still hangs on the drive.
    gate.open();
    while fs::read_dir(&folders.drive).unwrap().any(|entry| entry.unwrap().file_name() == ".lock") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let gate = Gate::closed(&folders.drive);
    let mut saver = folders.saver(folders.mirror(gate.clone()).unwrap());
    save(&mut saver, 2);
    let mut asked = 0;
    let stop = |_: &_| {
        asked += 1;
        if asked == 3 { ControlFlow::Break("enough") } else { ControlFlow::Continue(()) }
    };
    saver.finish_copies(PATIENCE, stop).unwrap();
    assert_eq!(said(&saver.copies()), ["failed 2: enough"]);
    gate.open();
}

#[test]
fn ends_of_epochs_are_copied_in_their_turn_and_a_clock_leaves_the_others_out() {
    let folders = Folders::new();
    let gate = Gate::closed(&folders.drive);
    let hour = Some(Duration::from_secs(3600));
    let copying = Copying { retention: Retention { keep_epochs: 9, ..KEPT }, every: hour, ..COPYING };
    let mirror = Mirror::open(Arc::new(gate.clone()), &folders.drive, &folders.root, copying).unwrap();
    let mut saver = Saver::new(store(RealDisk, &folders.root).unwrap(), KEPT, Some(mirror));
    save(&mut saver, 1);
    while !folders.drive.join("step_00000001").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    gate.open();
    while saver.copies().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for step in 2..=4 {
        let mut snapshot = snapshot(step);
        snapshot.state.keep = if step == 2 { Keep::EpochEnd(1) } else { Keep::Rolling };
        saver.save(snapshot).unwrap();
        saver.finish().unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(folders.copied(), [1], "the hour is not over");
    assert_eq!(finish(&mut saver), ["left out 3", "whole 4", "whole 2"]);
}

#[test]
fn a_drive_that_is_away_does_not_stop_the_run_and_nothing_is_made_in_its_place() {
    let folders = Folders::new();
    let mut saver = folders.saver(folders.mirror(RealDisk).unwrap());
    let mut copied = |step| {
        save(&mut saver, step);
        loop {
            let copies = said(&saver.copies());
            if !copies.is_empty() {
                return copies;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for step in 1..=3 {
        assert_eq!(copied(step), [format!("whole {step}")]);
    }
    // Away: its empty mount point is left.
    let elsewhere = folders.drive.with_file_name("elsewhere");
    fs::rename(&folders.drive, &elsewhere).unwrap();
    fs::create_dir(&folders.drive).unwrap();
    let away = copied(4);
    assert!(away[0].contains("is the drive still mounted?"), "{away:?}");
    assert_eq!(fs::read_dir(&folders.drive).unwrap().count(), 0);
    fs::remove_dir(&folders.drive).unwrap();
    fs::rename(&elsewhere, &folders.drive).unwrap();
    assert_eq!(copied(5), ["whole 5"]);
    drop(saver);
    assert_loads_as(&folders.root, 5);
    assert_loads_as(&folders.drive, 5);
    assert_eq!(folders.copied(), [3, 5]);
}

/// Two machines see one drive and not each other's locks: the second hears of the first, and the first ends its copies.
#[test]
fn whoever_comes_last_from_another_machine_has_the_mirror() {
    let folders = Folders::new();
    let lock = folders.drive.join(".lock");
    let elsewhere = r#"{"pid":7,"machine":"elsewhere","since":0,"command":"train --out run"}"#;
    fs::create_dir(&folders.drive).unwrap();
    fs::write(&lock, elsewhere).unwrap();
    let mirror = folders.mirror(RealDisk).unwrap();
    let left = mirror.left_by().unwrap();
    assert!(
        left.starts_with("process 7 of machine elsewhere, for ") && left.ends_with("--out run"),
        "{left}"
    );

    let mut saver = folders.saver(mirror);
    save(&mut saver, 1);
    while folders.copied() != [1] || saver.copies().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::write(&lock, elsewhere).unwrap();
    save(&mut saver, 2);
    let copies = finish(&mut saver);
    assert!(
        copies.len() == 1 && copies[0].contains("was taken by process 7 of machine elsewhere"),
        "{copies:?}"
    );
    drop(saver);
    assert_eq!(folders.copied(), [1]);
    assert_eq!(fs::read_to_string(&lock).unwrap(), elsewhere, "the other's");
}

/// What is not this run's stays, finished or not; what its own copies left that were cut off goes.
#[test]
fn only_the_runs_own_copies_are_removed() {
    let folders = Folders::new();
    let others = |step: u64| {
        let mut snapshot = snapshot(step);
        snapshot.state.seed += 1;
        snapshot
    };
    let other = store(RealDisk, &folders.drive).unwrap();
    for step in 11..=14 {
        other.save(&others(step)).unwrap();
    }
    drop(other);
    let cut_off = |step: u64| {
        fs::remove_file(folders.drive.join(format!("step_{step:08}")).join(files::MANIFEST)).unwrap()
    };
    cut_off(14);
    store(RealDisk, &folders.drive).unwrap().save(&snapshot(9)).unwrap();
    cut_off(9);
    fs::create_dir(folders.drive.join("step_00000099")).unwrap();
    let mut saver = folders.saver(folders.mirror(RealDisk).unwrap());
    for step in 1..=3 {
        save(&mut saver, step);
        while saver.copies().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(finish(&mut saver).is_empty());
    assert_eq!(folders.copied(), [2, 3, 11, 12, 13, 14, 99]);
    for step in 11..=13 {
        verify(&folders.drive.join(format!("step_{step:08}"))).unwrap();
    }
}

#[test]
fn a_checkpoint_that_is_set_aside_meanwhile_gets_no_mark() {
    let folders = Folders::new();
    let gate = Gate::closed(&folders.drive);
    let mut saver = folders.saver(folders.mirror(gate.clone()).unwrap());
    save(&mut saver, 1);
    save(&mut saver, 2);
    let copy = ["step_00000001", "step_00000002"].map(|name| folders.drive.join(name));
    while !copy.iter().any(|copy| copy.exists()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    for name in ["step_00000001", "step_00000002"] {
        fs::rename(folders.root.join(name), folders.root.join(format!("{name}.set-aside"))).unwrap();
    }
    gate.open();
    let copies = finish(&mut saver);
    assert!(copies.iter().all(|copied| !copied.starts_with("whole")) && !copies.is_empty(), "{copies:?}");
    assert!(latest_good(&folders.drive).unwrap().good.is_none());
}

#[test]
fn a_mirror_that_is_not_mounted_is_refused_and_one_run_has_it() {
    let folders = Folders::new();
    drop(store(RealDisk, &folders.root).unwrap());
    let refused = |folders: &Folders| folders.mirror(RealDisk).map(drop).unwrap_err().to_string();
    let at = |drive: PathBuf| Folders { drive, _folder: tempfile::tempdir().unwrap(), ..Folders::new() };
    let base = folders.drive.parent().unwrap();

    let absent = at(base.join("mount point/backup"));
    let message = refused(&absent);
    assert!(message.contains("mount point is not there: mount the drive"), "{message}");
    assert!(message.ends_with(&format!("mkdir -p '{}'", absent.drive.display())), "{message}");
    assert!(!absent.drive.parent().unwrap().exists());

    fs::create_dir(base.join("mount point")).unwrap();
    let message = refused(&absent);
    assert!(message.contains("mount point is an empty folder on the run's own disk"), "{message}");
    // Its advice.
    let advice = message.split("yourself with ").nth(1).unwrap();
    assert!(std::process::Command::new("sh").args(["-c", advice]).status().unwrap().success());
    let first = absent.mirror(RealDisk).unwrap();
    let message = refused(&absent);
    assert!(message.contains(&format!("is in use by process {}, for ", std::process::id())), "{message}");
    assert!(message.contains("a mirror of its own"), "{message}");
    drop(first);
    absent.mirror(RealDisk).unwrap();

    fs::create_dir_all(&folders.root).unwrap();
    let itself =
        Folders { drive: folders.root.join("../checkpoints"), root: folders.root.clone(), ..Folders::new() };
    assert!(refused(&itself).contains("the run's own folder of checkpoints"), "{}", refused(&itself));
}

#[test]
fn the_records_go_with_the_copies_and_come_back() {
    let folders = Folders::new();
    let copying = Copying { records: Some(folders.run.clone()), ..COPYING };
    let mirror = Mirror::open(Arc::new(RealDisk), &folders.drive, &folders.root, copying).unwrap();
    let mut saver = folders.saver(mirror);
    let events = "tensorboard/events.out.tfevents.1.2.3";
    fs::create_dir_all(folders.run.join("tensorboard")).unwrap();
    for name in ["metrics.jsonl", "config.toml", "loss.svg", events] {
        fs::write(folders.run.join(name), name).unwrap();
    }
    save(&mut saver, 1);
    while saver.copies().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let records = folders.drive.join(RECORDS);
    for name in ["metrics.jsonl", "config.toml", "loss.svg", events] {
        assert_eq!(fs::read_to_string(records.join(name)).unwrap(), name);
    }
    // What is recorded after the last checkpoint is there at the end.
    fs::write(folders.run.join("metrics.jsonl"), "longer").unwrap();
    fs::write(folders.run.join(events), "longer events").unwrap();
    finish(&mut saver);
    assert_eq!(fs::read_to_string(records.join("metrics.jsonl")).unwrap(), "longer");
    assert_eq!(fs::read_to_string(records.join(events)).unwrap(), "longer events");

    let new = folders.run.with_file_name("new machine");
    fetch_records(&folders.drive, &RealDisk, &new).unwrap();
    assert_eq!(fs::read_to_string(new.join(events)).unwrap(), "longer events");
    fs::write(new.join("metrics.jsonl"), "its own").unwrap();
    fetch_records(&folders.drive, &RealDisk, &new).unwrap();
    assert_eq!(fs::read_to_string(new.join("metrics.jsonl")).unwrap(), "its own");
}

#[test]
fn a_copy_that_may_not_be_uploaded_counts_for_nothing() {
    let folders = Folders::new();
    let settle = Duration::from_secs(3600);
    let copying = Copying { retention: Retention { keep_last: 1, ..KEPT }, settle, ..COPYING };
    let mirror = Mirror::open(Arc::new(RealDisk), &folders.drive, &folders.root, copying).unwrap();
    let mut saver = Saver::new(store(RealDisk, &folders.root).unwrap(), KEPT, Some(mirror));
    let uploaded = |step: u64| {
        let manifest = folders.drive.join(format!("step_{step:08}/manifest.json"));
        let file = fs::File::options().append(true).open(manifest).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * settle).unwrap();
    };
    let mut copy = |step: u64| {
        save(&mut saver, step);
        while said(&saver.copies()).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for step in 1..=3 {
        copy(step);
    }
    assert_eq!(folders.copied(), [1, 2, 3], "none is an hour old");
    uploaded(1);
    copy(4);
    assert_eq!(folders.copied(), [1, 2, 3, 4], "there is no uploaded one after it");
    uploaded(2);
    copy(5);
    assert_eq!(folders.copied(), [2, 3, 4, 5], "the one after it is uploaded");
}

#[test]
fn a_mirror_that_must_be_mounted_is_refused_on_the_runs_own_disk() {
    let folders = Folders::new();
    fs::create_dir(&folders.drive).unwrap();
    let copying = || Copying { disk: MirrorDisk::Mounted, ..COPYING };
    let open = |drive: &Path| Mirror::open(Arc::new(RealDisk), drive, &folders.root, copying());
    let message = open(&folders.drive).err().unwrap().to_string();
    assert!(message.contains("checkpoint.mirror_disk is mounted: mount the drive"), "{message}");
    assert_eq!(fs::read_dir(&folders.drive).unwrap().count(), 0, "nothing is left on it");
    // Shared memory is another disk on every Linux.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    open(&elsewhere.path().join("mirror")).unwrap();
}
