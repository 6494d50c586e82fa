//! The plain values of a checkpoint (epoch, arguments, learning rates) as text, printed as Python prints them.

use std::collections::BTreeMap;

use half::f16;

use crate::pickle::{Id, Node, Pickle};
use crate::torch::rebuild;
use crate::torch::select::{join, key_text};

/// How much is kept. Why limits: this is for people to read, and a small pickle can describe endless text.
const MAX_DEPTH: usize = 8;
const MAX_VISITS: usize = 1 << 18;
const MAX_ENTRIES: usize = 1 << 14;
const MAX_IGNORED: usize = 256;
const MAX_TEXT: usize = 16 << 10;

/// All plain values by dotted name, and the objects that were not understood as `name: class`.
pub(super) fn collect(pickle: &Pickle) -> (BTreeMap<String, String>, Vec<String>) {
    let mut walk = Walk { pickle, visits: 0, values: BTreeMap::new(), ignored: Vec::new() };
    walk.visit(pickle.top, "", MAX_DEPTH);
    (walk.values, walk.ignored)
}

struct Walk<'a> {
    pickle: &'a Pickle,
    visits: usize,
    values: BTreeMap<String, String>,
    ignored: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id, name: &str, depth: usize) {
        self.visits += 1;
        let full = self.visits > MAX_VISITS || self.values.len() >= MAX_ENTRIES || name.len() > MAX_TEXT;
        if depth == 0 || full || rebuild::tensor(self.pickle, id).is_some() {
            return;
        }
        let pickle = self.pickle;
        // A text by itself needs no quotes; inside a list it does.
        if let Some(text) = pickle.str(id) {
            self.values.insert(name.to_string(), text.chars().take(MAX_TEXT).collect());
            return;
        }
        let mut text = String::new();
        if !name.is_empty() && print(pickle, id, MAX_DEPTH, &mut text).is_some() {
            self.values.insert(name.to_string(), text);
            return;
        }
        match pickle.node(id) {
            Node::Dict(pairs) => {
                for &(key, value) in pairs {
                    if let Some(key) = key_text(pickle, key) {
                        self.visit(value, &join(name, &key), depth - 1);
                    }
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                for (index, &item) in items.iter().enumerate() {
                    self.visit(item, &join(name, &index.to_string()), depth - 1);
                }
            }
            Node::Made { callable, state, .. } => match (pickle.global(*callable), state) {
                (Some(("argparse", "Namespace")), Some(state)) => self.visit(*state, name, depth - 1),
                (class, _) => self.ignore(name, class),
            },
            Node::Global { .. } => self.ignore(name, pickle.global(id)),
            _ => {}
        }
    }

    fn ignore(&mut self, name: &str, class: Option<(&str, &str)>) {
        if self.ignored.len() < MAX_IGNORED {
            let (module, class) = class.unwrap_or(("?", "?"));
            self.ignored.push(format!("{name}: {module}.{class}"));
        }
    }
}

/// Prints a plain value, or a list or tuple of plain values; `None` for anything else, or when it gets too long.
fn print(pickle: &Pickle, id: Id, depth: usize, out: &mut String) -> Option<()> {
    if depth == 0 || out.len() > MAX_TEXT {
        return None;
    }
    match pickle.node(id) {
        Node::None => out.push_str("None"),
        Node::Bool(true) => out.push_str("True"),
        Node::Bool(false) => out.push_str("False"),
        Node::Int(value) => out.push_str(&value.to_string()),
        Node::Float(value) => out.push_str(&float(*value)),
        Node::Str(span) if span.len() <= MAX_TEXT => {
            let text = pickle.text(*span).replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
            out.push_str(&format!("'{text}'"));
        }
        Node::Big(span) if span.len() <= 64 => {
            out.push_str("0x");
            pickle.raw(*span).iter().rev().for_each(|byte| out.push_str(&format!("{byte:02x}")));
        }
        Node::List(items) => {
            out.push('[');
            print_items(pickle, items, depth, out)?;
            out.push(']');
        }
        Node::Tuple(items) => {
            out.push('(');
            print_items(pickle, items, depth, out)?;
            out.push_str(if items.len() == 1 { ",)" } else { ")" });
        }
        Node::Made { callable, args, .. } => match pickle.global(*callable)? {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
                out.push_str(&numpy_scalar(pickle, *args)?)
            }
            _ => return None,
        },
        _ => return None,
    }
    Some(())
}

fn print_items(pickle: &Pickle, items: &[Id], depth: usize, out: &mut String) -> Option<()> {
    for (index, &item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        print(pickle, item, depth - 1, out)?;
    }
    Some(())
}

/// A float as Python prints it: the shortest digits that read back the same, with an exponent outside 1e-4 .. 1e16.
fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan".to_string()
        } else if value > 0.0 {
            "inf".to_string()
        } else {
            "-inf".to_string()
        };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{value:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// `scalar(dtype, bytes)`, the form in which the official code saves its learning rates.
fn numpy_scalar(pickle: &Pickle, args: Id) -> Option<String> {
    let &[dtype, bytes] = pickle.items(args)? else {
        return None;
    };
    let Node::Made { callable, args: dtype_args, state } = pickle.node(dtype) else {
        return None;
    };
    if pickle.global(*callable)? != ("numpy", "dtype") {
        return None;
    }
    let kind = pickle.str(*pickle.items(*dtype_args)?.first()?)?;
    let mut bytes = bytes_of(pickle, bytes)?;
    let order = state.and_then(|state| pickle.str(*pickle.items(state)?.get(1)?));
    if order == Some(">") {
        bytes.reverse();
    }
    let bytes = bytes.as_slice();
    Some(match kind {
        "f8" => float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "f4" => float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        "f2" => float(f16::from_le_bytes(bytes.try_into().ok()?).into()),
        "i8" => i64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "i4" => i32::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "u8" => u64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "b1" => if bytes == [0] { "False" } else { "True" }.to_string(),
        _ => return None,
    })
}

/// Bytes, or text that protocol 2 uses for them: `_codecs.encode(text, 'latin1')`. At most the 16 of a scalar.
fn bytes_of(pickle: &Pickle, id: Id) -> Option<Vec<u8>> {
    match pickle.node(id) {
        Node::Bytes(span) if span.len() <= 16 => Some(pickle.raw(*span).to_vec()),
        Node::Made { callable, args, .. } if pickle.global(*callable)? == ("_codecs", "encode") => {
            let &[text, encoding] = pickle.items(*args)? else {
                return None;
            };
            matches!(pickle.str(encoding)?, "latin1" | "latin-1").then_some(())?;
            pickle.str(text)?.chars().take(17).map(|c| u8::try_from(u32::from(c)).ok()).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_are_printed_as_in_python() {
        let cases = [
            (5e-05, "5e-05"),
            (0.0001, "0.0001"),
            (65536.0, "65536.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
            (0.00018308333333333333, "0.00018308333333333333"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }
}
