//! A web server on this computer that answers as a test wants it to.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// With names in small letters.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// The first byte of a `Range` header.
    pub fn start(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Arc<Vec<u8>>,
    pub range: Range<usize>,
    /// How many bytes of the range are sent before the connection breaks off.
    pub cut: Option<usize>,
    /// Whether the length is told.
    pub length: bool,
}

impl Answer {
    /// The whole body.
    pub fn whole(body: &Arc<Vec<u8>>) -> Self {
        let range = 0..body.len();
        Self { status: "200 OK", headers: Vec::new(), body: body.clone(), range, cut: None, length: true }
    }

    /// No body.
    pub fn only(status: &'static str) -> Self {
        Self { status, ..Self::whole(&Arc::default()) }
    }

    /// What a server with ranges answers: a part when one is asked for and the version is still the same.
    pub fn ranged(request: &Request, body: &Arc<Vec<u8>>, etag: &str) -> Self {
        let answer = Self::whole(body).with("etag", etag);
        let same = request.headers.get("if-range").is_none_or(|version| version == etag);
        match request.start().filter(|_| same) {
            None => answer,
            Some(start) if start >= body.len() => Self::only("416 Range Not Satisfiable")
                .with("content-range", &format!("bytes */{}", body.len())),
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                let answer = Self { status: "206 Partial Content", range: start..body.len(), ..answer };
                answer.with("content-range", &range)
            }
        }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }
}

/// The server; it ends with the test.
pub struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(mut answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ended) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (log, end) = (asked.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Some(request) = read(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                // A client that hangs up is a case, not a failure.
                let _ = write(stream, &answer(&request));
            }
        });
        Self { address, asked, ended, thread: Some(thread) }
    }

    /// An address on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread up.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { path, headers })
}

fn write(mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if answer.length {
        head += &format!("content-length: {}\r\n", answer.range.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let bytes = &answer.body[answer.range.clone()];
    stream.write_all(&bytes[..answer.cut.unwrap_or(bytes.len())])
}
