//! What can be wrong with a recipe.

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
