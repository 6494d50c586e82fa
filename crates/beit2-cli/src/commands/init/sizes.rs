//! Sizes to choose from: of models, and of the images that they see.

/// Model sizes, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Width 128, 4 blocks: the quickstart's.
    Mini,
    /// Width 192, 12 blocks.
    Tiny,
    /// Width 384, 12 blocks.
    Small,
    /// Width 768, 12 blocks.
    Base,
    /// Width 1024, 24 blocks.
    Large,
}

/// A learning rate and the batch that it is meant for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub lr: f64,
    pub base: usize,
}

impl Size {
    /// All, smallest first.
    pub const ALL: [Self; 5] = [Self::Mini, Self::Tiny, Self::Small, Self::Base, Self::Large];

    /// The name in `--size`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mini => "mini",
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Base => "base",
            Self::Large => "large",
        }
    }

    /// Width, blocks and heads.
    pub fn shape(self) -> (usize, usize, usize) {
        match self {
            Self::Mini => (128, 4, 4),
            Self::Tiny => (192, 12, 3),
            Self::Small => (384, 12, 6),
            Self::Base => (768, 12, 12),
            Self::Large => (1024, 24, 16),
        }
    }

    /// The size of its tokenizer: its own up to base, base for large, as in the paper.
    pub fn tokenizer(self) -> Self {
        self.min(Self::Base)
    }

    /// Blocks of the tokenizer's decoder.
    pub fn decoder_depth(self) -> usize {
        if self >= Self::Base { 3 } else { 1 }
    }

    /// Images that pretraining should see, and images that there should be, before this size pays off.
    pub fn worth(self) -> (f64, usize) {
        match self {
            Self::Mini => (0.0, 0),
            Self::Tiny => (300e3, 5_000),
            Self::Small => (2e6, 50_000),
            Self::Base => (20e6, 300_000),
            Self::Large => (100e6, 1_000_000),
        }
    }

    /// Of the tokenizer. Mini: the quickstart's. Base: the paper's, 5e-5 for each 128 images.
    pub fn tokenizer_rate(self) -> Rate {
        match self {
            Self::Mini => Rate { lr: 1e-3, base: 16 },
            Self::Tiny => Rate { lr: 5e-4, base: 64 },
            Self::Small => Rate { lr: 2e-4, base: 128 },
            Self::Base | Self::Large => Rate { lr: 5e-5, base: 128 },
        }
    }

    /// Of pretraining. Mini: the quickstart's. Base and large: the paper's.
    pub fn pretrain_rate(self) -> Rate {
        match self {
            Self::Mini => Rate { lr: 3e-3, base: 16 },
            Self::Tiny => Rate { lr: 1.5e-3, base: 128 },
            Self::Small => Rate { lr: 1.5e-3, base: 512 },
            Self::Base | Self::Large => Rate { lr: 1.5e-3, base: 2048 },
        }
    }

    /// Of fine-tuning, and the decay of the rate from layer to layer. Mini: that of `fashion_finetune`. Base and large: the
    /// paper's.
    pub fn finetune_rate(self) -> (Rate, f64) {
        match self {
            Self::Mini => (Rate { lr: 2e-3, base: 64 }, 0.9),
            Self::Tiny => (Rate { lr: 1e-3, base: 128 }, 0.75),
            Self::Small => (Rate { lr: 5e-4, base: 256 }, 0.75),
            Self::Base => (Rate { lr: 5e-4, base: 1024 }, 0.65),
            Self::Large => (Rate { lr: 5e-4, base: 1024 }, 0.8),
        }
    }

    /// Of segmentation, and the decay from layer to layer. Mini: that of `segment_scenes`. Base and large: the paper's.
    pub fn segment_rate(self) -> (Rate, f64) {
        match self {
            Self::Mini => (Rate { lr: 3e-3, base: 16 }, 0.9),
            Self::Tiny => (Rate { lr: 5e-4, base: 16 }, 0.85),
            Self::Small => (Rate { lr: 1e-4, base: 16 }, 0.8),
            Self::Base => (Rate { lr: 5e-5, base: 16 }, 0.75),
            Self::Large => (Rate { lr: 4e-5, base: 16 }, 0.9),
        }
    }

    /// Batches of tokenizer, pretraining, fine-tuning and segmentation where time, images and memory allow them.
    pub fn batches(self) -> [usize; 4] {
        match self {
            Self::Mini => [16, 16, 32, 16],
            Self::Tiny => [64, 64, 64, 16],
            Self::Small => [128, 256, 128, 16],
            Self::Base | Self::Large => [512, 2048, 512, 16],
        }
    }
}

