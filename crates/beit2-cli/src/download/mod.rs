//! Large files over HTTP, continued where they broke off. Nothing here knows what the files hold.
//!
//! While `FILE` is on its way it is `FILE.part`; `FILE.part.json` remembers from which address and of which version, so
//! that two versions are never mixed. Only [`Part::finish`] gives the file its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use beit2_run::StopFlag;
use beit2_run::atomic::{FileError, publish, write_bytes_atomic};
use serde::{Deserialize, Serialize};
use ureq::Agent;
pub use ureq::Proxy;
use ureq::http::{HeaderMap, Response, StatusCode, header};

/// Ten times the largest published file: what a server may send before it is taken for a mistake.
const MAX_BYTES: u64 = 20 << 30;

/// Attempts in a row that bring no byte further before an address is given up.
const TRIES: u32 = 3;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a file did not come.
#[derive(Debug)]
pub enum Failure {
    /// This address cannot give it, with the reason, which follows the address; another one may.
    Remote(String),
    /// The connection broke off; the same address may continue.
    Cut(String),
    /// This computer cannot take it; no address helps.
    Local(anyhow::Error),
    /// A signal came; what has arrived is kept.
    Stopped,
}

/// The version of a file that a part belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// Bytes of the whole file, when the server said so.
    total: Option<u64>,
    /// What `If-Range` takes: a strong ETag, else the date of the last change.
    version: Option<String>,
}

/// A file that is not whole yet. Only one process has it at a time.
#[derive(Debug)]
pub struct Part {
    target: PathBuf,
    path: PathBuf,
    file: File,
    len: u64,
    origin: Option<Origin>,
}

