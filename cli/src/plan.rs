//! `loadtest validate` and `loadtest plan`: check a file as an API server does, and size it as the
//! operator does.

use std::io::Write;

use loadtest_children::{Settings, build_config_map, build_job, build_plan};
use loadtest_core::{
    load::LoadModel,
    plan::{size_test, warnings},
    resource::Sizing,
};

use crate::{
    arguments::{PlanArguments, ValidateArguments},
    exit::Exit,
    manifest::{Manifest, read_manifest, read_with_settings},
    output::eprint_line,
};

/// Stands for the UID that the API server will choose.
const UNKNOWN_UID: &str = "00000000-0000-0000-0000-000000000000";
/// Stands for the hash of the token that the operator will make.
const UNKNOWN_TOKEN: &str = "set-by-the-operator";

/// Checks files. The exit code is that of bad input if one of them is invalid.
pub(crate) fn validate_files(
    arguments: &ValidateArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let mut exit = Exit::Passed;
    for file in &arguments.files {
        match read_manifest(file, arguments.name.as_deref(), &[]) {
            Ok(Manifest { test, .. })
                if test.metadata.name.is_none() && test.metadata.generate_name.is_none() =>
            {
                eprint_line(&format!("{file}: metadata.name is missing: give the test a name"));
                exit = Exit::BadInput;
            }
            Ok(Manifest { test, .. }) => {
                for warning in warnings(&test.spec) {
                    eprint_line(&format!("warning: {file}: {warning}"));
                }
                writeln!(out, "{file}: valid")?;
            }
            Err(error) => {
                eprint_line(&format!("loadtest: {}", error.message()));
                exit = Exit::BadInput;
            }
        }
    }
    Ok(exit)
}

/// Prints the runners of a test.
pub(crate) fn print_plan(arguments: &PlanArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let manifest = read_with_settings(&arguments.file, arguments.name.as_deref(), &arguments.set);
    match manifest {
        Ok(manifest) => {
            if arguments.objects {
                write!(out, "{}", format_objects(&manifest, &arguments.runner_image)?)?;
            } else {
                write!(out, "{}", format_plan(&manifest))?;
            }
            out.flush()?;
            Ok(Exit::Passed)
        }
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            Ok(Exit::BadInput)
        }
    }
}

/// The objects of a test as YAML. The API server chooses the UID of a LoadTest, and the operator the token of
/// its runners: both are placeholders.
pub(crate) fn format_objects(manifest: &Manifest, runner_image: &str) -> anyhow::Result<String> {
    let mut test = manifest.test.clone();
    test.metadata.uid = Some(UNKNOWN_UID.into());
    let sizing = size_test(&manifest.valid);
    let settings = Settings::with_image(runner_image);
    let plan = build_plan(&test, &manifest.valid, &sizing, UNKNOWN_TOKEN.into(), &settings);
    let config_map = build_config_map(&test, &plan)?;
    let job = build_job(&test, &manifest.valid, &sizing, &settings, UNKNOWN_TOKEN);
    let objects = [serde_json::to_value(config_map)?, serde_json::to_value(job)?];
    let mut out = String::new();
    for object in objects {
        out.push_str("---\n");
        out.push_str(&serde_saphyr::to_string(&object)?);
    }
    Ok(out)
}

pub(crate) fn format_plan(manifest: &Manifest) -> String {
    let load: &LoadModel = &manifest.valid.load;
    let Sizing { runners, users_per_runner, rate_per_runner, threads_per_runner, cpu, memory } =
        size_test(&manifest.valid);
    let lines = [
        ("load", load.to_string()),
        ("runners", runners.to_string()),
        ("users of a runner at most", users_per_runner.to_string()),
        ("requests of a runner at most", rate_per_runner),
        ("load threads of a runner", threads_per_runner.to_string()),
        ("CPU request of a runner", cpu),
        ("memory request of a runner", memory),
    ];
    let name = manifest.test.metadata.name.as_deref().unwrap_or("loadtest");
    let lines: Vec<String> =
        lines.iter().map(|(what, value)| format!("  {what:<30}{value}\n")).collect();
    format!("{name}\n{}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_of_a_test_are_a_config_map_and_a_job() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/loadtest-burst.yaml");
        let manifest = read_manifest(example, None, &[]).unwrap();
        let text = format_objects(&manifest, "registry.example.com/loadtest-runner:1").unwrap();
        let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ConfigMap", "Job"]);
        assert_eq!(objects[1]["spec"]["completions"], 2);
        let container = &objects[1]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example.com/loadtest-runner:1");
        assert!(objects[0]["data"]["plan.json"].as_str().unwrap().contains("cell0-small"));
    }
}
