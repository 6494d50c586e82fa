//! A second pretraining on the same images does not ask the tokenizer, and ends with the same bytes.

use std::path::Path;

use beit2::pretrain::{self, PretrainRecipe};
use beit2::train::{Env, Event, Files, Observer, Silent};
use beit2_kernels::Precision;
use beit2_run::StopFlag;

use super::scene::{self, Auto};

/// Keeps what is said about the cache.
struct Notes(Vec<String>, StopFlag, u64);

impl Observer for Notes {
    fn event(&mut self, event: Event) {
        match event {
            Event::Note(text) => self.0.push(text),
            Event::Warning(text) => assert!(!text.contains("cache"), "{text}"),
            Event::Step { step, .. } if step == self.2 => self.1.request(),
            _ => {}
        }
    }
}

/// Trains, at most to `stop`; gives the checkpoint's files and the number of batches found of those asked for.
fn train(recipe: &PretrainRecipe, dir: &Path, stop: u64) -> ([Vec<u8>; 2], Option<(u64, u64)>) {
    let flag = StopFlag::new();
    let mut notes = Notes(Vec::new(), flag.clone(), stop);
    let assets = Files::default();
    let env = Env { stop: flag, ..Env::new(dir, &mut notes, &assets) };
    let outcome = pretrain::train::<Auto>(recipe, env, &Default::default()).unwrap();
    let files = ["model.safetensors", "optimizer.safetensors"];
    let files = files.map(|file| std::fs::read(outcome.checkpoint.join(file)).unwrap());
    let found = notes.0.first().map(|note| {
        let mut numbers = note.split(' ').filter_map(|word| word.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    });
    (files, found)
}

#[test]
fn a_second_run_takes_the_ids_of_the_first() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::images(&root.join("images"), 14);
    scene::teacher(&root.join("teacher.safetensors"));
    let tokenizer = scene::tokenizer(root);
    for (seed, name) in [(7, "tokenizer"), (8, "another")] {
        let recipe = beit2::tokenizer::TokenizerRecipe { seed, ..tokenizer.clone() };
        let (assets, mut silent) = (Files::default(), Silent);
        let env = Env::new(root.join(name), &mut silent, &assets);
        beit2::tokenizer::train::<Auto>(&recipe, env, &Default::default()).unwrap();
    }

    let plain = scene::pretrain(root, &root.join("tokenizer"));
    let mut cached = plain.clone();
    cached.tokenizer.cache = Some(root.join("ids").to_string_lossy().into_owned());
    let (expected, found) = train(&plain, &root.join("plain"), u64::MAX);
    assert_eq!(found, None);
    // Stopped and continued, both with what the first part has written.
    let (_, found) = train(&cached, &root.join("cold"), 4);
    assert_eq!(found, Some((0, 4)));
    let (files, found) = train(&cached, &root.join("cold"), u64::MAX);
    assert!(files == expected && found.is_some_and(|(_, asked)| asked == 5), "{found:?}");
    let (files, found) = train(&cached, &root.join("warm"), u64::MAX);
    assert!(files == expected && found == Some((9, 9)), "{found:?}");
    // A run may begin or cease to use a cache.
    train(&plain, &root.join("mixed"), 4);
    let (files, found) = train(&cached, &root.join("mixed"), u64::MAX);
    assert!(files == expected && found == Some((5, 5)), "{found:?}");

    // Another student sees the same token ids.
    let mut student = cached.clone();
    (student.model.vit.width, student.optimizer.lr, student.model.vit.drop_path) = (32, 1e-3, 0.0);
    student.mask.patches = 5;
    assert_eq!(train(&student, &root.join("student"), u64::MAX).1, Some((9, 9)));

    type Change = fn(&mut PretrainRecipe);
    let changes: [(&str, Change); 6] = [
        ("seed", |r| r.seed += 1),
        ("crops", |r| r.augment.min_crop_scale = 0.5),
        ("colours", |r| r.augment.color_jitter = 0.1),
        ("flips", |r| r.augment.hflip = 0.0),
        ("precision", |r| r.precision = Precision::Bf16),
        ("tokenizer", |r| r.tokenizer.weights = r.tokenizer.weights.replace("tokenizer", "another")),
    ];
    for (name, change) in changes {
        let (mut other, mut uncached) = (cached.clone(), plain.clone());
        change(&mut other);
        change(&mut uncached);
        let (files, found) = train(&other, &root.join("changed").join(name), u64::MAX);
        let (expected, _) = train(&uncached, &root.join("plainly").join(name), u64::MAX);
        // A flip of probability 0 leaves the batches that had none.
        assert!(files == expected && (found == Some((0, 9)) || name == "flips"), "{name}: {found:?}");
    }
}
