//! The stack machine: the instructions that `torch.save` and TorchScript use, of pickle protocols 2 to 5.

use std::collections::HashMap;

use crate::error::{PickleProblem, WeightsError};
use crate::pickle::input::Input;
use crate::pickle::{Id, MAX_NODES, MAX_STEPS, Node, Pickle, Span};
use crate::source::FileSource;

/// Classes whose objects are dictionaries here, because code after them adds items with the dictionary instructions.
const DICTIONARIES: &[(&str, &str)] = &[
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
];

/// Reads the pickle that starts at `start` in `source` and ends before `end`.
pub(crate) fn run(source: &FileSource, start: u64, end: u64) -> Result<Pickle, WeightsError> {
    let mut machine = Machine {
        input: Input::new(source, start, end),
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    for _ in 0..MAX_STEPS {
        let opcode = machine.input.byte()?;
        if opcode == b'.' {
            let top = machine.pop()?;
            let end = machine.input.offset();
            return Ok(Pickle { bytes: machine.input.into_bytes(), nodes: machine.nodes, top, end });
        }
        machine.step(opcode)?;
    }
    Err(machine.limit("instructions", MAX_STEPS))
}

struct Machine<'a> {
    input: Input<'a>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// The heights of the stack at which groups were opened.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How many pairs were copied into dictionaries. Why: one list can be the argument of a million calls.
    copied: usize,
}

