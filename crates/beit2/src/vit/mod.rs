//! The Vision Transformer that every stage composes.
//!
//! Knows nothing of tokenizers, masks or labels. Start with [`Trunk`]; [`VisionTransformer`] adds
//! the final norms and a head, as the reference's class of that name.

mod attention;
mod block;
mod config;
mod drop_path;
mod layers;
mod load;
mod patch_embed;
mod pos_embed;
mod recompute;
mod rel_pos;
mod run;
mod transformer;
mod trunk;

pub use attention::Attention;
pub use block::{Block, BlockOptions, Mlp};
pub use config::{RelPosKind, VitConfig};
pub(crate) use drop_path::add_branch;
pub use drop_path::{BranchDrop, DropPath, SampleDrop, drop_path_rates};
pub use layers::{LayerNorm, Linear};
pub use load::{is_position_index, plan_trunk_weights, plan_weights, with_position_indices};
pub use patch_embed::{PatchEmbed, Pixels};
pub use pos_embed::{PosResize, resize_grid, resize_pos_embed};
pub use rel_pos::{RelPosBias, relative_position_index, relative_table_len};
pub use run::run_blocks;
pub use transformer::{Pooling, VisionTransformer};
pub(crate) use trunk::block_options;
pub use trunk::{TokenSubset, Trunk};
