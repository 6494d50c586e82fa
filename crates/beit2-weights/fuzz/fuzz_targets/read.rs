//! Any bytes as a weights file: a result or an error. Good seeds are the files of golden suite H.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The reader works on files; /dev/shm or another memory file system as TMPDIR keeps this fast.
    let path = std::env::temp_dir().join(format!("beit2-weights-fuzz-{}", std::process::id()));
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(checkpoint) = beit2_weights::read(&path) {
        for view in checkpoint.tensors.values() {
            let _ = view.load();
        }
    }
});
