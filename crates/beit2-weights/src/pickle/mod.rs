//! A pickle turned into inert data.
//!
//! A pickle is a program for a small stack machine, and Python's machine calls whatever function the program names. This
//! one calls nothing: functions stay names, and a call stays a record of a name and its arguments ([`Node::Made`]). What
//! such a record means is decided elsewhere (`torch`), for a short list of names.
//!
//! All values live in one arena and refer to each other by number, so neither depth nor cycles can exhaust the stack, and
//! texts stay in the bytes they came from. Time and memory are bounded by the limits below.

mod input;
mod machine;

pub(crate) use machine::run;

/// The longest pickle that is read. A ViT-L checkpoint with its optimizer has 0.3 MB.
pub(crate) const MAX_BYTES: u64 = 32 << 20;
/// The most instructions that are followed.
pub(crate) const MAX_STEPS: usize = 16 << 20;
/// The most values, of 32 bytes each; also the most remembered values and the deepest stack.
pub(crate) const MAX_NODES: usize = 2 << 20;
/// The longest name of a module or class.
pub(crate) const MAX_NAME: usize = 1 << 10;

/// The number of a value.
pub(crate) type Id = u32;

/// A piece of the pickle's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }
}

/// A value.
#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, little-endian two's complement.
    Big(Span),
    Float(f64),
    Str(Span),
    Bytes(Span),
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class, by name only.
    Global {
        module: Span,
        name: Span,
    },
    /// What calling `callable` with `args` would have made, and the state it would have been given.
    Made {
        callable: Id,
        args: Id,
        state: Option<Id>,
    },
    /// A reference to something outside the pickle: torch's storages.
    Persistent(Id),
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    bytes: Vec<u8>,
    nodes: Vec<Node>,
    /// The value of the whole pickle.
    pub(crate) top: Id,
    /// Where it ends in the file.
    pub(crate) end: u64,
}

impl Pickle {
    /// The value with this number; numbers come from the machine, which makes no others than it stores.
    pub(crate) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn raw(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.bytes.get(start..start + span.len as usize).unwrap_or(&[])
    }

    /// The text at a place that the machine has checked to be UTF-8.
    pub(crate) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.raw(span)).unwrap_or("")
    }

    /// The value as a text.
    pub(crate) fn str(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(span) => Some(self.text(*span)),
            _ => None,
        }
    }

    /// The value as an integer that is not negative.
    pub(crate) fn count(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a dictionary.
    pub(crate) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The value of a dictionary under a text key; of equal keys the last counts, as in Python.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let pairs = self.pairs(dict)?;
        pairs.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// Module and name of a function or class.
    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((self.text(*module), self.text(*name))),
            _ => None,
        }
    }
}
