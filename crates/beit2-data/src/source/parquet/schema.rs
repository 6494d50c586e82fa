//! Which columns of a parquet file hold the images and the labels.

use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::metadata::FileMetaData;
use parquet::schema::types::{Type, TypePtr};

use crate::source::spec::Columns;

/// Names that a column of labels usually has.
const LABEL_NAMES: [&str; 4] = ["label", "labels", "class", "cls"];

/// Key under which Hugging Face's libraries keep the meaning of the columns.
const FEATURES_KEY: &str = "huggingface";

/// Columns of one file.
#[derive(Debug)]
pub(super) struct Layout {
    /// The column of the images, alone.
    pub(super) image: TypePtr,
    /// The column of the labels, alone.
    pub(super) label: Option<TypePtr>,
    /// Names of the classes, from the metadata.
    pub(super) class_names: Option<Vec<String>>,
}

impl Layout {
    /// Looks at the schema and at the columns that the caller names.
    pub(super) fn of(meta: &FileMetaData, wanted: &Columns) -> Result<Self, String> {
        let root = meta.schema();
        let fields = root.get_fields();
        let find = |name: &str| {
            fields
                .iter()
                .find(|field| field.name() == name)
                .ok_or_else(|| format!("it has no column '{name}'; its columns are {}", listed(fields)))
        };
        let image = match &wanted.image {
            Some(name) => {
                let field = find(name)?;
                encoded(field).ok_or_else(|| {
                    format!(
                        "column '{name}' holds no encoded images: it is neither bytes nor a group with bytes"
                    )
                })?
            }
            None => {
                let found: Vec<(TypePtr, Type)> =
                    fields.iter().filter_map(|field| Some((field.clone(), encoded(field)?))).collect();
                match <[_; 1]>::try_from(found) {
                    Ok([(_, image)]) => image,
                    Err(found) if found.is_empty() => {
                        return Err(format!(
                            "it has no column of encoded images (bytes, or a group of bytes and path); its columns are {}",
                            listed(fields)
                        ));
                    }
                    Err(found) => {
                        let found: Vec<TypePtr> = found.into_iter().map(|(field, _)| field).collect();
                        return Err(format!(
                            "several columns can hold images: {}; name one, such as FILE:image={}",
                            listed(&found),
                            found[0].name()
                        ));
                    }
                }
            }
        };
        let label = match &wanted.label {
            Some(name) => Some(find(name)?.clone()),
            None => LABEL_NAMES.iter().find_map(|name| find(name).ok()).cloned(),
        };
        let class_names = label.as_ref().and_then(|label| class_names(meta, label.name()));
        let alone = |field: TypePtr| {
            let built = Type::group_type_builder(root.name()).with_fields(vec![field]).build();
            built.map(Arc::new).map_err(|error: ParquetError| error.to_string())
        };
        Ok(Self { image: alone(Arc::new(image))?, label: label.map(alone).transpose()?, class_names })
    }
}

/// The part of a column that has to be read when it holds encoded images: raw bytes, or Hugging Face's group of `bytes`
/// and `path`.
fn encoded(field: &TypePtr) -> Option<Type> {
    if is_bytes(field) {
        return Some(field.as_ref().clone());
    }
    if field.is_primitive() || field.get_basic_info().repetition() == Repetition::REPEATED {
        return None;
    }
    let bytes = field.get_fields().iter().find(|inner| inner.name() == "bytes" && is_bytes(inner))?;
    Type::group_type_builder(field.name())
        .with_repetition(field.get_basic_info().repetition())
        .with_fields(vec![bytes.clone()])
        .build()
        .ok()
}

fn is_bytes(field: &Type) -> bool {
    let info = field.get_basic_info();
    field.is_primitive()
        && field.get_physical_type() == Physical::BYTE_ARRAY
        && info.repetition() != Repetition::REPEATED
        && info.converted_type() == ConvertedType::NONE
        && matches!(info.logical_type_ref(), None | Some(LogicalType::Unknown))
}

fn listed(fields: &[TypePtr]) -> String {
    fields.iter().map(|field| format!("'{}'", field.name())).collect::<Vec<_>>().join(", ")
}

/// `{"info": {"features": {"label": {"names": [...], "_type": "ClassLabel"}}}}`, also inside a list's `feature`.
fn class_names(meta: &FileMetaData, label: &str) -> Option<Vec<String>> {
    let pairs = meta.key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == FEATURES_KEY)?.value.as_ref()?;
    let all: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut feature = all.get("info")?.get("features")?.get(label)?;
    // A list of class labels: `{"feature": {...}, "_type": "List"}`, or `[{...}]` in old files.
    while let Some(inner) = feature.get("feature").or_else(|| feature.get(0)) {
        feature = inner;
    }
    feature.get("names")?.as_array()?.iter().map(|name| Some(name.as_str()?.to_owned())).collect()
}
