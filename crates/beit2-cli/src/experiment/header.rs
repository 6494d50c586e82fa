//! What is printed before a run.

use std::path::Path;

use toml::{Table, Value};

use super::inputs::Inputs;
use beit2_run::thousands;

use crate::device::DeviceSpec;
use crate::machine;
use crate::output;
use crate::recipes::Recipe;
use crate::stage::Stage;

/// Run, recipe, device, images, budget and all settings.
pub(super) fn header<S: Stage>(
    settings: &S,
    found: &Recipe,
    out: &Path,
    inputs: &Inputs,
    device: &DeviceSpec,
) -> anyhow::Result<String> {
    let classes = match inputs.classes {
        0 => String::new(),
        n if S::USES_CLASSES => format!(", {n} classes"),
        n => format!(", {n} classes (not used)"),
    };
    let data = &settings.tables().data.train;
    let mut rows = vec![
        ("run", out.display().to_string()),
        ("recipe", found.origin.trim_start_matches("recipe ").to_owned()),
        ("device", machine::describe(device)),
        ("data", format!("{data}: {} images{classes}", thousands(inputs.images as u64))),
        ("budget", inputs.budget(settings)),
    ];
    for (at, line) in compact(&Table::try_from(settings)?).into_iter().enumerate() {
        rows.push((if at == 0 { "settings" } else { "" }, line));
    }
    Ok(output::pairs(&rows))
}

/// All settings on few lines: `optimizer  lr 5e-5, base_batch_size 128, …`.
fn compact(table: &Table) -> Vec<String> {
    const WIDTH: usize = 100;
    let mut groups: Vec<(&str, Vec<(String, String)>)> = vec![("", Vec::new())];
    for (key, value) in table {
        match value {
            Value::Table(inner) => groups.push((key, leaves("", inner))),
            value => groups[0].1.push((key.clone(), plain(value))),
        }
    }
    let names = groups.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (name, values) in groups {
        let mut line = format!("{name:names$} ");
        let empty = line.len();
        for (key, value) in values {
            let setting = format!(" {key} {value}");
            if line.len() + setting.len() > WIDTH && line.len() > empty {
                lines.push(std::mem::replace(&mut line, " ".repeat(empty)));
            }
            line.push_str(&setting);
            line.push(',');
        }
        lines.push(line.trim_end_matches(',').to_owned());
    }
    lines
}

fn leaves(prefix: &str, table: &Table) -> Vec<(String, String)> {
    let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    table
        .iter()
        .flat_map(|(key, value)| match value {
            Value::Table(inner) => leaves(&name(key), inner),
            value => vec![(name(key), plain(value))],
        })
        .collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_fit_few_lines() {
        let settings = beit2::pretrain::PretrainRecipe::default();
        let lines = compact(&Table::try_from(settings).unwrap());
        assert!(lines.len() < 20 && lines.iter().all(|line| line.chars().count() <= 101), "{lines:#?}");
        let text = lines.join("\n");
        assert!(text.contains("min_lr 1e-5") && text.contains("vit.width 768"), "{text}");
        assert!(text.starts_with(&format!("{:9}  stage pretrain", "")), "{text}");
    }
}
