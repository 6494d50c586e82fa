//! TensorBoard event files, written without TensorFlow.
//!
//! A file is a sequence of frames: length (u64), masked CRC-32C of the length, payload, masked CRC-32C of the
//! payload, all little endian. A payload is the protobuf message `Event`, of which four fields are needed
//! here and encoded by hand. Tags are `STAGE/NAME` for steps and `STAGE/epoch/NAME` for epochs; the
//! horizontal axis is the stage's step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::atomic::{self, FileError};
use crate::metrics::{Cut, Kind, Record, Sink};

/// What TensorBoard recognises event files by.
const PREFIX: &str = "events.out.tfevents.";

/// A sink that writes scalars for TensorBoard.
#[derive(Debug)]
pub struct TensorBoardSink {
    path: PathBuf,
    file: File,
    length: u64,
}

impl TensorBoardSink {
    /// Starts a new event file in `dir`; in the older ones there, damaged tails and events that `cut` does
    /// not keep are removed.
    ///
    /// A TensorBoard that is watching meanwhile shows the removed points until it is reloaded.
    ///
    /// # Errors
    /// The folder or one of its event files cannot be read or written.
    pub fn open(dir: &Path, cut: Option<&Cut>) -> Result<Self, FileError> {
        for path in event_files(dir)? {
            repair(&path, cut)?;
        }
        let seconds = wall_time() as u64;
        let id = std::process::id();
        // The names sort by time, which is the order TensorBoard reads them in; the counter is for a second
        // start in one second.
        for n in 0u32.. {
            let path = dir.join(format!("{PREFIX}{seconds:010}.{id}.{n}"));
            let fail = |e| FileError::new("write", &path, e);
            let file = match File::create_new(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(fail)?,
            };
            let mut sink = Self { path: path.clone(), file, length: 0 };
            sink.write(&encode_version())?;
            return Ok(sink);
        }
        Err(FileError::new("write", dir, io::Error::from(io::ErrorKind::AlreadyExists)))
    }

    fn write(&mut self, payload: &[u8]) -> Result<(), FileError> {
        let bytes = frame(payload);
        if let Err(error) = self.file.write_all(&bytes) {
            // Half a frame would make everything after it unreadable.
            let _ = self.file.set_len(self.length);
            let _ = io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.length));
            return Err(FileError::new("write", &self.path, error));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Sink for TensorBoardSink {
    fn record(&mut self, record: &Record) -> Result<(), FileError> {
        self.write(&encode_record(record, wall_time()))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| FileError::new("write", &self.path, e))
    }
}

/// One event as read back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The stage's step.
    pub step: u64,
    /// Tag and value of each scalar.
    pub scalars: Vec<(String, f32)>,
}

/// Reads the events of one file up to the first damaged frame. Files by other programs are read as far as
/// they hold scalars.
///
/// # Errors
/// The file cannot be read.
pub fn read_events(path: &Path) -> Result<Vec<Event>, FileError> {
    let bytes = fs::read(path).map_err(|e| FileError::new("read", path, e))?;
    Ok(Frames { rest: &bytes }.filter_map(|(_, payload)| decode_event(payload)).collect())
}

fn event_files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(dir).map_err(|e| FileError::new("read", dir, e))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

