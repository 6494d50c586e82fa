//! What goes over a connection once its ends know each other.
//!
//! ```text
//! kind u8 | channel u8 | length u64 | payload | CRC-32 of all that u32        (little endian)
//! ```

use std::io::{self, Read, Write};

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something for whoever waits on the frame's channel.
    Data = 1,
    /// The sender is alive.
    Heartbeat = 2,
    /// The sender leaves; the payload says why, in one sentence, or is empty at the end of the work.
    Leave = 3,
}

/// A frame as it was read.
pub(crate) struct Frame {
    pub kind: Kind,
    pub channel: u8,
    pub payload: Vec<u8>,
}

/// Longer payloads are mistakes: the state of the largest model has about 2^33 bytes.
const LONGEST: u64 = 1 << 38;

/// Memory is taken as bytes come, so that a wrong length takes none.
const PIECE: usize = 1 << 24;

pub(crate) fn write(to: &mut impl Write, kind: Kind, channel: u8, payload: &[u8]) -> io::Result<()> {
    let mut header = [0; 10];
    (header[0], header[1]) = (kind as u8, channel);
    header[2..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(payload)?;
    to.write_all(&checksum(&header, payload).to_le_bytes())?;
    to.flush()
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

pub(crate) fn read(from: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; 10];
    from.read_exact(&mut header)?;
    let kind = match header[0] {
        1 => Kind::Data,
        2 => Kind::Heartbeat,
        3 => Kind::Leave,
        _ => return Err(garbage("it sent something else than this program")),
    };
    let mut length = [0; 8];
    length.copy_from_slice(&header[2..]);
    let length = u64::from_le_bytes(length);
    if length > LONGEST {
        return Err(garbage("it announced more than any model has"));
    }
    let length = usize::try_from(length).map_err(|_| garbage("it announced more than memory can hold"))?;
    let mut payload = Vec::new();
    while payload.len() < length {
        let start = payload.len();
        payload.resize(length.min(start + PIECE), 0);
        from.read_exact(&mut payload[start..])?;
    }
    let mut crc = [0; 4];
    from.read_exact(&mut crc)?;
    match checksum(&header, &payload) == u32::from_le_bytes(crc) {
        true => Ok(Frame { kind, channel: header[1], payload }),
        false => Err(garbage("what it sent was damaged on its way")),
    }
}

fn garbage(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bytes(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Data, 1, payload).unwrap();
        bytes
    }

    #[test]
    fn frames_come_as_they_went() {
        for length in [0, 1, 1000, PIECE + 3] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let frame = read(&mut &bytes(&payload)[..]).unwrap();
            assert_eq!((frame.kind, frame.channel, frame.payload == payload), (Kind::Data, 1, true));
        }
    }

    #[test]
    fn damaged_frames_are_refused() {
        let whole = bytes(b"gradients");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(read(&mut &damaged[..]).is_err(), "byte {at}");
        }
        for length in 0..whole.len() {
            assert!(read(&mut &whole[..length]).is_err(), "{length} bytes");
        }
        let mut endless = whole;
        endless[2..10].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read(&mut &endless[..]).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
