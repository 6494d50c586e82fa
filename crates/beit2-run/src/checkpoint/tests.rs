use std::cell::Cell;

use super::*;
use crate::dir::Existing;

thread_local! {
    /// Where the next commit of this thread dies.
    pub(super) static KILL_AT: Cell<Option<Point>> = const { Cell::new(None) };
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    best: f64,
}

const KEEP: Keep = Keep { last: 2, best: false };

fn open_run(path: &Path) -> RunDir {
    RunDir::open(path, "seed = 1\n", &[], Existing::Continue).unwrap().run
}

fn save(run: &RunDir, step: u64, keep: Keep) -> Result<Checkpoint, CheckpointError> {
    save_marked(run, step, keep, 0)
}

/// `mark` makes the content of two checkpoints of one step differ.
fn save_marked(run: &RunDir, step: u64, keep: Keep, mark: u8) -> Result<Checkpoint, CheckpointError> {
    let mut writer = run.begin_checkpoint(step)?;
    writer.add("model.safetensors", |w| w.write_all(&[mark; 100_000]))?;
    writer.add("optimizer.safetensors", |w| w.write_all(&step.to_le_bytes()))?;
    writer.commit(&State { epoch: step / 10, best: 0.1 + 0.2 }, keep)
}

fn steps(run: &RunDir) -> Vec<u64> {
    list(&run.checkpoints()).unwrap().into_iter().map(|(step, _)| step).collect()
}

fn hidden(run: &RunDir) -> Vec<String> {
    fs::read_dir(run.checkpoints())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect()
}

#[test]
fn comes_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    assert!(run.latest_checkpoint().unwrap().checkpoint.is_none());
    save(&run, 30, KEEP).unwrap();
    let got = run.latest_checkpoint().unwrap().checkpoint.unwrap();
    assert_eq!(got.step, 30);
    assert_eq!(got.state::<State>().unwrap(), State { epoch: 3, best: 0.1 + 0.2 });
    assert_eq!(fs::read(got.file("optimizer.safetensors")).unwrap(), 30u64.to_le_bytes());
    assert_eq!(
        atomic::read_link(&dir.path().join("last")),
        Some(dir.path().join("checkpoints/step-0000030"))
    );
    let text = got.state::<Vec<u8>>().unwrap_err().to_string();
    assert!(text.contains("state.json does not hold the expected state"), "{text}");
}

#[test]
fn keeps_the_last_ones_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    for step in 1..=6 {
        save(&run, step, Keep { last: 2, best: step == 2 }).unwrap();
    }
    assert_eq!(steps(&run), [2, 5, 6]);
    assert_eq!(best(dir.path()).unwrap().step, 2);
    assert!(hidden(&run).is_empty());
}

#[test]
fn kept_steps_stay_as_long_as_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    save(&run, 1, KEEP).unwrap();
    let keep = Keep { last: 1, best: false };
    let state = State { epoch: 0, best: 0.0 };
    for step in [2, 3] {
        run.begin_checkpoint(step).unwrap().keeping(&[1]).commit(&state, keep).unwrap();
    }
    assert_eq!(steps(&run), [1, 3]);
    save(&run, 4, keep).unwrap();
    assert_eq!(steps(&run), [4]);
}

#[test]
fn a_kill_at_any_point_never_loses_the_run() {
    use Point::*;
    for point in [FileAdded, Proven, SteppedAside, Renamed, Linked, Trashed] {
        let dir = tempfile::tempdir().unwrap();
        let run = open_run(dir.path());
        save(&run, 1, KEEP).unwrap();
        save_marked(&run, 2, KEEP, 1).unwrap();
        // Step 2 again goes through the replacement, step 3 through the pruning.
        let step = if point == SteppedAside { 2 } else { 3 };
        KILL_AT.set(Some(point));
        save_marked(&run, step, KEEP, 2).unwrap_err();
        KILL_AT.set(None);
        drop(run);

        let run = open_run(dir.path());
        assert!(hidden(&run).is_empty(), "{point:?} leaves {:?}", hidden(&run));
        let latest = run.latest_checkpoint().unwrap();
        assert!(latest.skipped.is_empty(), "{point:?} leaves a damaged checkpoint: {:?}", latest.skipped);
        let survived = matches!(point, Renamed | Linked | Trashed);
        assert_eq!(latest.checkpoint.unwrap().step, if survived { 3 } else { 2 }, "{point:?}");
        save(&run, 4, KEEP).unwrap();
        assert_eq!(run.latest_checkpoint().unwrap().checkpoint.unwrap().step, 4);
    }
}