type Step = Result<(), WeightsError>;

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            // PROTO, FRAME (a hint for buffering that is not needed here)
            0x80 => match self.input.byte()? {
                2..=5 => Ok(()),
                version => Err(self.input.fail(PickleProblem::Protocol(version))),
            },
            0x95 => self.input.array::<8>().map(|_| ()),
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => self
                .input
                .array()
                .map(i32::from_le_bytes)
                .and_then(|value| self.push(Node::Int(value.into()))),
            b'K' => self.input.byte().and_then(|value| self.push(Node::Int(value.into()))),
            b'M' => self
                .input
                .array()
                .map(u16::from_le_bytes)
                .and_then(|value| self.push(Node::Int(value.into()))),
            0x8a => self.input.sized::<1>().and_then(|span| self.long(span)),
            0x8b => self.input.sized::<4>().and_then(|span| self.long(span)),
            b'G' => {
                self.input.array().map(f64::from_be_bytes).and_then(|value| self.push(Node::Float(value)))
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => self.input.sized::<4>().and_then(|span| self.text(span)),
            0x8c => self.input.sized::<1>().and_then(|span| self.text(span)),
            0x8d => self.input.sized::<8>().and_then(|span| self.text(span)),
            // SHORT_BINSTRING, BINSTRING: Python 2's str, which may be text or bytes
            b'U' => self.input.sized::<1>().and_then(|span| self.old_string(span)),
            b'T' => self.input.sized::<4>().and_then(|span| self.old_string(span)),
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => self.input.sized::<4>().and_then(|span| self.push(Node::Bytes(span))),
            b'C' => self.input.sized::<1>().and_then(|span| self.push(Node::Bytes(span))),
            0x8e | 0x96 => self.input.sized::<8>().and_then(|span| self.push(Node::Bytes(span))),
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_SET, EMPTY_DICT
            b')' => self.push(Node::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            // TUPLE1, TUPLE2, TUPLE3, TUPLE, LIST, FROZENSET, DICT
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::Tuple(items))
            }
            b't' => self.pop_group().and_then(|items| self.push(Node::Tuple(items))),
            b'l' | 0x91 => self.pop_group().and_then(|items| self.push(Node::List(items))),
            b'd' => {
                let pairs = self.pop_group().and_then(|items| self.pairs(items))?;
                self.push(Node::Dict(pairs))
            }
            // APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' | 0x90 => self.pop_group().and_then(|items| self.append(items)),
            b's' => self.pop_many(2).and_then(|items| self.set_items(items)),
            b'u' => self.pop_group().and_then(|items| self.set_items(items)),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                if self.marks.len() >= MAX_NODES {
                    return Err(self.limit("open groups", MAX_NODES));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            // In Python POP takes a mark off if that is on top.
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_group().map(|_| ()),
            b'2' => self.top().and_then(|id| self.push_id(id)),
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => self.input.byte().and_then(|key| self.remember(key.into())),
            b'r' => self.input.array().map(u32::from_le_bytes).and_then(|key| self.remember(key)),
            // The number of a memo entry fits: there are at most MAX_NODES.
            0x94 => self.remember(self.memo.len() as u32),
            b'h' => self.input.byte().and_then(|key| self.recall(key.into())),
            b'j' => self.input.array().map(u32::from_le_bytes).and_then(|key| self.recall(key)),
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(Node::Global { module, name })
            }
            0x93 => match self.pop_many(2)?[..] {
                [module, name] => match (self.node(module), self.node(name)) {
                    (Some(Node::Str(module)), Some(Node::Str(name))) => {
                        let node = Node::Global { module: *module, name: *name };
                        self.push(node)
                    }
                    _ => Err(self.wrong_kind("STACK_GLOBAL")),
                },
                _ => Err(self.wrong_kind("STACK_GLOBAL")),
            },
            // REDUCE, NEWOBJ, NEWOBJ_EX (its keyword arguments are not kept), BUILD, BINPERSID
            b'R' | 0x81 => self.make(),
            0x92 => self.pop().and_then(|_| self.make()),
            b'b' => self.build(),
            b'Q' => self.pop().and_then(|id| self.push(Node::Persistent(id))),
            other => Err(self.input.fail(PickleProblem::UnknownOpcode(other))),
        }
    }

    fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    fn wrong_kind(&self, instruction: &'static str) -> WeightsError {
        self.input.fail(PickleProblem::WrongKind(instruction))
    }

    fn limit(&self, what: &'static str, limit: usize) -> WeightsError {
        self.input.fail(PickleProblem::Limit { what, limit: limit as u64 })
    }

    fn push(&mut self, node: Node) -> Step {
        if self.nodes.len() >= MAX_NODES {
            return Err(self.limit("values", MAX_NODES));
        }
        self.nodes.push(node);
        // Fits: MAX_NODES is below 2^32.
        self.push_id((self.nodes.len() - 1) as Id)
    }

    fn push_id(&mut self, id: Id) -> Step {
        if self.stack.len() >= MAX_NODES {
            return Err(self.limit("values on its stack", MAX_NODES));
        }
        self.stack.push(id);
        Ok(())
    }

    /// How many values lie above the innermost open group.
    fn available(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, WeightsError> {
        match self.stack.last() {
            Some(&id) if self.available() > 0 => Ok(id),
            _ => Err(self.input.fail(PickleProblem::StackUnderflow)),
        }
    }

    fn pop(&mut self) -> Result<Id, WeightsError> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, WeightsError> {
        if self.available() < count {
            return Err(self.input.fail(PickleProblem::StackUnderflow));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_group(&mut self) -> Result<Vec<Id>, WeightsError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.input.fail(PickleProblem::NoMark)),
        }
    }

    fn pairs(&self, items: Vec<Id>) -> Result<Vec<(Id, Id)>, WeightsError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if rest.is_empty() {
            Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
        } else {
            Err(self.wrong_kind("a dictionary"))
        }
    }

    fn long(&mut self, span: Span) -> Step {
        let raw = self.input.raw(span);
        if raw.len() > 8 {
            return self.push(Node::Big(span));
        }
        // Two's complement: the missing high bytes repeat the sign.
        let mut wide = if raw.last().is_some_and(|high| high & 0x80 != 0) { [0xff; 8] } else { [0; 8] };
        wide.iter_mut().zip(raw).for_each(|(to, from)| *to = *from);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, span: Span) -> Step {
        let span = self.input.checked(span)?;
        self.push(Node::Str(span))
    }

    fn old_string(&mut self, span: Span) -> Step {
        let node = if self.input.checked(span).is_ok() { Node::Str(span) } else { Node::Bytes(span) };
        self.push(node)
    }

    fn remember(&mut self, key: u32) -> Step {
        let id = self.top()?;
        self.memo.insert(key, id);
        if self.memo.len() > MAX_NODES {
            return Err(self.limit("remembered values", MAX_NODES));
        }
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step {
        match self.memo.get(&key) {
            Some(&id) => self.push_id(id),
            None => Err(self.input.fail(PickleProblem::MemoMissing(key))),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Step {
        let target = self.top()?;
        match self.nodes.get_mut(target as usize) {
            Some(Node::List(list)) => list.extend(items),
            // An object of a class that behaves like a list: inert, so its items are dropped.
            Some(Node::Made { .. }) => {}
            _ => return Err(self.wrong_kind("APPEND")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Step {
        let pairs = self.pairs(items)?;
        let target = self.top()?;
        match self.nodes.get_mut(target as usize) {
            Some(Node::Dict(dict)) => dict.extend(pairs),
            Some(Node::Made { .. }) => {}
            _ => return Err(self.wrong_kind("SETITEM")),
        }
        Ok(())
    }

    /// Records a call or a new object. Nothing is called.
    fn make(&mut self) -> Step {
        let args = self.pop()?;
        let callable = self.pop()?;
        let dictionary = match self.node(callable) {
            Some(Node::Global { module, name }) => {
                let is = |span: &Span, text: &str| self.input.raw(*span) == text.as_bytes();
                DICTIONARIES.iter().any(|(m, n)| is(module, m) && is(name, n))
            }
            _ => false,
        };
        if !dictionary {
            return self.push(Node::Made { callable, args, state: None });
        }
        let pairs = self.initial_pairs(args);
        self.copied += pairs.len();
        if self.copied > MAX_NODES {
            return Err(self.limit("copied pairs", MAX_NODES));
        }
        self.push(Node::Dict(pairs))
    }

    /// The pairs that an OrderedDict was made from: Python 2 gave them as an argument, a list of lists of two.
    fn initial_pairs(&self, args: Id) -> Vec<(Id, Id)> {
        let Some(Node::Tuple(args)) = self.node(args) else {
            return Vec::new();
        };
        let Some(Node::List(list)) = args.first().and_then(|&list| self.node(list)) else {
            return Vec::new();
        };
        let pair = |&item: &Id| match self.node(item) {
            Some(Node::List(pair) | Node::Tuple(pair)) => pair.first().copied().zip(pair.get(1).copied()),
            _ => None,
        };
        list.iter().filter_map(pair).collect()
    }

    /// Gives an object its state; the state of a dictionary (`_metadata` of a state dict) is of no use.
    fn build(&mut self) -> Step {
        let given = self.pop()?;
        let target = self.top()?;
        if let Some(Node::Made { state, .. }) = self.nodes.get_mut(target as usize) {
            *state = Some(given);
        }
        Ok(())
    }
}
