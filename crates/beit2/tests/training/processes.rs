//! Ranks in processes of their own train what ranks in threads do, to the bit. A thread stands for a process here: it reaches
//! the others by TCP only, and has no run directory.

use std::net::TcpListener;
use std::path::Path;

use beit2::classify::finetune;
use beit2::tokenizer::{self, teachers};
use beit2::train::{Env, Files, Outcome, SCRATCH, Silent, TrainState, on_devices};
use beit2::{Error, pretrain, segment};
use beit2_kernels::Rank;
use beit2_ranks::{Limits, Place, join};
use beit2_run::{checkpoint, metrics};

use super::parallel::{Stage, on, tokenizer_scene};
use super::scene::{self, Auto};

/// This process's rank of a group that meets at a port.
fn rank(index: usize, world: usize, port: u16) -> Rank {
    let (place, rendezvous) = (format!("{index}/{world}"), format!("127.0.0.1:{port}"));
    let place = Place::find(Some(&place), Some(&rendezvous), |_| None).unwrap().unwrap();
    Rank::of_process(join(&place, &[], Limits::default(), &|_| (), &|| false).unwrap())
}

/// What each of `world` processes gives; only the first one has `dir`.
fn in_processes(
    world: usize,
    dir: &Path,
    stage: impl Fn(usize, Env<'_>) -> Result<Outcome, Error> + Sync,
) -> Vec<Result<Outcome, Error>> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let stage = &stage;
        let start = |index: usize| {
            scope.spawn(move || {
                let dir = if index == 0 { dir.to_owned() } else { dir.join("not/there") };
                let (files, mut silent) = (Files::default(), Silent);
                let env = Env { rank: rank(index, world, port), ..Env::new(dir, &mut silent, &files) };
                on_devices::<Auto>(&[Default::default()], env, |env, _| stage(index, env))
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Two threads and two processes: the same records, the same bytes.
fn compare(root: &Path, stage: Stage) {
    let (dir, other) = (root.join("threads"), root.join("processes"));
    let threads = on(2, &dir, stage);
    let found = in_processes(2, &other, |_, env| stage(env));
    let processes = found[0].as_ref().unwrap();
    let follower = found[1].as_ref().unwrap();
    assert_eq!((processes.step, processes.images), (threads.step, threads.images));
    assert_eq!((follower.step, follower.complete), (threads.step, true));
    assert!(!other.join("not").exists(), "only the leader writes");

    let records = |dir: &Path| {
        let records = metrics::read_jsonl(&dir.join("metrics.jsonl")).unwrap().records;
        let values = |record: metrics::Record| {
            let of_result = |(name, _): &(String, f64)| name != "images_per_second" && name != "data_wait";
            let values = record.values.into_iter().filter(of_result).map(|(name, x)| (name, x.to_bits()));
            (record.step, values.collect::<Vec<_>>())
        };
        records.into_iter().map(values).collect::<Vec<_>>()
    };
    assert_eq!(records(&dir), records(&other));
    for file in ["model.safetensors", "optimizer.safetensors", "model_ema.safetensors"] {
        let read = |outcome: &Outcome| std::fs::read(outcome.checkpoint.join(file)).ok();
        assert!(read(&threads) == read(processes), "{} of {}", file, root.display());
    }
}

#[test]
fn every_stage_in_two_processes_is_that_on_two_devices() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::of_every_stage(root);
    let device = Default::default();

    let recipe = scene::tokenizer(root);
    compare(&root.join("tokenizer"), &|env| tokenizer::train::<Auto>(&recipe, env, &device));
    let recipe = scene::distill(root);
    compare(&root.join("distill"), &|env| teachers::distill::<Auto>(&recipe, env, &device));
    let recipe = scene::pretrain(root, &root.join("tokenizer/threads"));
    compare(&root.join("pretrain"), &|env| pretrain::train::<Auto>(&recipe, env, &device));
    let mut recipe = scene::finetune(root, &root.join("pretrain/threads").to_string_lossy());
    recipe.schedule.grad_accum_steps = 1;
    compare(&root.join("finetune"), &|env| finetune::train::<Auto>(&recipe, env, &device));
    let mut recipe = scene::segment(root, SCRATCH);
    recipe.schedule.grad_accum_steps = 1;
    compare(&root.join("segment"), &|env| segment::train::<Auto>(&recipe, env, &device));
}

#[test]
fn a_run_that_lost_a_process_goes_on_to_the_bit() {
    let (root, mut recipe) = tokenizer_scene();
    let (root, device) = (root.path(), Default::default());
    recipe.logging.checkpoint_every = Some(2);
    let stage = |env: Env<'_>| tokenizer::train::<Auto>(&recipe, env, &device);
    let (whole, dir) = (root.join("whole"), root.join("run"));
    let expected = in_processes(2, &whole, |_, env| stage(env)).swap_remove(0).unwrap();

    // The second process ends in the middle of the run, without any order.
    let found = in_processes(2, &dir, |index, env| {
        if index == 1 {
            let rank = env.rank.clone();
            let (dir, stop) = (dir.clone(), std::time::Instant::now());
            std::thread::spawn(move || {
                while !dir.join("last/state.json").exists() && stop.elapsed().as_secs() < 60 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                rank.leave(Some("its machine was taken away"));
            });
        }
        stage(env)
    });
    if let Err(error) = &found[0] {
        assert_eq!(error.to_string(), "rank 1 stopped: its machine was taken away");
    }
    let saved = checkpoint::latest(&dir).unwrap().checkpoint.unwrap();
    assert!(saved.state::<TrainState>().unwrap().step >= 2);
    // Continued by other processes, of which the second one gets the state from the first.
    let continued = in_processes(2, &dir, |_, env| stage(env)).swap_remove(0).unwrap();
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |outcome: &Outcome| std::fs::read(outcome.checkpoint.join(file)).unwrap();
        assert!(read(&expected) == read(&continued), "{file}");
    }
}

#[test]
fn processes_with_other_settings_or_data_are_refused() {
    let (root, recipe) = tokenizer_scene();
    let (root, device) = (root.path(), Default::default());
    let mut other = recipe.clone();
    other.seed += 1;
    let recipes = [&recipe, &other];
    let found = in_processes(2, &root.join("run"), |index, env| {
        tokenizer::train::<Auto>(recipes[index], env, &device)
    });
    for found in found {
        let why = found.unwrap_err().to_string();
        assert!(why.contains("rank 1 was started with other settings") && why.contains("`seed`"), "{why}");
    }
    assert!(!root.join("run").exists(), "nothing was begun");
    // Where things lie may differ; what is there is told by fingerprints.
    let mut elsewhere = recipe.clone();
    elsewhere.data.train = format!("{}/.", elsewhere.data.train);
    let recipes = [&recipe, &elsewhere];
    let provenances = ["", "[fingerprint]\ntrain = \"other\"\n"];
    for (told, works) in [(0, true), (1, false)] {
        let found = in_processes(2, &root.join(format!("run{told}")), |index, env| {
            let provenance = provenances[told * index].to_owned();
            tokenizer::train::<Auto>(recipes[index], Env { provenance, ..env }, &device)
        });
        match works {
            true => assert!(found.iter().all(Result::is_ok), "{found:?}"),
            false => assert!(found[1].as_ref().unwrap_err().to_string().contains("`fingerprint.train`")),
        }
    }
}

#[test]
fn models_that_drift_apart_end_the_run() {
    let (root, mut recipe) = tokenizer_scene();
    let (root, device) = (root.path(), Default::default());
    let starts = [root.join("one"), root.join("two")].map(|dir| {
        recipe.seed += 1;
        on(1, &dir, &|env| tokenizer::train::<Auto>(&recipe, env, &device));
        dir.display().to_string()
    });
    // Files of one name and other contents, which the program's fingerprints would tell.
    let found = in_processes(2, &root.join("run"), |index, env| {
        let mut own = recipe.clone();
        own.init.weights = Some(starts[index].clone());
        tokenizer::train::<Auto>(&own, env, &device)
    });
    for found in found {
        let why = found.unwrap_err().to_string();
        assert!(why.contains("the models of rank 0 and rank 1 have become different"), "{why}");
    }
    assert!(!root.join("run/last").exists(), "nothing of it is saved");
}
