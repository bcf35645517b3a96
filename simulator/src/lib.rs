//! A stand-in for Cell 0 OS: chat, models and health over HTTP, and an echo over WebSocket, with
//! exactly scripted latencies, stalls, errors and limits.
//!
//! It is the target of demos, and the oracle of tests: it keeps what really happened to every
//! request, as stamped where bytes meet the socket, so that a load generator's numbers can be held
//! against the [truth](RunTruth). It must not know any load generator beyond two headers:
//! `x-loadtest-run` says which run a request belongs to, and `x-loadtest-preflight` that it is to
//! be counted apart.
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
mod control;
mod http;
mod limits;
mod line;
mod server;
mod simulator;
mod tap;
mod truth;
mod web_socket;

pub mod settings;

pub use self::{
    settings::{Settings, SettingsError},
    simulator::{Listen, Simulator, StartError},
    truth::{
        Counts, Endpoint, EndpointTruth, Endpoints, Moment, Outcome, Quantiles, RunSummary,
        RunTruth, Times,
    },
};
