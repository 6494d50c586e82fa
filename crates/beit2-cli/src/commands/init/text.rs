//! A recipe as a file: all settings, and beside each chosen one the reason.

use std::collections::HashMap;

use beit2_run::recipe;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::plan::{Planned, Settings};

/// Keys that others decide: a schedule of steps has no use for epochs.
const DECIDED: [&str; 2] = ["schedule.epochs", "schedule.warmup_epochs"];

/// Columns before a comment, where the setting leaves room.
const COLUMN: usize = 34;

/// The recipe's text under a comment of these lines.
pub fn recipe_text(stage: &Planned, header: &[String]) -> anyhow::Result<String> {
    let body = match &stage.settings {
        Settings::Tokenizer(settings) => body(settings.as_ref(), stage)?,
        Settings::Pretrain(settings) => body(settings.as_ref(), stage)?,
        Settings::Finetune(settings) => body(settings.as_ref(), stage)?,
        Settings::Segment(settings) => body(settings.as_ref(), stage)?,
    };
    let header: String = header.iter().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
    Ok(format!("{header}\n{body}"))
}

fn body<S: Serialize + DeserializeOwned + Default>(settings: &S, stage: &Planned) -> anyhow::Result<String> {
    let comments: HashMap<&str, &str> =
        stage.comments.iter().map(|(key, why)| (*key, why.as_str())).collect();
    let mut table = String::new();
    let mut text = String::new();
    for line in recipe::to_toml(settings)?.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        }
        let key = line.split_once(" = ").map(|(key, _)| format!("{table}{key}"));
        match key.as_deref() {
            Some(key) if DECIDED.contains(&key) => continue,
            Some(key) if comments.contains_key(key) => {
                text.push_str(&format!("{line:COLUMN$}  # {}\n", comments[key]));
            }
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    Ok(text)
}
