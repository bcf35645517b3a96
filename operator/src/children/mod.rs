//! Builds the child objects of a test: a ConfigMap with the plan, and an Indexed Job with the
//! runners.
//!
//! Pure: this module has no client. The module `act` creates the objects.

mod job;
mod metadata;
mod pod;
mod settings;

pub(crate) use job::{TOKEN_ANNOTATION, build_config_map, build_job, build_plan};
pub use metadata::child_name;
pub(crate) use metadata::{OPERATOR_NAME, is_controlled_by, result_metadata};
pub use settings::Settings;
