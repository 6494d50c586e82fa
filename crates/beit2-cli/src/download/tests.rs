//! Every way in which a server and a connection misbehave, against a server in this process.

use std::fs;
use std::sync::Arc;

use tempfile::TempDir;
use ureq::http::header;

use super::*;

#[path = "../../tests/support/http.rs"]
mod http;

use http::{Answer, Request, Server};

/// A folder, and the file that is to come.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    fn fetch(&self, url: &str) -> Result<(), Failure> {
        let mut part = Part::open(&self.target()).unwrap();
        Client::new(None).fetch(url, &mut part, &StopFlag::new(), &mut |_, _| {})?;
        part.finish().unwrap();
        Ok(())
    }

    /// It comes, it is this, and nothing else is left.
    #[track_caller]
    fn gets(&self, url: &str, body: &[u8]) {
        self.fetch(url).unwrap();
        assert!(fs::read(self.target()).unwrap() == body, "other bytes came");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 1);
    }

    #[track_caller]
    fn fails(&self, url: &str, expected: &str) {
        let failure = self.fetch(url).unwrap_err();
        let (Failure::Remote(text) | Failure::Cut(text)) = &failure else { panic!("{failure:?}") };
        assert!(text.contains(expected), "no `{expected}` in: {text}");
        assert!(!self.target().exists());
    }
}

fn body(seed: u8) -> Arc<Vec<u8>> {
    Arc::new((0..100_000u32).map(|at| (at / 7) as u8 ^ seed).collect())
}

#[test]
fn a_whole_file() {
    let whole = body(1);
    let served = whole.clone();
    let server = Server::start(move |_| Answer::whole(&served));
    Place::new().gets(&server.url("file"), &whole);
    assert_eq!(server.asked().len(), 1);
    assert_eq!(server.asked()[0].headers["accept-encoding"], "identity");
}

#[test]
fn a_length_that_nobody_tells() {
    let whole = body(2);
    let served = whole.clone();
    let server = Server::start(move |_| Answer { length: false, ..Answer::whole(&served) });
    Place::new().gets(&server.url("file"), &whole);
}

#[test]
fn continues_after_a_cut() {
    let whole = body(3);
    let served = whole.clone();
    let server = Server::start(move |request| {
        Answer::ranged(request, &served, "\"a\"")
            .cut_after(40_000.min(served.len() - request.start().unwrap_or(0)))
    });
    Place::new().gets(&server.url("file"), &whole);
    let starts: Vec<_> = server.asked().iter().map(Request::start).collect();
    assert_eq!(starts, [None, Some(40_000), Some(80_000)]);
    assert_eq!(server.asked()[1].headers["if-range"], "\"a\"");
}

#[test]
fn continues_in_another_process_and_through_a_redirect() {
    let whole = body(4);
    let (served, place) = (whole.clone(), Place::new());
    let mut first = true;
    let server = Server::start(move |request| {
        if request.path == "/old" {
            return Answer::only("302 Found").with("location", "/new");
        }
        let answer = Answer::ranged(request, &served, "\"a\"");
        if std::mem::take(&mut first) { answer.cut_after(1000) } else { answer }
    });
    let url = server.url("old");
    let mut part = Part::open(&place.target()).unwrap();
    let ended = Client::new(None).attempt(&url, &mut part, &StopFlag::new(), &mut |_, _| {});
    assert!(matches!(ended, Err(Failure::Cut(_))), "{ended:?}");
    drop(part);
    place.gets(&url, &whole);
    assert_eq!(server.asked().last().and_then(Request::start), Some(1000));
}

#[test]
fn a_server_without_ranges_begins_again() {
    let whole = body(5);
    let served = whole.clone();
    let mut count = 0;
    let server = Server::start(move |_| {
        count += 1;
        if count == 1 { Answer::whole(&served).cut_after(60_000) } else { Answer::whole(&served) }
    });
    Place::new().gets(&server.url("file"), &whole);
    assert_eq!(server.asked()[1].start(), Some(60_000));
}

