//! What training saves is opened by its path alone. (Classifiers and segmentation models: `finetuning`, `segmenting`.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use beit2::classify::{Classifier, Embedder, FeatureKind};
use beit2::segment::Segmenter;
use beit2::tokenizer::Tokenizer;
use beit2::train::{Env, Files, Silent};
use beit2::{Error, Image, pixels, pretrain, tokenizer, weights};

use super::scene::{self, Auto};

/// The folders of a tokenizer and of a model pretrained with it.
fn train(root: &Path) -> [PathBuf; 2] {
    scene::images(&root.join("images"), 12);
    scene::teacher(&root.join("teacher.safetensors"));
    let [tokens, mim] = ["tokenizer", "mim"].map(|name| root.join(name));
    let (files, device) = (Files::default(), Default::default());
    let recipe = scene::tokenizer(root);
    let done = tokenizer::train::<Auto>(&recipe, Env::new(&tokens, &mut Silent, &files), &device).unwrap();
    assert!(done.complete);
    let recipe = scene::pretrain(root, &tokens);
    pretrain::train::<Auto>(&recipe, Env::new(&mim, &mut Silent, &files), &device).unwrap();
    [tokens, mim]
}

fn wrong_model<T>(opened: Result<T, Error>) -> String {
    match opened {
        Err(error @ Error::WrongModel { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it opened"),
    }
}

#[test]
fn a_path_is_enough() {
    let root = tempfile::tempdir().unwrap();
    let [tokens, mim] = train(root.path());
    let image = |number: usize| pixels::read(root.path().join(format!("images/{number:03}.ppm"))).unwrap();
    let images: Vec<Image> = (0..3).map(image).collect();

    let tokenizer = Tokenizer::open(&tokens).unwrap();
    let ids = tokenizer.encode(&images).unwrap();
    assert_eq!(ids.dims(), [3, 4, 4]);
    assert!(ids.clone().into_data().iter::<i64>().all(|id| (0..24).contains(&id)));
    // Decoding the ids gives what the whole model decodes.
    let views = pixels::views(&images, &tokenizer.view(), &Default::default()).unwrap();
    let x = tokenizer.model.preprocess(views);
    let z = tokenizer.model.encode(x).reshape([3 * 16, 6]);
    let whole = tokenizer.model.decode(tokenizer.model.quantize.forward(z).codes, 3);
    let decoded = tokenizer.decode(ids);
    assert_eq!(decoded.dims(), [3, 16, 16]);
    decoded.into_data().assert_approx_eq::<f32>(&whole.into_data(), burn::tensor::Tolerance::default());

    let features = Embedder::open(&mim).unwrap().embed(&images, FeatureKind::Mean).unwrap();
    assert_eq!(features.dims(), [3, 24]);
    assert_eq!(Embedder::open(&tokens).unwrap().embed(&images, FeatureKind::Mean).unwrap().dims(), [3, 24]);

    // The same tensors without the configuration: shapes say enough.
    let file = weights::open(&mim).unwrap();
    let bare = root.path().join("bare.safetensors");
    std::fs::write(&bare, weights::encode(&file.tensors, &BTreeMap::new()).unwrap()).unwrap();
    let same = Embedder::open(&bare).unwrap().embed(&images, FeatureKind::Mean).unwrap();
    same.into_data().assert_eq(&features.into_data(), true);

    for (error, told) in [
        (wrong_model(Classifier::open(&mim)), "which has no classes"),
        (wrong_model(Segmenter::open(&mim)), "which has no pixel classes"),
        (wrong_model(Tokenizer::open(&mim)), "not a tokenizer"),
        (wrong_model(Tokenizer::open(&bare)), "not a tokenizer"),
        (wrong_model(Classifier::open(&tokens)), "which has no classes"),
        (
            wrong_model(pretrain::load::<Auto>(weights::open(&tokens).unwrap(), "it", &Default::default())),
            "it holds",
        ),
    ] {
        assert!(error.contains(told), "{error}");
    }
    let missing = Embedder::open(root.path().join("missing.safetensors")).err().unwrap();
    assert!(missing.to_string().contains("missing.safetensors"), "{missing}");
}
