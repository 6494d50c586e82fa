use super::*;
use beit2_data::Image;
use burn::backend::Flex;

/// Three images that `seed` determines, with masks that do not matter.
fn batch(epoch: u64, seed: u8) -> Batch<Item> {
    let items = (0..3u8).map(|at| Item {
        patch: Image::new(4, 4, (0..48u8).map(|i| i.wrapping_mul(seed) ^ at).collect()).unwrap(),
        token: None,
        masked: vec![u32::from(seed)],
        upscaled: false,
    });
    Batch {
        epoch,
        step: 0,
        last_in_epoch: false,
        indices: vec![0, 1, 2],
        items: items.collect(),
        labels: vec![None; 3],
        replaced: Vec::new(),
        bad_in_epoch: 0,
    }
}

fn tensor(seed: i32) -> Tensor<Flex, 2, Int> {
    Tensor::from_data([[seed, 1, 2, 65_535], [3, 4, seed, 0], [5, 6, 7, seed]], &Default::default())
}

fn computes(cache: &mut TokenCache, batch: &Batch<Item>, seed: i32) -> bool {
    let mut computed = false;
    let make = || {
        computed = true;
        tensor(seed)
    };
    let ids = cache.ids::<Flex>(batch, 4, &Default::default(), make);
    assert_eq!((ids.dtype(), ids.into_data()), (tensor(seed).dtype(), tensor(seed).into_data()));
    computed
}

fn open(folder: &Path, identity: &str, seed: u64) -> TokenCache {
    TokenCache::open(folder, identity, 1 << 16, seed).unwrap()
}

fn only_file(folder: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

#[test]
fn the_same_pixels_are_asked_for_once_and_all_else_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = open(folder.path(), "a", 1);
    assert!(computes(&mut cache, &batch(0, 7), 7) && !computes(&mut cache, &batch(0, 7), 7));
    assert!(computes(&mut cache, &batch(1, 8), 8) && computes(&mut cache, &batch(0, 9), 9));
    assert_eq!(cache.used(), CacheUse { hits: 1, lookups: 4, problem: None });
    let mut again = open(folder.path(), "a", 1);
    assert!(!computes(&mut again, &batch(0, 7), 7) && !computes(&mut again, &batch(1, 8), 8));
    let mut swapped = batch(0, 7);
    swapped.items.swap(0, 2);
    assert!(computes(&mut again, &swapped, 10));
    // Another view of the tokenizer, whatever the model sees.
    let mut other = batch(0, 7);
    other.items[1].token = Some(other.items[0].patch.clone());
    assert!(computes(&mut again, &other, 11));
    assert!(computes(&mut open(folder.path(), "b", 1), &batch(0, 7), 12));
    assert!(computes(&mut open(folder.path(), "a", 2), &batch(0, 7), 7));
    let mut wide = TokenCache::open(folder.path(), "w", (1 << 16) + 1, 1).unwrap();
    assert!(computes(&mut wide, &batch(0, 1), 70_000));
    assert!(!computes(&mut TokenCache::open(folder.path(), "w", 1 << 17, 1).unwrap(), &batch(0, 1), 70_000));
}

/// Every byte of a file is damaged, and the file is cut off everywhere: ids are right, and kept again.
#[test]
fn damage_is_noticed_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = open(folder.path(), "a", 1);
    for seed in [7, 8] {
        computes(&mut cache, &batch(0, seed), i32::from(seed));
    }
    let path = only_file(&folder.path().join("a"));
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.len(), HEADER as usize + 2 * (HASH + 3 * 4 * 2 + 4));
    let damaged = (0..whole.len()).flat_map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        [flipped, whole[..at].to_vec()]
    });
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        let mut cache = open(folder.path(), "a", 1);
        let computed = [7, 8].map(|seed| computes(&mut cache, &batch(0, seed), i32::from(seed)));
        assert!(computed.contains(&true), "damage was not noticed");
        let mut again = open(folder.path(), "a", 1);
        assert!(![7, 8].into_iter().any(|seed| computes(&mut again, &batch(0, seed), i32::from(seed))));
    }
    // Damage while the file is open.
    std::fs::write(&path, &whole).unwrap();
    let mut cache = open(folder.path(), "a", 1);
    assert!(!computes(&mut cache, &batch(0, 7), 7));
    std::fs::write(&path, &whole[..HEADER as usize + 10]).unwrap();
    assert!(computes(&mut cache, &batch(0, 8), 8) && computes(&mut cache, &batch(0, 7), 7));
    assert!(!computes(&mut cache, &batch(0, 8), 8));
}

#[test]
fn runs_that_share_a_folder_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for start in 0..4u8 {
            let path = folder.path();
            scope.spawn(move || {
                let mut cache = open(path, "a", 1);
                for step in 0..60u8 {
                    let seed = (step + 15 * start) % 60;
                    computes(&mut cache, &batch(0, seed), i32::from(seed));
                }
                assert_eq!(cache.used().problem, None);
            });
        }
    });
    let mut cache = open(folder.path(), "a", 1);
    assert!(!(0..60).any(|seed| computes(&mut cache, &batch(0, seed), i32::from(seed))));
    let length = std::fs::metadata(only_file(&folder.path().join("a"))).unwrap().len();
    assert_eq!(length, HEADER + 60 * (HASH as u64 + 3 * 4 * 2 + 4), "a record was written twice");
}

#[test]
fn a_folder_that_cannot_be_used_stops_the_cache_and_not_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = TokenCache::open(&file, "a", 16, 1).err().unwrap().to_string();
    assert!(error.contains("file"), "{error}");
    let mut cache = open(folder.path(), "a", 1);
    std::fs::remove_dir(folder.path().join("a")).unwrap();
    assert!(computes(&mut cache, &batch(0, 7), 7) && computes(&mut cache, &batch(0, 7), 7));
    let used = cache.used();
    assert!(used.problem.unwrap().contains("goes on without it"));
    assert_eq!((used.hits, used.lookups, cache.used().problem), (0, 2, None));
}
