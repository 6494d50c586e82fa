//! What reading a weights file gives.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::WeightsError;
use crate::layout::wrapper::{self, Wrapper};
use crate::sidecar::Sidecar;
use crate::source::FileSource;
use crate::tensor::Tensor;
use crate::view::TensorView;

/// The formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A safetensors file.
    Safetensors,
    /// `torch.save` since torch 1.6, and TorchScript archives: a zip file with a pickle.
    TorchZip,
    /// `torch.save` before torch 1.6: pickles one after the other, then the raw storages.
    TorchLegacy,
}

/// Which part of the file the tensors were taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The entry `model` (the official code's `save_model`).
    Model,
    /// The entry `module` (DeepSpeed).
    Module,
    /// The entry `state_dict` (mmcv, Lightning).
    StateDict,
    /// The file is a plain dictionary of tensors.
    Bare,
    /// The file is a TorchScript module (the published CLIP models are).
    Script,
    /// A safetensors file, which has no entries.
    Safetensors,
    /// The entry that [`ReadOptions::root`] named.
    Named(String),
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Root::Model => "model",
            Root::Module => "module",
            Root::StateDict => "state_dict",
            Root::Bare => "bare",
            Root::Script => "torchscript",
            Root::Safetensors => "safetensors",
            Root::Named(name) => name,
        })
    }
}

/// How to read a file; `ReadOptions::default()` is what [`crate::read`] uses.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions<'a> {
    /// The top-level entry to take the tensors from, such as `model_ema` or `teacher`. Nested dictionaries and lists become
    /// dotted names, so `optimizer` gives `state.0.exp_avg`, where 0 counts the parameters through
    /// `optimizer.param_groups.*.params` in [`Checkpoint::metadata`].
    pub root: Option<&'a str>,
    /// Keep the names as they are in the file. By default wrappers are taken off: the prefix `module.` that all names have
    /// (DistributedDataParallel adds it), and `backbone.`, `encoder.`, `teacher.` and their like around a Vision Transformer.
    pub keep_ddp_prefix: bool,
}

/// An open weights file: names, types and shapes are known and checked, values are read on demand.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The tensors by name, in the order of the file.
    pub tensors: IndexMap<String, TensorView>,
    /// Where they were taken from.
    pub root: Root,
    /// The file's format.
    pub format: Format,
    /// Every plain value of the file outside the tensors, as text by dotted name: `epoch`, `args.model`, `scaler.scale`,
    /// `optimizer.param_groups.0.lr`; for safetensors, its metadata. Lists of plain values are one text, as Python prints it.
    pub metadata: BTreeMap<String, String>,
    /// Objects that were neither tensors nor plain values, as `dotted.name: class`. They were not executed or rebuilt.
    pub ignored: Vec<String>,
    /// Whether the prefix `module.` was taken off all names.
    pub ddp_prefix_removed: bool,
    /// The wrapper that was taken off the names, such as `teacher.backbone.`, with what else was in the file.
    pub unwrapped: Option<Wrapper>,
    /// The file's entries that hold tensors; of several one was read ([`Checkpoint::root`]).
    pub entries: Vec<String>,
    /// What the files beside it say ([`Sidecar::beside`]).
    pub beside: Sidecar,
    path: PathBuf,
}

impl Checkpoint {
    pub(crate) fn new(
        source: &Arc<FileSource>,
        format: Format,
        root: Root,
        tensors: IndexMap<String, TensorView>,
    ) -> Self {
        Self {
            tensors,
            root,
            format,
            entries: Vec::new(),
            metadata: BTreeMap::new(),
            ignored: Vec::new(),
            ddp_prefix_removed: false,
            unwrapped: None,
            beside: Sidecar::default(),
            path: source.path().to_path_buf(),
        }
    }

    /// With the names that are left when wrappers are taken off, and what lies beside `path`.
    pub(crate) fn renamed(mut self, path: &Path, options: &ReadOptions<'_>) -> Self {
        const DDP: &str = "module.";
        self.path = path.to_path_buf();
        if options.keep_ddp_prefix || self.tensors.is_empty() {
            return self;
        }
        self.unwrapped = wrapper::find(self.tensors.keys().map(String::as_str));
        let ddp = self.tensors.keys().all(|name| name.len() > DDP.len() && name.starts_with(DDP));
        self.ddp_prefix_removed = ddp;
        if self.unwrapped.is_none() && !ddp {
            return self;
        }
        let name_of = |name: &str| match &self.unwrapped {
            Some(wrapper) => wrapper.name(name),
            None => name.strip_prefix(DDP).map(str::to_owned),
        };
        let renamed = self.tensors.iter().filter_map(|(name, view)| {
            let name = name_of(name)?;
            Some((name.clone(), TensorView { name, ..view.clone() }))
        });
        self.tensors = renamed.collect();
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all tensors into memory, for [`crate::convert::convert`] or [`crate::plan::plan`], and looks at their values
    /// ([`TensorView::load_finite`]).
    ///
    /// # Errors
    /// The file cannot be read any more; a value that is NaN or infinite.
    pub fn load_all(&self) -> Result<IndexMap<String, Tensor>, WeightsError> {
        self.tensors.iter().map(|(name, view)| Ok((name.clone(), view.load_finite()?))).collect()
    }

    /// What a user should know about how the file was read, one line each: the entry of several, names that were left
    /// behind, what the files beside it say.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let others: Vec<&str> =
            self.entries.iter().map(String::as_str).filter(|name| *name != self.root.to_string()).collect();
        if !others.is_empty() && self.root != Root::Bare {
            let others = others.join(", ");
            notes.push(format!("entry `{}` of the file; also there: {others} (--entry NAME)", self.root));
        }
        notes.extend(self.unwrapped.as_ref().map(Wrapper::to_string));
        notes.extend(self.beside.describe());
        notes.extend(self.beside.remarks.iter().cloned());
        notes
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// No tensor of this name; the file cannot be read any more.
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        match self.tensors.get(name) {
            Some(view) => view.load(),
            None => Err(WeightsError::NoSuchTensor {
                path: self.path.clone(),
                tensor: name.to_string(),
                count: self.tensors.len(),
            }),
        }
    }
}
