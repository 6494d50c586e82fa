//! Which tensors of a pickle are meant, and what they are called.

use crate::checkpoint::Root;
use crate::pickle::{Id, Node, Pickle};
use crate::torch::rebuild::{self, Spec};

/// How deep dictionaries may be nested inside the chosen entry. An optimizer needs 3, a TorchScript CLIP 8.
const MAX_DEPTH: usize = 16;
/// How many values are visited, and how long all names together may be. Why: a pickle can refer to one dictionary many
/// times, so a small file can describe more names than there are atoms.
const MAX_VISITS: usize = 1 << 19;
const MAX_NAME_BYTES: usize = 64 << 20;

/// A tensor's name, and what it is or why it cannot be read.
type Found<'a> = (String, Result<Spec<'a>, String>);

/// The entries of a file that hold tensors, by name: one of them is read, and the others could be.
pub(crate) fn entries(pickle: &Pickle) -> Vec<String> {
    // Why two: the centre of DINO's loss is a single tensor, and no model.
    const FEWEST: usize = 2;
    let tensors = |id: Id| {
        let pairs = pickle.pairs(id).unwrap_or(&[]).iter();
        pairs.filter(|(_, value)| rebuild::tensor(pickle, *value).is_some()).take(FEWEST).count()
    };
    let pairs = pickle.pairs(pickle.top).unwrap_or(&[]).iter();
    let found = pairs.filter(|(_, value)| tensors(*value) >= FEWEST);
    found.filter_map(|(key, _)| key_text(pickle, *key)).take(64).collect()
}

/// Chooses the root and lists its tensors. The error is a sentence without its subject, the file.
pub(crate) fn select<'a>(
    pickle: &'a Pickle,
    requested: Option<&str>,
) -> Result<(Root, Vec<Found<'a>>), String> {
    let top = pickle.top;
    let mut walk = Walk { pickle, script: false, visits: 0, name_bytes: 0, found: Vec::new() };
    let root = match pickle.node(top) {
        Node::Dict(_) => {
            let (root, id) = choose(pickle, requested)?;
            match root {
                Root::Bare => walk.collect_flat(id),
                _ => walk.collect(id, String::new(), MAX_DEPTH)?,
            }
            root
        }
        Node::Made { .. } if is_script(pickle, top) && requested.is_none() => {
            walk.script = true;
            walk.collect(top, String::new(), MAX_DEPTH)?;
            Root::Script
        }
        _ => {
            return Err(format!(
                "holds {}; expected a dictionary of tensors, or one with `model`, `module` or `state_dict`",
                describe(pickle, top)
            ));
        }
    };
    if walk.found.is_empty() {
        return Err(format!("holds no tensors ({}); its entries are {}", where_in(&root), keys(pickle, top)));
    }
    Ok((root, walk.found))
}

fn where_in(root: &Root) -> String {
    match root {
        Root::Bare => "at its top level".to_string(),
        Root::Script => "in its TorchScript module".to_string(),
        root => format!("in its entry `{root}`"),
    }
}

/// The entry to take, in the order of the official code: `model`, `module`, then `state_dict`, else the dictionary itself.
fn choose(pickle: &Pickle, requested: Option<&str>) -> Result<(Root, Id), String> {
    let top = pickle.top;
    if let Some(name) = requested {
        // A dotted name leads into dictionaries of dictionaries; a name that is there with its dots comes first.
        let nested = || name.split('.').try_fold(top, |dict, part| pickle.get(dict, part));
        return match pickle.get(top, name).or_else(nested) {
            Some(id) if pickle.pairs(id).is_some() => Ok((Root::Named(name.to_string()), id)),
            Some(id) => Err(format!(
                "has {} as its entry `{name}`; expected a dictionary of tensors",
                describe(pickle, id)
            )),
            None => Err(format!("has no entry `{name}`; its entries are {}", keys(pickle, top))),
        };
    }
    let known = [("model", Root::Model), ("module", Root::Module), ("state_dict", Root::StateDict)];
    let mut other = None;
    for (name, root) in known {
        match pickle.get(top, name) {
            Some(id) if pickle.pairs(id).is_some() => return Ok((root, id)),
            Some(id) if rebuild::tensor(pickle, id).is_none() => {
                other = other.or(Some(format!(
                    "has {} as its entry `{name}`; expected a dictionary of tensors",
                    describe(pickle, id)
                )));
            }
            _ => {}
        }
    }
    let has_tensors =
        pickle.pairs(top).unwrap_or(&[]).iter().any(|(_, value)| rebuild::tensor(pickle, *value).is_some());
    if has_tensors {
        return Ok((Root::Bare, top));
    }
    // Training checkpoints of DINO and its relatives, whose teacher is the better model.
    for name in ["teacher", "model_ema", "ema", "student"] {
        if let Some(id) = pickle.get(top, name).filter(|id| pickle.pairs(*id).is_some()) {
            return Ok((Root::Named(name.to_string()), id));
        }
    }
    match (other, entries(pickle).as_slice()) {
        (Some(problem), _) => Err(problem),
        (None, []) => Ok((Root::Bare, top)),
        (None, several) => Err(format!(
            "has no entry `model`, `module` or `state_dict`; choose one of {} (--entry NAME)",
            several.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        )),
    }
}