#[test]
fn damaged_checkpoints_are_passed_over_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    for step in 1..=5 {
        save(&run, step, Keep { last: 9, best: false }).unwrap();
    }
    let file = |step: u64, name: &str| run.checkpoints().join(name_of(step)).join(name);
    File::options().write(true).open(file(5, "model.safetensors")).unwrap().set_len(10).unwrap();
    let mut bytes = fs::read(file(4, "model.safetensors")).unwrap();
    bytes[50_000] ^= 1;
    fs::write(file(4, "model.safetensors"), bytes).unwrap();
    fs::remove_file(file(3, "optimizer.safetensors")).unwrap();
    let text = fs::read_to_string(file(2, STATE)).unwrap();
    fs::write(file(2, STATE), &text[..text.len() / 2]).unwrap();

    let latest = run.latest_checkpoint().unwrap();
    assert_eq!(latest.checkpoint.unwrap().step, 1);
    let reasons: Vec<&str> = latest.skipped.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!(reasons[0], "model.safetensors has 10 bytes instead of 100000");
    assert!(reasons[1].starts_with("model.safetensors has checksum"), "{}", reasons[1]);
    assert!(reasons[2].starts_with("optimizer.safetensors cannot be read"), "{}", reasons[2]);
    assert!(reasons[3].starts_with("state.json is damaged"), "{}", reasons[3]);
}

#[test]
fn falling_back_does_not_cost_the_new_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    let keep = Keep { last: 1, best: false };
    save(&run, 10, KEEP).unwrap();
    save(&run, 20, KEEP).unwrap();
    fs::remove_file(run.checkpoints().join("step-0000020/state.json")).unwrap();
    assert_eq!(run.latest_checkpoint().unwrap().checkpoint.unwrap().step, 10);
    save(&run, 15, keep).unwrap();
    assert_eq!(steps(&run), [15, 20], "the damaged newer one must not crowd out the new one");
    assert_eq!(run.latest_checkpoint().unwrap().checkpoint.unwrap().step, 15);
    save(&run, 20, keep).unwrap();
    assert_eq!(steps(&run), [20], "the damaged one is replaced when the run gets there");
    assert_eq!(run.latest_checkpoint().unwrap().checkpoint.unwrap().step, 20);
}

#[test]
fn a_full_disk_undoes_the_checkpoint_only() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    save(&run, 1, KEEP).unwrap();
    let mut writer = run.begin_checkpoint(2).unwrap();
    let error = writer
        .add("model.safetensors", |w| {
            w.write_all(&[1; 1 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("step-0000002/model.safetensors: the disk is full"), "{error}");
    drop(writer);
    assert!(hidden(&run).is_empty());
    assert_eq!(run.latest_checkpoint().unwrap().checkpoint.unwrap().step, 1);
}

#[test]
fn an_unwritable_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    // A file in the folder's place refuses even the superuser.
    fs::remove_dir(run.checkpoints()).unwrap();
    fs::write(run.checkpoints(), "").unwrap();
    let text = save(&run, 1, KEEP).unwrap_err().to_string();
    assert!(text.contains("step-0000001") && text.contains("a file, not a folder"), "{text}");
}

#[test]
fn names_cannot_leave_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let run = open_run(dir.path());
    let mut writer = run.begin_checkpoint(1).unwrap();
    writer.add("a", |_| Ok(())).unwrap();
    for name in ["../x", "state.json", "", ".hidden", "a/b", "a"] {
        assert!(matches!(writer.add(name, |_| Ok(())), Err(CheckpointError::Name { .. })), "{name}");
    }
}
