//! The command line of `loadtest`. This module only declares arguments and their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs load tests on this machine, makes reports of them, and runs load tests on a cluster.
///
/// Exit codes: 0 for Pass, Warning or NotJudged; 1 for Fail or Critical; 2 for invalid input;
/// 3 for Inconclusive; 4 if the test could not run; 130 after a second Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a LoadTest on this machine, without a cluster.
    Run(Box<RunArguments>),
    /// Prints a LoadTest file with comments, to begin with.
    Init(InitArguments),
    /// Checks LoadTest files as an API server would, and prints each problem with its place.
    Validate(ValidateArguments),
    /// Prints the runners that a LoadTest would get on a cluster.
    Plan(PlanArguments),
    /// Applies a LoadTest to a cluster, and waits for its verdict with --wait.
    Apply(ApplyArguments),
    /// Prints the progress of a LoadTest on a cluster until its verdict.
    Watch(WatchArguments),
    /// Serves a page with charts of a LoadTest on a cluster, until Ctrl-C.
    Ui(UiArguments),
    /// Lists the LoadTests of a namespace.
    List(ListArguments),
    /// Prints the logs of the runners of a LoadTest on a cluster.
    Logs(LogsArguments),
    /// Stops a LoadTest on a cluster.
    Cancel(CancelArguments),
    /// Prints the result of a finished run again, and writes reports of it.
    Report(ReportArguments),
    /// Compares the results of two runs.
    Diff(DiffArguments),
    /// Prints a JSON Schema.
    Schema(SchemaArguments),
    /// Prints a script that completes commands and options in a shell.
    Completions(CompletionsArguments),
    /// Prints the manual page, in the format of man.
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// File that contains the LoadTest; - for the standard input.
    #[arg(conflicts_with = "url")]
    pub(crate) file: Option<String>,
    /// The same as FILE.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with_all = ["file", "url"])]
    pub(crate) filename: Option<String>,
    /// Name of the LoadTest to run, if the file contains several.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Adds a threshold, such as 'p95<500ms', 'errors<1%' or 'chat:timeToFirstToken:p95<1s'.
    #[arg(long, value_name = "THRESHOLD")]
    pub(crate) threshold: Vec<String>,
    /// Sets a field of the spec, such as load.users=50 or 'scenario.tasks[chat].weight=3'.
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Exit code 1 for the verdict Warning too.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Starts a simulator of Cell 0 in this process and sends the load to it.
    #[arg(long)]
    pub(crate) simulator: bool,
    /// Number of users; overrides spec.load.users.
    #[arg(short, long, alias = "vus")]
    pub(crate) users: Option<u32>,
    /// Users started per second, such as 50 or 0.5; overrides spec.load.spawnRate.
    #[arg(short = 'r', long)]
    pub(crate) spawn_rate: Option<String>,
    /// Duration of the test, such as 20s, 5m or 90 for 90 seconds; overrides spec.load.duration.
    #[arg(short = 't', long, visible_alias = "run-time")]
    pub(crate) duration: Option<String>,
    /// Base URL of the target; overrides spec.target.http.
    #[arg(long, value_name = "URL")]
    pub(crate) host: Option<String>,
    /// WebSocket base URL of the target; overrides spec.target.webSocket.
    #[arg(long, value_name = "URL")]
    pub(crate) ws_host: Option<String>,
    /// Prints lines of progress instead of the charts that a terminal shows by default.
    #[arg(long, alias = "headless")]
    pub(crate) plain: bool,
    /// Serves a page with charts of the running test. Only this machine can open the page, unless ADDR
    /// names another address [default address: 127.0.0.1:8089].
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = crate::live::parse_address)]
    pub(crate) web: Option<std::net::SocketAddr>,
    /// Writes one line per request, with all its timestamps, to a CSV file.
    #[arg(long, value_name = "FILE")]
    pub(crate) request_log: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) request: RequestArguments,
    #[command(flatten)]
    pub(crate) outputs: OutputArguments,
}

/// The arguments that name a file. clap drops `requires = "url"` where one of them is given, because they
/// conflict with `--url`. So the options of a request name them too.
const FILE_ARGUMENTS: [&str; 2] = ["file", "filename"];

/// A test of one request, without a file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Without a file")]
pub(crate) struct RequestArguments {
    /// Sends requests to this URL, in place of a FILE: http, https, ws or wss.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Starts this many requests per second, such as 200/s, however long the responses take.
    #[arg(long, requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) rate: Option<String>,
    /// Sends chat completions to this model.
    #[arg(long, value_name = "MODEL", requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) chat: Option<String>,
    /// The message of a chat or of a WebSocket; can be given several times. A chat picks one of the messages, a
    /// WebSocket sends all of them.
    #[arg(long, value_name = "TEXT", requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) message: Vec<String>,
    /// Method of the request [default: GET, and POST with -d].
    #[arg(short = 'X', long = "request", value_name = "METHOD", requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) method: Option<String>,
    /// Body of the request; @FILE reads it from a file.
    #[arg(short, long, requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) data: Option<String>,
    /// A header, such as 'accept: text/html'.
    #[arg(short = 'H', long, requires = "url", conflicts_with_all = FILE_ARGUMENTS)]
    pub(crate) header: Vec<String>,
}

