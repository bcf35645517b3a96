//! Rows that take long, or are variants of others.

mod api_server;
mod clock;
mod node;
mod operator;
mod runners;
