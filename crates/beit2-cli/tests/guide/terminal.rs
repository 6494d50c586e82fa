//! Completions of shells, and manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::support::World;

#[cfg(unix)]
#[test]
fn bash_completes_commands_and_flags() {
    let world = World::new();
    let script = world.beit2(&["completions", "bash"]);
    fs::write(world.path("beit2.bash"), &script.works().out).unwrap();
    let offers = |words: &[&str]| {
        let (word, before) = (words[words.len() - 1], words[words.len() - 2]);
        let line = format!(
            "source beit2.bash; COMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=(); _beit2 beit2 '{word}' '{before}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1
        );
        let shell =
            Command::new("bash").args(["--norc", "-c", &line]).current_dir(world.root()).output().unwrap();
        assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
        String::from_utf8(shell.stdout).unwrap()
    };
    let checked = Command::new("bash").args(["-n", "beit2.bash"]).current_dir(world.root()).status().unwrap();
    assert!(checked.success());
    assert_eq!(offers(&["beit2", "pretrain", "--tok"]).trim(), "--tokenizer");
    assert_eq!(offers(&["beit2", "pret"]).trim(), "pretrain");
    assert_eq!(offers(&["beit2", "weights", "ver"]).trim(), "verify");
}

#[test]
fn every_shell_has_completions() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = world.beit2(&["completions", shell]);
        let text = &script.works().out;
        assert!(text.contains("pretrain") && text.contains("tokenizer"), "{shell}: {text}");
    }
    world.beit2(&["completions", "tcsh"]).fails(2, &["tcsh", "bash", "zsh", "fish", "powershell", "elvish"]);
}

#[test]
fn every_command_has_a_manual_page() {
    let world = World::new();
    let one = world.beit2(&["man"]);
    assert!(one.works().out.contains(".TH beit2 1"), "{}", one.out);
    world.beit2(&["man", "-o", "share/man1"]).works();
    let names: BTreeSet<String> = fs::read_dir(world.path("share/man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["beit2.1", "beit2-pretrain.1", "beit2-tokenizer.1", "beit2-weights-fetch.1", "beit2-man.1"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert!(names.iter().all(|name| name.starts_with("beit2") && !name.contains("help")), "{names:?}");
    let page = |name: &str| fs::read_to_string(world.path("share/man1").join(name)).unwrap();
    for name in &names {
        let text = page(name);
        for part in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLES", "beit2"] {
            assert!(text.contains(part), "{name}: no {part} in {text}");
        }
    }
    assert!(page("beit2-pretrain.1").contains("\\-\\-tokenizer"), "{}", page("beit2-pretrain.1"));
    // A second time: an update of the program.
    world.beit2(&["man", "-o", "share/man1"]).works();
}
