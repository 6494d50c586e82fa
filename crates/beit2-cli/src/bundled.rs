//! The quickstart's images and teacher, when they are inside the program (feature `bundled`).

use beit2_data::source::StaticShard;

#[cfg(feature = "bundled")]
mod inside {
    pub use beit2_quickstart_data::{TRAIN, VAL};

    pub fn teacher() -> Option<super::StaticShard> {
        Some(beit2_quickstart_data::TEACHER)
    }
}

#[cfg(not(feature = "bundled"))]
mod inside {
    pub static TRAIN: &[super::StaticShard] = &[];
    pub static VAL: &[super::StaticShard] = &[];

    pub fn teacher() -> Option<super::StaticShard> {
        None
    }
}

pub use inside::{TRAIN, VAL, teacher};