impl Part {
    /// The part of `target`, with what an earlier attempt left; makes the folder.
    pub fn open(target: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|e| FileError::new("create the folder", folder, e))?;
        }
        let path = target.with_added_extension("part");
        let fail = |e| FileError::new("write", target, e);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        // File systems without locks get none: the check of the whole file comes later anyway.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{} is being downloaded by another process; wait for it", target.display());
        }
        let len = file.metadata().map_err(fail)?.len();
        let origin = fs::read(origin_path(target)).ok();
        let origin = origin.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Self { target: target.to_owned(), path, file, len, origin })
    }

    /// The unfinished file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives the file its name, on disk for good.
    pub fn finish(self) -> anyhow::Result<()> {
        let target = self.target.clone();
        self.keep_as(&target)
    }

    /// As [`Part::finish`], under another name.
    pub fn keep_as(self, name: &Path) -> anyhow::Result<()> {
        publish(&self.file, &self.path, name)?;
        let _ = fs::remove_file(origin_path(&self.target));
        Ok(())
    }

    /// Takes it off the disk.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(origin_path(&self.target));
    }

    /// Begins again, with the version that `origin` says.
    fn restart(&mut self, origin: Option<Origin>) -> Result<(), Failure> {
        self.file.set_len(0).map_err(|e| self.local(e))?;
        self.len = 0;
        self.origin = origin;
        if let Some(origin) = &self.origin {
            let text = serde_json::to_vec(origin).map_err(|e| Failure::Local(e.into()))?;
            let written = write_bytes_atomic(&origin_path(&self.target), &text);
            written.map_err(|e| Failure::Local(e.into()))?;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|e| self.local(e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn local(&self, error: std::io::Error) -> Failure {
        Failure::Local(FileError::new("write", &self.target, error).into())
    }

    /// Bytes of the whole file.
    fn total(&self) -> Option<u64> {
        self.origin.as_ref()?.total
    }
}

/// Where the [`Origin`] of a part is kept.
fn origin_path(target: &Path) -> PathBuf {
    target.with_added_extension("part.json")
}

/// A client for all downloads of a command.
pub struct Client {
    agent: Agent,
}

/// What a download tells while it goes on: bytes so far, bytes in all.
pub type Progress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

impl Client {
    /// A client that goes through this proxy, if there is one.
    pub fn new(proxy: Option<Proxy>) -> Self {
        let config = Agent::config_builder()
            .proxy(proxy)
            .http_status_as_error(false)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("beit2/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into() }
    }

    /// Brings `part` to the end from `url`, over as many connections as it takes.
    pub fn fetch(
        &self,
        url: &str,
        part: &mut Part,
        stop: &StopFlag,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failure> {
        let (mut farthest, mut tries) = (part.len, 0);
        loop {
            let why = match self.attempt(url, part, stop, progress) {
                Err(Failure::Cut(why)) => why,
                ended => return ended,
            };
            // Why not by the length before: a server without ranges begins again each time and would do so for ever.
            if part.len > farthest {
                (farthest, tries) = (part.len, 0);
            } else {
                tries += 1;
                if tries >= TRIES {
                    return Err(Failure::Remote(format!("failed {tries} times in a row ({why})")));
                }
                pause(Duration::from_secs(tries.into()), stop);
            }
        }
    }

    /// One connection.
    fn attempt(
        &self,
        url: &str,
        part: &mut Part,
        stop: &StopFlag,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failure> {
        let known = part.origin.clone().filter(|origin| {
            origin.url == url && part.len > 0 && (origin.version.is_some() || origin.total.is_some())
        });
        if known.is_some() && part.total() == Some(part.len) {
            return Ok(());
        }
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(origin) = &known {
            request = request.header(header::RANGE, format!("bytes={}-", part.len));
            if let Some(version) = &origin.version {
                request = request.header(header::IF_RANGE, version);
            }
        }
        // An address that began as https must not be redirected to plain http.
        let request = request.config().https_only(url.starts_with("https:")).build();
        // A network that went away in the middle may come back; one that was never there is worth no second try.
        let failed = if known.is_some() { Failure::Cut } else { Failure::Remote };
        let response = request.call().map_err(|e| failed(reason(&e)))?;
        let headers = response.headers();
        match (response.status(), known) {
            (StatusCode::OK, _) => {
                let total = response.body().content_length();
                let origin = Origin { url: url.to_owned(), total, version: version(headers) };
                part.restart(Some(origin))?;
            }
            (StatusCode::PARTIAL_CONTENT, Some(origin)) => {
                let (start, total) = content_range(headers);
                let same = origin.version.is_none() || [None, origin.version].contains(&version(headers));
                let whole = origin.total.is_none() || total.is_none() || total == origin.total;
                if start != Some(part.len) || !same || !whole {
                    part.restart(None)?;
                    return Err(Failure::Cut("the file on the server has changed".to_owned()));
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                if content_range(headers).1 == Some(part.len) {
                    return Ok(());
                }
                // More than there is has arrived: another version.
                part.restart(None)?;
                return Err(Failure::Cut("the file on the server has changed".to_owned()));
            }
            (status, _) => {
                return Err(Failure::Remote(format!("answered with {status}")));
            }
        }
        receive(response, part, stop, progress)
    }
}

/// Appends a body to a part.
fn receive(
    response: Response<ureq::Body>,
    part: &mut Part,
    stop: &StopFlag,
    progress: &mut Progress<'_>,
) -> Result<(), Failure> {
    let too_large = || Failure::Remote(format!("sends more than {} GiB", MAX_BYTES >> 30));
    if part.total().is_some_and(|total| total > MAX_BYTES) {
        return Err(too_large());
    }
    part.file.seek(SeekFrom::Start(part.len)).map_err(|e| part.local(e))?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 18];
    loop {
        progress(part.len, part.total());
        if stop.is_set() {
            return Err(Failure::Stopped);
        }
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(Failure::Cut(error.to_string())),
        };
        part.append(&buffer[..count])?;
        if part.len > MAX_BYTES {
            return Err(too_large());
        }
    }
    match part.total() {
        Some(total) if part.len < total => {
            Err(Failure::Cut(format!("only {} of {total} bytes arrived", part.len)))
        }
        Some(total) if part.len > total => {
            part.restart(None)?;
            Err(Failure::Cut("more bytes arrived than the server announced".to_owned()))
        }
        _ => Ok(()),
    }
}

/// What tells this version from another one.
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // A weak ETag does not promise the same bytes.
    text(header::ETAG).filter(|tag| tag.starts_with('"')).or_else(|| text(header::LAST_MODIFIED))
}

/// First byte and whole length of `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((range, total)) = text.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')) else {
        return (None, None);
    };
    (range.split_once('-').and_then(|(start, _)| start.parse().ok()), total.parse().ok())
}

/// The reason of an error, to follow an address in a sentence.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "cannot be reached (its name is not known; no network?)".to_owned(),
        ureq::Error::Timeout(_) => format!("gave no answer within {} s", PATIENCE.as_secs()),
        ureq::Error::Io(error) => format!("cannot be reached ({error})"),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "is not a valid address".to_owned(),
        other => format!("cannot be read ({other})"),
    }
}

fn pause(time: Duration, stop: &StopFlag) {
    let since = Instant::now();
    while since.elapsed() < time && !stop.is_set() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests;
