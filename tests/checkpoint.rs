//! A checkpoint is complete or it does not exist; damage is found and named; two runs never share a directory.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candlewick::checkpoint::{
    CheckpointDir, CheckpointError, Keep, MANIFEST_FILE, RunIdentity, TensorView, TrainingState, read_tensors,
    unlisted_files, verify, write_tensors,
};
use candlewick::error::{Diagnose, Exit};
use candlewick::io::DirLock;
use candlewick::rng::{Stream, below};
use proptest::prelude::*;

/// The weights of a make-believe run after `step` steps: each step depends on all before it.
fn weights_after(step: u64) -> Vec<f32> {
    let mut weights = vec![1.0f32; 24];
    for done in 0..step {
        update(&mut weights, done);
    }
    weights
}

fn update(weights: &mut [f32], step: u64) {
    for (index, weight) in weights.iter_mut().enumerate() {
        *weight = (*weight * 1.37 + (step * 31 + index as u64) as f32).sin();
    }
}

fn write_files(folder: &Path, step: u64, weights: &[f32]) {
    write_tensors(&folder.join("model.safetensors"), &[TensorView { name: "w", shape: &[4, 6], data: weights }])
        .unwrap();
    fs::write(folder.join("config.json"), "{}\n").unwrap();
    let mut state = TrainingState::start(RunIdentity::default());
    state.step = step;
    state.save(folder).unwrap();
}

fn save(output_dir: &Path, step: u64) -> PathBuf {
    let pending = CheckpointDir::new(output_dir).begin(step).unwrap();
    write_files(pending.path(), step, &weights_after(step));
    pending.commit(serde_json::json!({ "model": "none" })).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_commit_is_found_verified_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointDir::new(dir.path());
    assert_eq!(checkpoints.newest_valid().unwrap(), None);
    save(dir.path(), 5);
    let path = save(dir.path(), 10);
    for other in ["checkpoint-99x", "checkpoint-007", "checkpoint-", "my-checkpoint-40"] {
        fs::create_dir(dir.path().join(other)).unwrap();
    }
    fs::write(dir.path().join("checkpoint-50"), "a file").unwrap();
    let found = checkpoints.newest_valid().unwrap().unwrap();
    assert_eq!((found.step, &found.path, found.skipped.len()), (10, &path, 0));
    assert_eq!(found.manifest.files.len(), 3);
    assert_eq!(found.manifest.facts["model"], "none");
    fs::write(path.join("notes.txt"), "mine").unwrap();
    assert_eq!(unlisted_files(&path, &verify(&path).unwrap()).unwrap(), ["notes.txt"]);
}

#[test]
fn a_checkpoint_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 5);
    let before = fs::read(path.join(MANIFEST_FILE)).unwrap();
    let pending = CheckpointDir::new(dir.path()).begin(5).unwrap();
    let error = pending.commit(serde_json::Value::Null).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert_eq!(fs::read(path.join(MANIFEST_FILE)).unwrap(), before);
    assert_eq!(names_in(dir.path()), ["checkpoint-5"], "the temporary folder is gone");
}

/// 200 single flipped bytes over all files, the manifest included: each is found, and the message names the file.
#[test]
fn every_flipped_byte_is_found_and_its_file_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 5);
    let files = names_in(&path);
    assert_eq!(files, [MANIFEST_FILE, "config.json", "model.safetensors", "training_state.json"]);
    for trial in 0..200u64 {
        let draw = |purpose, n| below(7, Stream::Data, [trial, purpose, 0, 0], n);
        let file = path.join(&files[trial as usize % files.len()]);
        let whole = fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        let at = draw(0, whole.len() as u64) as usize;
        damaged[at] ^= 1 + draw(1, 255) as u8;
        fs::write(&file, &damaged).unwrap();
        match verify(&path) {
            Err(CheckpointError::Corrupt { file: named, .. }) => {
                assert_eq!(named, files[trial as usize % files.len()], "trial {trial}, byte {at}");
            }
            other => panic!("trial {trial}, byte {at} of {}: {other:?}", file.display()),
        }
        fs::write(&file, &whole).unwrap();
    }
    verify(&path).unwrap();
}

