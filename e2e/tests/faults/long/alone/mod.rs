//! Rows that stop or replace what all tests share. They run one after the other.

mod api_server;
mod cancellation;
mod clock;
mod node;
mod operator;
mod runners;
