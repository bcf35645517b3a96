//! The command line, and the settings it adds up to.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Context;
use cell0_simulator::{
    Listen, Settings,
    settings::{Latency, LatencyError},
};
use clap::Parser;
use loadtest_core::values::Share;

/// A stand-in for Cell 0 OS: scripted answers, and the exact truth about what happened.
///
/// Without options it is a healthy Cell 0. Every option has an environment variable; options on
/// the command line win over it, and both win over the settings file.
#[derive(Debug, Parser)]
#[command(name = "cell0-simulator", version)]
pub(crate) struct Args {
    /// YAML file with settings; options below that set the same win.
    #[arg(long, value_name = "FILE", env = "CELL0_SIMULATOR_SETTINGS")]
    settings: Option<PathBuf>,

    /// Address of all ports.
    #[arg(long, default_value = "0.0.0.0", env = "CELL0_SIMULATOR_ADDRESS")]
    address: IpAddr,

    /// Port of chat, health and models; 0 is any free one, for the others too.
    #[arg(long, default_value_t = 18800, env = "CELL0_SIMULATOR_HTTP_PORT")]
    http_port: u16,

    /// Port of WebSocket.
    #[arg(long, default_value_t = 18801, env = "CELL0_SIMULATOR_WEBSOCKET_PORT")]
    websocket_port: u16,

    /// Port of probes, truth and live settings.
    #[arg(long, default_value_t = 18802, env = "CELL0_SIMULATOR_CONTROL_PORT")]
    control_port: u16,

    /// Answer as fast as possible: all latencies zero, no stalls, errors or limits.
    #[arg(long, env = "CELL0_SIMULATOR_INSTANT")]
    instant: bool,

    /// From a chat request to its first token: a duration such as 200ms, or a distribution such as
    /// '{lognormal: {median: 120ms, sigma: 0.3, max: 450ms}}'.
    #[arg(long, value_name = "LATENCY", value_parser = latency, env = "CELL0_SIMULATOR_CHAT_LATENCY")]
    chat_latency: Option<Latency>,

    /// Tokens of a chat answer.
    #[arg(long, value_name = "COUNT", env = "CELL0_SIMULATOR_CHAT_TOKENS")]
    chat_tokens: Option<u32>,

    /// Between two tokens of a streamed chat answer.
    #[arg(long, value_name = "LATENCY", value_parser = latency, env = "CELL0_SIMULATOR_TOKEN_GAP")]
    token_gap: Option<Latency>,

    /// From a health request to its answer.
    #[arg(long, value_name = "LATENCY", value_parser = latency, env = "CELL0_SIMULATOR_HEALTH_LATENCY")]
    health_latency: Option<Latency>,

    /// From a models request to its answer.
    #[arg(long, value_name = "LATENCY", value_parser = latency, env = "CELL0_SIMULATOR_MODELS_LATENCY")]
    models_latency: Option<Latency>,

    /// From a WebSocket message to its reply.
    #[arg(long, value_name = "LATENCY", value_parser = latency, env = "CELL0_SIMULATOR_WEBSOCKET_LATENCY")]
    websocket_latency: Option<Latency>,

    /// Share of requests that fail, at every endpoint, such as 1%.
    #[arg(long, value_name = "SHARE", value_parser = share, env = "CELL0_SIMULATOR_ERROR_RATE")]
    error_rate: Option<Share>,

    /// What random choices start from.
    #[arg(long, env = "CELL0_SIMULATOR_SEED")]
    seed: Option<u64>,

    /// Records kept for the truth, over all runs (about 50 bytes each); beyond them requests are
    /// only counted.
    #[arg(long, default_value_t = Listen::MAX_RECORDS, env = "CELL0_SIMULATOR_MAX_RECORDS")]
    max_records: usize,

    /// Worker threads [default: one for each available core].
    #[arg(long, value_name = "COUNT", env = "CELL0_SIMULATOR_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// What to log: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", env = "CELL0_SIMULATOR_LOG")]
    pub(crate) log: tracing_subscriber::filter::LevelFilter,
}

impl Args {
    /// The settings that file and options add up to.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.settings {
            None => Settings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                Settings::from_yaml(&text).with_context(|| format!("in {}", path.display()))?
            }
        };
        if self.instant {
            settings = settings.instant();
        }
        let Settings { seed, model_ids: _, chat, health, models, web_socket } = &mut settings;
        replace(seed, self.seed);
        replace(&mut chat.latency, self.chat_latency);
        replace(&mut chat.tokens, self.chat_tokens);
        replace(&mut chat.token_gap, self.token_gap);
        replace(&mut health.latency, self.health_latency);
        replace(&mut models.latency, self.models_latency);
        replace(&mut web_socket.latency, self.websocket_latency);
        for errors in
            [&mut chat.errors, &mut health.errors, &mut models.errors, &mut web_socket.errors]
        {
            replace(&mut errors.rate, self.error_rate);
        }
        settings.validate()?;
        Ok(settings)
    }

    /// Where to listen.
    pub(crate) const fn listen(&self) -> Listen {
        Listen {
            address: self.address,
            http_port: self.http_port,
            web_socket_port: self.websocket_port,
            control_port: self.control_port,
            max_records: self.max_records,
        }
    }

    /// How many threads to run on.
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }
}

fn replace<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn latency(text: &str) -> Result<Latency, LatencyError> {
    text.parse()
}

fn share(text: &str) -> Result<Share, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::CommandFactory;

    use super::*;

    fn settings(args: &[&str]) -> anyhow::Result<Settings> {
        let args = std::iter::once(&"cell0-simulator").chain(args);
        Args::try_parse_from(args)?.settings()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_win_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"chat: {latency: 1s, tokens: 3}\n").unwrap();
        let path = file.path().to_str().unwrap();
        let read = settings(&["--settings", path, "--chat-latency", "200ms"]).unwrap();
        assert_eq!((read.chat.latency, read.chat.tokens), (Latency::millis(200), 3));
        let read = settings(&["--settings", path, "--error-rate", "1%"]).unwrap();
        assert_eq!(read.chat.latency, Latency::millis(1000));
        assert_eq!(read.web_socket.errors.rate, Share::of_one(0.01));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, word) in [
            (["--chat-latency", "soon"], "soon"),
            (["--error-rate", "150%"], "chat.errors.rate"),
            (["--error-rate", "1"], "a share such as"),
            (["--chat-tokens", "0"], "chat.tokens"),
            (["--threads", "0"], "--threads"),
            (["--settings", "/no/such/file"], "/no/such/file"),
        ] {
            let message = format!("{:#}", settings(&args).unwrap_err());
            assert!(message.contains(word), "{args:?}: {message}");
        }
    }
}
