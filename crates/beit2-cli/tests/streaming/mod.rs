//! Rows as an Arrow stream on standard output, and what parquet says to Arrow's readers.

use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt16Type};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{ArrowError, DataType};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::support::World;
use super::{embed, labelled, parquet, world};

/// Path, label and values.
type Row = (String, Option<String>, Vec<f64>);

/// The rows of a stream.
fn arrow_rows(stream: &[u8], values: &str) -> Result<Vec<Row>, ArrowError> {
    let mut rows = Vec::new();
    for batch in StreamReader::try_new(stream, None)? {
        let batch = batch?;
        let text = |name: &str| batch.column_by_name(name).map(|column| column.as_string::<i32>().clone());
        let (paths, labels) = (text("path").unwrap(), text("label"));
        let lists = batch.column_by_name(values).unwrap().as_fixed_size_list();
        for at in 0..batch.num_rows() {
            let list = lists.value(at);
            let list: Vec<f64> = match list.data_type() {
                DataType::Float32 => {
                    list.as_primitive::<Float32Type>().values().iter().map(|v| (*v).into()).collect()
                }
                DataType::Float16 => {
                    list.as_primitive::<Float16Type>().values().iter().map(|v| (*v).into()).collect()
                }
                DataType::UInt16 => {
                    list.as_primitive::<UInt16Type>().values().iter().map(|v| (*v).into()).collect()
                }
                other => panic!("{other:?}"),
            };
            let label = labels.as_ref().map(|labels| labels.value(at).to_owned());
            rows.push((paths.value(at).to_owned(), label, list));
        }
    }
    Ok(rows)
}

/// What a command writes to standard output, and what to standard error.
fn streamed(world: &World, args: &[&str]) -> std::process::Output {
    world.command(args).output().unwrap()
}

#[test]
fn rows_as_an_arrow_stream() {
    let world = world();
    let embed_to = |out: &str, more: &[&str]| {
        let line = ["embed", "labelled", "--weights", "mim.safetensors", "--batch-size", "10", "--out", out];
        streamed(&world, &[&line[..], more].concat())
    };
    for more in [&[][..], &["--features", "patches", "--layer", "1", "--dtype", "f16"]] {
        embed_to("a.parquet", more);
        let expected = parquet(&world.path("a.parquet"), "features");
        fs::remove_file(world.path("a.parquet")).unwrap();
        let output = embed_to("-", more);
        assert!(output.status.success() && !output.stderr.is_empty(), "messages are on standard error");
        assert_eq!(arrow_rows(&output.stdout, "features").unwrap(), expected, "{more:?}");
        let reader = StreamReader::try_new(&output.stdout[..], None).unwrap();
        let schema = reader.schema();
        assert_eq!(schema.metadata()["beit2.features"], if more.is_empty() { "mean" } else { "patches" });
        assert_eq!(schema.metadata()["beit2.row_shape"], if more.is_empty() { "[16]" } else { "[16,16]" });
        assert_eq!(reader.count(), 3, "a record batch for each batch");
        assert_eq!(embed_to("-", more).stdout, output.stdout, "the same bytes again");
    }
    let encode_to = |out: &str, more: &[&str]| {
        let line = ["tokenizer", "encode", "labelled", "--tokenizer", "words.safetensors", "--out", out];
        streamed(&world, &[&line[..], more].concat())
    };
    encode_to("ids.parquet", &[]);
    let output = encode_to("-", &["--quiet"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(arrow_rows(&output.stdout, "ids").unwrap(), parquet(&world.path("ids.parquet"), "ids"));
    // No folder of rows to be continued.
    assert!(!world.path("-.partial").exists() && !world.path("-").exists());
    let output = embed_to("-", &["--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--json") && said.contains("standard output"), "{said}");
}

/// What parquet cannot say, its Arrow schema does: lists of a fixed size.
#[test]
fn parquet_says_that_lists_have_a_fixed_size() {
    let world = world();
    embed(&world, "mim.safetensors", "a.parquet", &[]).works();
    let reader = SerializedFileReader::new(File::open(world.path("a.parquet")).unwrap()).unwrap();
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
    let schema = metadata.iter().find(|entry| entry.key == "ARROW:schema").unwrap();
    let message = STANDARD.decode(schema.value.as_ref().unwrap()).unwrap();
    let reader = StreamReader::try_new(&message[..], None).unwrap();
    let field = reader.schema().field_with_name("features").unwrap().clone();
    assert!(matches!(field.data_type(), DataType::FixedSizeList(_, 16)), "{field:?}");
}

/// A stream that ends early is no shorter stream.
#[test]
fn a_stream_that_fails_is_refused_by_readers() {
    let world = world();
    let names = labelled(&world).0;
    fs::write(world.path(&names[17]), b"P6 32 32 255\nshort").unwrap();
    let line = ["embed", "labelled", "--weights", "mim.safetensors", "--batch-size", "10", "--out", "-"];
    let output = streamed(&world, &line);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&names[17]) && said.contains("--skip-unreadable"), "{said}");
    let error = arrow_rows(&output.stdout, "features").unwrap_err();
    println!("{error}");
    // And whole, without that image, when it is asked for.
    let output = streamed(&world, &[&line[..], &["--skip-unreadable"]].concat());
    let rows = arrow_rows(&output.stdout, "features").unwrap();
    assert_eq!(rows.len(), 23);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("left out"));
}

/// `| head -c 100`.
#[test]
fn a_closed_pipe_ends_a_stream_quietly() {
    let world = world();
    let line =
        ["embed", "labelled", "--weights", "mim.safetensors", "--batch-size", "1", "--out", "-", "--quiet"];
    let mut child = world.command(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{:?} {said}", output.status);
}
