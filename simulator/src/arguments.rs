//! The command line, and the settings that result from it.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Context;
use cell0_simulator::{
    Listen, Settings,
    settings::{Latency, LatencyError},
};
use clap::Parser;
use loadtest_core::values::Percent;

/// Simulates Cell 0 OS with configurable responses, and records the exact times of all requests.
///
/// Without options, it behaves like a healthy Cell 0. Every option has an environment variable.
/// Options on the command line override environment variables; both override the settings file.
#[derive(Debug, Parser)]
#[command(name = "cell0-simulator", version)]
pub(crate) struct Arguments {
    /// YAML file with settings. The options below override it.
    #[arg(long, value_name = "FILE", env = "CELL0_SIMULATOR_SETTINGS")]
    settings: Option<PathBuf>,

    /// Address of all ports.
    #[arg(long, default_value = "0.0.0.0", env = "CELL0_SIMULATOR_ADDRESS")]
    address: IpAddr,

    /// Port of chat, health and models. For every port option, 0 selects any free port.
    #[arg(long, default_value_t = 18800, env = "CELL0_SIMULATOR_HTTP_PORT")]
    http_port: u16,

    /// Port of WebSocket.
    #[arg(long, default_value_t = 18801, env = "CELL0_SIMULATOR_WEBSOCKET_PORT")]
    websocket_port: u16,

    /// Port of probes, truth and settings.
    #[arg(long, default_value_t = 18802, env = "CELL0_SIMULATOR_CONTROL_PORT")]
    control_port: u16,

    /// Respond as fast as possible: all latencies zero, no stalls, errors or limits.
    #[arg(long, env = "CELL0_SIMULATOR_INSTANT")]
    instant: bool,

    /// Time from a chat request to its first token: a duration such as 200ms, or a distribution
    /// such as '{lognormal: {median: 120ms, sigma: 0.3, max: 450ms}}'.
    #[arg(long, value_name = "LATENCY", value_parser = parse_latency, env = "CELL0_SIMULATOR_CHAT_LATENCY")]
    chat_latency: Option<Latency>,

    /// Number of tokens in a chat response.
    #[arg(long, value_name = "COUNT", env = "CELL0_SIMULATOR_CHAT_TOKENS")]
    chat_tokens: Option<u32>,

    /// Time between two tokens of a streamed chat response.
    #[arg(long, value_name = "LATENCY", value_parser = parse_latency, env = "CELL0_SIMULATOR_TOKEN_GAP")]
    token_gap: Option<Latency>,

    /// Time from a health request to its response.
    #[arg(long, value_name = "LATENCY", value_parser = parse_latency, env = "CELL0_SIMULATOR_HEALTH_LATENCY")]
    health_latency: Option<Latency>,

    /// Time from a models request to its response.
    #[arg(long, value_name = "LATENCY", value_parser = parse_latency, env = "CELL0_SIMULATOR_MODELS_LATENCY")]
    models_latency: Option<Latency>,

    /// Time from a WebSocket message to its reply.
    #[arg(long, value_name = "LATENCY", value_parser = parse_latency, env = "CELL0_SIMULATOR_WEBSOCKET_LATENCY")]
    websocket_latency: Option<Latency>,

    /// Share of requests that fail at every endpoint, such as 1%.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, env = "CELL0_SIMULATOR_ERROR_RATE")]
    error_rate: Option<Percent>,

    /// Seed of all random choices.
    #[arg(long, env = "CELL0_SIMULATOR_SEED")]
    seed: Option<u64>,

    /// Maximum number of records over all runs, about 50 bytes each. Further requests are counted
    /// without a record.
    #[arg(long, default_value_t = Listen::MAX_RECORDS, env = "CELL0_SIMULATOR_MAX_RECORDS")]
    max_records: usize,

    /// Number of worker threads [default: one per available core].
    #[arg(long, value_name = "COUNT", env = "CELL0_SIMULATOR_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Log level: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", env = "CELL0_SIMULATOR_LOG")]
    pub(crate) log: tracing_subscriber::filter::LevelFilter,
}

impl Arguments {
    /// Reads the settings file, if there is one, and applies the options.
    pub(crate) fn read_settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.settings {
            None => Settings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                Settings::from_yaml(&text).with_context(|| format!("in {}", path.display()))?
            }
        };
        if self.instant {
            settings = settings.with_instant_responses();
        }
        let Settings { seed, model_ids: _, chat, health, models, web_socket } = &mut settings;
        set_if_given(seed, self.seed);
        set_if_given(&mut chat.latency, self.chat_latency);
        set_if_given(&mut chat.tokens, self.chat_tokens);
        set_if_given(&mut chat.token_gap, self.token_gap);
        set_if_given(&mut health.latency, self.health_latency);
        set_if_given(&mut models.latency, self.models_latency);
        set_if_given(&mut web_socket.latency, self.websocket_latency);
        for errors in
            [&mut chat.errors, &mut health.errors, &mut models.errors, &mut web_socket.errors]
        {
            set_if_given(&mut errors.rate, self.error_rate);
        }
        settings.validate()?;
        Ok(settings)
    }

    /// Returns the addresses to listen on, and the record limit.
    pub(crate) const fn listen_addresses(&self) -> Listen {
        Listen {
            address: self.address,
            http_port: self.http_port,
            web_socket_port: self.websocket_port,
            control_port: self.control_port,
            max_records: self.max_records,
        }
    }

    /// Returns the number of worker threads.
    pub(crate) fn thread_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }
}

fn set_if_given<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn parse_latency(text: &str) -> Result<Latency, LatencyError> {
    text.parse()
}

fn parse_percent(text: &str) -> Result<Percent, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::CommandFactory;

    use super::*;

    fn read_settings(options: &[&str]) -> anyhow::Result<Settings> {
        let command_line = std::iter::once(&"cell0-simulator").chain(options);
        Arguments::try_parse_from(command_line)?.read_settings()
    }

    #[test]
    fn command_line_definition_is_valid() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_override_the_settings_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"chat: {latency: 1s, tokens: 3}\n").unwrap();
        let path = file.path().to_str().unwrap();
        let settings = read_settings(&["--settings", path, "--chat-latency", "200ms"]).unwrap();
        let chat = settings.chat;
        assert_eq!((chat.latency, chat.tokens), (Latency::from_millis(200), 3));
        let settings = read_settings(&["--settings", path, "--error-rate", "1%"]).unwrap();
        assert_eq!(settings.chat.latency, Latency::from_millis(1000));
        assert_eq!(settings.web_socket.errors.rate, Percent::from_fraction(0.01));
    }

    #[test]
    fn invalid_options_are_named_in_the_error() {
        for (options, word) in [
            (["--chat-latency", "soon"], "soon"),
            (["--error-rate", "150%"], "chat.errors.rate"),
            (["--error-rate", "1"], "is not a percentage"),
            (["--chat-tokens", "0"], "chat.tokens"),
            (["--threads", "0"], "--threads"),
            (["--settings", "/no/such/file"], "/no/such/file"),
        ] {
            let message = format!("{:#}", read_settings(&options).unwrap_err());
            assert!(message.contains(word), "{options:?}: {message}");
        }
    }
}
