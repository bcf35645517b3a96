//! Writes the result of a run to the standard output, and to the files that the command line names.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Context;
use loadtest_report::{
    CsvFiles, RunResult, csv_files, hdr_log, html_report, junit_report, k6_summary, markdown_report,
};

use crate::{
    arguments::{OutputArguments, OutputFormat},
    output::eprint_line,
    render::format_latencies,
};

impl OutputFormat {
    /// Returns the result in this form. `table` makes the tables.
    ///
    /// # Errors
    /// When the result can't be written as JSON or YAML.
    pub(crate) fn render(
        self,
        result: &RunResult,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<String> {
        Ok(match self {
            Self::Table => table(),
            Self::Wide => format_latencies(result) + &table(),
            Self::Json => serde_json::to_string(result)? + "\n",
            Self::Yaml => serde_saphyr::to_string(result)?,
            Self::Markdown => markdown_report(result),
        })
    }
}

impl OutputArguments {
    /// Returns true if a file is to be written.
    pub(crate) fn has_files(&self) -> bool {
        !output_paths(self).is_empty()
    }
}

/// Checks before a load that every file can be written: a load of an hour must not be lost to a typo. Files of
/// an earlier run are deleted: they must not be taken for those of a run without a result.
///
/// # Errors
/// When a file can't be written, or when two options name the same file.
pub(crate) fn check_outputs(outputs: &OutputArguments) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for path in output_paths(outputs) {
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|_| if is_plain_file(&path) { std::fs::remove_file(&path) } else { Ok(()) })
            .with_context(|| format!("the result can't be written to {}", path.display()))?;
        anyhow::ensure!(
            seen.insert(path.clone()),
            "two options name the file {}: give each a file of its own",
            path.display()
        );
    }
    Ok(())
}

/// The path of each file, in no order.
fn output_paths(outputs: &OutputArguments) -> Vec<PathBuf> {
    let OutputArguments { format: _, json, html, csv, junit, markdown, summary_export, hdr } =
        outputs;
    let files = [json, html, junit, markdown, summary_export, hdr].into_iter().flatten().cloned();
    let csv = csv.iter().flat_map(|prefix| {
        CsvFiles::SUFFIXES.map(|suffix| PathBuf::from(format!("{prefix}{suffix}")))
    });
    files.chain(csv).collect()
}

/// Returns true for a file that may be replaced by another one. A link such as `/dev/stdout`, a device and a pipe may not.
fn is_plain_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Writes a file that is there with its whole text or not at all. What is no plain file gets the text as it is.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok() && !is_plain_file(path) {
        return std::fs::write(path, text);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // The cause is the first error.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Writes every file. A file that can't be written does not keep the others from being written.
///
/// # Errors
/// When a file can't be written; the error names every such file.
pub(crate) fn write_outputs(outputs: &OutputArguments, result: &RunResult) -> anyhow::Result<()> {
    let OutputArguments { format: _, json, html, csv, junit, markdown, summary_export, hdr } =
        outputs;
    let mut problems = Vec::new();
    let mut files: Vec<String> = Vec::new();
    let mut write = |path: &Path, text: anyhow::Result<String>| {
        let written = text.and_then(|text| Ok(write_whole(path, &text)?));
        if written.is_ok() {
            files.push(path.display().to_string());
        }
        let written =
            written.with_context(|| format!("the result can't be written to {}", path.display()));
        problems.extend(written.err().map(|error| format!("{error:#}")));
    };
    if let Some(path) = json {
        let text = serde_json::to_string(result).map_err(anyhow::Error::from);
        write(path, text.map(|text| text + "\n"));
    }
    if let Some(path) = html {
        write(path, html_report(result).map_err(Into::into));
    }
    if let Some(path) = junit {
        write(path, Ok(junit_report(result)));
    }
    if let Some(path) = markdown {
        write(path, Ok(markdown_report(result)));
    }
    if let Some(path) = summary_export {
        write(path, Ok(k6_summary(result)));
    }
    if let Some(path) = hdr {
        write(path, hdr_log(result).map_err(Into::into));
    }
    if let Some(prefix) = csv {
        match csv_files(result) {
            Ok(files) => {
                for (suffix, text) in files.with_suffixes() {
                    write(Path::new(&format!("{prefix}{suffix}")), Ok(text));
                }
            }
            Err(error) => write(Path::new(prefix), Err(error.into())),
        }
    }
    if !files.is_empty() {
        eprint_line(&format!("written: {}", files.join(", ")));
    }
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}