/// The files that a result is written to.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Files of the result")]
#[expect(clippy::doc_markdown, reason = "help texts are plain text")]
pub(crate) struct OutputArguments {
    /// Form of the result on the standard output.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table")]
    pub(crate) format: OutputFormat,
    /// Writes the whole result as JSON; `loadtest schema result` prints its schema.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Writes a report for people: one HTML file with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Writes PREFIX_stats.csv, PREFIX_stats_history.csv, PREFIX_failures.csv and
    /// PREFIX_exceptions.csv with the columns of Locust.
    #[arg(long, value_name = "PREFIX", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) csv: Option<String>,
    /// Writes a JUnit report with a test case for each threshold.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Writes a Markdown report of at most 60 lines, for a comment on a pull request.
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Writes the summary in the shape of k6's --summary-export.
    #[arg(long, value_name = "FILE")]
    pub(crate) summary_export: Option<PathBuf>,
    /// Writes the response times of each interval and task as a log of HdrHistogram.
    #[arg(long, value_name = "FILE")]
    pub(crate) hdr: Option<PathBuf>,
}

/// The form of a result on the standard output.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables for people.
    #[default]
    Table,
    /// The tables, and one with every percentile of every latency.
    Wide,
    /// The whole result as JSON.
    Json,
    /// The whole result as YAML.
    Yaml,
    /// A Markdown report of at most 60 lines.
    Markdown,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// File that `loadtest run --json` wrote, or name of a LoadTest on the cluster. The LoadTest itself may
    /// be deleted, if its result was kept.
    #[arg(value_name = "FILE|NAME")]
    pub(crate) source: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Exit code 1 for the verdict Warning too.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) outputs: OutputArguments,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InitArguments {
    /// URL to test: http, https, ws or wss. Without it, in a terminal, the command asks for the values.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Sends chat completions to this model.
    #[arg(long, value_name = "MODEL", requires = "url")]
    pub(crate) chat: Option<String>,
    /// The message of a chat or of a WebSocket.
    #[arg(long, value_name = "TEXT", requires = "url")]
    pub(crate) message: Vec<String>,
    /// Name of the LoadTest.
    #[arg(long, default_value = "my-test")]
    pub(crate) name: String,
    /// Number of users.
    #[arg(short, long)]
    pub(crate) users: Option<u32>,
    /// Duration of the test, such as 20s or 5m.
    #[arg(short = 't', long, visible_alias = "run-time")]
    pub(crate) duration: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// The first result: a file that `loadtest run --json` wrote, or the name of a LoadTest.
    #[arg(value_name = "BASE")]
    pub(crate) base: String,
    /// The second result.
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Exit code 1 if a number is worse by more than the noise within the runs, and 3 if the runs can't be
    /// compared.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Form of the comparison.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table")]
    pub(crate) format: DiffFormat,
}

/// The form of a comparison on the standard output.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum DiffFormat {
    /// A table for people.
    #[default]
    Table,
    /// The comparison as JSON.
    Json,
    /// A table for a comment on a pull request.
    Markdown,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArguments {
    /// Files that contain one LoadTest each; - for the standard input.
    #[arg(required = true)]
    pub(crate) files: Vec<String>,
    /// Name of the LoadTest, if a file contains several.
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    /// File that contains the LoadTest; - for the standard input.
    pub(crate) file: String,
    /// Name of the LoadTest, if the file contains several.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Sets a field of the spec, such as load.users=50.
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Prints the ConfigMap and the Job that the operator would create.
    #[arg(long)]
    pub(crate) objects: bool,
    /// Runner image of a LoadTest that names none.
    #[arg(long, value_name = "IMAGE", default_value = concat!("loadtest-runner:", env!("CARGO_PKG_VERSION")), requires = "objects")]
    pub(crate) runner_image: String,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArguments {
    /// The document that the schema describes.
    pub(crate) document: SchemaDocument,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum SchemaDocument {
    /// A LoadTest, for editors that check YAML files.
    Loadtest,
    /// The result that `loadtest run --json` writes.
    Result,
}

/// Which cluster, and which namespace of it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClusterArguments {
    /// Namespace on the cluster [default: that of the context; with `apply`, first that of the file].
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig [default: the current context].
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The kubeconfig [default: the files in KUBECONFIG, or else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl ClusterArguments {
    /// Returns true if any of them is given.
    pub(crate) const fn is_given(&self) -> bool {
        self.namespace.is_some() || self.context.is_some() || self.kubeconfig.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArguments {
    /// File that contains the LoadTest; - for the standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    pub(crate) filename: Option<String>,
    /// The same as --filename.
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    pub(crate) file: Option<String>,
    /// Name of the LoadTest, if the file contains several.
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Sets a field of the spec, such as load.users=50.
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Prints progress until the verdict, and writes the files of the result. The exit code follows
    /// the verdict.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Deletes a LoadTest of the same name that has ended, and runs it again.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Exit code 1 for the verdict Warning too.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) outputs: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Lists the LoadTests of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// Name of the LoadTest.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    /// Name of the LoadTest.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Prints new lines as they come, until the runners have ended or until Ctrl-C.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Prints only this many of the last lines of each runner.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct UiArguments {
    /// Name of the LoadTest. If it is gone, the page shows the result that was kept.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Address of the page, such as 8089 or 0.0.0.0:8089. Without an IP address, only this machine can open
    /// the page.
    #[arg(long, value_name = "ADDR", default_value = "8089", value_parser = crate::live::parse_address)]
    pub(crate) address: std::net::SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// Name of the LoadTest.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Exit code 1 for the verdict Warning too.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) outputs: OutputArguments,
}
