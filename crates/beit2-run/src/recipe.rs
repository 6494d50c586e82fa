//! Recipes: a TOML file plus overrides by name become one fully resolved settings value.
//!
//! The settings type itself is the schema: its `Default`, serialised, says which keys exist and of what kind
//! they are. So a new setting is one field, and a typing mistake in a recipe is found before anything is
//! loaded. This module checks names and kinds; whether values fit each other (more masked than existing
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

/// Why a recipe cannot be used. Each message is one sentence with the key and its place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML (this includes a key that is given twice in the file).
    #[error("{place} is not valid TOML: {message}")]
    Syntax {
        /// File and line, or the override.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// No setting has this name.
    #[error("unknown key `{key}` in {place}{}", hint(.suggestion))]
    UnknownKey {
        /// The dotted name as written.
        key: String,
        /// File and line, or the override.
        place: String,
        /// The nearest known name.
        suggestion: Option<String>,
    },
    /// An override's short name fits more than one setting.
    #[error("`{key}` in {place} could be {}; write the full name", or_list(.candidates))]
    Ambiguous {
        /// The short name as written.
        key: String,
        /// The override.
        place: String,
        /// All settings that end in this name.
        candidates: Vec<String>,
    },
    /// The value is of another kind than the setting.
    #[error("`{key}` in {place} must be {expected}, found {found}")]
    Kind {
        /// The dotted name.
        key: String,
        /// File and line, or the override.
        place: String,
        /// What the setting takes.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The kind is right but the settings type refuses the value (negative count, unknown variant, ...).
    #[error("`{key}` in {place} cannot be {found}: {message}")]
    Value {
        /// The dotted name.
        key: String,
        /// File and line, or the override.
        place: String,
        /// What is there.
        found: String,
        /// What the settings type says.
        message: String,
    },
    /// Two overrides set the same key to different values.
    #[error("`{key}` is set to both {first} and {second}; give it once")]
    Conflict {
        /// The dotted name.
        key: String,
        /// The earlier value.
        first: String,
        /// The later value.
        second: String,
    },
    /// The settings cannot be written as TOML (an integer above 2^63 - 1, for example).
    #[error("the settings cannot be written as TOML: {message}")]
    Unwritable {
        /// What the serialiser says.
        message: String,
    },
}

fn hint(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; no setting has a similar name".to_owned(),
    }
}

fn or_list(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    quoted.join(" or ")
}

/// [`resolve_with`] for a settings type whose serialised default shows every key.
///
/// # Errors
/// As [`resolve_with`].
pub fn resolve<T>(text: &str, origin: &str, overrides: &[(String, String)]) -> Result<T, RecipeError>
where
    T: Serialize + DeserializeOwned + Default,
{
    resolve_with(text, origin, overrides, &[])
}

/// Default settings, then the recipe `text`, then `overrides`, each replacing single keys of what came
/// before.
///
/// `origin` names the text in messages (its path). An override is (name, value): the name is dotted
/// (`optimizer.lr`) or any ending of it that fits one setting only (`lr`); the value is read as TOML (`1e-3`,
/// `true`, `[1, 2]`), else taken as a string, and always taken as a string where the default is one.
/// `known_extra` lists the keys that the serialised default does not show because they are `None`; everything
/// below such a key is left to `T` to check.
///
/// # Errors
/// Text that is not TOML, unknown or ambiguous names, values of the wrong kind, contradictory overrides.
pub fn resolve_with<T>(
    text: &str,
    origin: &str,
    overrides: &[(String, String)],
    known_extra: &[&str],
) -> Result<T, RecipeError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let schema = Schema::of::<T>(known_extra)?;
    let mut settings = schema.defaults.clone();
    let mut places = BTreeMap::new();

    for (name, value, place) in parse_recipe(text, origin)? {
        schema.check_name(&name, &value, &place)?;
        tree::set(&mut settings, &name, value);
        places.insert(name, place);
    }
    for (name, (value, place)) in parse_overrides(overrides, &schema)? {
        tree::set(&mut settings, &name, value);
        places.insert(name, place);
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
        let default = tree::get(&schema.defaults, &key);
        let found_text = found.map_or_else(|| "nothing".to_owned(), tree::short);
        match (default, found) {
            (Some(default), Some(found)) if !same_kind(default, found) => RecipeError::Kind {
                key,
                place,
                expected: tree::kind(default).to_owned(),
                found: format!("{} ({found_text})", tree::kind(found)),
            },
            _ => RecipeError::Value {
                key,
                place,
                found: found_text,
                message: one_line(error.inner().message()),
            },
        }
    })
}

