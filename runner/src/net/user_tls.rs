//! The TLS settings of one user, which hold its sessions.

use std::{cell::RefCell, sync::Arc};

use rustls::ClientConfig;

use crate::prepare::tls::TlsSettings;

/// The TLS settings of one user, by the settings of the endpoint that they were made from.
#[derive(Debug, Default)]
pub(crate) struct UserTls {
    configs: RefCell<Vec<(*const ClientConfig, Arc<ClientConfig>)>>,
}

impl UserTls {
    /// Returns the user's TLS settings for an endpoint.
    pub(crate) fn config_for(&self, tls: &TlsSettings) -> Arc<ClientConfig> {
        let origin = Arc::as_ptr(&tls.config);
        let mut known = self.configs.borrow_mut();
        if let Some((_, config)) = known.iter().find(|(of, _)| *of == origin) {
            return Arc::clone(config);
        }
        let config = tls.config_for_user();
        known.push((origin, Arc::clone(&config)));
        config
    }
}
