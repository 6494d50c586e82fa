//! How the processes of a group find each other, and what they make sure of before anything starts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::door::Door;
use crate::frame::{self, Kind};
use crate::group::{Channel, Group, Lost, Payload};
use crate::hello::{self, Answer, Failure, Hello, Visitor};
use crate::link::{Inbox, Link};
use crate::place::{Place, is_loopback};

/// How long ranks wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For all others to come.
    pub join: Duration,
    /// For a sign of life of another one.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { join: Duration::from_secs(600), silence: Duration::from_secs(60) }
    }
}

/// Something that must be the same on all ranks: its name in sentences, and its value.
pub type Statement = (String, String);

/// Why a process is not one of a group: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What is said to the user.
    #[error("{0}")]
    Refused(String),
    /// A rank that had come is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The process was told to stop.
    #[error("stopped on request while waiting for the other ranks")]
    Stopped,
}

/// How long a group that cannot come together says so to those who are late.
const GRACE: Duration = Duration::from_secs(3);

/// Between two tries to reach a rank that is not there yet.
const RETRY: Duration = Duration::from_millis(200);

/// What joining needs beside the place.
struct Joining<'a> {
    place: &'a Place,
    statements: &'a [Statement],
    limits: Limits,
    until: Instant,
    host: String,
    tell: &'a dyn Fn(&str),
    stopped: &'a dyn Fn() -> bool,
}

/// Becomes a rank of a group: waits for all others and connects every two of them. `tell` is given sentences for the user
/// while it takes long, and about strangers; `stopped` says whether to give up.
///
/// # Errors
/// A rank that does not come or has come already, another token, statements that differ: the same sentence on all ranks,
/// as far as they can be reached.
pub fn join(
    place: &Place,
    statements: &[Statement],
    limits: Limits,
    tell: &dyn Fn(&str),
    stopped: &dyn Fn() -> bool,
) -> Result<Group, JoinError> {
    let until = Instant::now() + limits.join;
    let joining = Joining { place, statements, limits, until, host: host_name(), tell, stopped };
    match place.rank {
        0 => joining.lead(),
        _ => joining.follow(),
    }
}

/// What rank 0 tells the others when all are there.
#[derive(serde::Serialize, serde::Deserialize)]
struct Start {
    group: Vec<u8>,
    /// Where each rank is reached, and its name in sentences. Without an address: on rank 0's machine.
    ranks: Vec<(Option<IpAddr>, u16, String)>,
}

/// A rank that has come.
struct Present {
    stream: TcpStream,
    name: String,
    address: Option<IpAddr>,
    port: u16,
}

impl Present {
    /// Tells it that this rank is alive; whether it can be told.
    fn is_alive(&mut self) -> bool {
        let limited = self.stream.set_write_timeout(Some(Duration::from_secs(1)));
        limited.and_then(|()| frame::write(&mut self.stream, Kind::Heartbeat, 0, &[])).is_ok()
    }

    /// Whether it is there for longer than a moment: a connection whose other end is gone takes one more word.
    fn stays(&mut self) -> bool {
        self.is_alive() && {
            std::thread::sleep(Duration::from_millis(100));
            self.is_alive()
        }
    }
}

