//! Rows as an Arrow IPC stream on standard output: a record batch for each batch of images, as it is computed. Nothing is kept,
//! so that such a stream is not continued after an interruption.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Stdout, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use arrow_array::builder::BinaryBuilder;
use arrow_array::{ArrayRef, FixedSizeListArray, RecordBatch, StringArray, make_array};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema, SchemaRef};
use beit2::Error;
use beit2::train::{Event, Observer};
use beit2_data::{Image, Sequence, SequenceConfig};
use beit2_run::thousands;

use super::layout::{Element, RowLayout};
use super::parquet::unhex;
use super::partial::Sample;
use super::{Export, Written, account, named, path_bytes};
use crate::errors::usage;
use crate::session::Session;

/// What a reader stumbles over: a message that is announced and does not come. Without it, a stream that ends early looks
/// complete, because readers take the end of the input for its end.
const CUT_OFF: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0x40, 0, 0, 0];

/// Whether `--out` names standard output.
pub fn is_stdout(out: &Path) -> bool {
    out.as_os_str() == "-"
}

/// Refuses what standard output cannot take.
pub fn check_stdout(as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return usage("--out - writes rows to standard output, and --json its object; leave one of them out");
    }
    if std::io::stdout().is_terminal() {
        return usage(
            "--out - writes an Arrow stream, which is not for a terminal; send it to a program or a file",
        );
    }
    Ok(())
}

/// The columns: `path`, `path_bytes` (of images with names that are not UTF-8), `label` (of images with classes) and the values, as
/// one flat list of fixed size a row.
pub fn schema(layout: &RowLayout, meta: &[(String, String)], odd_names: bool, labelled: bool) -> Schema {
    let values = DataType::FixedSizeList(element(layout), layout.values() as i32);
    let fields = [
        Some(Field::new("path", DataType::Utf8, false)),
        odd_names.then(|| Field::new("path_bytes", DataType::Binary, true)),
        labelled.then(|| Field::new("label", DataType::Utf8, true)),
        Some(Field::new(layout.name, values, false)),
    ];
    let fields: Vec<Field> = fields.into_iter().flatten().collect();
    let meta = meta.iter().map(|(key, value)| (format!("beit2.{key}"), value.clone()));
    Schema::new_with_metadata(fields, meta.collect::<BTreeMap<_, _>>())
}

/// The values of the lists.
fn element(layout: &RowLayout) -> FieldRef {
    let data_type = match layout.element {
        Element::F32 => DataType::Float32,
        Element::F16 => DataType::Float16,
        Element::U16 => DataType::UInt16,
        Element::U32 => DataType::UInt32,
    };
    Arc::new(Field::new("element", data_type, false))
}

/// A schema as the first message of a stream.
pub fn message(schema: &Schema) -> Result<Vec<u8>, ArrowError> {
    Ok(StreamWriter::try_new(Vec::new(), schema)?.get_ref().clone())
}

/// The stream that is being written.
struct Stream<'a> {
    writer: StreamWriter<Stdout>,
    schema: SchemaRef,
    layout: &'a RowLayout,
}

impl Stream<'_> {
    /// One batch: the images that have rows, and those rows one after the other.
    fn write(&mut self, samples: &[Sample], rows: &[u8]) -> anyhow::Result<()> {
        let some: Vec<&Sample> = samples.iter().filter(|sample| sample.error.is_none()).collect();
        if some.is_empty() {
            return Ok(());
        }
        let paths = StringArray::from_iter_values(some.iter().map(|sample| &sample.path));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(paths)];
        if self.schema.field_with_name("path_bytes").is_ok() {
            let mut bytes = BinaryBuilder::new();
            some.iter().for_each(|sample| bytes.append_option(sample.path_bytes.as_deref().map(unhex)));
            columns.push(Arc::new(bytes.finish()));
        }
        if self.schema.field_with_name("label").is_ok() {
            columns.push(Arc::new(StringArray::from_iter(some.iter().map(|sample| sample.label.as_deref()))));
        }
        let (field, size) = (element(self.layout), self.layout.values());
        let data = ArrayData::builder(field.data_type().clone())
            .len(some.len() * size)
            .add_buffer(Buffer::from(rows))
            .build()?;
        columns.push(Arc::new(FixedSizeListArray::try_new(field, size as i32, make_array(data), None)?));
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        Ok(self.writer.get_mut().flush()?)
    }
}

