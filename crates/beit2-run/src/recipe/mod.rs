//! Recipes: a TOML file plus overrides by name become one fully resolved settings value.
//!
//! The settings type itself is the schema: its `Default`, serialised, says which keys exist and of what kind
//! they are; an `Option` is a key that may be absent. So a new setting is one field, and a typing mistake in a recipe
//! is found before anything is loaded. This module checks names and kinds; whether values fit each other (more masked than existing
//! patches) is for the owner of the type.
//!
//! Start at [`resolve`].

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::tree;

mod error;
mod optional;
mod schema;

pub use error::RecipeError;
use schema::Schema;

/// What someone writes where an optional key shall have no value although the defaults or the recipe give it one.
const NONE: &str = "none";

/// Default settings, then the recipe `text`, then `overrides`, each replacing single keys of what came
/// before.
///
/// `origin` names the text in messages (its path). An override is (name, value): the name is dotted
/// (`optimizer.lr`) or any ending of it that fits one setting only (`lr`); the value is read as TOML (`1e-3`,
/// `true`, `[1, 2]`), else taken as a string, and always taken as a string where the setting is one. An `Option`
/// that is `None` is an absent key; `"none"` takes away a value that an earlier layer gave.
///
/// `alternatives` are pairs (key, other): a layer that gives the key and not the other takes the other away, because
/// the other would decide in its place (`schedule.epochs` and `schedule.steps`).
///
/// # Errors
/// Text that is not TOML, unknown or ambiguous names, values of the wrong kind, contradictory overrides.
pub fn resolve<T>(
    text: &str,
    origin: &str,
    overrides: &[(String, String)],
    alternatives: &[(&str, &str)],
) -> Result<T, RecipeError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let schema = Schema::of::<T>()?;
    let mut settings = schema.defaults.clone();
    let mut places = BTreeMap::new();

    let mut recipe = BTreeMap::new();
    for (name, value, place) in parse_recipe(text, origin)? {
        schema.check_name(&name, &value, &place)?;
        recipe.insert(name, (value, place));
    }
    for layer in [recipe, parse_overrides(overrides, &schema)?] {
        for (key, other) in alternatives {
            if layer.contains_key(*key) && !layer.contains_key(*other) {
                tree::remove(&mut settings, other);
            }
        }
        for (name, (value, place)) in layer {
            match schema.is_optional(&name) && value.as_str() == Some(NONE) {
                true => tree::remove(&mut settings, &name),
                false => tree::set(&mut settings, &name, value),
            }
            places.insert(name, place);
        }
    }

    let value = Value::Table(settings.clone());
    serde_path_to_error::deserialize(value).map_err(|error| {
        // List positions (`crops[1]`) are part of the path but not of the key.
        let path = error.path().to_string();
        let key = path.split('[').next().unwrap_or_default().trim_matches('.').to_owned();
        let key = if key == "." { String::new() } else { key };
        let place = places
            .iter()
            .find(|(name, _)| tree::is_under(name, &key) || tree::is_under(&key, name))
            .map_or_else(|| origin.to_owned(), |(_, place)| place.clone());
        let found = tree::get(&settings, &key);
        let default = tree::get(&schema.examples, &key);
        let found_text = found.map_or_else(|| "nothing".to_owned(), tree::short);
        match (default, found) {
            (Some(default), Some(found)) if !same_kind(default, found) => RecipeError::Kind {
                expected: match schema.is_optional(&key) {
                    true => format!("{} or \"{NONE}\"", tree::kind(default)),
                    false => tree::kind(default).to_owned(),
                },
                key,
                place,
                found: format!("{} ({found_text})", tree::kind(found)),
            },
            _ => RecipeError::Value {
                key,
                place,
                found: found_text,
                message: plain(&one_line(error.inner().message())),
            },
        }
    })
}

/// All settings as TOML, in the order of the type's fields. Read again by [`resolve`], the text gives the same settings:
/// an optional key without a value is left out, or says `"none"` where the type's default has one.
///
/// # Errors
/// A value that TOML cannot hold (an integer above 2^63 - 1, a map with keys that are not strings).
pub fn to_toml<T: Serialize + DeserializeOwned + Default>(settings: &T) -> Result<String, RecipeError> {
    let mut table = Table::try_from(settings).map_err(unwritable)?;
    let schema = Schema::of::<T>()?;
    for name in schema.optional() {
        if tree::get(&schema.defaults, name).is_some() && tree::get(&table, name).is_none() {
            tree::set(&mut table, name, Value::String(NONE.to_owned()));
        }
    }
    toml::to_string(&table).map_err(unwritable)
}

fn unwritable(error: toml::ser::Error) -> RecipeError {
    RecipeError::Unwritable { message: one_line(&error.to_string()) }
}

