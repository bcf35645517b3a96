//! End-to-end tests on the cluster that `KUBECONFIG` points to. The operator must be installed by
//! its chart. `make test` runs these tests inside the testbed.

mod accuracy;
mod bad_input;
mod command_line;
mod dashboards;
mod examples;
mod leadership;
mod lifecycle;
mod load_generator;
mod load_models;
mod operator_pods;
mod prometheus;
mod safety;
mod spec_settings;
mod test_namespace;
mod verdicts;
mod web_socket_sessions;