struct Walk<'a> {
    pickle: &'a Pickle,
    /// Whether the attributes of objects count as entries: in TorchScript archives modules are objects.
    script: bool,
    visits: usize,
    name_bytes: usize,
    found: Vec<Found<'a>>,
}

impl<'a> Walk<'a> {
    /// Lists the tensors in and below a value, under dotted names.
    fn collect(&mut self, id: Id, name: String, depth: usize) -> Result<(), String> {
        self.visits += 1;
        self.name_bytes += name.len();
        if self.visits > MAX_VISITS || self.name_bytes > MAX_NAME_BYTES {
            return Err("describes far more values than a checkpoint has".to_string());
        }
        let pickle = self.pickle;
        if let Some(tensor) = rebuild::tensor(pickle, id) {
            self.found.push((name, tensor));
            return Ok(());
        }
        let below = |depth: usize| {
            depth
                .checked_sub(1)
                .ok_or_else(|| format!("nests its entries deeper than {MAX_DEPTH} levels, at `{name}`"))
        };
        match pickle.node(id) {
            Node::Dict(pairs) => {
                for &(key, value) in pairs {
                    if let Some(key) = key_text(pickle, key) {
                        self.collect(value, join(&name, &key), below(depth)?)?;
                    }
                }
            }
            Node::Tuple(items) | Node::List(items) => {
                for (index, &item) in items.iter().enumerate() {
                    self.collect(item, join(&name, &index.to_string()), below(depth)?)?;
                }
            }
            Node::Made { state: Some(state), .. } if self.script => {
                self.collect(*state, name.clone(), below(depth)?)?
            }
            _ => {}
        }
        Ok(())
    }

    /// Lists the tensors of a dictionary, but not of what is nested in it: beside the weights of a bare file anything may lie.
    fn collect_flat(&mut self, id: Id) {
        let pickle = self.pickle;
        for &(key, value) in pickle.pairs(id).unwrap_or(&[]) {
            if let (Some(key), Some(tensor)) = (key_text(pickle, key), rebuild::tensor(pickle, value)) {
                self.found.push((key, tensor));
            }
        }
    }
}

/// The name of a dictionary's entry: optimizers count their parameters, so integers are names too.
pub(crate) fn key_text(pickle: &Pickle, key: Id) -> Option<String> {
    match pickle.node(key) {
        Node::Str(span) => Some(pickle.text(*span).to_string()),
        Node::Int(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A dotted name.
pub(crate) fn join(name: &str, key: &str) -> String {
    if name.is_empty() { key.to_string() } else { format!("{name}.{key}") }
}

/// Whether a value is a TorchScript module: an object of a class that lives inside the archive.
fn is_script(pickle: &Pickle, id: Id) -> bool {
    match pickle.node(id) {
        Node::Made { callable, state: Some(_), .. } => pickle
            .global(*callable)
            .is_some_and(|(module, _)| module == "__torch__" || module.starts_with("__torch__.")),
        _ => false,
    }
}

/// A value as an error message names it.
fn describe(pickle: &Pickle, id: Id) -> String {
    let what = match pickle.node(id) {
        Node::Dict(_) => "a dictionary",
        Node::List(_) => "a list",
        Node::Tuple(_) => "a tuple",
        Node::Str(_) => "a text",
        Node::Made { .. } if rebuild::tensor(pickle, id).is_some() => "a single tensor",
        Node::Made { callable, .. } => {
            let (module, name) = pickle.global(*callable).unwrap_or(("?", "?"));
            return format!(
                "an object of `{module}.{name}` (never executed here; save the model's state_dict() instead)"
            );
        }
        _ => "a plain value",
    };
    what.to_string()
}

/// The names of the first entries of a dictionary, for error messages.
fn keys(pickle: &Pickle, id: Id) -> String {
    const SHOWN: usize = 12;
    let pairs = pickle.pairs(id).unwrap_or(&[]);
    // Why cut: a name may be a megabyte long.
    let short = |key: String| format!("`{}`", key.chars().take(60).collect::<String>());
    let mut names: Vec<String> =
        pairs.iter().take(SHOWN).filter_map(|(key, _)| key_text(pickle, *key)).map(short).collect();
    if pairs.len() > SHOWN {
        names.push(format!("{} more", pairs.len() - SHOWN));
    }
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}