/// All settings as TOML, every value printed, in the order of the type's fields.
///
/// # Errors
/// A value that TOML cannot hold (an integer above 2^63 - 1, a map with keys that are not strings).
pub fn to_toml<T: Serialize>(settings: &T) -> Result<String, RecipeError> {
    toml::to_string(settings)
        .map_err(|error| RecipeError::Unwritable { message: one_line(&error.to_string()) })
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

/// The dotted names of all settings of `T`: the serialised default's, then `known_extra`.
///
/// # Errors
/// The default cannot be written as TOML.
pub fn known_keys<T: Serialize + Default>(known_extra: &[&str]) -> Result<Vec<String>, RecipeError> {
    Ok(Schema::of::<T>(known_extra)?.names)
}

/// What the settings type says about its keys.
struct Schema {
    defaults: Table,
    names: Vec<String>,
    extra: Vec<String>,
}

impl Schema {
    fn of<T: Serialize + Default>(known_extra: &[&str]) -> Result<Self, RecipeError> {
        let defaults = Table::try_from(T::default())
            .map_err(|error| RecipeError::Unwritable { message: one_line(&error.to_string()) })?;
        let extra: Vec<String> = known_extra.iter().map(|&name| name.to_owned()).collect();
        let mut names: Vec<String> = tree::leaves(&defaults).into_iter().map(|(name, _)| name).collect();
        for name in &extra {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(Self { defaults, names, extra })
    }

    fn is_known(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name) || self.extra.iter().any(|prefix| tree::is_under(name, prefix))
    }

    fn is_group(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.len() > name.len() && tree::is_under(known, name))
    }

    fn check_name(&self, name: &str, value: &Value, place: &str) -> Result<(), RecipeError> {
        if self.is_known(name) {
            return Ok(());
        }
        if self.is_group(name) {
            return Err(RecipeError::Kind {
                key: name.to_owned(),
                place: place.to_owned(),
                expected: "a table of settings".to_owned(),
                found: format!("{} ({})", tree::kind(value), tree::short(value)),
            });
        }
        Err(RecipeError::UnknownKey {
            key: name.to_owned(),
            place: place.to_owned(),
            suggestion: suggest(name, &self.names),
        })
    }

    /// The full name for what someone typed: itself, or the only setting that ends in it.
    fn full_name(&self, typed: &str, place: &str) -> Result<String, RecipeError> {
        if self.is_known(typed) || self.is_group(typed) {
            return Ok(typed.to_owned());
        }
        let ending = format!(".{typed}");
        let candidates: Vec<String> =
            self.names.iter().filter(|name| name.ends_with(&ending)).cloned().collect();
        match candidates.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(RecipeError::UnknownKey {
                key: typed.to_owned(),
                place: place.to_owned(),
                suggestion: suggest(typed, &self.names),
            }),
            _ => Err(RecipeError::Ambiguous { key: typed.to_owned(), place: place.to_owned(), candidates }),
        }
    }
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
        let default = tree::get(&schema.defaults, &name);
        let leaves = match parse_value(text) {
            // `name=300` is a name where the setting is a name.
            value if default.is_some_and(Value::is_str) && !value.is_str() => {
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

fn same_kind(default: &Value, found: &Value) -> bool {
    default.same_type(found) || (default.is_float() && found.is_integer())
}

/// The known name that someone most likely meant.
fn suggest(typed: &str, names: &[String]) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |name: &String| {
        let whole = strsim::jaro_winkler(typed, name);
        // A right name in the wrong table is a likelier mistake than a similar spelling of the whole path.
        let end = strsim::normalized_damerau_levenshtein(&last(typed), &last(name));
        whole.max(0.97 * end)
    };
    let best = names.iter().map(|name| (score(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.75).then(|| best.1.clone())
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
#[path = "recipe_tests.rs"]
mod tests;