/// The comment block at the top of a recipe, `#` signs included; empty when the text starts with a key.
///
/// By convention it says what the recipe reproduces, on which hardware, in what time, with which result.
pub fn header(text: &str) -> &str {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if !line.starts_with('#') {
            break;
        }
        end += line.len();
    }
    text[..end].trim_end()
}

/// The dotted names of all settings of `T`, the optional ones too.
///
/// # Errors
/// The default cannot be written as TOML, or not be read again.
pub fn known_keys<T: Serialize + DeserializeOwned + Default>() -> Result<Vec<String>, RecipeError> {
    Ok(Schema::of::<T>()?.names)
}

/// The full names and the values of the settings that `overrides` give to a `T`.
///
/// # Errors
/// As [`resolve`], for the overrides alone.
pub fn given<T: Serialize + DeserializeOwned + Default>(
    overrides: &[(String, String)],
) -> Result<BTreeMap<String, Value>, RecipeError> {
    let given = parse_overrides(overrides, &Schema::of::<T>()?)?;
    Ok(given.into_iter().map(|(name, (value, _))| (name, value)).collect())
}

/// The dotted names of the settings that a recipe's text gives; none when it is not TOML.
pub fn text_keys(text: &str) -> Vec<String> {
    let table: Table = toml::from_str(text).unwrap_or_default();
    tree::leaves(&table).into_iter().map(|(name, _)| name).collect()
}

/// The leaves of the recipe with the place of each.
fn parse_recipe(text: &str, origin: &str) -> Result<Vec<(String, Value, String)>, RecipeError> {
    let syntax = |error: toml::de::Error| RecipeError::Syntax {
        place: place(origin, text, error.span()),
        message: one_line(error.message()),
    };
    let spanned = DeTable::parse(text).map_err(syntax)?;
    let table: Table = toml::from_str(text).map_err(syntax)?;
    let mut lines = BTreeMap::new();
    note_lines("", spanned.get_ref(), text, &mut lines);
    let with_place = |(name, value): (String, Value)| {
        let place = match lines.get(&name) {
            Some(line) => format!("{origin} line {line}"),
            None => origin.to_owned(),
        };
        (name, value, place)
    };
    Ok(tree::leaves(&table).into_iter().map(with_place).collect())
}

/// Records on which line each leaf's key stands.
fn note_lines(prefix: &str, table: &DeTable<'_>, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = tree::join(prefix, key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            note_lines(&name, inner, text, lines);
        } else {
            lines.insert(name, line_of(text, key.span().start));
        }
    }
}

/// Overrides under their full names, checked against each other.
fn parse_overrides(
    overrides: &[(String, String)],
    schema: &Schema,
) -> Result<BTreeMap<String, (Value, String)>, RecipeError> {
    let mut result: BTreeMap<String, (Value, String)> = BTreeMap::new();
    for (typed, text) in overrides {
        let place = format!("the override `{typed}={text}`");
        let name = schema.full_name(typed.trim(), &place)?;
        let example = tree::get(&schema.examples, &name);
        let leaves = match parse_value(text) {
            // `name=300` is a name where the setting is a name.
            value if example.is_some_and(Value::is_str) && !value.is_str() => {
                vec![(name, Value::String(text.trim().to_owned()))]
            }
            Value::Table(inner) => tree::leaves(&inner)
                .into_iter()
                .map(|(below, value)| (tree::join(&name, &below), value))
                .collect(),
            value => vec![(name, value)],
        };
        for (name, value) in leaves {
            schema.check_name(&name, &value, &place)?;
            match result.get(&name) {
                Some((earlier, _)) if *earlier != value => {
                    return Err(RecipeError::Conflict {
                        key: name,
                        first: tree::short(earlier),
                        second: tree::short(&value),
                    });
                }
                _ => result.insert(name, (value, place.clone())),
            };
        }
    }
    Ok(result)
}

/// A TOML value, or the text itself as a string.
fn parse_value(text: &str) -> Value {
    let text = text.trim();
    // A one-key document, so that a value means here exactly what it means in a recipe.
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// What a type says of a value that it cannot hold, for people: counts are whole numbers that are not negative.
fn plain(message: &str) -> String {
    let wants_a_count = ["u8", "u16", "u32", "u64", "usize"]
        .iter()
        .any(|kind| message.ends_with(&format!("expected {kind}")));
    match message.starts_with("invalid value: integer") && wants_a_count {
        true if message.contains('-') => "it must be a whole number of 0 or more".to_owned(),
        true => "the number is too large".to_owned(),
        false => message.to_owned(),
    }
}

fn same_kind(default: &Value, found: &Value) -> bool {
    default.same_type(found) || (default.is_float() && found.is_integer())
}

fn place(origin: &str, text: &str, span: Option<Range<usize>>) -> String {
    match span {
        Some(span) => format!("{origin} line {}", line_of(text, span.start)),
        None => origin.to_owned(),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.trim().lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
