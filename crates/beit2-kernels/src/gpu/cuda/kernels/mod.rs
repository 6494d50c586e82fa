//! The sources of the own kernels, in CUDA C. Each is compiled alone, with `device.cuh` before it.

/// What all sources share.
pub(super) const DEVICE: &str = include_str!("device.cuh");

/// What some sources share: the name that they include, and the text that stands there.
pub(super) const HEADERS: &[(&str, &str)] = &[("attention.cuh", include_str!("attention.cuh"))];

/// One `.cu` file.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's name without ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Its entry points.
    pub entries: &'static [&'static str],
}

/// All of them.
pub(crate) const SOURCES: &[Source] = &[
    Source {
        name: "attention",
        text: include_str!("attention.cu"),
        entries: &[
            "attention_forward_bf16",
            "attention_queries_backward_bf16",
            "attention_keys_backward_bf16",
            "attention_bias_backward_bf16",
            "attention_add_parts",
            "attention_to_bf16",
        ],
    },
    Source {
        name: "attention_f32",
        text: include_str!("attention_f32.cu"),
        entries: &[
            "attention_forward_f32",
            "attention_queries_backward_f32",
            "attention_keys_backward_f32",
            "attention_bias_backward_f32",
        ],
    },
];
