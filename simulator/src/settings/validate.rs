//! Validates settings: the rules that the types can't express.

use std::fmt::Display;

use loadtest_core::values::Duration;

use super::{Failure, Failures, Latency, Limits, Settings, SettingsError, Stall};

/// Maximum latency and stall period. A longer one is more likely a mistake than intended.
const MAX_DURATION: Duration = Duration::from_secs(3600);

impl Settings {
    /// Checks the rules that the types can't express.
    ///
    /// # Errors
    /// For the first value that is out of range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let Self { seed: _, model_ids, chat, health, models, web_socket } = self;
        if model_ids.is_empty() {
            return Err(value_error("modelIds", "[]", "list at least one model id"));
        }
        if let Some(model) = model_ids.iter().find(|m| m.is_empty() || m.len() > 128) {
            return Err(value_error(
                "modelIds",
                format!("{model:?}"),
                "a model id must have 1 to 128 bytes",
            ));
        }
        check_latency("chat.latency", &chat.latency)?;
        check_latency("chat.tokenGap", &chat.token_gap)?;
        if !(1..=100_000).contains(&chat.tokens) {
            return Err(value_error("chat.tokens", chat.tokens, "it must be 1 to 100000"));
        }
        check_stall("chat", chat.stall)?;
        check_failures("chat", &chat.errors, Failure::fits_chat)?;
        check_limits("chat", chat.limits)?;
        for (name, endpoint) in [("health", health), ("models", models)] {
            check_latency(&format!("{name}.latency"), &endpoint.latency)?;
            check_stall(name, endpoint.stall)?;
            check_failures(name, &endpoint.errors, Failure::fits_http)?;
            check_limits(name, endpoint.limits)?;
        }
        check_latency("webSocket.connectLatency", &web_socket.connect_latency)?;
        check_latency("webSocket.latency", &web_socket.latency)?;
        check_stall("webSocket", web_socket.stall)?;
        check_failures("webSocket", &web_socket.errors, Failure::fits_web_socket)?;
        check_limits("webSocket", web_socket.limits)
    }
}

fn value_error(field: impl Into<String>, value: impl Display, expected: &str) -> SettingsError {
    SettingsError::Value {
        field: field.into(),
        value: value.to_string(),
        expected: expected.to_owned(),
    }
}

fn check_latency(field: &str, latency: &Latency) -> Result<(), SettingsError> {
    let max = match *latency {
        Latency::Constant(value) => value,
        Latency::Uniform { min, max } if min > max => {
            return Err(value_error(format!("{field}.uniform.min"), min, "it must be at most max"));
        }
        Latency::LogNormal { sigma, .. } if !(0.0..=10.0).contains(&sigma) => {
            return Err(value_error(
                format!("{field}.lognormal.sigma"),
                sigma,
                "it must be 0 to 10",
            ));
        }
        Latency::LogNormal { median, max, .. } if median > max => {
            return Err(value_error(
                format!("{field}.lognormal.median"),
                median,
                "it must be at most max",
            ));
        }
        Latency::Uniform { max, .. } | Latency::LogNormal { max, .. } => max,
    };
    if max > MAX_DURATION {
        return Err(value_error(field, max, "it must be at most 1h"));
    }
    Ok(())
}

fn check_stall(endpoint: &str, stall: Option<Stall>) -> Result<(), SettingsError> {
    let Some(Stall { every, length }) = stall else { return Ok(()) };
    if length >= every {
        let field = format!("{endpoint}.stall.for");
        return Err(value_error(field, length, "it must be shorter than stall.every"));
    }
    if every > MAX_DURATION {
        return Err(value_error(format!("{endpoint}.stall.every"), every, "it must be at most 1h"));
    }
    Ok(())
}

fn check_failures(
    endpoint: &str,
    failures: &Failures,
    fits: fn(Failure) -> bool,
) -> Result<(), SettingsError> {
    let Failures { rate, kinds } = failures;
    if rate.as_fraction() > 1.0 {
        return Err(value_error(format!("{endpoint}.errors.rate"), rate, "it must be 0% to 100%"));
    }
    if kinds.is_empty() {
        let field = format!("{endpoint}.errors.kinds");
        return Err(value_error(
            field,
            "[]",
            "list at least one kind; to disable errors, set rate to 0%",
        ));
    }
    for (index, &kind) in kinds.iter().enumerate() {
        let field = || format!("{endpoint}.errors.kinds[{index}]");
        if !fits(kind) {
            return Err(value_error(
                field(),
                kind.name(),
                "this endpoint does not support this kind of error",
            ));
        }
        match kind {
            Failure::Status(code) | Failure::RejectUpgrade(code) if !(400..600).contains(&code) => {
                return Err(value_error(field(), code, "an error status must be 400 to 599"));
            }
            // RFC 6455 forbids sending the codes 1004 to 1006 and 1015.
            Failure::CloseCode(code) if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) => {
                let expected = "it must be 1000-1003, 1007-1014 or 3000-4999 (RFC 6455)";
                return Err(value_error(field(), code, expected));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_limits(endpoint: &str, limits: Limits) -> Result<(), SettingsError> {
    let Limits { max_concurrent: _, max_rate } = limits;
    if let Some(rate) = max_rate.filter(|rate| !(0.001..=1e9).contains(&rate.value())) {
        let field = format!("{endpoint}.limits.maxRate");
        return Err(value_error(field, rate, "it must be 0.001/s to 1000000000/s"));
    }
    Ok(())
}
