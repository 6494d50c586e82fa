//! The names and kinds of a settings type's keys.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::optional::optional_keys;
use super::{RecipeError, one_line, unwritable};
use crate::suggest::suggest;
use crate::tree;

/// What the settings type says about its keys.
pub(super) struct Schema {
    /// The serialised default: without the keys that are `None`.
    pub(super) defaults: Table,
    /// A value of the right kind for every key.
    pub(super) examples: Table,
    /// Every key.
    pub(super) names: Vec<String>,
    optional: BTreeMap<String, Value>,
}

impl Schema {
    pub(super) fn of<T: Serialize + DeserializeOwned + Default>() -> Result<Self, RecipeError> {
        let defaults = Table::try_from(T::default()).map_err(unwritable)?;
        let optional = optional_keys::<T>(&defaults)
            .map_err(|error| RecipeError::Unwritable { message: one_line(error.message()) })?;
        let mut examples = defaults.clone();
        for (name, example) in &optional {
            if tree::get(&defaults, name).is_none() {
                tree::set(&mut examples, name, example.clone());
            }
        }
        let names = tree::leaves(&examples).into_iter().map(|(name, _)| name).collect();
        Ok(Self { defaults, examples, names, optional })
    }

    /// Whether the key may be absent.
    pub(super) fn is_optional(&self, name: &str) -> bool {
        self.optional.contains_key(name)
    }

    /// The keys that may be absent.
    pub(super) fn optional(&self) -> impl Iterator<Item = &str> {
        self.optional.keys().map(String::as_str)
    }

    fn is_known(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn is_group(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.len() > name.len() && tree::is_under(known, name))
    }

    pub(super) fn check_name(&self, name: &str, value: &Value, place: &str) -> Result<(), RecipeError> {
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
            suggestion: self.suggest(name),
        })
    }

    /// The full name for what someone typed: itself, or the only setting that ends in it.
    pub(super) fn full_name(&self, typed: &str, place: &str) -> Result<String, RecipeError> {
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
                suggestion: self.suggest(typed),
            }),
            _ => Err(RecipeError::Ambiguous { key: typed.to_owned(), place: place.to_owned(), candidates }),
        }
    }

    fn suggest(&self, typed: &str) -> Option<String> {
        suggest(typed, self.names.iter().map(String::as_str)).map(str::to_owned)
    }
}
