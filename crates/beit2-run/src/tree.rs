//! Dotted names over TOML tables: `[optimizer] lr = 1` is the leaf `optimizer.lr`.
//!
//! Recipes and run directories both compare settings key by key; this is the only place that knows how a
//! table becomes a list of names. Arrays are leaves: they are replaced as a whole, never merged.

use toml::{Table, Value};

/// Every leaf of `table` in the order of the text, as (dotted name, value). Empty tables have no leaves.
pub(crate) fn leaves(table: &Table) -> Vec<(String, Value)> {
    fn walk(prefix: &str, table: &Table, out: &mut Vec<(String, Value)>) {
        for (key, value) in table {
            let name = join(prefix, key);
            match value {
                Value::Table(inner) => walk(&name, inner, out),
                leaf => out.push((name, leaf.clone())),
            }
        }
    }
    let mut out = Vec::new();
    walk("", table, &mut out);
    out
}

/// `prefix.key`, or `key` alone at the top.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The value at a dotted name.
pub(crate) fn get<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    let mut parts = name.split('.');
    let mut value = table.get(parts.next()?)?;
    for part in parts {
        value = value.as_table()?.get(part)?;
    }
    Some(value)
}

/// Puts `value` at a dotted name, making the tables on the way; a scalar in the way is replaced by a table.
pub(crate) fn set(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.to_owned(), value);
        }
        Some((head, rest)) => {
            let slot = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
            if !slot.is_table() {
                *slot = Value::Table(Table::new());
            }
            if let Value::Table(inner) = slot {
                set(inner, rest, value);
            }
        }
    }
}

/// Takes the value at a dotted name away, if there is one.
pub(crate) fn remove(table: &mut Table, name: &str) {
    match name.split_once('.') {
        None => {
            table.remove(name);
        }
        Some((head, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(head) {
                remove(inner, rest);
            }
        }
    }
}

/// Whether `name` is `prefix` or lies below it.
pub(crate) fn is_under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What kind of value this is, for an error message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// A value as one would type it, shortened to a line.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string().replace('\n', " ");
    if text.chars().count() <= 60 {
        return text;
    }
    let mut cut: String = text.chars().take(57).collect();
    cut.push_str("...");
    cut
}