impl Export<'_> {
    /// Computes and writes all rows. A stream that does not become complete ends in a way that readers refuse.
    pub(super) fn stream(
        self,
        session: &mut Session<'_>,
        meta: &[(String, String)],
        compute: impl FnMut(&[Image]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Written> {
        let (source, layout) = (self.source.clone(), self.layout.clone());
        let odd_names = (0..source.len()).any(|index| source.name_bytes(index).is_some());
        let shape = [("row_shape".to_owned(), serde_json::to_string(&layout.shape)?)];
        let meta = [meta, &shape].concat();
        let schema = Arc::new(schema(&layout, &meta, odd_names, !source.classes().is_empty()));
        let writer = StreamWriter::try_new(std::io::stdout(), &schema)?;
        let mut stream = Stream { writer, schema, layout: &layout };
        let result = self.fill(session, &mut stream, compute);
        match &result {
            Ok(_) => {
                stream.writer.finish()?;
                stream.writer.get_mut().flush()?;
            }
            Err(_) => {
                // If this fails, the reader is gone.
                let out = stream.writer.get_mut();
                let _ = out.write_all(&CUT_OFF).and_then(|()| out.flush());
            }
        }
        result
    }

    fn fill(
        self,
        session: &mut Session<'_>,
        stream: &mut Stream<'_>,
        mut compute: impl FnMut(&[Image]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Written> {
        let Self { to, source, view, decode, layout, .. } = self;
        let (args, batch) = (to.args, to.args.batch_size as usize);
        let config = SequenceConfig { start: 0, workers: args.workers, prefetch: 2 * batch, decode };
        let mut images = Sequence::new(config, source.clone(), move |image: &Image| view.apply(image))
            .map_err(Error::from)?;
        let (mut rows, mut done, mut skipped, total) = (0, 0, Vec::new(), source.len());
        while done < total {
            let mut views = Vec::with_capacity(batch);
            let mut samples = Vec::with_capacity(batch);
            for seen in images.by_ref().take(batch) {
                if session.signals.stop.is_set() {
                    return Err(Error::Interrupted.into());
                }
                let path = source.name(seen.index);
                let label = source.label(seen.index);
                let label = label.and_then(|label| source.classes().get(label as usize).cloned());
                let error = match seen.item {
                    Ok(view) => {
                        views.push(view);
                        None
                    }
                    Err(why) if args.skip_unreadable => {
                        skipped.push((path.clone(), why.clone()));
                        Some(why)
                    }
                    Err(why) => {
                        let name = named(&path, &why);
                        bail!("{name}; remove it, or skip such images with --skip-unreadable")
                    }
                };
                let path_bytes = path_bytes(source.as_ref(), seen.index);
                samples.push(Sample { path, path_bytes, label, error });
            }
            rows += views.len();
            done += samples.len();
            let computed = if views.is_empty() { Vec::new() } else { compute(&views)? };
            stream.write(&samples, &computed)?;
            let (what, done, total) = (layout.name.to_owned(), done as u64, total as u64);
            session.progress.event(Event::Progress { what, done, total });
        }
        if rows == 0 {
            bail!("none of the {} images can be read", thousands(total as u64));
        }
        Ok(Written {
            out: to.out.clone(),
            list: None,
            part: None,
            rows,
            shape: layout.shape,
            element: layout.element,
            precision: String::new(),
            skipped,
            account: account::json(&source.account()),
        })
    }
}
