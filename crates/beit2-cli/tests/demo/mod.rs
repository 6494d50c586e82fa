//! `beit2 tokenizer demo`: the page is whole, and nothing is written where there is none. (That it computes the program's ids is tested
//! in a browser by `scripts/demo_test.sh`.)

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use beit2::weights;
use serde_json::Value;

use super::support::Ended;
use super::{World, tiny, world};

fn demo(world: &World, args: &[&str]) -> Ended {
    world.beit2(&[&["tokenizer", "demo"], args].concat())
}

/// The text of an element of the page.
fn part<'a>(page: &'a str, id: &str) -> &'a str {
    let begin = format!("<script type=\"text/plain\" id=\"{id}\">");
    page.split(&begin).nth(1).unwrap().split("</script>").next().unwrap()
}

#[test]
fn a_page_holds_the_model_and_asks_for_nothing() {
    let world = world();
    let told: Value = serde_json::from_str(
        &demo(&world, &["words.safetensors", "--out", "tokens.html", "--json"]).works().out,
    )
    .unwrap();
    let page = fs::read_to_string(world.path("tokens.html")).unwrap();
    assert_eq!(told["bytes"].as_u64(), Some(page.len() as u64));
    let config: Value = serde_json::from_str(part(&page, "config")).unwrap();
    assert_eq!((&config["image_size"], &config["patch_size"]), (&32.into(), &8.into()), "{config}");
    // Every tensor of the encoder, bit for bit.
    let held = weights::decode(&STANDARD.decode(part(&page, "weights")).unwrap(), "page").unwrap().tensors;
    let whole = weights::read(&world.path("words.safetensors")).unwrap().tensors;
    assert!(held.len() > 20 && held.len() < whole.len());
    for (name, data) in &whole {
        let read = name.starts_with("enc") || name == "quantize.embedding.weight";
        assert_eq!(held.get(name), read.then_some(data), "{name}");
    }
    // Nothing from elsewhere: no address, no file.
    for word in ["http:", "https:", "src=", "import ", "{{"] {
        assert!(!page.contains(word), "the page has {word}");
    }
    demo(&world, &["words.safetensors", "--out", "half.html", "--dtype", "f16"]).works();
    let half = fs::read_to_string(world.path("half.html")).unwrap();
    let (whole, half) = (part(&page, "weights").len(), part(&half, "weights").len());
    assert!(half < whole * 3 / 4, "{half} of {whole}");
    // A name that would end the element.
    let name = "</script><b>.safetensors";
    if fs::create_dir_all(world.path("</script><b>.safetensors").parent().unwrap()).is_ok() {
        fs::copy(world.path("words.safetensors"), world.path(name)).unwrap();
        demo(&world, &[name, "--out", "odd.html"]).works();
        assert!(!fs::read_to_string(world.path("odd.html")).unwrap().contains("<b>"));
    }
}

#[test]
fn mistakes_of_a_demo_leave_nothing() {
    let world = world();
    fs::write(world.path("there.html"), "mine").unwrap();
    tiny::mim(&world.path("mim.safetensors"));
    for (args, code, part) in [
        (&["words.safetensors", "--out", "x.htm"][..], 2, "x.htm must end in .html"),
        (&["words.safetensors", "--out", "there.html"], 2, "there.html already exists"),
        (&["mim.safetensors", "--out", "x.html"], 2, "mim.safetensors"),
        (&["gone", "--out", "x.html"], 1, "gone"),
        (&["words.safetensors", "--out", "gone/x.html"], 2, "the folder gone does not exist"),
    ] {
        demo(&world, args).fails(code, &[part]);
        assert!(!world.path("x.html").exists() && !world.path("x.htm").exists());
    }
    assert_eq!(fs::read_to_string(world.path("there.html")).unwrap(), "mine");
}
