//! The first words on a connection: both ends prove that they know the token, and the one that came says who it is.
//!
//! ```text
//! comes → waits   MAGIC, nonce
//! waits → comes   MAGIC, nonce
//! comes → waits   hello, proof over both nonces and the hello
//! waits → comes   answer, proof over both nonces and the answer
//! ```
//!
//! A proof is an HMAC-SHA-256 with the token as its key, so who listens learns nothing that would let it in later. All of it
//! must be there within [`PATIENCE`], however slowly it comes, and no message is longer than [`LONGEST`].

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What every process of this program begins with; the digit counts up when the messages change.
const MAGIC: [u8; 8] = *b"beit2rk1";

/// Time for all messages together.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const LONGEST: usize = 1 << 14;

/// Who comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub rank: usize,
    pub world: usize,
    /// The machine's name.
    pub host: String,
    /// Where other ranks reach it.
    pub port: u16,
    /// What must be the same on all ranks.
    pub statements: Vec<(String, String)>,
    /// The group that it belongs to already, given by rank 0; empty before.
    pub group: Vec<u8>,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Welcome { host: String },
    Refused(String),
}

/// Why the first words came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It is no process of this program, or of another version's messages.
    #[error("it does not speak as this program does")]
    Stranger,
    /// It does not know the token.
    #[error("it has another token")]
    Token,
    /// It took too long, or left.
    #[error("{0}")]
    Connection(#[from] io::Error),
}

/// A connection whose reads and writes all end by a deadline.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn send_message(&mut self, message: &[u8], proof: &[u8]) -> io::Result<()> {
        let length = (message.len() as u32).to_le_bytes();
        self.write_all(&[&length, message, proof].concat())
    }

    fn receive_message(&mut self) -> Result<(Vec<u8>, [u8; 32]), Failure> {
        let length = u32::from_le_bytes(self.receive()?) as usize;
        if length > LONGEST {
            return Err(Failure::Stranger);
        }
        let mut message = vec![0; length];
        self.read_exact(&mut message)?;
        Ok((message, self.receive()?))
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Nonce = [u8; 32];

pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// A proof by one of the two ends about a message.
fn mac(token: &str, end: &[u8], nonces: [&Nonce; 2], message: &[u8]) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(token.as_bytes()) else {
        unreachable!("keys of all lengths are allowed")
    };
    for part in [end, nonces[0], nonces[1], message] {
        mac.update(part);
    }
    mac
}

fn proof(token: &str, end: &[u8], nonces: [&Nonce; 2], message: &[u8]) -> Vec<u8> {
    mac(token, end, nonces, message).finalize().into_bytes().to_vec()
}

const COMES: &[u8] = b"comes";
const WAITS: &[u8] = b"waits";

/// The part of whoever comes. The answer is of a process that knows the token.
pub(crate) fn come(stream: &TcpStream, token: &str, hello: &Hello) -> Result<Answer, Failure> {
    let mut timed = Timed { stream, until: Instant::now() + PATIENCE };
    let own = nonce()?;
    timed.write_all(&[&MAGIC[..], &own].concat())?;
    if timed.receive::<8>()? != MAGIC {
        return Err(Failure::Stranger);
    }
    let other: Nonce = timed.receive()?;
    let nonces = [&own, &other];
    let message = crate::encode(hello);
    timed.send_message(&message, &proof(token, COMES, nonces, &message))?;
    let (answer, its_proof) = timed.receive_message()?;
    mac(token, WAITS, nonces, &answer).verify_slice(&its_proof).map_err(|_| Failure::Token)?;
    crate::decode(&answer).ok_or(Failure::Stranger)
}

/// Somebody who came and knows the token, and waits for the answer.
pub(crate) struct Visitor {
    pub stream: TcpStream,
    pub hello: Hello,
    own: Nonce,
    other: Nonce,
}

/// The part of whoever waits.
pub(crate) fn receive(stream: TcpStream, token: &str) -> Result<Visitor, Failure> {
    let mut timed = Timed { stream: &stream, until: Instant::now() + PATIENCE };
    if timed.receive::<8>()? != MAGIC {
        return Err(Failure::Stranger);
    }
    let other: Nonce = timed.receive()?;
    let own = nonce()?;
    timed.write_all(&[&MAGIC[..], &own].concat())?;
    let (message, its_proof) = timed.receive_message()?;
    let nonces = [&other, &own];
    if mac(token, COMES, nonces, &message).verify_slice(&its_proof).is_err() {
        // A proof that it cannot verify either tells it what is wrong.
        let answer = crate::encode(&Answer::Refused(String::new()));
        timed.send_message(&answer, &proof(token, WAITS, nonces, &answer))?;
        return Err(Failure::Token);
    }
    let hello = crate::decode(&message).ok_or(Failure::Stranger)?;
    Ok(Visitor { stream, hello, own, other })
}

impl Visitor {
    /// Answers, and gives the connection where it is welcome.
    pub fn answer(self, token: &str, answer: &Answer) -> io::Result<TcpStream> {
        let mut timed = Timed { stream: &self.stream, until: Instant::now() + PATIENCE };
        let answer = crate::encode(answer);
        timed.send_message(&answer, &proof(token, WAITS, [&self.other, &self.own], &answer))?;
        Ok(self.stream)
    }
}
