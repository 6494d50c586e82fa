//! The command line as a whole: every example can be pasted, every help fits its command.

use super::*;

#[test]
fn flags_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_wrong_flag_is_one_line_with_a_suggestion() {
    let text = parse_from(["beit2", "knn", "--wieghts", "x"]).unwrap_err().to_string();
    assert!(!text.contains('\n') && text.contains("'--wieghts'") && text.contains("'--weights'"), "{text}");
}

/// Every command with its help: `beit2`, the groups, and the commands in them.
fn helps() -> Vec<(String, String)> {
    fn walk(command: &mut clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        found.push((path.to_owned(), command.get_after_help().map(ToString::to_string).unwrap_or_default()));
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            let path = format!("{path} {}", inner.get_name());
            walk(inner, &path, found);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut found = Vec::new();
    walk(&mut command, "beit2", &mut found);
    found
}

/// The commands among the lines of a help, each with the lines that a `\` adds to it.
fn examples(help: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut continued = false;
    for line in help.lines() {
        match found.last_mut() {
            Some(last) if continued => *last += &format!("\n{line}"),
            _ if line.trim_start().starts_with("beit2 ") => found.push(line.to_owned()),
            _ => continue,
        }
        continued = line.ends_with('\\');
    }
    found
}

/// The words of every call of beit2 in a command, as a shell splits them.
#[cfg(unix)]
fn words(example: &str, dir: &std::path::Path) -> Vec<Vec<String>> {
    let calls = dir.join("calls");
    let script = format!("beit2() {{ printf '%s\\0' \"$@\" >> calls; printf '\\n' >> calls; }}\n{example}\n");
    let home = [("HOME", dir), ("PROFILE", std::path::Path::new("profile"))];
    let mut shell = std::process::Command::new("sh");
    shell.args(["-euc", &script]).current_dir(dir).envs(home);
    assert!(shell.status().unwrap().success(), "{example}");
    let text = std::fs::read_to_string(&calls).unwrap();
    std::fs::remove_file(calls).unwrap();
    text.lines().map(|call| call.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Pasted into a shell, every example is a command that this program takes. A wider line would be wrapped by the
/// help, without a `\`.
#[cfg(unix)]
#[test]
fn every_example_of_every_help_can_be_pasted() {
    let dir = tempfile::tempdir().unwrap();
    for folder in
        [".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions", ".config/elvish"]
    {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    for (path, help) in helps() {
        let found = examples(&help);
        let own = |example: &&String| example.trim_start().starts_with(&path);
        assert!(found.iter().any(|example| own(&example)), "{path} has no example: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{path}: wider than a terminal: {line}");
        }
        for example in found {
            assert!(!example.contains('…') && !example.contains('<'), "{path}: a placeholder in {example}");
            let calls = words(&example, dir.path());
            assert!(!calls.is_empty(), "{path}: no command in {example}");
            for call in calls {
                let line = std::iter::once("beit2".to_owned()).chain(call);
                if let Err(why) = parse_from(line) {
                    panic!("{path}: {example}: {why:#}");
                }
            }
        }
    }
}

/// The recipe of an example exists, belongs to the command and has the keys of --set.
#[test]
fn examples_name_recipes_and_settings_that_exist() {
    let named: Vec<String> = crate::recipes::all().map(|recipe| recipe.name.clone()).collect();
    let mut seen = 0;
    for (path, help) in helps() {
        for example in examples(&help) {
            let words: Vec<&str> = example.split_whitespace().filter(|&word| word != "\\").collect();
            for word in &words {
                let Some(recipe) =
                    named.contains(&(*word).to_owned()).then(|| crate::recipes::find(word).unwrap())
                else {
                    continue;
                };
                let command = crate::stage::command_of(&recipe.stage().unwrap()).unwrap();
                let line = words[1..].join(" ");
                let shows = line.starts_with("recipes show") || line.starts_with("recipes memory");
                assert!(
                    shows || words[1..].join(" ").starts_with(command),
                    "{path}: {word} is a recipe of `beit2 {command}`, not of {example}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen} recipes in all examples");
}

/// What a command says of itself and its flags, built as for `--help`.
fn texts() -> Vec<(String, String, Vec<String>)> {
    fn walk(command: &clap::Command, path: &str, found: &mut Vec<(String, String, Vec<String>)>) {
        let of = |arg: &clap::Arg| arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
        let text: String = command.get_arguments().filter_map(of).map(|help| help + "\n").collect();
        let flags = command.get_arguments().filter_map(|arg| arg.get_long().map(|long| format!("--{long}")));
        found.push((path.to_owned(), text, flags.collect()));
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            walk(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut found = Vec::new();
    walk(&command, "beit2", &mut found);
    found
}

#[test]
fn help_names_no_flag_that_the_command_lacks() {
    for (path, text, flags) in texts() {
        for word in text.split(|c: char| !(c.is_ascii_lowercase() || c == '-')) {
            let is_flag = word.len() > 3 && word.starts_with("--");
            assert!(!is_flag || flags.iter().any(|flag| flag == word), "{path} has no {word}: {text}");
        }
    }
}

#[test]
fn shared_flags_say_what_they_mean_in_each_command() {
    let texts = texts();
    let of = |path: &str| &texts.iter().find(|(at, ..)| at == path).unwrap().1;
    for (path, says, not) in [
        ("beit2 teacher distill", "there is no default", "default: the paper's"),
        ("beit2 tokenizer train", "[default: vqkd_base_clip_100e]", "the paper's"),
        ("beit2 segment train", "images/, masks/ and classes.txt", "bundled:train"),
        ("beit2 finetune", "one sub-folder per class", "the paper's"),
        ("beit2 finetune", "Several devices", "bundled:val"),
        ("beit2 predict", "`beit2 doctor` shows what", "everal devices"),
        ("beit2 bench infer", "Forward passes per round", "frozen model"),
        ("beit2 weights fetch", "timm's safetensors", "Hugging Face"),
        ("beit2 eval", "else ignore, as in the published", "`eval`"),
        ("beit2 data check", "[default: apply]", "in the run"),
    ] {
        let text = of(path);
        assert!(text.contains(says) && !text.contains(not), "{path}: {says} / {not}: {text}");
    }
}

/// The same for every page: what a command of the documentation says is what this program takes, and its recipe exists.
#[cfg(unix)]
#[test]
fn every_command_of_the_documentation_parses() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages: Vec<std::path::PathBuf> =
        ["docs", "docs/formats", "docs/benchmarks", ".", "crates/beit2-cli"]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
            .collect();
    pages.sort();
    let dir = tempfile::tempdir().unwrap();
    for folder in [".local/share/bash-completion/completions", ".zfunc"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let mut count = 0;
    let mut wrong = Vec::new();
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let mut blocks = text.lines().filter(|line| line.starts_with("    ")).collect::<Vec<_>>().join("\n");
        blocks.push('\n');
        for example in examples(&blocks) {
            for call in words(&example, dir.path()) {
                count += 1;
                let parsed = parse_from(std::iter::once("beit2".to_owned()).chain(call));
                let Err(why) = parsed else { continue };
                // `--help` and `--version` are answers of the parser.
                if why.downcast_ref().is_none_or(|Flags(answer, _)| answer.use_stderr()) {
                    wrong.push(format!("{}: {}: {why:#}", page.display(), example.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 80, "{count} commands");
}

#[test]
fn a_command_knows_its_flags() {
    let of = |line: &str| flags_of(line.split(' ').map(OsString::from));
    let train = of("beit2 tokenizer train x.toml --set a=1");
    assert!(train.contains(&"--set".to_owned()) && !train.contains(&"--teacher".to_owned()), "{train:?}");
    assert!(of("beit2 knn --weights x").contains(&"--teacher".to_owned()));
}
