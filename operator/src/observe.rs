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
pub(crate) async fn observe(context: &Context, observed: &mut Observed) -> Result<(), Error> {
    let namespace = observed.test.namespace().unwrap_or_default();
    let uid = observed.test.uid().unwrap_or_default();
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let name = child_name(&observed.test);
    let job = jobs.get_opt(&name).await.map_err(|e| Error::api("get job", &name, e))?;
    // A predecessor's Job is none of ours.
    observed.job = job.filter(|job| is_controlled_by(job, &uid));
    if observed.job.is_some() {
        let wanted = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let list = pods.list(&wanted).await.map_err(|e| Error::api("list pods of", &name, e))?;
        observed.runners.extend(list.items.iter().filter_map(Runner::from_pod));
    }
    observed.cache.first_seen.get_or_insert_with(Timestamp::now);
    let over = observed.test.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_final);
    if let (Some(start), false) = (observed.start_record(), over) {
        collect::collect_snapshots(context, &pods, &uid, &start, observed).await;
    }
    Ok(())
}
