//! `beit2 weights fetch` through the real binary, against servers on this computer. Nothing leaves it: addresses outside go
//! to a proxy that is not there.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;

use support::http::{Answer, Request, Server};
use support::{Ended, models};
use tempfile::TempDir;

const BASE: &str = "beitv2_base_patch16_224_pt1k_ft1k.pth";
const TOKENIZER: &str = "vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth";

/// A folder in which the program runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn fetch(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beit2"));
        command.args(["weights", "fetch"]).args(args).current_dir(self.0.path());
        for name in ["ALL_PROXY", "all_proxy", "https_proxy", "HTTP_PROXY", "http_proxy", "no_proxy"] {
            command.env_remove(name);
        }
        command.env("HTTPS_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "127.0.0.1");
        command.env("XDG_CACHE_HOME", self.0.path().join("cache")).output().unwrap().into()
    }

    /// Names in the cache folder.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path().join("cache/beit2")).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn lists() {
    let place = Place::new();
    let text = place.fetch(&[]).works().out.clone();
    assert_eq!(text.lines().count(), 31);
    let clip = text.lines().find(|line| line.starts_with("ViT-B-16.pt")).unwrap();
    assert!(clip.contains("5806e77c…") && clip.contains("teacher (clip)"), "{clip}");
    assert!(text.contains(BASE) && text.contains("d5036aa7"), "{text}");
    let ended = place.fetch(&["--list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ended.works().out).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 19);
    let teachers = json["teachers"].as_array().unwrap();
    assert!(
        teachers.iter().any(|one| one["kind"] == "dinov2" && one["name"] == "dinov2_vitb14_pretrain.pth")
    );
    assert!(json["folder"].as_str().unwrap().ends_with("cache/beit2"));
}

/// One large file, as there is no small one with the published number of parameters: a mirror without it, a mirror whose
/// connection breaks, then the offline path.
#[test]
fn comes_from_the_second_mirror_over_a_broken_connection() {
    let place = Place::new();
    let path = place.0.path().join("served");
    models::base_classifier(&path);
    let served = Arc::new(fs::read(&path).unwrap());
    fs::remove_file(&path).unwrap();
    let empty = Server::start(|_| Answer::only("404 Not Found"));
    let (body, mut first) = (served.clone(), true);
    let mirror = Server::start(move |request| {
        let answer = Answer::ranged(request, &body, "\"v1\"");
        if std::mem::take(&mut first) { answer.cut_after(body.len() / 2) } else { answer }
    });
    let mirrors = ["--mirror", &empty.url("a"), "--mirror", &mirror.url("b/")];
    let ended = place.fetch(&[&["beitv2_base_patch16_224_pt1k_ft1k"][..], &mirrors].concat());
    let file = place.0.path().join("cache/beit2").join(BASE);
    assert_eq!(ended.works().out.trim(), file.display().to_string());
    assert!(fs::read(&file).unwrap() == *served, "other bytes came");
    assert_eq!(place.cached(), [BASE]);
    let paths: Vec<String> = [&empty, &mirror].iter().flat_map(|s| s.asked()).map(|r| r.path).collect();
    assert_eq!(paths, [format!("/a/{BASE}"), format!("/b/{BASE}"), format!("/b/{BASE}")]);
    assert_eq!(mirror.asked()[1].start(), Some(served.len() / 2));

    // Now it is there: no server is needed.
    drop((empty, mirror));
    let again = place.fetch(&[BASE, "--json"]);
    assert!(again.works().err.contains("is already there"), "{}", again.err);
    let json: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((json["from"].is_null(), json["sha256"].as_str().unwrap().len()), (true, 64));

    // The same weights are no large model, whatever they are called; but they are weights, so they are kept.
    let server = Server::start(move |_| Answer::whole(&served));
    let large = "beitv2_large_patch16_224_pt1k_ft1k";
    let url = server.url("any.pth");
    let parts = ["86,530,984 parameters", "304,430,568", "kept as", ".unexpected"];
    place.fetch(&[large, "--mirror", &url]).fails(1, &parts);
    assert_eq!(place.cached(), [BASE.to_owned(), format!("{large}.pth.unexpected")]);
}

#[test]
fn without_a_network() {
    let place = Place::new();
    let address = format!("https://github.com/addf400/files/releases/download/BEiT-v2/{BASE}");
    let by_hand = format!("you can also download it from {address} yourself and save it as");
    place.fetch(&[BASE]).fails(1, &["cannot download", &address, &by_hand, "cache/beit2"]);
    assert!(place.cached().is_empty(), "{:?}", place.cached());
    place.fetch(&[BASE, "--to", "here"]).fails(1, &[&format!("here/{BASE}")]);
    let timm =
        "https://huggingface.co/timm/beitv2_base_patch16_224.in1k_ft_in1k/resolve/main/model.safetensors";
    place.fetch(&[BASE, "--from", "timm"]).fails(1, &[timm, "pt1k_ft1k.timm.safetensors"]);
}

#[test]
fn timm_copies_come_from_mirrors_of_the_hub() {
    let place = Place::new();
    let server = Server::start(|_| Answer::only("404 Not Found"));
    let own = ["--mirror", &server.url("hub"), "--mirror", &server.url("my/model.safetensors")];
    place
        .fetch(&[&[BASE, "--from", "timm"], &own[..]].concat())
        .fails(1, &["404 Not Found", "huggingface.co"]);
    let paths: Vec<String> = server.asked().into_iter().map(|request| request.path).collect();
    let hub = "/hub/timm/beitv2_base_patch16_224.in1k_ft_in1k/resolve/main/model.safetensors";
    assert_eq!(paths, [hub, "/my/model.safetensors"]);
}

#[test]
fn something_else_is_sent() {
    let place = Place::new();
    let bodies: [(&'static str, &[u8], &[&str]); 2] = [
        ("page", b"<!DOCTYPE html><html>sign in</html>", &["what it sent is an HTML page", "(removed)"]),
        ("empty", b"", &["what it sent is empty", "(removed)"]),
    ];
    for (name, body, parts) in bodies {
        let served = Arc::new(body.to_vec());
        let server = Server::start(move |_| Answer::whole(&served));
        place.fetch(&[BASE, "--mirror", &server.url(name)]).fails(1, parts);
        assert!(place.cached().is_empty(), "{:?}", place.cached());
    }
    // Weights, but with another SHA-256 than the one in the file's name.
    let path = place.0.path().join("weights");
    models::small_classifier(&path);
    let served = Arc::new(fs::read(&path).unwrap());
    let server = Server::start(move |_| Answer::whole(&served));
    let parts = ["its SHA-256 starts with", "d5036aa7", "(removed)"];
    place.fetch(&[TOKENIZER, "--mirror", &server.url("x")]).fails(1, &parts);
    assert!(place.cached().is_empty(), "{:?}", place.cached());
}

#[test]
fn a_body_that_ends_early_is_kept_for_the_next_time() {
    let place = Place::new();
    let served = Arc::new(vec![1; 5000]);
    let server = Server::start(move |request: &Request| {
        assert!(request.start().is_none_or(|start| start == 4000));
        Answer::whole(&served).cut_after(4000)
    });
    place.fetch(&[BASE, "--mirror", &server.url("x")]).fails(1, &["failed 3 times in a row"]);
    assert_eq!(place.cached(), [format!("{BASE}.part"), format!("{BASE}.part.json")]);
}

#[test]
fn mistakes() {
    let place = Place::new();
    place.fetch(&["beitv2_bas_patch16_224_pt1k"]).fails(2, &["did you mean `beitv2_base_patch16_224_pt1k"]);
    place.fetch(&["zzz"]).fails(2, &["`zzz` is not a published file", "--list"]);
    place.fetch(&[BASE, "--mirror", "files/x"]).fails(2, &["--mirror files/x", "http://"]);
    place.fetch(&[BASE, "--from", "hf"]).fails(2, &["beit2 weights convert --to hf"]);
    place.fetch(&[TOKENIZER, "--from", "timm"]).fails(2, &["timm has no copy"]);
    fs::write(place.0.path().join("file"), "mine").unwrap();
    place.fetch(&[BASE, "--to", "file"]).fails(1, &["cannot create the folder file"]);
}