#[test]
fn missing_cut_and_lengthened_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 5);
    for name in names_in(&path) {
        let file = path.join(&name);
        let whole = fs::read(&file).unwrap();
        let longer = [&whole[..], b" "].concat();
        for damaged in [Some(&whole[..0]), Some(&whole[..1]), Some(&whole[..whole.len() - 1]), Some(&longer), None] {
            match damaged {
                Some(bytes) => fs::write(&file, bytes).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let error = verify(&path).unwrap_err();
            assert!(matches!(&error, CheckpointError::Corrupt { file, .. } if *file == name), "{error}");
            assert_eq!(error.exit(), Exit::Io);
            fs::write(&file, &whole).unwrap();
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        verify(&path).unwrap_err();
        fs::remove_dir(&file).unwrap();
        fs::write(&file, &whole).unwrap();
    }
    verify(&path).unwrap();
}

#[test]
fn a_damaged_newest_is_skipped_and_named_and_made_way() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointDir::new(dir.path());
    save(dir.path(), 5);
    let newest = save(dir.path(), 10);
    fs::write(newest.join("model.safetensors"), b"short").unwrap();
    let found = checkpoints.newest_valid().unwrap().unwrap();
    assert_eq!(found.step, 5);
    assert_eq!(found.skipped[0].0, newest);
    assert!(found.skipped[0].1.contains("model.safetensors has 5 bytes"), "{:?}", found.skipped);
    checkpoints.make_way(Some(5), &found.skipped).unwrap();
    save(dir.path(), 10);
    fs::remove_file(newest.join(MANIFEST_FILE)).unwrap();
    let found = checkpoints.newest_valid().unwrap().unwrap();
    checkpoints.make_way(Some(5), &found.skipped).unwrap();
    assert_eq!(names_in(dir.path()), ["checkpoint-10.invalid", "checkpoint-10.invalid-2", "checkpoint-5"]);
}

#[test]
fn a_run_never_starts_over_where_all_checkpoints_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    for step in [5, 10] {
        fs::write(save(dir.path(), step).join("config.json"), b"").unwrap();
    }
    let error = CheckpointDir::new(dir.path()).newest_valid().unwrap_err();
    assert_eq!(error.exit(), Exit::Io);
    let text = error.to_string();
    assert!(text.contains("checkpoint-5:") && text.contains("checkpoint-10:"), "{text}");
}

#[test]
fn a_fresh_run_or_one_that_goes_back_is_refused_where_checkpoints_are_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointDir::new(dir.path());
    checkpoints.make_way(None, &[]).unwrap();
    save(dir.path(), 5);
    save(dir.path(), 10);
    let error = checkpoints.make_way(None, &[]).unwrap_err();
    assert!(error.to_string().ends_with("already holds checkpoint-5, checkpoint-10"), "{error}");
    assert_eq!(error.exit(), Exit::Usage);
    checkpoints.make_way(Some(5), &[]).unwrap_err();
    checkpoints.make_way(Some(10), &[]).unwrap();
}

