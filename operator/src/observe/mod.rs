//! Reads the state of a test from the API server and from the runners. Writes nothing.
//!
//! All reads are live. A stale cache could make the operator create child objects twice.

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use loadtest_core::resource::Phase;

pub(crate) mod collect;
pub(crate) mod skew;
pub(crate) mod state;

use state::{Observed, Runner};

use crate::{
    context::Context,
    error::Error,
    resources::{child_name, is_controlled_by},
};

/// Fills `observed` with the Job, the runner pods and the latest metrics of the runners.
pub(crate) async fn observe(context: &Context, observed: &mut Observed) -> Result<(), Error> {
    let namespace = observed.test.namespace().unwrap_or_default();
    let run_uid = observed.test.uid().unwrap_or_default();
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let name = child_name(&observed.test);
    let job = jobs.get_opt(&name).await.map_err(|e| Error::api("get job", &name, e))?;
    // Ignore a Job that belongs to a predecessor of this LoadTest.
    observed.job = job.filter(|job| is_controlled_by(job, &run_uid));
    if observed.job.is_some() {
        let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let list = pods.list(&of_job).await.map_err(|e| Error::api("list pods of", &name, e))?;
        observed.runners.extend(list.items.iter().filter_map(Runner::from_pod));
    }
    observed.cache.first_seen.get_or_insert_with(Timestamp::now);
    let is_over = observed.phase().is_some_and(Phase::is_final);
    if let (Some(start), false) = (observed.start_record(), is_over) {
        collect::collect_snapshots(context, &pods, &run_uid, &start, observed).await;
    }
    Ok(())
}
