//! The NetworkPolicy of a run. It says which pods may connect to its runners.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt;
use loadtest_core::{
    control,
    resource::{LoadTest, UID_LABEL},
};

use super::metadata::child_metadata;

/// Builds a NetworkPolicy that lets only these peers reach the runners of a test, and only their port. What
/// runners send is not limited.
pub fn build_network_policy(test: &LoadTest, peers: &[NetworkPolicyPeer]) -> NetworkPolicy {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::Int(control::PORT.into())),
        protocol: Some("TCP".into()),
        ..NetworkPolicyPort::default()
    };
    let runners = [(UID_LABEL.to_owned(), test.uid().unwrap_or_default())];
    NetworkPolicy {
        metadata: child_metadata(test),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(runners.into()),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(peers.to_vec()),
                ports: Some(vec![port]),
            }]),
            ..NetworkPolicySpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example_test;

    #[test]
    fn policy_selects_the_runners_of_one_run() {
        let peers: Vec<NetworkPolicyPeer> = serde_json::from_value(serde_json::json!([
            {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "loadtest-operator"}}},
        ]))
        .unwrap();
        let policy = serde_json::to_value(build_network_policy(&example_test(), &peers)).unwrap();
        assert_eq!(
            policy["spec"],
            serde_json::json!({
                "podSelector": {"matchLabels": {UID_LABEL: example_test().uid().unwrap()}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": peers, "ports": [{"port": 9464, "protocol": "TCP"}]}],
            })
        );
        assert_eq!(policy["metadata"]["ownerReferences"][0]["kind"], "LoadTest");
    }
}
