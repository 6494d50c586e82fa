//! A connection to one peer: a thread that writes, a thread that reads, and what they know of the peer's end.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::frame::{self, Kind};
use crate::group::{CHANNELS, Lost, Payload};

/// How a peer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its work was done.
    Finished,
    /// It failed or was lost: one sentence.
    Failed(String),
}

/// What has come of all peers, by rank.
pub(crate) struct Inbox {
    state: Mutex<Vec<Peer>>,
    changed: Condvar,
}

#[derive(Default)]
struct Peer {
    name: String,
    waiting: [VecDeque<Vec<u8>>; CHANNELS],
    end: Option<End>,
}

/// How long to sleep when there is nothing to help with: short beside a step.
const PAUSE: Duration = Duration::from_micros(500);

impl Inbox {
    pub fn new(world: usize) -> Self {
        let state = Mutex::new((0..world).map(|_| Peer::default()).collect());
        Self { state, changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, from: usize, channel: u8, payload: Vec<u8>) {
        if let Some(queue) = self.lock()[from].waiting.get_mut(channel as usize) {
            queue.push_back(payload);
        }
        self.changed.notify_all();
    }

    /// The first end that is told of a peer stays.
    pub fn ended(&self, peer: usize, end: End) {
        self.lock()[peer].end.get_or_insert(end);
        self.changed.notify_all();
    }

    /// The first peer that failed.
    pub fn failure(&self) -> Option<Lost> {
        failure(&self.lock())
    }

    /// The next payload of a peer. A thread that operations run on helps them instead of sleeping: with one thread in all,
    /// what the peers wait for would never be computed.
    pub fn next(&self, from: usize, channel: u8) -> Result<Vec<u8>, Lost> {
        loop {
            if let Some(payload) = self.next_unless(from, channel, &|| false)? {
                return Ok(payload);
            }
        }
    }

    /// As [`next`](Self::next); `None` once `stopped` says so.
    pub fn next_unless(
        &self,
        from: usize,
        channel: u8,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, Lost> {
        let mut peers = self.lock();
        loop {
            if let Some(payload) = peers[from].waiting[channel as usize].pop_front() {
                return Ok(Some(payload));
            }
            if stopped() {
                return Ok(None);
            }
            if let Some(lost) = failure(&peers) {
                return Err(lost);
            }
            if peers[from].end == Some(End::Finished) {
                return Err(Lost::new(format!(
                    "{} has finished, and more was expected of it",
                    peers[from].name
                )));
            }
            drop(peers);
            let helped = rayon::yield_now() == Some(rayon::Yield::Executed);
            peers = self.lock();
            let nothing = |peers: &[Peer]| {
                peers[from].waiting[channel as usize].is_empty()
                    && peers.iter().all(|peer| peer.end.is_none())
            };
            if !helped && nothing(&peers) {
                peers = self.changed.wait_timeout(peers, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

fn failure(peers: &[Peer]) -> Option<Lost> {
    peers.iter().find_map(|peer| match &peer.end {
        Some(End::Failed(why)) => Some(Lost::new(why.clone())),
        _ => None,
    })
}

/// What the writing thread is given.
enum Outgoing {
    Data(u8, Payload, Range<usize>),
    /// Nothing comes after it.
    Leave(String),
}

/// This process's end of a connection.
pub(crate) struct Link {
    outgoing: Mutex<Sender<Outgoing>>,
    stream: TcpStream,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Link {
    /// Takes over a connection whose ends know each other. `name` is the peer's in sentences. A peer of which nothing comes
    /// for `silence` is lost.
    ///
    /// # Errors
    /// The system refuses a thread or an option of the connection.
    pub fn start(
        stream: TcpStream,
        peer: usize,
        name: String,
        silence: Duration,
        inbox: &Arc<Inbox>,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some((silence / 4).min(Duration::from_secs(1))))?;
        stream.set_write_timeout(Some(silence))?;
        inbox.lock()[peer].name.clone_from(&name);
        let (outgoing, queue) = channel();
        let (writing, reading) = (stream.try_clone()?, stream.try_clone()?);
        let spawn = |what: &str| std::thread::Builder::new().name(format!("{what} rank {peer}"));
        let (name_to, inbox_to) = (name.clone(), inbox.clone());
        let writer = spawn("to").spawn(move || {
            if let Err(end) = write_all(writing, &queue, silence, &name_to) {
                inbox_to.ended(peer, end);
            }
        })?;
        let inbox = inbox.clone();
        let reader = spawn("from").spawn(move || {
            let mut reading = Patient { stream: reading, heard: Instant::now(), silence };
            let end =
                read_all(&mut reading, peer, &inbox).unwrap_or_else(|error| lost(&name, &error, silence));
            inbox.ended(peer, end);
            // What still comes is taken: a connection that is closed with something unread takes back what the other side
            // has not read yet, such as why this one leaves.
            let _ = io::copy(&mut reading, &mut io::sink());
        })?;
        Ok(Self { outgoing: Mutex::new(outgoing), stream, threads: Mutex::new(vec![writer, reader]) })
    }

    /// Puts a payload on its way. Whether it arrives shows in what comes back.
    pub fn send(&self, channel: u8, payload: Payload, part: Range<usize>) {
        let _ = self
            .outgoing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Outgoing::Data(channel, payload, part));
    }

    /// Tells the peer that nothing more comes.
    pub fn leave(&self, why: String) {
        let _ = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).send(Outgoing::Leave(why));
    }

    /// Waits until the peer leaves too, or until then.
    pub fn close(&self, until: Instant) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Until this side leaves. An error is how the peer ended.
fn write_all(
    mut to: TcpStream,
    queue: &Receiver<Outgoing>,
    silence: Duration,
    name: &str,
) -> Result<(), End> {
    let beat = (silence / 4).min(Duration::from_secs(5));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Err(End::Failed(format!("{name} has taken nothing for {} seconds", silence.as_secs_f64())))
        }
        // Whoever reads knows more: it has the peer's last words.
        _ => Ok(()),
    };
    loop {
        let written = match queue.recv_timeout(beat) {
            Ok(Outgoing::Data(channel, payload, part)) => {
                frame::write(&mut to, Kind::Data, channel, &(*payload).as_ref()[part])
            }
            Ok(Outgoing::Leave(why)) => {
                let told = frame::write(&mut to, Kind::Leave, 0, why.as_bytes());
                let _ = to.shutdown(Shutdown::Write);
                return told.or_else(failed);
            }
            Err(RecvTimeoutError::Timeout) => frame::write(&mut to, Kind::Heartbeat, 0, &[]),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if let Err(error) = written {
            return failed(error);
        }
    }
}

/// Until the peer leaves.
fn read_all(from: &mut impl Read, peer: usize, inbox: &Inbox) -> io::Result<End> {
    loop {
        let frame = frame::read(from)?;
        match frame.kind {
            Kind::Data => inbox.arrived(peer, frame.channel, frame.payload),
            Kind::Heartbeat => {}
            Kind::Leave if frame.payload.is_empty() => return Ok(End::Finished),
            Kind::Leave => return Ok(End::Failed(String::from_utf8_lossy(&frame.payload).into_owned())),
        }
    }
}

/// A peer that has not left and of which nothing more comes.
fn lost(name: &str, error: &io::Error, silence: Duration) -> End {
    End::Failed(match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            format!("{name} ended without a word: its process was killed, or its machine failed")
        }
        io::ErrorKind::TimedOut => format!(
            "{name} has not answered for {} seconds: its process hangs, or the network to it is cut",
            silence.as_secs_f64()
        ),
        io::ErrorKind::InvalidData => format!("the connection to {name} cannot be used: {error}"),
        _ => format!("the connection to {name} broke: {error}"),
    })
}

/// Reads until the peer has been silent for too long.
struct Patient {
    stream: TcpStream,
    heard: Instant,
    silence: Duration,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(count) => {
                    self.heard = Instant::now();
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.heard.elapsed() > self.silence {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
