//! An ONNX file as it is read, by the field numbers of the specification: written down a second time, so that a wrong number in
//! the writer does not agree with itself.

use prost::Message;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<Opset>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Opset {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub kind: Option<Type>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

impl Model {
    /// The file's message.
    pub fn read(bytes: &[u8]) -> Self {
        Self::decode(bytes).unwrap()
    }

    pub fn graph(&self) -> &Graph {
        self.graph.as_ref().unwrap()
    }

    pub fn metadata(&self, key: &str) -> &str {
        let entry = self.metadata_props.iter().find(|entry| entry.key == key);
        entry.map_or_else(|| panic!("no metadata {key}"), |entry| &entry.value)
    }
}

impl ValueInfo {
    /// Declared sizes; the free one is `batch`.
    pub fn shape(&self, batch: usize) -> Vec<usize> {
        let shape = self.kind.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
        let size = |dim: &Dimension| match (dim.dim_value, dim.dim_param.as_deref()) {
            (Some(size), None) => size as usize,
            (None, Some("batch")) => batch,
            other => panic!("{}: a dimension of {other:?}", self.name),
        };
        shape.dim.iter().map(size).collect()
    }
}

impl Node {
    pub fn int(&self, name: &str) -> i64 {
        self.find(name).and_then(|found| found.i).unwrap_or_else(|| panic!("{}: no {name}", self.name))
    }

    pub fn ints(&self, name: &str) -> Vec<i64> {
        self.find(name).unwrap_or_else(|| panic!("{}: no {name}", self.name)).ints.clone()
    }

    pub fn float(&self, name: &str) -> f64 {
        f64::from(self.find(name).unwrap().f.unwrap())
    }

    fn find(&self, name: &str) -> Option<&Attribute> {
        self.attribute.iter().find(|found| found.name == name)
    }
}
