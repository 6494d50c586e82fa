//! Training in several processes, through the real binary: as launchers start it, and when one of them fails.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

#[path = "support/scenes.rs"]
mod scenes;
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scenes::scenes;
use support::{Ended, World, classes, signal};

/// Enough steps that what happens always comes in time, few enough to finish soon.
const LONG: [&str; 4] = ["--set", "epochs=40", "--set", "checkpoint_every=2"];

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A rank of two of the tiny tokenizer, by flags.
fn start(world: &World, rank: usize, port: u16, out: &str, more: &[&str]) -> Child {
    let (rank, rendezvous) = (format!("{rank}/2"), format!("127.0.0.1:{port}"));
    let args = [&["--rank", &rank, "--rendezvous", &rendezvous, "--join-timeout", "60"], more].concat();
    world.spawn_tokenizer(out, &args)
}

fn ended(child: Child) -> Ended {
    child.wait_with_output().unwrap().into()
}

/// Both ranks in one run directory, as on a shared disk.
fn both(world: &World, out: &str, more: &[&str]) -> [Ended; 2] {
    let port = free_port();
    [0, 1].map(|rank| start(world, rank, port, out, more)).map(ended)
}

fn both_work(world: &World, out: &str, more: &[&str]) {
    for ended in both(world, out, more) {
        ended.works();
    }
}

#[test]
fn two_processes_are_a_group_of_two_devices() {
    let world = World::new();
    world.tokenizer("threads", &["--device", "cpu,cpu", "--quiet"]).works();
    let [first, second] = both(&world, "processes", &[]);
    assert!(first.works().err.contains("2 processes, met at 127.0.0.1:"), "{}", first.err);
    assert!(first.out.contains("report.html"), "{}", first.out);
    assert_eq!((second.works().out.as_str(), second.err.as_str()), ("", ""), "the leader tells it");
    assert_eq!(world.weights("processes"), world.weights("threads"));
}

const DISTILL: &str = r#"stage = "distill"
[model]
image_size = 32
patch_size = 8
width = 16
depth = 1
heads = 2
[teacher]
kind = "dino"
weights = "teacher.safetensors"
heads = 2
[data]
train = "train"
[schedule]
steps = 6
warmup_steps = 1
batch_size = 8
"#;

const FINETUNE: &str = r#"stage = "finetune"
[model.vit]
image_size = 32
patch_size = 8
width = 16
depth = 1
heads = 2
[schedule]
epochs = 4
warmup_epochs = 1.0
batch_size = 8
"#;

const SEGMENT: &str = r#"stage = "segment"
[model]
out_indices = [0, 1, 2, 3]
channels = 16
aux_channels = 8
[model.vit]
image_size = 64
patch_size = 8
width = 16
depth = 4
heads = 2
[augment]
base = [72, 66]
[schedule]
steps = 6
warmup_steps = 1
batch_size = 4
[eval]
every = 3
[infer]
resize = false
"#;

/// What a run trained, and its records without its pace.
fn result(world: &World, out: &str) -> (Vec<u8>, Vec<u8>, Vec<serde_json::Value>) {
    let file = |name: &str| std::fs::read(world.path(out).join("last").join(name)).unwrap();
    let records = std::fs::read_to_string(world.path(out).join("metrics.jsonl")).unwrap();
    let records = records.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        for pace in ["images_per_second", "data_wait", "time"] {
            record.as_object_mut().unwrap().remove(pace);
        }
        record
    });
    (file("model.safetensors"), file("optimizer.safetensors"), records.collect())
}