/// Whatever the moment at which publishing is cut off: publishing again ends in the same files, and a manifest is
/// never there without the files that it lists.
#[test]
fn publishing_the_final_model_can_be_cut_off_anywhere() {
    let publish = |output_dir: &Path, shards: usize, value: f32| {
        let pending = CheckpointDir::new(output_dir).begin_final(3).unwrap();
        for shard in 0..shards {
            let view = TensorView { name: "w", shape: &[2], data: &[value, shard as f32] };
            write_tensors(&pending.path().join(format!("model-{shard}-of-{shards}.safetensors")), &[view]).unwrap();
        }
        fs::write(pending.path().join("config.json"), format!("{{\"value\": {value}}}")).unwrap();
        pending.publish(serde_json::Value::Null).unwrap();
    };
    let contents = |dir: &Path| {
        names_in(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect::<Vec<_>>()
    };
    let reference = tempfile::tempdir().unwrap();
    publish(reference.path(), 2, 2.0);
    let expected = contents(reference.path());
    assert_eq!(expected.len(), 4);

    // An older model with other shards was there; 0..=3 of the new files had been moved, without their manifest.
    for moved in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path(), 3, 1.0);
        assert_eq!(verify(dir.path()).unwrap().files.len(), 4);
        if moved > 0 {
            fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
            for shard in 0..3 {
                fs::remove_file(dir.path().join(format!("model-{shard}-of-3.safetensors"))).unwrap();
            }
            for (name, bytes) in expected.iter().filter(|(name, _)| name != MANIFEST_FILE).take(moved) {
                fs::write(dir.path().join(name), bytes).unwrap();
            }
            verify(dir.path()).unwrap_err();
        }
        let stale = dir.path().join("final.tmp.4711");
        fs::create_dir(&stale).unwrap();
        CheckpointDir::new(dir.path()).remove_stale().unwrap();
        publish(dir.path(), 2, 2.0);
        assert_eq!(contents(dir.path()), expected, "{moved} files had been moved");
        verify(dir.path()).unwrap();
    }
}

