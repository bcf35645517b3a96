//! A simulator of Cell 0 OS: chat, models and health over HTTP, and an echo over WebSocket.
//!
//! Latencies, stalls, errors and limits are configurable. The simulator is the target of demos and
//! the test oracle: it records the times of every request at the socket, so tests can compare a
//! load generator's results with the [truth](RunTruth).
//!
//! The simulator must not know any load generator. It reads only one request header:
//! `x-loadtest-run` has the run's UID.
//!
//! ```no_run
//! # async fn example() -> Result<(), cell0_simulator::StartError> {
//! use cell0_simulator::{Listen, Settings, Simulator};
//!
//! let simulator = Simulator::start(Settings::default(), Listen::loopback()).await?;
//! println!("http://{}", simulator.http_addr());
//! // … send requests with `x-loadtest-run: my-run` …
//! println!("{:?}", simulator.truth("my-run").endpoints.chat.successful);
//! simulator.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod clock;
mod connection;
mod control;
mod http;
mod limiter;
mod lock;
mod server;
mod simulator;
mod truth;
mod web_socket;

pub mod settings;

pub use self::{
    settings::{Settings, SettingsError},
    simulator::{Listen, Simulator, StartError},
    truth::{
        Counts, Endpoint, EndpointTruth, Endpoints, Outcome, Quantiles, RunSummary, RunTruth,
        Times, Timestamp,
    },
};