#[test]
fn a_connection_that_always_breaks_is_given_up() {
    let served = body(6);
    let server = Server::start(move |_| Answer::whole(&served).cut_after(60_000));
    Place::new().fails(&server.url("file"), "failed 3 times in a row");
    // The first one brought bytes.
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn two_versions_are_never_mixed() {
    let (old, new) = (body(7), body(8));
    // With If-Range respected, and by a server that ignores it.
    for careless in [false, true] {
        let (served, mut count) = ([old.clone(), new.clone()], 0);
        let server = Server::start(move |request| {
            count += 1;
            if count == 1 {
                return Answer::ranged(request, &served[0], "\"old\"").cut_after(1000);
            }
            let mut request = request.clone();
            if careless {
                request.headers.remove("if-range");
            }
            Answer::ranged(&request, &served[1], "\"new\"")
        });
        Place::new().gets(&server.url("file"), &new);
    }
}

#[test]
fn parts_of_another_address_are_not_continued() {
    let (one, other) = (body(9), body(10));
    let (place, served) = (Place::new(), [one, other.clone()]);
    let server = Server::start(move |request| match request.path.as_str() {
        "/one" => Answer::ranged(request, &served[0], "\"a\"").cut_after(1000),
        _ => Answer::ranged(request, &served[1], "\"a\""),
    });
    let mut part = Part::open(&place.target()).unwrap();
    let _ = Client::new(None).attempt(&server.url("one"), &mut part, &StopFlag::new(), &mut |_, _| {});
    drop(part);
    place.gets(&server.url("other"), &other);
}

#[test]
fn nothing_left_to_ask_for() {
    let whole = body(11);
    let origin = |total, place: &Place, url: &str| {
        let origin = Origin { url: url.to_owned(), total, version: Some("\"a\"".to_owned()) };
        fs::write(place.folder.path().join("file.part"), &whole[..]).unwrap();
        fs::write(origin_path(&place.target()), serde_json::to_vec(&origin).unwrap()).unwrap();
    };
    let served = whole.clone();
    let server = Server::start(move |request| Answer::ranged(request, &served, "\"a\""));
    let url = server.url("file");
    // All was there before the rename: no request at all.
    let place = Place::new();
    origin(Some(100_000), &place, &url);
    place.gets(&url, &whole);
    assert!(server.asked().is_empty());
    // The same without a known length: the server says 416.
    let place = Place::new();
    origin(None, &place, &url);
    place.gets(&url, &whole);
    assert_eq!(server.asked().len(), 1);
    // More than there is: begun again.
    let place = Place::new();
    origin(None, &place, &url);
    fs::write(place.folder.path().join("file.part"), vec![0; 200_000]).unwrap();
    place.gets(&url, &whole);
}

#[test]
fn answers_that_are_no_file() {
    let server = Server::start(|request| match request.path.as_str() {
        "/gone" => Answer::only("404 Not Found"),
        "/round" => Answer::only("302 Found").with("location", "/round"),
        "/huge" => Answer { length: false, ..Answer::only("200 OK") }.with("content-length", "99999999999"),
        _ => Answer::only("500 Internal Server Error"),
    });
    let place = Place::new();
    place.fails(&server.url("gone"), "answered with 404 Not Found");
    place.fails(&server.url("broken"), "answered with 500");
    place.fails(&server.url("round"), "redirects");
    place.fails(&server.url("huge"), "sends more than 20 GiB");
    place.fails("http://127.0.0.1:1/file", "cannot be reached");
    place.fails("http://", "is not a valid address");
}

#[test]
fn a_signal_keeps_what_came() {
    let served = body(12);
    let server = Server::start(move |request| Answer::ranged(request, &served, "\"a\""));
    let (place, stop) = (Place::new(), StopFlag::new());
    let mut part = Part::open(&place.target()).unwrap();
    let ended = Client::new(None).fetch(&server.url("file"), &mut part, &stop, &mut |done, _| {
        if done > 0 {
            stop.request();
        }
    });
    assert!(matches!(ended, Err(Failure::Stopped)), "{ended:?}");
    assert!(!part.is_empty());
}

#[test]
fn headers_are_understood() {
    let mut headers = HeaderMap::new();
    assert_eq!((content_range(&headers), version(&headers)), ((None, None), None));
    headers.insert(header::CONTENT_RANGE, "bytes 5-9/10".parse().unwrap());
    headers.insert(header::LAST_MODIFIED, "yesterday".parse().unwrap());
    headers.insert(header::ETAG, "W/\"weak\"".parse().unwrap());
    assert_eq!(content_range(&headers), (Some(5), Some(10)));
    assert_eq!(version(&headers).as_deref(), Some("yesterday"));
    headers.insert(header::CONTENT_RANGE, "bytes */10".parse().unwrap());
    headers.insert(header::ETAG, "\"strong\"".parse().unwrap());
    assert_eq!(content_range(&headers), (None, Some(10)));
    assert_eq!(version(&headers).as_deref(), Some("\"strong\""));
}

#[test]
fn a_part_belongs_to_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("new/file.pth");
    let part = Part::open(&target).unwrap();
    assert!(Part::open(&target).unwrap_err().to_string().contains("another process"));
    part.finish().unwrap();
    assert!(target.is_file() && !target.with_added_extension("part").exists());
}
