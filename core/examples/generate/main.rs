//! Prints a generated file: `make generate` writes them to `crds/` and `docs/`.

mod fields;

use std::io::{self, Write};

use loadtest_core::{
    metrics::markdown_table::metrics_table,
    resource::{CrdEdition, crd_yaml},
    result::{result_crd_yaml, result_schema},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = match std::env::args().nth(1).as_deref() {
        Some("crd") => crd_yaml(CrdEdition::Current)?,
        Some("older-crd") => crd_yaml(CrdEdition::Older)?,
        Some("result-crd") => result_crd_yaml()?,
        Some("metrics-table") => metrics_table(),
        Some("fields") => fields::fields_page(),
        Some("result-schema") => format!("{:#}\n", result_schema()),
        _ => {
            return Err(
                "usage: generate crd|older-crd|result-crd|fields|metrics-table|result-schema"
                    .into(),
            );
        }
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