/// Rewrites a file without its damaged tail and without what `cut` removes; leaves it alone when there is
/// nothing to remove.
fn repair(path: &Path, cut: Option<&Cut>) -> Result<(), FileError> {
    let bytes = fs::read(path).map_err(|e| FileError::new("read", path, e))?;
    let stays = |payload: &[u8]| {
        let (Some(cut), Some(event)) = (cut, decode_event(payload)) else { return true };
        event
            .scalars
            .first()
            .is_none_or(|(tag, _)| cut.keeps(tag.split('/').next().unwrap_or_default(), event.step))
    };
    let frames = Frames { rest: &bytes }.filter(|(_, payload)| stays(payload));
    let kept: Vec<u8> = frames.flat_map(|(whole, _)| whole.iter().copied()).collect();
    if kept != bytes {
        atomic::write_bytes_atomic(path, &kept)?;
    }
    Ok(())
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

// Protobuf. A field starts with (number << 3 | wire type); wire types: 0 varint, 1 eight bytes, 2 length and
// bytes, 5 four bytes. Event { 1 wall_time double, 2 step int64, 3 file_version string, 5 summary }, Summary
// { 1 repeated Value }, Value { 1 tag string, 2 simple_value float }.

fn encode_version() -> Vec<u8> {
    let mut event = Vec::new();
    put_f64(&mut event, 1, wall_time());
    put_bytes(&mut event, 3, b"brain.Event:2");
    event
}

fn encode_record(record: &Record, wall_time: f64) -> Vec<u8> {
    let group = match record.kind {
        Kind::Step => "",
        Kind::Epoch => "epoch/",
    };
    let mut summary = Vec::new();
    for (name, value) in &record.values {
        let mut scalar = Vec::new();
        put_bytes(&mut scalar, 1, format!("{}/{group}{name}", record.stage).as_bytes());
        scalar.push(2 << 3 | 5);
        scalar.extend_from_slice(&(*value as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &scalar);
    }
    let mut event = Vec::new();
    put_f64(&mut event, 1, wall_time);
    event.push(2 << 3);
    put_varint(&mut event, record.step);
    put_bytes(&mut event, 5, &summary);
    event
}

fn put_f64(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The value of a protobuf field.
enum Field<'a> {
    Varint(u64),
    Eight([u8; 8]),
    Bytes(&'a [u8]),
    Four([u8; 4]),
}

/// Takes one field off the front of a message; `None` at its end or where it is damaged.
fn take_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = take_varint(rest)?;
    let field = match key & 7 {
        0 => Field::Varint(take_varint(rest)?),
        1 => Field::Eight(take(rest, 8)?.try_into().ok()?),
        2 => {
            let length = usize::try_from(take_varint(rest)?).ok()?;
            Field::Bytes(take(rest, length)?)
        }
        5 => Field::Four(take(rest, 4)?.try_into().ok()?),
        _ => return None,
    };
    Some((key >> 3, field))
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn decode_event(mut message: &[u8]) -> Option<Event> {
    let mut event = Event::default();
    while !message.is_empty() {
        match take_field(&mut message)? {
            (1, Field::Eight(bytes)) => event.wall_time = f64::from_le_bytes(bytes),
            (2, Field::Varint(step)) => event.step = step,
            (5, Field::Bytes(mut summary)) => {
                while !summary.is_empty() {
                    if let (1, Field::Bytes(value)) = take_field(&mut summary)? {
                        event.scalars.extend(decode_scalar(value));
                    }
                }
            }
            _ => {}
        }
    }
    Some(event)
}

fn decode_scalar(mut message: &[u8]) -> Option<(String, f32)> {
    let (mut tag, mut value) = (None, None);
    while !message.is_empty() {
        match take_field(&mut message)? {
            (1, Field::Bytes(bytes)) => tag = Some(String::from_utf8_lossy(bytes).into_owned()),
            (2, Field::Four(bytes)) => value = Some(f32::from_le_bytes(bytes)),
            _ => {}
        }
    }
    Some((tag?, value?))
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&masked_crc(payload).to_le_bytes());
    out
}

/// Iterates over (whole frame, payload) and ends at the first damaged one.
struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let whole = self.rest;
        let mut rest = whole;
        let length = take(&mut rest, 8)?;
        let length_crc = take(&mut rest, 4)?;
        if masked_crc(length).to_le_bytes() != length_crc {
            return None;
        }
        let payload = take(&mut rest, usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?)?;
        if masked_crc(payload).to_le_bytes() != take(&mut rest, 4)? {
            return None;
        }
        self.rest = rest;
        Some((&whole[..whole.len() - rest.len()], payload))
    }
}

/// CRC-32C, rotated and shifted by a constant: the framing's guard against checksums of data that itself
/// holds checksums.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli). Bit by bit is fast enough for a few hundred bytes per logging interval.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stage: &str, kind: Kind, step: u64) -> Record {
        let values = vec![("loss".into(), 2.5), ("lr".into(), f64::NAN)];
        Record { kind, stage: stage.into(), epoch: 0, step, values }
    }

    fn all_events(dir: &Path) -> Vec<Event> {
        event_files(dir).unwrap().iter().flat_map(|path| read_events(path).unwrap()).collect()
    }

    #[test]
    fn checksum_is_castagnoli() {
        // The check value of CRC-32C and the one of RFC 3720 B.4 for 32 zero bytes.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn events_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = TensorBoardSink::open(dir.path(), None).unwrap();
        sink.record(&record("pretrain", Kind::Step, 300)).unwrap();
        sink.record(&record("pretrain", Kind::Epoch, 1 << 40)).unwrap();
        sink.sync().unwrap();
        let events = all_events(dir.path());
        assert_eq!(events.len(), 3, "the version, then the two");
        assert_eq!((events[1].step, events[1].scalars[0].clone()), (300, ("pretrain/loss".into(), 2.5)));
        assert!(events[1].scalars[1].1.is_nan() && events[1].wall_time > 1.7e9);
        assert_eq!((events[2].step, events[2].scalars[0].0.as_str()), (1 << 40, "pretrain/epoch/loss"));
        let bytes = fs::read(&sink.path).unwrap();
        assert!(bytes.windows(13).any(|w| w == b"brain.Event:2"));
    }

    #[test]
    fn resume_removes_the_future_and_the_damaged_tail() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = TensorBoardSink::open(dir.path(), None).unwrap();
        for (stage, step) in [("tokenizer", 90), ("pretrain", 10), ("pretrain", 20), ("pretrain", 30)] {
            sink.record(&record(stage, Kind::Step, step)).unwrap();
        }
        sink.file.write_all(&frame(&encode_record(&record("pretrain", Kind::Step, 5), 0.0))[..20]).unwrap();
        drop(sink);
        let cut = Cut { stage: "pretrain".into(), step: Some(20) };
        let mut sink = TensorBoardSink::open(dir.path(), Some(&cut)).unwrap();
        sink.record(&record("pretrain", Kind::Step, 30)).unwrap();
        let steps: Vec<u64> =
            all_events(dir.path()).into_iter().filter(|e| !e.scalars.is_empty()).map(|e| e.step).collect();
        assert_eq!(steps, [90, 10, 20, 30]);
        assert_eq!(event_files(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn garbage_is_not_read_as_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.1");
        for bytes in [&b"no events"[..], &[0xff; 64], &[]] {
            fs::write(&path, bytes).unwrap();
            assert!(read_events(&path).unwrap().is_empty());
        }
    }
}
