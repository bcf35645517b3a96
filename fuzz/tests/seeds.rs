//! Runs every kept input through the body of its target. `scripts/fuzz` adds inputs.

use std::{fs, path::Path};

use loadtest_fuzz::TARGETS;

/// Maximum number of kept inputs, and of their bytes.
const MAX_FILES: usize = 200;
const MAX_BYTES: usize = 300 << 10;

/// Returns the path and the content of every input of a target.
fn inputs_of(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder).expect("the corpus has a folder for each target") {
        let path = entry.expect("the folder can be read").path();
        let content = fs::read(&path).expect("the input can be read");
        inputs.push((path.display().to_string(), content));
    }
    inputs.sort();
    inputs
}

#[test]
fn every_kept_input_passes() {
    let mut failures = Vec::new();
    for (target, body) in TARGETS {
        let inputs = inputs_of(target);
        assert!(!inputs.is_empty(), "{target} has no inputs");
        let fails = |data: &[u8]| std::panic::catch_unwind(|| body(data)).is_err();
        failures.extend(inputs.into_iter().filter(|(_, data)| fails(data)).map(|(path, _)| path));
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_kept_inputs_are_few_and_small() {
    let inputs: Vec<_> = TARGETS.iter().flat_map(|(target, _)| inputs_of(target)).collect();
    let bytes: usize = inputs.iter().map(|(_, data)| data.len()).sum();
    assert!(
        inputs.len() <= MAX_FILES && bytes <= MAX_BYTES,
        "{} files, {bytes} bytes",
        inputs.len()
    );
}
