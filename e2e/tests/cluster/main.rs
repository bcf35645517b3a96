//! The stories a user would tell, on the cluster that KUBECONFIG points to, with the operator
//! installed by its chart. `make test` runs them inside the testbed.

mod accuracy;
mod bad_input;
mod examples;
mod generator;
mod lifecycle;
mod load_models;
mod prometheus;
mod story;
mod verdicts;
