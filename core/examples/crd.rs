//! Prints the CustomResourceDefinition: `make generate` writes it to `crds/`.

fn main() -> Result<(), serde_yaml::Error> {
    use std::io::Write;
    let yaml = loadtest_core::resource::crd_yaml()?;
    // A closed pipe is the reader's choice, not an error.
    let _ = std::io::stdout().write_all(yaml.as_bytes());
    Ok(())
}