/// Side of an image and of its patches, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pixels {
    pub image: usize,
    pub patch: usize,
}

impl Pixels {
    /// Patches along one side.
    pub fn grid(self) -> usize {
        self.image / self.patch
    }

    /// What a model of this size should see of images whose shorter side is `short`. The input leaves room for random crops:
    /// a mini model takes about four fifths of the shorter side in 8 × 8 patches, up to 128 pixels, larger ones up to 14 × 14 patches.
    pub fn of(size: Size, short: u32, segments: bool) -> Self {
        let short = short as usize;
        let new = |image, patch| Self { image, patch };
        // The pyramid of segmentation takes patches of 8 or 16 pixels.
        if segments && short < 74 {
            let grid = (0.87 * short as f64 / 8.0) as usize;
            return new(8 * grid.clamp(4, 8), 8);
        }
        if size > Size::Mini {
            return match short {
                256.. => new(224, 16),
                220.. => new(192, 16),
                128.. => new(112, 8),
                110.. => new(96, 8),
                74.. => new(64, 8),
                56.. => new(48, 6),
                37.. => new(32, 4),
                28.. => new(24, 3),
                _ => new(16, 2),
            };
        }
        // Finer patches where every pixel gets a class.
        let patches: &[usize] = if segments { &[8] } else { &[2, 3, 4, 6, 8, 12, 16] };
        let wanted = short as f64 / 10.0;
        let off = |patch: usize| (patch as f64 / wanted).ln().abs();
        // Nearer to the image's side, most crops would have to be enlarged.
        let leaves_room = |patch: &usize| 8.0 * *patch as f64 <= 0.87 * short as f64;
        let fitting = patches.iter().copied().filter(leaves_room);
        let best = fitting.min_by(|&a, &b| off(a).total_cmp(&off(b))).unwrap_or(patches[0]);
        new(8 * best, best)
    }
}

/// Masked patches and the smallest block of a grid: the paper's 75 of 196, and a square of four fourteenths of the side.
pub fn mask(grid: usize) -> (usize, usize) {
    let patches = (grid * grid * 75).div_ceil(196);
    let side = (grid * 4 / 14).max(1);
    (patches, (side * side).min(patches))
}

/// The block whose patch tokens the aggregation head sees: the paper's 9 of 12 and 21 of 24, 3 of 4.
pub fn intermediate_layer(depth: usize) -> usize {
    (depth * 3 / 4).max(depth.saturating_sub(3)).max(1)
}

/// Codes, from the patches that the tokenizer sees and those that there are: at least a thousand views of each code and 64
/// different patches, so that each is learned; a power of two from 32 to the paper's 8192.
pub fn codes(seen: f64, different: f64) -> usize {
    let most = (seen / 1000.0).min(different / 64.0).max(1.0);
    (1usize << most.log2().floor() as u32).clamp(32, 8192)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_give_the_papers_and_the_quickstarts_numbers() {
        assert_eq!((mask(14), mask(8)), ((75, 16), (25, 4)));
        assert_eq!([4, 12, 24].map(intermediate_layer), [3, 9, 21]);
        assert_eq!(Pixels::of(Size::Mini, 96, false), Pixels { image: 64, patch: 8 });
        assert_eq!(Pixels::of(Size::Base, 375, false), Pixels { image: 224, patch: 16 });
        // 800 steps of 16 images with 64 patches; 100 epochs of ImageNet.
        assert_eq!(codes(800.0 * 16.0 * 64.0, 2012.0 * 64.0), 512);
        assert_eq!(codes(1.28e6 * 100.0 * 196.0, 1.28e6 * 196.0), 8192);
    }

    #[test]
    fn inputs_follow_the_images() {
        let mini = |short| Pixels::of(Size::Mini, short, false);
        assert_eq!([28, 64, 112, 224, 3000].map(|short| mini(short).image), [24, 48, 96, 128, 128]);
        assert_eq!(Pixels::of(Size::Mini, 480, true), Pixels { image: 64, patch: 8 });
        assert_eq!(Pixels::of(Size::Base, 66, true), Pixels { image: 56, patch: 8 });
        assert_eq!([45, 50, 66].map(|short| mini(short).image), [32, 32, 48]);
        for size in Size::ALL {
            for short in [16, 28, 64, 100, 200, 224, 256, 4000] {
                let pixels = Pixels::of(size, short, false);
                assert!(pixels.image.is_multiple_of(pixels.patch), "{size:?} {short}: {pixels:?}");
            }
        }
    }
}
