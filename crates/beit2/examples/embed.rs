//! Features of images from any model, and how alike the images are by them.
//!
//! ```sh
//! cargo run --release --example train -- runs/example       # or name any model in place of runs/example/mim
//! mkdir images && tar xf crates/beit2-quickstart-data/data/val-000.tar -C images
//! cargo run --release --example embed -- runs/example/mim images/animals/{antilope,ape,az}*.webp images/people/a*.webp
//! ```
//!
//! It prints the cosine similarity of every image with the first:
//!
//! ```text
//! 6 images, 128 features each
//!  1.000  images/animals/antilope_architetto_fran_01_148.webp
//!  0.500  images/animals/ape_miele_271.webp
//!  0.974  images/animals/az_lizard_benji_park_01_004.webp
//!  0.416  images/people/air_stefan_bazelkov_01_208.webp
//! -0.600  images/people/alien_peterm_01_008.webp
//!  0.965  images/people/attaccapanni_con_vestito_da_293.webp
//! ```

use std::error::Error;

use beit2::classify::{Embedder, FeatureKind};
use beit2::{Image, pixels};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, paths @ ..] = args.as_slice() else {
        return Err("expected: MODEL IMAGE…".into());
    };
    let embedder = Embedder::open(model)?;
    let images = paths.iter().map(pixels::read).collect::<Result<Vec<Image>, _>>()?;
    let features = embedder.embed(&images, FeatureKind::Mean)?; // [n, D]
    let [count, width] = features.dims();
    println!("{count} images, {width} features each");
    let rows: Vec<f32> =
        features.into_data().convert::<f32>().into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let first = &rows[..width];
    for (path, row) in paths.iter().zip(rows.chunks(width)) {
        let cosine = dot(first, row) / (dot(first, first) * dot(row, row)).sqrt();
        println!("{cosine:>6.3}  {path}");
    }
    Ok(())
}