/// Run by the test below as a process of its own: takes the lock, says so, and waits to be killed.
#[test]
fn hold_the_lock_for_the_parent_process() {
    let Some(dir) = std::env::var_os("CANDLEWICK_TEST_LOCK_DIR") else { return };
    let _lock = DirLock::acquire(Path::new(&dir)).unwrap();
    // On stderr, which the test harness of the child leaves alone under --nocapture.
    eprintln!("locked");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_second_process_is_refused_and_a_killed_holder_frees_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_the_lock_for_the_parent_process", "--nocapture"])
        .env("CANDLEWICK_TEST_LOCK_DIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stderr.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.contains("locked")));
    let error = DirLock::acquire(dir.path()).unwrap_err();
    assert_eq!(error.exit(), Exit::Locked);
    assert!(error.to_string().contains(&format!("process {}", holder.id())), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    DirLock::acquire(dir.path()).unwrap();
}

/// What may happen to a run. The numbers choose among what there is at that moment.
#[derive(Debug, Clone)]
enum Event {
    Step,
    Save {
        limit: usize,
    },
    /// Killed while saving, after so many files.
    KilledInSave {
        files: usize,
    },
    /// Killed after the commit, while old checkpoints were being removed.
    KilledInRotation,
    Killed,
    Corrupt {
        which: usize,
        file: usize,
        byte: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Step),
        4 => (0usize..4).prop_map(|limit| Event::Save { limit }),
        2 => (0usize..4).prop_map(|files| Event::KilledInSave { files }),
        1 => Just(Event::KilledInRotation),
        2 => Just(Event::Killed),
        1 => (0usize..8, 0usize..8, 0usize..4096).prop_map(|(which, file, byte)| Event::Corrupt { which, file, byte }),
    ]
}

/// A make-believe run over a real directory, beside what must be true of it.
struct Run {
    output_dir: PathBuf,
    checkpoints: CheckpointDir,
    step: u64,
    weights: Vec<f32>,
    /// Steps of the checkpoints that are there, and whether each was damaged.
    expected: Vec<(u64, bool)>,
}

impl Run {
    fn save(&mut self, files: Option<usize>) -> bool {
        if self.step == 0 || self.expected.last().is_some_and(|(step, _)| *step == self.step) {
            return false;
        }
        let pending = self.checkpoints.begin(self.step).unwrap();
        write_files(pending.path(), self.step, &self.weights);
        if let Some(files) = files {
            for name in names_in(pending.path()).into_iter().skip(files) {
                fs::remove_file(pending.path().join(name)).unwrap();
            }
            // A killed process runs no destructors.
            std::mem::forget(pending);
        } else {
            pending.commit(serde_json::Value::Null).unwrap();
            self.expected.push((self.step, false));
        }
        true
    }

    fn rotate(&mut self, limit: usize) {
        let removed = self.checkpoints.rotate(Keep { limit, best: None }).unwrap();
        self.expected.retain(|(step, _)| !removed.contains(&self.checkpoints.path(*step)));
        assert!(limit == 0 || self.expected.len() <= limit);
    }

    fn corrupt(&mut self, which: usize, file: usize, byte: usize) {
        if self.expected.is_empty() {
            return;
        }
        let which = which % self.expected.len();
        let (step, is_damaged) = &mut self.expected[which];
        if std::mem::replace(is_damaged, true) {
            return;
        }
        let folder = self.checkpoints.path(*step);
        let names = names_in(&folder);
        let path = folder.join(&names[file % names.len()]);
        let mut bytes = fs::read(&path).unwrap();
        let at = byte % bytes.len();
        bytes[at] ^= 0x20;
        fs::write(&path, bytes).unwrap();
    }

    /// Starts again as a new process does. False where the run rightly refuses to go on.
    fn resume(&mut self) -> bool {
        let lock = DirLock::acquire(&self.output_dir).unwrap();
        self.checkpoints.remove_stale().unwrap();
        let newest = self.expected.iter().rfind(|(_, is_damaged)| !is_damaged).map(|(step, _)| *step);
        let found = match self.checkpoints.newest_valid() {
            Ok(found) => found,
            Err(CheckpointError::NoneValid { skipped, .. }) => {
                assert!(newest.is_none() && skipped.len() == self.expected.len());
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found.as_ref().map(|found| found.step), newest);
        if let Some(found) = found {
            let damaged = self.expected.iter().filter(|(step, _)| *step > found.step).count();
            assert_eq!(found.skipped.len(), damaged);
            self.checkpoints.make_way(Some(found.step), &found.skipped).unwrap();
            self.expected.retain(|(step, _)| *step <= found.step);
            self.step = TrainingState::load(&found.path).unwrap().step;
            self.weights = read_tensors(&found.path.join("model.safetensors")).unwrap().remove(0).data;
        } else {
            assert!(self.expected.is_empty());
            self.checkpoints.make_way(None, &[]).unwrap();
            (self.step, self.weights) = (0, weights_after(0));
        }
        drop(lock);
        true
    }

    fn happen(&mut self, event: &Event) -> bool {
        match *event {
            Event::Step => {
                update(&mut self.weights, self.step);
                self.step += 1;
            }
            Event::Save { limit } => {
                if self.save(None) {
                    self.rotate(limit);
                }
            }
            Event::KilledInSave { files } => {
                self.save(Some(files));
                return self.resume();
            }
            Event::KilledInRotation => {
                if self.expected.len() > 1 {
                    let (step, _) = self.expected.remove(0);
                    let path = self.checkpoints.path(step);
                    fs::rename(&path, path.with_extension("tmp.4711.old")).unwrap();
                }
                return self.resume();
            }
            Event::Killed => return self.resume(),
            Event::Corrupt { which, file, byte } => self.corrupt(which, file, byte),
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of steps, saves, kills, damage and restarts ends in the weights of an uninterrupted run, or in a
    /// refusal where every checkpoint was damaged.
    #[test]
    fn any_history_ends_in_the_same_weights(events in prop::collection::vec(event(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run {
            output_dir: dir.path().to_owned(),
            checkpoints: CheckpointDir::new(dir.path()),
            step: 0,
            weights: weights_after(0),
            expected: Vec::new(),
        };
        for event in &events {
            if !run.happen(event) {
                return Ok(());
            }
            let listed: Vec<u64> = run.checkpoints.list().unwrap().into_iter().map(|(step, _)| step).collect();
            let expected: Vec<u64> = run.expected.iter().map(|(step, _)| *step).collect();
            prop_assert_eq!(listed, expected);
        }
        prop_assert_eq!(&run.weights, &weights_after(run.step));
        if run.resume() {
            prop_assert_eq!(&run.weights, &weights_after(run.step));
            let is_stray = |name: &String| name.contains(".tmp");
            prop_assert!(!names_in(dir.path()).iter().any(is_stray));
        }
    }
}
