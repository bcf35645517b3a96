//! `loadtest-operator`: parses the arguments, connects to the cluster and runs the controller.
//!
//! It uses musl's allocator, unlike the runner. The operator allocates little, and mimalloc keeps a page of 64 KiB for each
//! size of block and each thread. A test with 400 users then takes 12 MiB instead of 5.

use std::{
    io::Write,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::{Client, Config, client::ClientBuilder};
use loadtest_children::{METRICS_LINGER, RELEASE_GRACE, START_TIMEOUT, Settings};
use loadtest_core::{
    Duration,
    resource::{CrdEdition, crd_yaml},
};
use loadtest_operator::{
    context::Context,
    controller,
    lease::{LeaseSettings, keep_lease},
    metrics::ApiCalls,
    server,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Runs load tests on Kubernetes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the controller.
    Run(Box<Run>),
    /// Prints the CustomResourceDefinition.
    Crd {
        /// Prints the definition for Kubernetes 1.29 to 1.33, with fewer rules.
        #[arg(long)]
        older: bool,
    },
}

#[derive(Debug, Args)]
// A user of the chart can append arguments that override the arguments of the chart.
#[command(args_override_self = true)]
struct Run {
    /// Namespace of the operator and of its token Secret.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Comma-separated namespaces to watch for LoadTests. Default: all namespaces.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Runner image of LoadTests that name no image.
    #[arg(long, env = "RUNNER_IMAGE")]
    runner_image: String,
    /// Address on which to serve metrics and probes.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Name of the Secret with the key from which the token of each run is derived. The operator
    /// creates the Secret if it is missing.
    #[arg(long, default_value = "loadtest-operator-token")]
    token_secret: String,
    /// Name of the Lease, in the operator's namespace, that says which replica runs the tests.
    #[arg(long, default_value = "loadtest-operator")]
    lease_name: String,
    /// Name of the operator's pod, for the Lease and for Events.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// UID of the operator's pod. With it, a process that replaces another one in the same pod takes the
    /// Lease at once.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// Maximum time until all runners of a test are ready.
    #[arg(long, default_value_t = START_TIMEOUT)]
    start_timeout: Duration,
    /// Time for which a runner waits for its release order after the end of its load.
    #[arg(long, default_value_t = RELEASE_GRACE)]
    release_grace: Duration,
    /// Time for which a released runner keeps serving its metrics.
    #[arg(long, default_value_t = METRICS_LINGER)]
    metrics_linger: Duration,
    /// Creates a NetworkPolicy for the runners of each test: only these peers may reach them. A JSON list
    /// of peers, as in the field `from` of a NetworkPolicy. The operator must be one of them.
    #[arg(long, value_name = "JSON", value_parser = parse_peers)]
    runner_network_policy: Option<Peers>,
    /// Log level (error, warn, info, debug or trace), or a filter by module.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
}

/// Peers of a NetworkPolicy.
#[derive(Clone, Debug)]
struct Peers(Vec<NetworkPolicyPeer>);

fn parse_peers(text: &str) -> Result<Peers, String> {
    serde_json::from_str(text).map(Peers).map_err(|error| {
        format!(
            "not a JSON list of NetworkPolicy peers, such as [{{\"podSelector\": {{}}}}]: {error}"
        )
    })
}

fn main() -> ExitCode {
    // As in runners: the kernel fills gaps in the memory with huge pages, long after the start.
    // A kernel without huge pages refuses this, which is fine.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match Arguments::parse().command {
        Command::Crd { older } => match print_crd(older) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // This command has no logger, so the error goes to standard error.
                let _ = writeln!(std::io::stderr(), "loadtest-operator: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Run(arguments) => {
            let filter = EnvFilter::new(&arguments.log_level);
            tracing_subscriber::fmt().json().with_env_filter(filter).init();
            match run(*arguments) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "operator failed");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn print_crd(older: bool) -> anyhow::Result<()> {
    let edition = if older { CrdEdition::Older } else { CrdEdition::Current };
    let yaml = crd_yaml(edition)?;
    std::io::stdout().write_all(yaml.as_bytes())?;
    Ok(())
}

fn run(arguments: Run) -> anyhow::Result<()> {
    // One thread watches and decides. The others decode and merge what runners answer.
    let workers = std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 8));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(workers)
        .build()
        .context("failed to create the runtime")?;
    runtime.block_on(run_operator(arguments))
}

