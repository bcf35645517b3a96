//! Rows that take long, or are variants of others. Those outside of `alone` may run at the same time.

mod alone;
mod images;
mod runners;
