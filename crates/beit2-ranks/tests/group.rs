//! Groups on this machine: a thread stands for a process.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use beit2_ranks::{Channel, Group, JoinError, Limits, Lost, Payload, Place, Statement, join};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn place(rank: usize, world: usize, port: u16) -> Place {
    let (rank, rendezvous) = (format!("{rank}/{world}"), format!("127.0.0.1:{port}"));
    Place::find(Some(&rank), Some(&rendezvous), |_| None).unwrap().unwrap()
}

fn limits(join: f64, silence: f64) -> Limits {
    Limits { join: Duration::from_secs_f64(join), silence: Duration::from_secs_f64(silence) }
}

fn same() -> Vec<Statement> {
    vec![("version".into(), "1".into())]
}

fn enter(place: &Place, statements: &[Statement], limits: Limits) -> Result<Group, JoinError> {
    join(place, statements, limits, &|_| (), &|| false)
}

/// Bytes of all ranks.
fn gather(group: &Group, channel: Channel, own: Vec<u8>) -> Result<Vec<Vec<u8>>, Lost> {
    let all = group.gather(channel, Arc::new(own))?;
    Ok(all.iter().map(|bytes| (**bytes).as_ref().to_vec()).collect())
}

/// What `work` gives on each rank.
fn on_ranks<T: Send>(world: usize, limits: Limits, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let (port, all) = (free_port(), Barrier::new(world));
    std::thread::scope(|scope| {
        let (work, all) = (&work, &all);
        let start = |rank| {
            scope.spawn(move || {
                let group = enter(&place(rank, world, port), &same(), limits).unwrap();
                // Nobody leaves while others are still on their way in.
                all.wait();
                work(group)
            })
        };
        // The last one first: rank 0 is waited for.
        let threads: Vec<_> = (0..world).rev().map(start).collect();
        let mut found: Vec<T> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        found.reverse();
        found
    })
}

/// How joining ends for ranks with these places.
fn fates(places: &[Place], statements: &[Vec<Statement>], limits: Limits) -> Vec<Result<Group, String>> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (place, statements) in places.iter().zip(statements) {
            threads.push(
                scope.spawn(move || enter(place, statements, limits).map_err(|error| error.to_string())),
            );
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_rank_gets_what_all_bring() {
    for world in [2, 3, 5] {
        let found = on_ranks(world, limits(20.0, 10.0), |group| {
            let rank = group.rank();
            let mut all = Vec::new();
            for round in 0..20 {
                // Large ones, which a connection cannot hold, go both ways at once.
                let length = if round == 7 { 3_000_000 } else { round };
                let own: Vec<u8> = vec![(10 * round + rank) as u8; length];
                all.push(gather(&group, Channel::Training, own).unwrap());
            }
            let bytes: Vec<u8> = (0..world).flat_map(|to| [rank as u8, to as u8]).collect();
            let bytes: Payload = Arc::new(bytes);
            let parts = group.scatter(Channel::Training, &bytes, |to| 2 * to..2 * to + 2).unwrap();
            let expected = (0..world).map(|from| (from != rank).then(|| vec![from as u8, rank as u8]));
            assert_eq!(parts, expected.collect::<Vec<_>>());
            // Each channel has its own order.
            let queue = gather(&group, Channel::Queue, vec![rank as u8]).unwrap();
            assert!(queue.iter().enumerate().all(|(rank, brought)| *brought == [rank as u8]));
            all
        });
        assert!(found.iter().all(|all| *all == found[0]), "{world}");
        assert_eq!(found[0][3][1], [31, 31, 31]);
    }
}

/// Heartbeats keep a rank that computes for long in the group.
#[test]
fn a_busy_rank_is_no_lost_one() {
    let found = on_ranks(2, limits(20.0, 0.6), |group| {
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_secs(2));
        }
        gather(&group, Channel::Training, vec![1]).map(|all| all.len())
    });
    assert_eq!(found, [Ok(2), Ok(2)]);
}

#[test]
fn why_a_rank_leaves_is_told_to_all() {
    let found = on_ranks(3, limits(20.0, 10.0), |group| {
        if group.rank() == 2 {
            group.leave(Some("the disk is full"));
            return String::new();
        }
        let why = gather(&group, Channel::Training, vec![1]).unwrap_err().to_string();
        // Nothing works any more, and nobody waits.
        assert_eq!(gather(&group, Channel::Queue, vec![1]).unwrap_err().to_string(), why);
        why
    });
    assert_eq!(found[..2], ["rank 2 stopped: the disk is full"; 2]);
}

#[test]
fn a_rank_that_is_done_leaves_without_harm() {
    let found = on_ranks(2, limits(20.0, 10.0), |group| {
        let all = gather(&group, Channel::Training, vec![group.rank() as u8]).map(|all| all.len());
        if group.rank() == 0 {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(group.failure(), None);
        }
        all
    });
    assert_eq!(found, [Ok(2), Ok(2)]);
    let found = on_ranks(2, limits(20.0, 10.0), |group| match group.rank() {
        0 => gather(&group, Channel::Training, vec![1]).unwrap_err().to_string(),
        _ => String::new(),
    });
    assert!(found[0].contains("has finished, and more was expected"), "{}", found[0]);
}

