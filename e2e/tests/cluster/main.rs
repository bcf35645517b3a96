//! End-to-end tests on the cluster that `KUBECONFIG` points to. The operator must be installed by
//! its chart. `make test` runs these tests inside the testbed.

mod accuracy;
mod bad_input;
mod command_line;
mod dashboards;
mod examples;
mod installation;
mod large_results;
mod lifecycle;
mod load_generator;
mod load_models;
mod prometheus;
mod safety;
mod secrets;
mod spec_settings;
mod verdicts;
mod web_socket_sessions;