#[test]
fn every_stage_in_two_processes_is_that_on_two_devices() {
    let world = World::new();
    for (name, text) in [("distill.toml", DISTILL), ("ft.toml", FINETUNE), ("seg.toml", SEGMENT)] {
        std::fs::write(world.path(name), text).unwrap();
    }
    classes(&world.path("classes"), &["dark", "gray", "light"]);
    scenes(&world.path("scenes"), 8);
    for (stage, line) in [
        ("tokenizer", "tokenizer train tiny.toml --val train"),
        ("distill", "teacher distill distill.toml"),
        ("pretrain", "pretrain mim.toml --val train --tokenizer tokenizer"),
        ("finetune", "finetune ft.toml --data classes --val classes --init scratch"),
        ("segment", "segment train seg.toml --data scenes --val scenes --init scratch"),
    ] {
        let processes = format!("{stage}-processes");
        let run = |out: &str, more: &[&str]| {
            let words =
                line.split(' ').chain(["--out", out, "--quiet", "--no-check"]).chain(more.iter().copied());
            let mut command = world.command(&words.collect::<Vec<_>>());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        ended(run(stage, &["--device", "cpu,cpu"])).works();
        let rendezvous = format!("127.0.0.1:{}", free_port());
        let ranks =
            ["0/2", "1/2"].map(|rank| run(&processes, &["--rank", rank, "--rendezvous", &rendezvous]));
        for ended in ranks.map(ended) {
            ended.works();
        }
        assert!(result(&world, stage) == result(&world, &processes), "{stage}");
    }
}

#[test]
fn launchers_are_understood() {
    let world = World::new();
    world.tokenizer("threads", &["--device", "cpu,cpu", "--quiet"]).works();
    let port = free_port().to_string();
    let of = |rank: &str, launcher: &str| -> Vec<(&'static str, String)> {
        let own = |pairs: &[(&'static str, &str)]| pairs.iter().map(|&(k, v)| (k, v.to_owned())).collect();
        match launcher {
            "torchrun" => own(&[
                ("RANK", rank),
                ("LOCAL_RANK", rank),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
                ("TORCHELASTIC_RUN_ID", "run"),
            ]),
            "slurm" => own(&[
                ("SLURM_PROCID", rank),
                ("SLURM_STEP_NUM_TASKS", "2"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_JOB_ID", &port),
                ("SLURM_STEP_NODELIST", "localhost"),
            ]),
            _ => own(&[
                ("OMPI_COMM_WORLD_RANK", rank),
                ("OMPI_COMM_WORLD_SIZE", "2"),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                ("PMIX_NAMESPACE", &port),
            ]),
        }
    };
    for (launcher, name) in [("torchrun", "torchrun"), ("slurm", "Slurm"), ("mpirun", "Open MPI")] {
        let children = ["0", "1"].map(|rank| {
            let mut command = world.command(&["tokenizer", "train", "tiny.toml", "--out", launcher]);
            command.envs(of(rank, launcher)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let [first, second] = children.map(ended);
        assert!(
            first.works().err.contains(&format!("2 processes, started by {name}, met at")),
            "{}",
            first.err
        );
        second.works();
        assert_eq!(world.weights(launcher), world.weights("threads"), "{launcher}");
    }
}

#[test]
fn a_killed_rank_ends_the_others_and_the_run_goes_on_to_the_bit() {
    let world = World::new();
    let quiet = [&LONG[..], &["--quiet"]].concat();
    both_work(&world, "whole", &quiet);
    for killed in [1, 0] {
        let (out, port) = (format!("killed{killed}"), free_port());
        let children = [0, 1].map(|rank| start(&world, rank, port, &out, &quiet));
        world.wait_for_checkpoint(&out);
        let since = Instant::now();
        signal(&children[killed], "KILL");
        children.map(ended)[1 - killed].fails(1, &[&format!("rank {killed} ("), "ended without a word"]);
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        both_work(&world, &out, &quiet);
        assert_eq!(world.weights(&out), world.weights("whole"), "rank {killed} was killed");
    }
}

#[test]
fn a_signal_to_one_rank_saves_and_stops_all() {
    let world = World::new();
    let port = free_port();
    let children = [0, 1].map(|rank| start(&world, rank, port, "run", &LONG));
    world.wait_for_checkpoint("run");
    signal(&children[1], "TERM");
    let [first, second] = children.map(ended);
    assert!(first.code == Some(130) && first.err.contains("stopped after step"), "{}", first.err);
    assert_eq!(second.code, Some(143), "{}", second.err);
}

#[test]
fn a_rank_that_hangs_is_noticed_in_the_stated_time() {
    let world = World::new();
    let port = free_port();
    let more = [&LONG[..], &["--quiet", "--peer-timeout", "2"]].concat();
    let [first, second] = [0, 1].map(|rank| start(&world, rank, port, "run", &more));
    world.wait_for_checkpoint("run");
    signal(&second, "STOP");
    let since = Instant::now();
    ended(first).fails(1, &["rank 1 (", "has not answered for 2 seconds"]);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    signal(&second, "CONT");
    let second = ended(second);
    assert_eq!(second.code, Some(1), "{}", second.err);
}

/// What stands between two ranks: forwards in small pieces with a delay, until it is told to cut or to hold the connection.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
    hold: Arc<AtomicBool>,
    carried: Arc<AtomicUsize>,
}

impl Wire {
    fn to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            cut: Arc::default(),
            hold: Arc::default(),
            carried: Arc::default(),
        };
        let (cut, hold, carried) = (wire.cut.clone(), wire.hold.clone(), wire.carried.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    let (cut, hold, carried) = (cut.clone(), hold.clone(), carried.clone());
                    std::thread::spawn(move || {
                        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        let mut bytes = [0; 4096];
                        loop {
                            if cut.load(Ordering::Relaxed) {
                                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                                return;
                            }
                            if hold.load(Ordering::Relaxed) {
                                std::thread::sleep(Duration::from_millis(20));
                                continue;
                            }
                            match from.read(&mut bytes) {
                                Ok(0) => {
                                    let _ = to.shutdown(Shutdown::Write);
                                    return;
                                }
                                Ok(count) => {
                                    std::thread::sleep(delay);
                                    carried.fetch_add(count, Ordering::Relaxed);
                                    if to.write_all(&bytes[..count]).is_err() {
                                        return;
                                    }
                                }
                                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                                Err(_) => return,
                            }
                        }
                    });
                }
            }
        });
        wire
    }

    fn start(&self, world: &World, port: u16, out: &str, more: &[&str]) -> [Child; 2] {
        [start(world, 0, port, out, more), start(world, 1, self.port, out, more)]
    }
}

#[test]
fn a_slow_wire_changes_nothing_and_a_cut_one_ends_both() {
    let world = World::new();
    world.tokenizer("threads", &["--device", "cpu,cpu", "--quiet"]).works();
    let port = free_port();
    let wire = Wire::to(port, Duration::from_millis(1));
    for ended in wire.start(&world, port, "slow", &["--quiet"]).map(ended) {
        ended.works();
    }
    assert!(wire.carried.load(Ordering::Relaxed) > 100_000);
    assert_eq!(world.weights("slow"), world.weights("threads"));

    let more = [&LONG[..], &["--quiet", "--peer-timeout", "2"]].concat();
    for holds in [false, true] {
        let (port, out) = (free_port(), format!("wire-{holds}"));
        let wire = Wire::to(port, Duration::ZERO);
        let children = wire.start(&world, port, &out, &more);
        world.wait_for_checkpoint(&out);
        if holds { &wire.hold } else { &wire.cut }.store(true, Ordering::Relaxed);
        let since = Instant::now();
        let what = if holds { "has not answered for 2 seconds" } else { "ended without a word" };
        let [first, second] = children.map(ended);
        first.fails(1, &["rank 1 (", what]);
        second.fails(1, &["rank 0 (", what]);
        assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused_before_anything_starts() {
    let world = World::new();
    // What one rank finds wrong, all of them say.
    let port = free_port();
    let children = [start(&world, 0, port, "run", &[]), start(&world, 1, port, "run", &["--seed", "7"])];
    for ended in children.map(ended) {
        ended.fails(2, &["rank 1 was started with other settings", "`seed` (0 → 7)"]);
    }
    let port = free_port();
    let children =
        [start(&world, 0, port, "run", &[]), start(&world, 1, port, "run", &["--data", "nowhere"])];
    let [first, second] = children.map(ended);
    second.fails(1, &["nowhere"]);
    first.fails(1, &["rank 1 stopped: ", "nowhere"]);
    let port = free_port();
    let [first, second] =
        [start(&world, 0, port, "run", &[]), start(&world, 1, port, "run", &["--device", "cpu,cpu"])]
            .map(ended);
    second.fails(2, &["each process of a group trains on one device", "names 2"]);
    first.fails(1, &["rank 1 stopped: each process"]);
    let port = free_port();
    for ended in [start(&world, 0, port, "run", &[]), start(&world, 1, port, "other", &[])].map(ended) {
        ended.fails(
            1,
            &["has the run directory other", "has run;", "--rank 0/1 makes a process a run of its own"],
        );
    }
    assert!(!world.path("run").exists(), "nothing was begun");
    for (args, part) in [
        (&["--rank", "2/2", "--rendezvous", "localhost:1"][..], "ranks go from 0 to 1"),
        (&["--rank", "0/2"], "--rank needs --rendezvous HOST:PORT"),
        (&["--rank", "0/2", "--rendezvous", "node1:4000"], "set BEIT2_RENDEZVOUS_TOKEN"),
        (&["--rendezvous", "localhost:4000"], "--rendezvous needs --rank"),
        (&["--peer-timeout", "-1"], "number of seconds"),
    ] {
        world.tokenizer("run", args).fails(2, &[part]);
    }
    let port = free_port();
    let more = ["--rank", "0/2", "--rendezvous", &format!("127.0.0.1:{port}"), "--join-timeout", "1"];
    world.tokenizer("run", &more).fails(1, &["rank 1 has not come to", "within 1 seconds"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let more = ["--rank", "0/2", "--rendezvous", &format!("127.0.0.1:{port}")];
    world.tokenizer("run", &more).fails(1, &["is in use on", "--rendezvous 127.0.0.1:PORT"]);
    // A launcher's variables do not keep one from a rehearsal, or from a single process.
    let port = port.to_string();
    let variables =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())];
    for more in [&["--dry-run"][..], &["--rank", "0/1", "--quiet"]] {
        let args = [&["tokenizer", "train", "tiny.toml", "--out", "alone"], more].concat();
        Ended::from(world.command(&args).envs(variables).output().unwrap()).works();
    }
}

#[test]
fn an_exchange_is_measured() {
    let world = World::new();
    let port = free_port();
    let children = ["0/2", "1/2"].map(|rank| {
        let rendezvous = format!("127.0.0.1:{port}");
        let args = ["bench", "ranks", "--size", "tiny", "--rounds", "2", "--step-seconds", "1", "--json"];
        let mut command =
            world.command(&[&args[..], &["--rank", rank, "--rendezvous", &rendezvous]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let [first, second] = children.map(ended);
    let found: serde_json::Value = serde_json::from_str(&first.works().out).unwrap();
    // Two processes: each sends half of the gradients twice.
    let bytes = 4.0 * found["parameters"].as_f64().unwrap();
    assert!(bytes > 1e7 && found["bytes_each_way"].as_f64() == Some(bytes), "{found}");
    let efficiency = found["networks"][1]["efficiency"].as_f64().unwrap();
    assert!((efficiency - 1.0 / (1.0 + bytes * 8e-10)).abs() < 1e-9, "{found}");
    assert_eq!(second.works().out, "");
    world.beit2(&["bench", "ranks"]).fails(2, &["start at least two processes"]);
}
