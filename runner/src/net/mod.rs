//! Connections to the target, and the times at which their bytes arrived.
//!
//! Nothing here knows about HTTP, WebSocket or users.

pub(crate) mod arrival_clock;
pub(crate) mod connector;
pub(crate) mod poll_turns;
pub(crate) mod stream;
mod tcp_info;
pub(crate) mod timestamped_socket;
pub(crate) mod user_tls;
