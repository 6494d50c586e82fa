//! A graph as it is built: nodes in order, and the weights that they read.

use std::collections::BTreeSet;

use burn::tensor::TensorData;

use super::WeightType;
use super::initializer::{Initializer, Values};
use super::proto::{self, Attribute, data_type};
use crate::error::{Error, config_error};
use crate::weights::Tensors;

/// Name of a value: of an input, an initializer or the output of a node.
pub(super) type Value = String;

/// Nodes and initializers, and the weights that have not become initializers yet.
pub(super) struct Builder {
    tensors: Tensors,
    store: WeightType,
    nodes: Vec<proto::Node>,
    initializers: Vec<Initializer>,
    known: BTreeSet<String>,
    inputs: Vec<proto::ValueInfo>,
    outputs: Vec<proto::ValueInfo>,
}

impl Builder {
    /// Of a model's parameters by their official names, f32, which are written as `store`.
    pub fn new(tensors: Tensors, store: WeightType) -> Self {
        let (nodes, initializers, known) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { tensors, store, nodes, initializers, known, inputs: Vec::new(), outputs: Vec::new() }
    }

    /// An input of a shape behind the batch.
    pub fn input(&mut self, name: &str, elem_type: i32, shape: &[usize], doc: &str) -> Value {
        self.inputs.push(value_info(name, elem_type, shape, doc));
        name.to_owned()
    }

    /// Makes `value` an output, of a shape behind the batch.
    pub fn output(&mut self, name: &str, value: &str, elem_type: i32, shape: &[usize], doc: &str) {
        self.push("Identity", name, &[value], name, Vec::new());
        self.outputs.push(value_info(name, elem_type, shape, doc));
    }

    /// A node with one output, which has the node's name.
    pub fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<Attribute>) -> Value {
        self.push(op, name, inputs, name, attributes);
        name.to_owned()
    }

    fn push(&mut self, op: &str, name: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) {
        self.nodes.push(proto::Node {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute,
        });
    }

    /// Whether the model has a parameter.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.known.contains(name)
    }

    /// A parameter with its shape and values, which is then used up.
    ///
    /// # Errors
    /// None of that name.
    pub fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let data: Option<TensorData> = self.tensors.remove(name);
        let values = data.and_then(|data| {
            let shape = data.shape.iter().copied().collect();
            Some((shape, data.convert::<f32>().into_vec::<f32>().ok()?))
        });
        values.ok_or_else(|| Error::Config(format!("the model has no `{name}`, which its ONNX graph needs")))
    }

    /// A parameter that is written in f32 whatever the others are: vectors, and what tells codes apart.
    ///
    /// # Errors
    /// None of that name.
    pub fn exact(&mut self, name: &str) -> Result<Value, Error> {
        if !self.known.contains(name) {
            let (shape, values) = self.take(name)?;
            self.floats(name, &shape, values);
        }
        Ok(name.to_owned())
    }

    /// A weight `[out, in]` of a linear layer as `[in, out]`, so that it is the second operand of a matmul as it is, which
    /// quantizers look for. `exact`: written in f32 whatever the others are.
    ///
    /// # Errors
    /// None of that name, or a value that the type of the weights does not hold.
    pub fn linear_weight(&mut self, name: &str, exact: bool) -> Result<Value, Error> {
        if self.known.contains(name) {
            return Ok(self.as_f32(name, exact));
        }
        let (shape, values) = self.take(name)?;
        let [outputs, inputs] = shape[..] else {
            return config_error(format!(
                "`{name}` has shape {shape:?}, which is not that of a linear layer"
            ));
        };
        self.stored(name, &[inputs, outputs], Values::Transposed { values, rows: outputs }, exact)
    }

    /// A weight in its own shape.
    ///
    /// # Errors
    /// As [`Builder::linear_weight`].
    pub fn weight(&mut self, name: &str) -> Result<Value, Error> {
        if self.known.contains(name) {
            return Ok(self.as_f32(name, false));
        }
        let (shape, values) = self.take(name)?;
        self.stored(name, &shape, Values::Plain(values), false)
    }

    /// Values in the type of the weights, as f32 for the nodes.
    ///
    /// # Errors
    /// A value that the type does not hold.
    pub fn stored(
        &mut self,
        name: &str,
        shape: &[usize],
        values: Values,
        exact: bool,
    ) -> Result<Value, Error> {
        let store = if exact { WeightType::F32 } else { self.store };
        if let Some(why) = values.beyond(store) {
            return config_error(format!(
                "`{name}` has {why} in {store}; write the weights as f32 (--dtype f32)"
            ));
        }
        self.add(name, store, shape, values);
        if store == WeightType::F32 {
            return Ok(name.to_owned());
        }
        let cast = format!("{name}/f32");
        Ok(self.node("Cast", &cast, &[name], vec![Attribute::int("to", data_type::FLOAT.into())]))
    }

    fn add(&mut self, name: &str, store: WeightType, shape: &[usize], values: Values) {
        if self.known.insert(name.to_owned()) {
            self.initializers.push(Initializer::new(name, store, shape, values));
        }
    }

    fn as_f32(&self, name: &str, exact: bool) -> Value {
        match exact || self.store == WeightType::F32 {
            true => name.to_owned(),
            false => format!("{name}/f32"),
        }
    }

    /// Whether values of this name are there already.
    pub fn known(&self, name: &str) -> Option<Value> {
        self.known.contains(name).then(|| self.as_f32(name, false))
    }

    /// Constants in f32.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Value {
        self.add(name, WeightType::F32, shape, Values::Plain(values));
        name.to_owned()
    }

    /// A number.
    pub fn scalar(&mut self, value: f32) -> Value {
        let name = format!("constant_{value:?}");
        self.floats(&name, &[], vec![value])
    }

    /// A vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let parts: Vec<String> = values.iter().map(i64::to_string).collect();
        self.integers(&format!("ints_{}", parts.join("_")), &[values.len()], values)
    }

    /// One integer without axes.
    pub fn index(&mut self, value: i64) -> Value {
        self.integers(&format!("index_{value}"), &[], &[value])
    }

    fn integers(&mut self, name: &str, shape: &[usize], values: &[i64]) -> Value {
        self.add(name, WeightType::F32, shape, Values::Integers(values.to_vec()));
        name.to_owned()
    }

    /// Parameters that no node reads.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The graph without its initializers, and those.
    pub fn finish(self, name: &str) -> (proto::Graph, Vec<Initializer>) {
        let Self { nodes, initializers, inputs, outputs, .. } = self;
        let graph = proto::Graph {
            node: nodes,
            name: name.to_owned(),
            initializer: Vec::new(),
            input: inputs,
            output: outputs,
        };
        (graph, initializers)
    }
}

fn value_info(name: &str, elem_type: i32, shape: &[usize], doc: &str) -> proto::ValueInfo {
    let batch = proto::Dimension { dim_param: Some("batch".to_owned()), dim_value: None };
    let fixed = |&size: &usize| proto::Dimension { dim_value: Some(size as i64), dim_param: None };
    let dim = std::iter::once(batch).chain(shape.iter().map(fixed)).collect();
    let tensor_type = Some(proto::TensorType { elem_type, shape: Some(proto::Shape { dim }) });
    proto::ValueInfo {
        name: name.to_owned(),
        kind: Some(proto::Type { tensor_type }),
        doc_string: doc.to_owned(),
    }
}
