//! `loadtest apply`: creates a LoadTest on a cluster, and waits for its verdict if asked to.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use kube::api::{DeleteParams, Patch, PatchParams};
use loadtest_core::{
    plan::warnings,
    resource::{LoadTest, LoadTestStatus, Phase},
};

use super::{Cluster, POLL_INTERVAL, watch::follow_test};
use crate::{
    arguments::{ApplyArguments, OutputFormat},
    exit::Exit,
    manifest::{Manifest, read_with_settings},
    output::eprint_line,
    outputs::check_outputs,
};

/// Time that a deleted LoadTest and its pods get to go away.
const DELETE_TIMEOUT: Duration = Duration::from_mins(2);
/// The field manager of what this command writes.
const FIELD_MANAGER: &str = "loadtest-cli";

/// Applies the LoadTest of a file. With `--wait`, the exit code follows the verdict.
pub(crate) fn apply_test(arguments: &ApplyArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let file = arguments.file.as_ref().or(arguments.filename.as_ref());
    let file = file.map_or("-", String::as_str);
    let manifest = read_with_settings(file, arguments.name.as_deref(), &arguments.set);
    let Manifest { test, mut object, .. } = match manifest {
        Ok(manifest) => manifest,
        Err(message) => {
            eprint_line(&format!("loadtest: {message}"));
            return Ok(Exit::BadInput);
        }
    };
    for warning in warnings(&test.spec) {
        eprint_line(&format!("warning: {file}: {warning}"));
    }
    let Some(name) = test.metadata.name.as_deref() else {
        eprint_line(&format!("{file}: metadata.name is missing: give the test a name"));
        return Ok(Exit::BadInput);
    };
    let outputs = &arguments.outputs;
    let needs_result =
        arguments.strict || outputs.has_files() || !matches!(outputs.format, OutputFormat::Table);
    if needs_result && !arguments.wait {
        eprint_line(
            "loadtest: --strict, -o and the files of the result need --wait, because there is no result before the end of the test",
        );
        return Ok(Exit::BadInput);
    }
    let mut cluster_arguments = arguments.cluster.clone();
    let namespace = &mut cluster_arguments.namespace;
    *namespace = namespace.take().or_else(|| test.metadata.namespace.clone());
    super::block_on(async {
        let cluster = Cluster::connect(&cluster_arguments).await?;
        object["metadata"]["namespace"] = cluster.namespace.clone().into();
        let mut before = cluster.get_test(name).await.context("the LoadTest can't be read")?;
        if let Some(old) = before.take_if(|old| has_ended(old)) {
            if !arguments.replace {
                anyhow::bail!(
                    "LoadTest {name} has run already, and a LoadTest runs once: use --replace to delete it and run it again"
                );
            }
            delete_test(&cluster, &old).await?;
        }
        check_outputs(outputs)?;
        // What the user's file says wins over what others wrote to the same fields.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = cluster.tests.patch(name, &params, &Patch::Apply(&object)).await;
        let applied = applied.with_context(|| format!("LoadTest {name} can't be applied"))?;
        let generation = |test: &LoadTest| test.metadata.generation;
        let change = match &before {
            None => "created",
            Some(before) if generation(before) == generation(&applied) => "unchanged",
            Some(_) => "configured",
        };
        eprint_line(&format!("loadtest/{name} {change} in namespace {}", cluster.namespace));
        if !arguments.wait {
            return Ok(Exit::Passed);
        }
        let uid = applied.metadata.uid;
        follow_test(&cluster, name, uid, arguments.strict, outputs, out).await
    })
}

fn has_ended(test: &LoadTest) -> bool {
    let phase = test.status.as_ref().and_then(LoadTestStatus::known_phase);
    phase.is_some_and(Phase::is_final)
}

/// Deletes a test and its pods, and waits until they are gone.
async fn delete_test(cluster: &Cluster, test: &LoadTest) -> anyhow::Result<()> {
    let (Some(name), Some(uid)) = (&test.metadata.name, &test.metadata.uid) else { return Ok(()) };
    let deleted = cluster.tests.delete(name, &DeleteParams::foreground()).await;
    deleted.with_context(|| format!("LoadTest {name} can't be deleted"))?;
    let end = Instant::now() + DELETE_TIMEOUT;
    while Instant::now() < end {
        let found = cluster.get_test(name).await.context("the LoadTest can't be read")?;
        if found.is_none_or(|found| found.metadata.uid.as_ref() != Some(uid)) {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    anyhow::bail!("LoadTest {name} is still there {DELETE_TIMEOUT:?} after it was deleted");
}
