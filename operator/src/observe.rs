//! Reads the world for one pass. Live reads: a stale cache would make children twice.

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use loadtest_core::resource::Phase;

use crate::{
    collect,
    context::Context,
    error::Error,
    resources::{child_name, is_controlled_by},
    state::{Observed, Runner},
};

/// Looks at what a pass needs to know about a test.
pub(crate) async fn observe(context: &Context, seen: &mut Observed) -> Result<(), Error> {
    let namespace = seen.test.namespace().unwrap_or_default();
    let uid = seen.test.uid().unwrap_or_default();
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let name = child_name(&seen.test);
    let job = jobs.get_opt(&name).await.map_err(|e| Error::api("get job", &name, e))?;
    // A predecessor's Job is none of ours.
    seen.job = job.filter(|job| is_controlled_by(job, &uid));
    if seen.job.is_some() {
        let wanted = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let list = pods.list(&wanted).await.map_err(|e| Error::api("list pods of", &name, e))?;
        seen.runners.extend(list.items.iter().filter_map(Runner::of));
    }
    seen.memory.since.get_or_insert_with(Timestamp::now);
    let over = seen.test.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_final);
    if let (Some(start), false) = (seen.start(), over) {
        collect::collect(context, &pods, &uid, &start, seen).await;
    }
    Ok(())
}