#[test]
fn differences_are_refused_in_one_sentence_on_all_ranks() {
    let port = free_port();
    let other = vec![("version".to_owned(), "2".to_owned())];
    let places: Vec<Place> = (0..3).map(|rank| place(rank, 3, port)).collect();
    for (rank, found) in fates(&places, &[same(), same(), other], limits(20.0, 5.0)).iter().enumerate() {
        let why = found.as_ref().unwrap_err();
        assert!(why.contains("has version 2") && why.contains("has 1;"), "rank {rank}: {why}");
    }
    let port = free_port();
    let places = [place(0, 2, port), place(1, 3, port)];
    for found in fates(&places, &[same(), same()], limits(20.0, 5.0)) {
        let why = found.unwrap_err();
        assert!(why.contains("as one of 3 ranks, and rank 0 as one of 2"), "{why}");
    }
    let port = free_port();
    let places = [place(0, 3, port), place(1, 3, port), place(1, 3, port)];
    let found = fates(&places, &[same(), same(), same()], limits(20.0, 5.0));
    assert!(
        found
            .iter()
            .all(|found| found.as_ref().unwrap_err().contains("two processes were started as rank 1"))
    );
}

#[test]
fn whoever_has_another_token_stays_outside() {
    let (port, told) = (free_port(), Mutex::new(Vec::new()));
    let foreign = Place { token: "other".into(), ..place(1, 2, port) };
    std::thread::scope(|scope| {
        let lead = scope.spawn(|| {
            let tell = |text: &str| told.lock().unwrap().push(text.to_owned());
            join(&place(0, 2, port), &same(), limits(20.0, 5.0), &tell, &|| false)
                .map(|group| gather(&group, Channel::Training, vec![0]).unwrap().len())
        });
        let why = enter(&foreign, &same(), limits(5.0, 5.0)).unwrap_err().to_string();
        assert!(why.contains("has another token"), "{why}");
        // The group still waits for its own.
        let group = enter(&place(1, 2, port), &same(), limits(20.0, 5.0)).unwrap();
        gather(&group, Channel::Training, vec![1]).unwrap();
        assert_eq!(lead.join().unwrap().unwrap(), 2);
    });
    assert!(told.lock().unwrap()[0].contains("was turned away: it has another token"));
}

/// Garbage, endless frames, silence and slow drops: the group comes together beside them.
#[test]
fn strangers_hold_nothing_up() {
    let port = free_port();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let found = scope.spawn(move || {
            on_port(port, 2, limits(30.0, 5.0), |group| {
                gather(&group, Channel::Training, vec![0]).map(|all| all.len())
            })
        });
        std::thread::sleep(Duration::from_millis(100));
        let reach = || TcpStream::connect(("127.0.0.1", port));
        let stop = &stop;
        for kind in 0..4 {
            scope.spawn(move || {
                let Ok(mut stream) = reach() else { return };
                let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let sent = match kind {
                        0 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n"),
                        1 => stream
                            .write_all(&[b"beit2rk1".as_slice(), &[0; 32], &u32::MAX.to_le_bytes()].concat()),
                        2 => stream.write_all(b"b"),
                        _ => Ok(()),
                    };
                    let _ = stream.read(&mut [0; 64]);
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
        let found = found.join();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(found.unwrap(), [Ok(2), Ok(2)]);
    });
}

fn on_port<T: Send>(port: u16, world: usize, limits: Limits, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |rank: usize| {
            scope.spawn(move || {
                // The strangers are first.
                std::thread::sleep(Duration::from_millis(400 * rank as u64));
                work(enter(&place(rank, world, port), &same(), limits).unwrap())
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn nobody_waits_for_ever() {
    let began = Instant::now();
    let why = enter(&place(0, 2, free_port()), &same(), limits(1.0, 5.0)).unwrap_err().to_string();
    assert!(why.contains("rank 1 has not come to") && why.contains("within 1 seconds"), "{why}");
    let port = free_port();
    let why = enter(&place(1, 2, port), &same(), limits(1.0, 5.0)).unwrap_err().to_string();
    assert!(why.contains(&format!("rank 0 does not listen at 127.0.0.1:{port}")), "{why}");
    assert!(began.elapsed() < Duration::from_secs(10));
    let stopped = join(&place(0, 2, free_port()), &same(), limits(60.0, 5.0), &|_| (), &|| true);
    assert!(matches!(stopped, Err(JoinError::Stopped)));
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let why = enter(&place(0, 2, port), &same(), limits(1.0, 5.0)).unwrap_err().to_string();
    assert!(why.contains(&format!("port {port}")) && why.contains("--rendezvous 127.0.0.1:PORT"), "{why}");
    // A stranger that answers.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = taken.accept().unwrap();
            let _ = stream.write_all(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n and more than forty bytes",
            );
        });
        let why = enter(&place(1, 2, port), &same(), limits(5.0, 5.0)).unwrap_err().to_string();
        assert!(why.contains("is no rank of a beit2 run"), "{why}");
    });
}
