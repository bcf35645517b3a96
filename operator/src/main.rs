//! `loadtest-operator`: the controller's process.

use std::{
    io::Write,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use kube::{Client, Config};
use loadtest_core::Duration;
use loadtest_operator::{context::Context, controller, resources::Settings, server};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Run(Run),
    /// Prints the CustomResourceDefinition.
    Crd,
}

#[derive(Debug, Args)]
// The chart's arguments can be given anew behind them.
#[command(args_override_self = true)]
struct Run {
    /// The operator's own namespace, where its key lives.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Namespaces whose LoadTests it runs; all when absent.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// The runners' image unless a LoadTest names one.
    #[arg(long, env = "RUNNER_IMAGE")]
    runner_image: String,
    /// Where to serve metrics and probes.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// The Secret with the key that runs' tokens are made with; made when missing.
    #[arg(long, default_value = "loadtest-operator-token")]
    token_secret: String,
    /// How long a test may take to get all its runners ready.
    #[arg(long, default_value = "5m")]
    start_timeout: Duration,
    /// How long a runner waits to be released after its end.
    #[arg(long, default_value = "5m")]
    release_grace: Duration,
    /// How long a released runner goes on serving its metrics.
    #[arg(long, default_value = "35s")]
    metrics_linger: Duration,
    /// What is logged: error, warn, info, debug, trace, or a filter by module.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crd => match print_crd() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Logs go to a logger; this is a command that failed.
                let _ = writeln!(std::io::stderr(), "loadtest-operator: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Run(arguments) => {
            let filter = EnvFilter::new(&arguments.log_level);
            tracing_subscriber::fmt().json().with_env_filter(filter).init();
            match run(arguments) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "operator could not run");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn print_crd() -> anyhow::Result<()> {
    let yaml = loadtest_core::resource::crd_yaml()?;
    std::io::stdout().write_all(yaml.as_bytes())?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Run) -> anyhow::Result<()> {
    let Run {
        namespace,
        watch_namespaces,
        runner_image,
        listen,
        token_secret,
        start_timeout,
        release_grace,
        metrics_linger,
        log_level: _, // read by main
    } = arguments;
    // Two providers in one build would otherwise make this a panic, later.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::infer().await.context("no Kubernetes configuration was found")?;
    // Retries are the controller's: the client's own would repeat creations.
    config.default_retry = false;
    let watches = Client::try_from(config.clone()).context("no Kubernetes client")?;
    // A watch may be silent for minutes; an answer that a pass waits for may not.
    config.read_timeout = Some(std::time::Duration::from_secs(20));
    let client = Client::try_from(config).context("no Kubernetes client")?;
    let settings = Settings { runner_image, start_timeout, release_grace, metrics_linger };
    let context = Arc::new(Context::new(client, settings, &namespace, &token_secret).await?);
    let listener =
        server::bind_listener(listen).await.with_context(|| format!("{listen} can't be bound"))?;
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
    controller::run(context, watches, &watch_namespaces, ready, stop.clone()).await;
    stop.cancel();
    signals.abort();
    serving.await.context("server panicked")??;
    tracing::info!("stopped");
    Ok(())
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
    fn the_last_of_an_argument_given_twice_counts() {
        let line = ["o", "run", "--namespace=a", "--runner-image=b", "--log-level=info"];
        let again = ["--log-level=debug", "--listen=127.0.0.1:1", "--runner-image=c"];
        let parsed = Arguments::try_parse_from(line.iter().chain(&again)).unwrap().command;
        let Command::Run(run) = parsed else { panic!("{parsed:?}") };
        assert_eq!((run.log_level, run.runner_image), ("debug".into(), "c".into()));
        assert_eq!(run.listen.port(), 1);
    }
}
