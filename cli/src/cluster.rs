//! Commands that work on a cluster, with the rights of the user's own kubeconfig.

mod apply;
mod list;
mod logs;
mod result;
mod runners;
mod ui;
mod watch;

use std::{future::Future, io::ErrorKind, time::Duration};

use anyhow::Context;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use loadtest_core::resource::{LoadTest, Phase};

pub(crate) use self::{
    apply::apply_test, list::list_tests, logs::print_logs, result::read_stored_result,
    ui::show_page, watch::watch_test,
};
use crate::{
    arguments::{CancelArguments, ClusterArguments},
    exit::Exit,
};

/// Time between two reads of a LoadTest. The operator changes it at most every 5 s.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time limit for one response of the API server.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A command that follows a test gives up if the API server can't be read for this long.
const MAX_OUTAGE: Duration = Duration::from_mins(2);

/// The LoadTests of one namespace of a cluster.
struct Cluster {
    client: Client,
    tests: Api<LoadTest>,
    namespace: String,
}

impl Cluster {
    async fn connect(arguments: &ClusterArguments) -> anyhow::Result<Self> {
        let (client, namespace) = connect(arguments).await?;
        Ok(Self { tests: Api::namespaced(client.clone(), &namespace), client, namespace })
    }

    /// Reads a LoadTest. Returns `None` if no LoadTest has this name.
    async fn get_test(&self, name: &str) -> anyhow::Result<Option<LoadTest>> {
        match self.tests.get(name).await {
            Ok(test) => Ok(Some(test)),
            Err(kube::Error::Api(status)) if status.reason == "NotFound" => Ok(None),
            Err(error) => Err(explain_error(error)),
        }
    }
}

/// Returns false for an error that another try does not help: no rights, or an object that this version can't read.
fn may_succeed_later(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => !matches!(status.code, 401 | 403),
        Some(kube::Error::SerdeError(_)) => false,
        _ => true,
    }
}

/// Adds to an error of the API server that the cluster does not know LoadTests. A missing object has the reason
/// `NotFound`, and for a missing kind the API server has no reason.
fn explain_error(error: kube::Error) -> anyhow::Error {
    let is_unknown_kind = matches!(
        &error,
        kube::Error::Api(status) if status.code == 404 && status.reason != "NotFound"
    );
    let error = anyhow::Error::from(error);
    if is_unknown_kind {
        error.context("this cluster does not know the kind LoadTest: install the operator's chart")
    } else {
        error
    }
}

/// A client for a cluster, and the namespace to work in.
async fn connect(arguments: &ClusterArguments) -> anyhow::Result<(Client, String)> {
    let ClusterArguments { namespace, context, kubeconfig } = arguments;
    let config = if context.is_none() && kubeconfig.is_none() {
        Config::infer().await.map_err(|error| describe_config_error(&error))?
    } else {
        let options =
            KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let read = kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
        let config = match read {
            Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
            Err(error) => Err(error),
        };
        config.map_err(|error| describe_kubeconfig_error(&error))?
    };
    let namespace = namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("no Kubernetes client can be made")?;
    Ok((client, namespace))
}

/// Describes the problem with the kubeconfig. The error also holds the failure to read the configuration of a
/// pod, which says nothing to a person.
fn describe_config_error(error: &InferConfigError) -> anyhow::Error {
    let source = std::error::Error::source(error);
    match source.and_then(|source| source.downcast_ref::<KubeconfigError>()) {
        Some(cause) => describe_kubeconfig_error(cause),
        None => anyhow::anyhow!("no Kubernetes configuration was found: {error}"),
    }
}

fn describe_kubeconfig_error(error: &KubeconfigError) -> anyhow::Error {
    match error {
        KubeconfigError::ReadConfig(cause, path) if cause.kind() == ErrorKind::NotFound => {
            anyhow::anyhow!(
                "there is no kubeconfig at {}: set KUBECONFIG or use --kubeconfig; `loadtest run` needs no cluster",
                path.display()
            )
        }
        cause => anyhow::anyhow!("the kubeconfig can't be used: {cause}"),
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Asks the operator to stop a test.
pub(crate) fn cancel_test(
    arguments: &CancelArguments,
    out: &mut impl std::io::Write,
) -> anyhow::Result<Exit> {
    let CancelArguments { name, cluster } = arguments;
    block_on(async {
        let cluster = Cluster::connect(cluster).await?;
        let patch = Patch::Merge(serde_json::json!({"spec": {"cancel": true}}));
        let cancelled = cluster.tests.patch(name, &PatchParams::default(), &patch).await;
        let test = cancelled.map_err(explain_error).with_context(|| {
            format!("LoadTest {name} in namespace {} can't be cancelled", cluster.namespace)
        })?;
        let phase = test.status.as_ref().and_then(|status| status.phase.clone());
        match phase.filter(|phase| phase.known().is_some_and(Phase::is_final)) {
            Some(phase) => writeln!(out, "{name} is over already: {}", phase.as_str())?,
            None => writeln!(out, "{name} is being cancelled")?,
        }
        Ok(Exit::Passed)
    })
}
