//! What a run records about where it comes from, and the command that continues it.

use std::path::Path;

use beit2_run::environment::Environment;
use toml::{Table, Value};

use super::inputs::Inputs;
use crate::arguments;
use crate::device::DeviceSpec;
use crate::machine::SOFTWARE;
use crate::recipes::Recipe;

/// What `run.toml` says after the recipe: what identifies the inputs, then where and how the run runs (which may differ
/// when it is continued).
pub(super) fn provenance(
    found: &Recipe,
    overrides: &[(String, String)],
    inputs: &Inputs,
    device: &DeviceSpec,
) -> anyhow::Result<String> {
    let mut environment = Table::try_from(Environment::detect(SOFTWARE))?;
    environment.insert("device".into(), device.to_string().into());
    environment.insert("recipe".into(), found.origin.as_str().into());
    environment.insert("command".into(), continue_command().into());
    let list = overrides.iter().map(|(key, value)| Value::String(format!("{key}={value}")));
    environment.insert("overrides".into(), Value::Array(list.collect()));
    let fingerprint: Table =
        inputs.fingerprints.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
    let mut rest = Table::new();
    rest.insert("fingerprint".into(), fingerprint.into());
    rest.insert("environment".into(), environment.into());
    Ok(toml::to_string(&rest)?)
}

/// This command again, without what would begin anew.
pub(super) fn continue_command() -> String {
    command_line(without_restart(arguments::texts().skip(1)))
}

/// Arguments without `--restart`, which has a value in `beit2 run` and none in the training commands.
fn without_restart(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut rest = arguments.into_iter().peekable();
    let has_value = rest.peek().is_some_and(|command| command == "run");
    let mut kept = Vec::new();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--restart" if has_value => drop(rest.next()),
            "--restart" => {}
            other if other.starts_with("--restart=") => {}
            _ => kept.push(argument),
        }
    }
    kept
}

/// A command of this program as a shell reads it.
pub(super) fn command_line(arguments: impl IntoIterator<Item = String>) -> String {
    let program = arguments::texts().next().unwrap_or_default();
    let program =
        Path::new(&program).file_name().map_or("beit2".into(), |name| name.to_string_lossy().into_owned());
    let arguments = arguments.into_iter().map(|argument| quoted(&argument));
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// An argument as a shell reads it.
fn quoted(argument: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || "-_=./:,+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(safe) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_again_restarts_nothing() {
        let again = |line: &str| without_restart(line.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(again("pretrain x.toml --restart --seed 1"), "pretrain x.toml --seed 1");
        assert_eq!(again("run photos-beit2 --restart finetune --quiet"), "run photos-beit2 --quiet");
        assert_eq!(again("run photos-beit2 --restart=finetune"), "run photos-beit2");
    }

    #[test]
    fn arguments_survive_a_shell() {
        assert_eq!(quoted("lr=1e-3"), "lr=1e-3");
        assert_eq!(quoted("my images"), "'my images'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("x-{000..003}.tar"), "'x-{000..003}.tar'");
    }
}
