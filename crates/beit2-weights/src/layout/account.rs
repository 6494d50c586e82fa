//! The account of a state dict: every key with what happens to it, as a value that can be printed.

use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;

use crate::layout::tables::Action;
use crate::layout::{Layout, LayoutError, pattern};

/// What happens to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is a tensor of the model.
    Used {
        /// Its canonical (official) name.
        canonical: String,
        /// Whether it counts as a parameter (docs/method.md §10.1): codebooks and batch statistics do not.
        parameter: bool,
    },
    /// It is a third of a tensor of the model.
    Joined {
        /// The canonical name of the whole.
        canonical: String,
        /// Which third of the rows: query 0, key 1, value 2.
        part: usize,
    },
    /// It follows from other tensors; the text says how.
    Derived(&'static str),
    /// It is not needed; the text says why.
    Ignored(&'static str),
}

/// A key and its fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name in the file, without [`Account::prefix`].
    pub key: String,
    /// What happens to it.
    pub fate: Fate,
}

/// The account of a state dict, in the order of its keys. `Display` prints one line per kind of key, layers summed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What the state dict is.
    pub layout: Layout,
    /// What wrappers had put before all names, such as `module.`; empty for plain names.
    pub prefix: String,
    /// All keys.
    pub entries: Vec<Entry>,
}

impl Account {
    /// The canonical names of the model's tensors, each once, in the order of the file.
    pub fn canonical_names(&self) -> Vec<&str> {
        let mut seen = IndexMap::new();
        for entry in &self.entries {
            if let Fate::Used { canonical, .. } | Fate::Joined { canonical, .. } = &entry.fate {
                seen.insert(canonical.as_str(), ());
            }
        }
        seen.into_keys().collect()
    }

    /// How many keys are used (or joined), derived, and ignored.
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in &self.entries {
            counts[match entry.fate {
                Fate::Used { .. } | Fate::Joined { .. } => 0,
                Fate::Derived(_) => 1,
                Fate::Ignored(_) => 2,
            }] += 1;
        }
        counts
    }
}

/// Looks up every key in the layout's table.
pub(super) fn explain(layout: Layout, prefix: String, keys: &[&str]) -> Result<Account, LayoutError> {
    let table =
        layout.table().ok_or_else(|| LayoutError::Unsupported(format!("there is no layout {layout}")))?;
    let mut entries = Vec::with_capacity(keys.len());
    // Which key holds a canonical name (and which third of it).
    let mut holders: HashMap<(String, usize), &str> = HashMap::new();
    for &key in keys {
        let Some((action, canonical)) = table.meaning(key) else {
            let nearest = table.nearest(key);
            return Err(LayoutError::UnknownKey { key: key.to_string(), layout, nearest });
        };
        let part = if let Action::Rows(_, part) = action { part } else { 0 };
        if !canonical.is_empty()
            && let Some(first) = holders.insert((canonical.clone(), part), key)
        {
            return Err(LayoutError::Twice { first: first.to_string(), second: key.to_string(), canonical });
        }
        let fate = match action {
            Action::Use(_) => Fate::Used { canonical, parameter: true },
            Action::State(_) => Fate::Used { canonical, parameter: false },
            Action::Rows(_, part) => Fate::Joined { canonical, part },
            Action::Derived(how) => Fate::Derived(how),
            Action::Ignored(why) => Fate::Ignored(why),
        };
        entries.push(Entry { key: key.to_string(), fate });
    }
    Ok(Account { layout, prefix, entries })
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [used, derived, ignored] = self.counts();
        write!(f, "{}: {} tensors, {used} used, {derived} derived, ", self.layout, self.entries.len())?;
        write!(f, "{ignored} ignored")?;
        if !self.prefix.is_empty() {
            write!(f, " (after the prefix `{}`)", self.prefix)?;
        }
        writeln!(f)?;
        // Teachers have hundreds of keys of one fate: ignored keys are one line per reason and first segment.
        let mut lines: IndexMap<(String, String), usize> = IndexMap::new();
        for Entry { key, fate } in &self.entries {
            let name = match fate {
                Fate::Ignored(_) => format!("{}.…", key.split('.').next().unwrap_or(key)),
                _ => pattern::without_numbers(key),
            };
            let text = match fate {
                Fate::Used { canonical, .. } if canonical == key => "used".to_string(),
                Fate::Used { canonical, .. } => format!("used as {}", pattern::without_numbers(canonical)),
                Fate::Joined { canonical, part } => {
                    format!("rows {} of 3 of {}", part + 1, pattern::without_numbers(canonical))
                }
                Fate::Derived(how) => format!("derived: {how}"),
                Fate::Ignored(why) => format!("ignored: {why}"),
            };
            *lines.entry((name, text)).or_default() += 1;
        }
        let width = lines.keys().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for ((name, text), count) in lines {
            writeln!(f, "{count:>6} {name:<width$}  {text}")?;
        }
        Ok(())
    }
}