async fn run_operator(arguments: Run) -> anyhow::Result<()> {
    let Run {
        namespace,
        watch_namespaces,
        runner_image,
        listen,
        token_secret,
        lease_name,
        pod_name,
        pod_uid,
        start_timeout,
        release_grace,
        metrics_linger,
        runner_network_policy,
        log_level: _, // `main` has already used this argument
    } = arguments;
    // Without a default provider, rustls panics later if the build contains two providers.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::infer().await.context("failed to find a Kubernetes configuration")?;
    // The controller retries failed reconciliations. Retries by the client would repeat creations.
    config.default_retry = false;
    let api_calls = ApiCalls::default();
    let watches = connect(config.clone(), &api_calls).context(NO_CLIENT)?;
    // A watch may be silent for minutes. A reconciliation must not wait that long for a response.
    config.read_timeout = Some(std::time::Duration::from_secs(20));
    let client = connect(config.clone(), &api_calls).context(NO_CLIENT)?;
    let identity = identity_of(pod_name.as_deref(), pod_uid.as_deref());
    let lease = LeaseSettings { namespace: namespace.clone(), name: lease_name, identity };
    let lease_calls = api_calls.clone();
    let (keeper, leadership) = keep_lease(lease, move || connect(config, &lease_calls))
        .context("failed to start the thread that keeps the Lease")?;
    let runner_peers = runner_network_policy.map(|Peers(peers)| peers);
    let settings =
        Settings { runner_image, start_timeout, release_grace, metrics_linger, runner_peers };
    let context = Arc::new(Context::new(client, settings, leadership.clone(), pod_name)?);
    context.measure_api_calls(&api_calls);
    let listener = server::bind_listener(listen)
        .await
        .with_context(|| format!("failed to listen on {listen}"))?;
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let serving = tokio::spawn(server::serve(
        listener,
        Arc::clone(&context),
        Arc::clone(&ready),
        stop.clone(),
    ));
    let signals = tokio::spawn(stop_on_signal(stop.clone())?);
    tracing::info!(%namespace, ?watch_namespaces, %listen, "starting");
    let work = async {
        let lead = async {
            leadership.wait_until_known().await;
            if !leadership.is_leader() {
                tracing::info!("another replica leads; waiting");
                // A replica that waits is as ready as it can be.
                ready.store(true, Ordering::Release);
            }
            leadership.wait_until_held().await;
            // Read now, because the Secret may have changed while this replica was waiting.
            context.load_token_key(&namespace, &token_secret).await
        };
        tokio::select! {
            loaded = lead => loaded?,
            () = stop.cancelled() => return Ok(()),
        }
        let run =
            controller::run(Arc::clone(&context), watches, &watch_namespaces, ready, stop.clone());
        let end = async {
            stop.cancelled().await;
            tokio::time::sleep(MAX_END).await;
        };
        tokio::select! {
            () = run => {}
            // The next leader goes on with what is left undone, as after a crash.
            () = end => tracing::warn!("reconciliations under way are dropped"),
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = work => done?,
        // Nothing that is under way may go on. The next process in this pod waits for the Lease.
        () = leadership.wait_until_lost() => {
            anyhow::ensure!(!leadership.is_lost(), "another replica has taken the Lease");
            anyhow::bail!("the thread that keeps the Lease has ended");
        }
    }
    // The next replica need not wait for the end of the Lease.
    keeper.release().await;
    stop.cancel();
    signals.abort();
    serving.await.context("the HTTP server panicked")??;
    tracing::info!("stopped");
    Ok(())
}

/// Time for reconciliations under way when the operator is to end. Another replica waits for the Lease.
const MAX_END: std::time::Duration = std::time::Duration::from_secs(3);

/// Error of [`connect`].
const NO_CLIENT: &str = "failed to create the Kubernetes client";

/// Creates a client whose requests are counted.
fn connect(config: Config, api_calls: &ApiCalls) -> Result<Client, kube::Error> {
    Ok(ClientBuilder::try_from(config)?.with_layer(api_calls).build())
}

/// Returns the name of this replica in the Lease. Without the UID of a pod, each process has a name of its
/// own.
fn identity_of(pod_name: Option<&str>, pod_uid: Option<&str>) -> String {
    let name = pod_name.unwrap_or("loadtest-operator");
    match pod_uid {
        Some(uid) => format!("{name}_{uid}"),
        None => format!("{name}_{:016x}", rand::random::<u64>()),
    }
}

fn stop_on_signal(stop: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_of_a_repeated_argument_counts() {
        let line = ["o", "run", "--namespace=a", "--runner-image=b", "--log-level=info"];
        let repeated = ["--log-level=debug", "--listen=127.0.0.1:1", "--runner-image=c"];
        let parsed = Arguments::try_parse_from(line.iter().chain(&repeated)).unwrap().command;
        let Command::Run(run) = parsed else { panic!("{parsed:?}") };
        assert_eq!((run.log_level, run.runner_image), ("debug".into(), "c".into()));
        assert_eq!(run.listen.port(), 1);
    }
}
