//! Connections, and when their bytes came.

pub(crate) mod connector;
pub(crate) mod kernel_timestamps;
pub(crate) mod stream;
pub(crate) mod timestamped_socket;
