//! The sources of the own kernels, in CUDA C. Each is compiled alone, with `device.cuh` before it.

/// What all sources share.
pub(super) const DEVICE: &str = include_str!("device.cuh");

/// What some sources share: the name that they include, and the text that stands there.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", include_str!("attention.cuh")),
    ("gelu.cuh", include_str!("gelu.cuh")),
    ("norm.cuh", include_str!("norm.cuh")),
    ("softmax.cuh", include_str!("softmax.cuh")),
];

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
    Source {
        name: "block",
        text: include_str!("block.cu"),
        entries: &[
            "block_pack",
            "block_branch_backward",
            "block_gelu_backward",
            "block_norm_backward",
            "block_choose",
            "block_spread",
            "block_finish",
        ],
    },
    Source { name: "casts", text: include_str!("casts.cu"), entries: &["cast_many"] },
    Source {
        name: "channels",
        text: include_str!("channels.cu"),
        entries: &[
            "channels_sums",
            "channels_norm",
            "channels_gradient_sums",
            "channels_gradient",
            "channels_record",
        ],
    },
    Source {
        name: "codes",
        text: include_str!("codes.cu"),
        entries: &["nearest_code_part", "nearest_code_finish", "sum_rows_by_id"],
    },
    Source {
        name: "columns",
        text: include_str!("columns.cu"),
        entries: &["columns_f32", "columns_bf16", "columns_any_f32", "columns_finish"],
    },
    Source { name: "concat", text: include_str!("concat.cu"), entries: &["concat_f32", "split_f32"] },
    Source {
        name: "conv",
        text: include_str!("conv.cu"),
        entries: &[
            "conv_pad_f32",
            "conv_pad_bf16",
            "conv_crop",
            "conv_taps_f32",
            "conv_taps_bf16",
            "conv_weight_of_taps",
            "deconv_rows_f32",
            "deconv_rows_bf16",
            "deconv_weight_of_rows",
            "deconv_spread",
            "deconv_gather_f32",
            "deconv_gather_bf16",
        ],
    },
    Source {
        name: "gelu",
        text: include_str!("gelu.cu"),
        entries: &[
            "gelu_forward_f32",
            "gelu_forward_bf16",
            "quick_gelu_forward_bf16",
            "gelu_tanh_forward_bf16",
            "gelu_train_f32",
            "tanh_forward_f32",
            "tanh_forward_bf16",
            "tanh_backward_f32",
            "tanh_backward_bf16",
            "multiply_f32",
        ],
    },
    Source {
        name: "images",
        text: include_str!("images.cu"),
        entries: &[
            "images_from_bytes",
            "images_standardise",
            "images_to_patches",
            "images_clear",
            "bytes_to_patches_f32",
            "bytes_to_patches_bf16",
        ],
    },
    Source {
        name: "loss",
        text: include_str!("loss.cu"),
        entries: &[
            "cross_entropy_forward_f32",
            "cross_entropy_backward_f32",
            "cross_entropy_backward_bf16",
            "soft_cross_entropy_forward_f32",
            "soft_cross_entropy_backward_f32",
            "cosine_loss_forward_f32",
            "cosine_loss_backward_f32",
            "means_f32",
            "head_means_f32",
        ],
    },
    Source {
        name: "maps",
        text: include_str!("maps.cu"),
        entries: &[
            "maps_resize_4",
            "maps_resize_1",
            "maps_resize_backward_4",
            "maps_resize_backward_1",
            "maps_cell_means",
            "maps_cell_means_backward_4",
            "maps_cell_means_backward_1",
            "maps_max",
            "maps_max_backward",
            "maps_scale_4",
            "maps_scale_1",
        ],
    },
    Source { name: "mixing", text: include_str!("mixing.cu"), entries: &["paste_boxes", "mix_pairs"] },
    Source {
        name: "norm",
        text: include_str!("norm.cu"),
        entries: &[
            "norm_forward_f32",
            "norm_forward_bf16",
            "residual_norm_forward_bf16",
            "norm_backward_f32",
            "norm_backward_bf16",
        ],
    },
    Source {
        name: "pixels",
        text: include_str!("pixels.cu"),
        entries: &[
            "pixel_cross_entropy_forward",
            "pixel_cross_entropy_backward",
            "pixel_cross_entropy_scale",
        ],
    },
    Source {
        name: "quantize",
        text: include_str!("quantize.cu"),
        entries: &[
            "unit_rows_forward",
            "unit_rows_backward",
            "quantize_rows",
            "commitment_backward",
            "update_codes",
        ],
    },
    Source {
        name: "residual",
        text: include_str!("residual.cu"),
        entries: &["residual_forward_f32", "residual_forward_bf16", "residual_backward_f32"],
    },
    Source {
        name: "parameters",
        text: include_str!("parameters.cu"),
        entries: &[
            "parameters_square_sums",
            "parameters_norm",
            "parameters_adamw",
            "parameters_weighted_sums",
            "parameters_join_scalars",
        ],
    },
    Source {
        name: "tokens",
        text: include_str!("tokens.cu"),
        entries: &[
            "tokens_embed",
            "tokens_embed_backward",
            "tokens_embed_backward_sums",
            "tokens_move",
            "tokens_mean",
            "tokens_mean_backward",
            "tokens_replace_cls",
            "tokens_replace_cls_backward",
            "tokens_gather",
            "tokens_gather_backward",
            "tokens_gather_bias",
            "tokens_gather_bias_backward",
            "position_bias",
            "position_bias_backward",
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_are_in_their_files_and_nowhere_else() {
        for source in SOURCES {
            for entry in source.entries {
                let holding = SOURCES.iter().filter(|source| source.entries.contains(entry)).count();
                assert_eq!(holding, 1, "{entry} is listed {holding} times");
                assert!(source.text.contains(&format!("{entry}(")), "{entry} is not in {}.cu", source.name);
            }
        }
    }
}
