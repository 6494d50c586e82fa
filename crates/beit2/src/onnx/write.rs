//! A model as the bytes of one file or two: the message by hand around `prost`'s parts, because a message that owns its weights
//! would be a second copy of them.

use std::io::{self, Write};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::initializer::Initializer;
use super::proto;

/// Field numbers: `ModelProto.graph`, `GraphProto.initializer`, `TensorProto.raw_data`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;
const RAW_DATA: u32 = 9;

/// Smaller tensors stay in the message in any case: shapes are among them, which readers look at before they open other files.
const LEAST_OUTSIDE: u64 = 1024;

/// Where a tensor may begin in a file of its own, so that readers can map it.
const ALIGNMENT: u64 = 4096;

/// A message in parts.
pub(super) struct Parts {
    /// Everything but the graph.
    pub model: proto::Model,
    /// The graph without initializers.
    pub graph: proto::Graph,
    pub initializers: Vec<Initializer>,
}

/// An initializer on its way into the message.
struct Placed<'a> {
    head: Vec<u8>,
    /// Whose values follow in the message.
    inside: Option<&'a Initializer>,
}

impl<'a> Placed<'a> {
    fn inside(initializer: &'a Initializer) -> Self {
        Self { head: initializer.head().encode_to_vec(), inside: Some(initializer) }
    }

    fn len(&self) -> u64 {
        self.head.len() as u64 + self.inside.map_or(0, |tensor| field_len(RAW_DATA, tensor.byte_len()))
    }
}

impl Parts {
    /// Bytes of the file that holds everything.
    pub fn byte_len(&self) -> u64 {
        let placed: Vec<_> = self.initializers.iter().map(Placed::inside).collect();
        self.model.encoded_len() as u64 + field_len(GRAPH, self.graph_len(&placed))
    }

    fn graph_len(&self, placed: &[Placed<'_>]) -> u64 {
        let tensors = placed.iter().map(|tensor| field_len(INITIALIZER, tensor.len()));
        self.graph.encoded_len() as u64 + tensors.sum::<u64>()
    }

    /// Everything into one file.
    pub fn write_to(&self, writer: &mut dyn Write) -> io::Result<()> {
        self.write_message(writer, &self.initializers.iter().map(Placed::inside).collect::<Vec<_>>())
    }

    /// The weights into `data`, which readers find as `name` beside the other file, the rest into `writer`.
    pub fn write_split(&self, writer: &mut dyn Write, data: &mut dyn Write, name: &str) -> io::Result<()> {
        let mut offset = 0;
        let mut placed = Vec::with_capacity(self.initializers.len());
        for tensor in &self.initializers {
            if tensor.byte_len() < LEAST_OUTSIDE {
                placed.push(Placed::inside(tensor));
                continue;
            }
            let begin = u64::next_multiple_of(offset, ALIGNMENT);
            io::copy(&mut io::Read::take(io::repeat(0), begin - offset), data)?;
            data.write_all(&tensor.bytes())?;
            offset = begin + tensor.byte_len();
            placed.push(Placed { head: tensor.head_outside(name, begin).encode_to_vec(), inside: None });
        }
        self.write_message(writer, &placed)
    }

    fn write_message(&self, writer: &mut dyn Write, placed: &[Placed<'_>]) -> io::Result<()> {
        writer.write_all(&self.model.encode_to_vec())?;
        begin(writer, GRAPH, self.graph_len(placed))?;
        writer.write_all(&self.graph.encode_to_vec())?;
        for tensor in placed {
            begin(writer, INITIALIZER, tensor.len())?;
            writer.write_all(&tensor.head)?;
            if let Some(inside) = tensor.inside {
                begin(writer, RAW_DATA, inside.byte_len())?;
                writer.write_all(&inside.bytes())?;
            }
        }
        Ok(())
    }
}

/// Bytes of a field of `len` bytes with its number and its length.
fn field_len(tag: u32, len: u64) -> u64 {
    (key_len(tag) + encoded_len_varint(len)) as u64 + len
}

fn begin(writer: &mut dyn Write, tag: u32, len: u64) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(16);
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(len, &mut bytes);
    writer.write_all(&bytes)
}