impl Joining<'_> {
    fn lead(&self) -> Result<Group, JoinError> {
        let Place { world, host, port, .. } = self.place;
        let listener = listen(is_loopback(host).then_some(host), *port).map_err(|error| {
            JoinError::Refused(match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "port {port}, where the ranks meet, is in use on {}; choose a free one with --rendezvous {host}:PORT",
                    self.host
                ),
                _ => format!("cannot listen on port {port}, where the ranks meet: {error}"),
            })
        })?;
        let (inbox, group) = (Arc::new(Inbox::new(*world)), hello::nonce().map_err(system)?.to_vec());
        let come = self.receive(&listener, 1..*world, &[])?;
        let mut ranks = vec![(None, *port, self.name(0, &self.host))];
        ranks.extend(come.iter().map(|present| (present.address, present.port, present.name.clone())));
        let start: Payload = Arc::new(crate::encode(&Start { group, ranks }));
        let all = 0..(*start).as_ref().len();
        let mut links = vec![None];
        for (present, rank) in come.into_iter().zip(1..) {
            let link = Link::start(present.stream, rank, present.name, self.limits.silence, &inbox)
                .map_err(system)?;
            link.send(Channel::Training as u8, start.clone(), all.clone());
            links.push(Some(link));
        }
        self.meet(Group::new(0, links, inbox))
    }

    fn follow(&self) -> Result<Group, JoinError> {
        let Place { rank, world, .. } = self.place;
        let (stream, listener, name) = self.reach_first()?;
        let inbox = Arc::new(Inbox::new(*world));
        let first_address = stream.peer_addr().map_err(system)?.ip();
        // Rank 0 says when all are there, and until then that it is alive.
        let first = Link::start(stream, 0, name, self.limits.silence, &inbox).map_err(system)?;
        let mut links = vec![Some(first)];
        match self.reach_others(&mut links, &inbox, &listener, first_address) {
            Ok(()) => self.meet(Group::new(*rank, links, inbox)),
            Err(why) => {
                let group = Group::new(*rank, links, inbox);
                group.leave(Some(&why.to_string()));
                Err(why)
            }
        }
    }

    /// Waits until all ranks have come, then connects to those below this one and is connected to by those above it.
    fn reach_others(
        &self,
        links: &mut Vec<Option<Link>>,
        inbox: &Arc<Inbox>,
        listener: &TcpListener,
        first_address: IpAddr,
    ) -> Result<(), JoinError> {
        let Place { rank, world, host, .. } = self.place;
        let silence = self.limits.silence;
        let Some(start) = inbox.next_unless(0, Channel::Training as u8, self.stopped)? else {
            return Err(JoinError::Stopped);
        };
        let start: Option<Start> = crate::decode(&start).filter(|start: &Start| start.ranks.len() == *world);
        let Some(Start { group, ranks }) = start else {
            return refused(format!("rank 0 at {host} speaks another version"));
        };
        for (other, (address, port, name)) in ranks.iter().enumerate().take(*rank).skip(1) {
            let address = SocketAddr::new(address.unwrap_or(first_address), *port);
            let hello = self.hello(0, group.clone());
            let stream = match connect(address).map_err(Failure::from).and_then(|stream| {
                hello::come(&stream, &self.place.token, &hello).map(|answer| (stream, answer))
            }) {
                Ok((stream, Answer::Welcome { .. })) => stream,
                Ok((_, Answer::Refused(why))) => return refused(why),
                Err(why) => {
                    return refused(format!(
                        "rank {rank} ({}) cannot reach {name} at {address}: {why}; every two ranks must be able to connect",
                        self.host
                    ));
                }
            };
            let link = Link::start(stream, other, name.clone(), silence, inbox).map_err(system)?;
            links.push(Some(link));
        }
        links.push(None);
        for (present, other) in self.receive(listener, rank + 1..*world, &group)?.into_iter().zip(rank + 1..)
        {
            let link = Link::start(present.stream, other, present.name, silence, inbox).map_err(system)?;
            links.push(Some(link));
        }
        Ok(())
    }

    /// The first exchange: nobody goes on before all are connected.
    fn meet(&self, group: Group) -> Result<Group, JoinError> {
        match group.gather(Channel::Training, Arc::new([])) {
            Ok(_) => Ok(group),
            Err(lost) => {
                group.leave(Some(lost.why()));
                Err(lost.into())
            }
        }
    }

    fn name(&self, rank: usize, host: &str) -> String {
        format!("rank {rank} ({host})")
    }

    fn hello(&self, port: u16, group: Vec<u8>) -> Hello {
        let Place { rank, world, .. } = *self.place;
        Hello { rank, world, host: self.host.clone(), port, statements: self.statements.to_vec(), group }
    }

    /// Connects to rank 0 as soon as it is there, and gives the connection with the place where others reach this rank.
    fn reach_first(&self) -> Result<(TcpStream, TcpListener, String), JoinError> {
        let Place { host, port, .. } = self.place;
        let place = format!("{host}:{port}");
        let mut told = Instant::now();
        loop {
            self.check_time(&mut told, || format!("rank 0 does not listen at {place}"))?;
            let addresses: Vec<SocketAddr> = match (host.as_str(), *port).to_socket_addrs() {
                Ok(addresses) => addresses.collect(),
                // A machine that is still starting may have no name yet.
                Err(_) => Vec::new(),
            };
            let Some(stream) = addresses.into_iter().find_map(|address| connect(address).ok()) else {
                std::thread::sleep(RETRY);
                continue;
            };
            let local = stream.local_addr().map_err(system)?.ip();
            let listener =
                listen(local.is_loopback().then(|| local.to_string()).as_ref(), 0).map_err(system)?;
            let own = listener.local_addr().map_err(system)?.port();
            match hello::come(&stream, &self.place.token, &self.hello(own, Vec::new())) {
                Ok(Answer::Welcome { host }) => return Ok((stream, listener, self.name(0, &host))),
                Ok(Answer::Refused(why)) => return refused(why),
                Err(Failure::Token) => {
                    return refused(format!(
                        "what listens at {place} has another token: another job, or another BEIT2_RENDEZVOUS_TOKEN"
                    ));
                }
                Err(Failure::Stranger) => {
                    return refused(format!(
                        "what listens at {place} is no rank of a beit2 run, or one of another version; choose a free port with \
                         --rendezvous"
                    ));
                }
                // It may just have ended, and the next one starts.
                Err(Failure::Connection(_)) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Waits for ranks, each of which proves that it knows the token, and gives them in order.
    fn receive(
        &self,
        listener: &TcpListener,
        expected: std::ops::Range<usize>,
        group: &[u8],
    ) -> Result<Vec<Present>, JoinError> {
        let door = Door::open(listener).map_err(system)?;
        let mut present: Vec<Option<Present>> = expected.clone().map(|_| None).collect();
        let (mut told, mut refusals) = (Instant::now(), 0);
        let (mut beaten, beat) = (Instant::now(), (self.limits.silence / 4).min(Duration::from_secs(5)));
        while present.iter().any(Option::is_none) {
            if beaten.elapsed() > beat {
                beaten = Instant::now();
                // Those who wait know that this one is alive; one that is gone may come again.
                for place in &mut present {
                    place.take_if(|there| !there.is_alive());
                }
            }
            let missing = || {
                let missing = present.iter().zip(expected.clone()).filter(|(there, _)| there.is_none());
                let missing: Vec<String> = missing.map(|(_, rank)| rank.to_string()).collect();
                let port = listener.local_addr().map(|address| address.port()).unwrap_or_default();
                format!("rank {} has not come to {}:{port}", missing.join(", "), self.host)
            };
            if let Err(error) = self.check_time(&mut told, missing) {
                send_away(present, &format!("{} stopped: {error}", self.name(self.place.rank, &self.host)));
                return Err(error);
            }
            if let Some(came) = door.look(&self.place.token) {
                match came {
                    Ok(visitor) => {
                        if let Err(why) = self.admit(visitor, &expected, group, &mut present) {
                            let late = present.iter().filter(|there| there.is_none()).count();
                            send_away(present, &why);
                            self.turn_away(&door, late.saturating_sub(1), &why);
                            return refused(why);
                        }
                    }
                    Err((address, why)) => {
                        refusals += 1;
                        if refusals <= 3 {
                            let address = address.ip();
                            (self.tell)(&format!("a connection from {address} was turned away: {why}"));
                        }
                    }
                }
            }
        }
        Ok(present.into_iter().flatten().collect())
    }

    /// Says to ranks that come after all is lost why it is, as long as they may be on their way.
    fn turn_away(&self, door: &Door<'_>, mut late: usize, why: &str) {
        let until = Instant::now() + GRACE;
        while late > 0 && Instant::now() < until && !(self.stopped)() {
            if let Some(Ok(visitor)) = door.look(&self.place.token) {
                let _ = visitor.answer(&self.place.token, &Answer::Refused(why.to_owned()));
                late = late.saturating_sub(1);
            }
        }
    }

    /// Takes in a process that knows the token. An error is why none of the group can go on.
    fn admit(
        &self,
        visitor: Visitor,
        expected: &std::ops::Range<usize>,
        group: &[u8],
        present: &mut [Option<Present>],
    ) -> Result<(), String> {
        let Hello { rank, world, host, port, statements, group: its_group } = visitor.hello.clone();
        let name = self.name(rank, &host);
        let own_world = self.place.world;
        let why = if world != own_world {
            Some(format!(
                "{name} was started as one of {world} ranks, and rank {} as one of {own_world}",
                self.place.rank
            ))
        } else if !expected.contains(&rank) || its_group != group {
            // Of an earlier start, say: it is told, and this group waits on for its own.
            let answer =
                Answer::Refused(format!("rank {rank} does not belong to the group that is at this port"));
            let _ = visitor.answer(&self.place.token, &answer);
            return Ok(());
        } else if present[rank - expected.start].as_mut().is_some_and(Present::stays) {
            Some(format!("two processes were started as rank {rank}, one of them on {host}"))
        } else {
            differences(self.statements, &statements, &self.name(self.place.rank, &self.host), &name)
        };
        if let Some(why) = why {
            let _ = visitor.answer(&self.place.token, &Answer::Refused(why.clone()));
            return Err(why);
        }
        let address = visitor.stream.peer_addr().map(|address| address.ip());
        let answer = Answer::Welcome { host: self.host.clone() };
        let (Ok(address), Ok(stream)) = (address, visitor.answer(&self.place.token, &answer)) else {
            // It is gone already.
            return Ok(());
        };
        let address = Some(address).filter(|address| !address.is_loopback());
        present[rank - expected.start] = Some(Present { stream, name, address, port });
        Ok(())
    }

    /// Whether to wait on. `what` is still missing; it is told now and then.
    fn check_time(&self, told: &mut Instant, what: impl Fn() -> String) -> Result<(), JoinError> {
        if (self.stopped)() {
            return Err(JoinError::Stopped);
        }
        if Instant::now() > self.until {
            return refused(format!(
                "{} within {} seconds; look at what its process says, and whether its machine can reach that address",
                what(),
                self.limits.join.as_secs_f64()
            ));
        }
        if told.elapsed() > Duration::from_secs(15) {
            *told = Instant::now();
            (self.tell)(&format!("waiting: {} yet", what()));
        }
        Ok(())
    }
}

/// Tells those who have come why nothing comes of it.
fn send_away(present: Vec<Option<Present>>, why: &str) {
    for mut there in present.into_iter().flatten() {
        let _ = there.stream.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = frame::write(&mut there.stream, Kind::Leave, 0, why.as_bytes());
    }
}

/// What two ranks say otherwise, in one sentence.
fn differences(own: &[Statement], others: &[Statement], own_name: &str, name: &str) -> Option<String> {
    let value = |of: &[Statement], what: &str| {
        of.iter().find(|(known, _)| known == what).map_or("nothing", |(_, value)| value).to_owned()
    };
    let all = own.iter().chain(others).map(|(what, _)| what);
    let mut differing: Vec<&String> = all.filter(|what| value(own, what) != value(others, what)).collect();
    differing.dedup();
    let what = differing.first()?;
    Some(format!(
        "{name} has {what} {}, and {own_name} has {}; all ranks of a run must have the same, and --rank 0/1 makes a process a \
         run of its own",
        value(others, what),
        value(own, what)
    ))
}

/// Listens on one address of this machine, else on all of them.
fn listen(host: Option<&String>, port: u16) -> io::Result<TcpListener> {
    if let Some(host) = host {
        return TcpListener::bind((host.as_str(), port));
    }
    // On Linux this takes IPv4 too.
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(error),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
    })
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
}

fn refused<T>(why: String) -> Result<T, JoinError> {
    Err(JoinError::Refused(why))
}

fn system(error: io::Error) -> JoinError {
    JoinError::Refused(format!("a connection between ranks failed: {error}"))
}

fn host_name() -> String {
    let read = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = std::env::var("HOSTNAME").ok().or_else(read).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this machine".to_owned() } else { name.to_owned() }
}
