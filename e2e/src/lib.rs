//! What the end-to-end tests share: a namespace for each test, the pods of the operator, the node, and
//! the table of faults.
//!
//! `tests/cluster` tests what a user does, `tests/faults` what can go wrong. Both need an operator that its
//! chart has installed on the cluster of `KUBECONFIG`.

#![allow(
    clippy::missing_errors_doc,
    reason = "each fails if the cluster does not do what the test expects"
)]

pub mod api_proxy;
pub mod fault;
pub mod leftovers;
pub mod node;
pub mod operator_pods;
pub mod test_namespace;
