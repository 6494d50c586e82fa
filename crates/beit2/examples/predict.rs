//! The most probable classes of images.
//!
//! ```sh
//! cargo run --release --example train -- runs/example       # or name any classifier in place of runs/example/classifier
//! mkdir images && tar xf crates/beit2-quickstart-data/data/val-000.tar -C images
//! cargo run --release --example predict -- runs/example/classifier images/animals/antilope*.webp images/people/air*.webp
//! ```
//!
//! It prints the three best classes of each image:
//!
//! ```text
//! images/animals/antilope_architetto_fran_01_148.webp
//!   13.8 %  food
//!   13.4 %  animals
//!   10.9 %  people
//! images/people/air_stefan_bazelkov_01_208.webp
//!   18.8 %  electronics
//!   13.5 %  people
//!    9.4 %  animals
//! ```

use std::error::Error;

use beit2::classify::Classifier;
use beit2::pixels;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, paths @ ..] = args.as_slice() else {
        return Err("expected: MODEL IMAGE…".into());
    };
    let classifier = Classifier::open(model)?;
    for path in paths {
        println!("{path}");
        for best in classifier.top_k(&[pixels::read(path)?], 3)?.concat() {
            let name = best.name.unwrap_or_else(|| format!("class {}", best.class));
            println!("{:>6.1} %  {name}", 100.0 * best.probability);
        }
    }
    Ok(())
}
