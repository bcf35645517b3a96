//! Names, labels and owners of the child objects of a test. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use loadtest_core::resource::{LoadTest, NAME_LABEL, UID_LABEL, name_label_of};

/// Name of the operator: field manager, reporter of Events and value of the label
/// `app.kubernetes.io/managed-by`.
pub const OPERATOR_NAME: &str = "loadtest-operator";
/// Value of the label `app.kubernetes.io/name` of runner pods, which a PodMonitor selects.
const RUNNER_APP_NAME: &str = "loadtest-runner";
/// Maximum length of a Job's name. The names of its pods add an index and a suffix.
const MAX_JOB_NAME_LENGTH: usize = 52;

/// Returns the name of a test's child objects: the truncated name of the test and eight digits of
/// its UID.
///
/// Dots become dashes, because the host names of the pods start with the name of the Job.
pub fn child_name(test: &LoadTest) -> String {
    let uid: String =
        test.uid().unwrap_or_default().chars().filter(char::is_ascii_hexdigit).take(8).collect();
    let max_length = MAX_JOB_NAME_LENGTH - 1 - uid.len();
    let name: String = test.name_any().replace('.', "-").chars().take(max_length).collect();
    format!("{}-{uid}", name.trim_end_matches('-'))
}

pub(super) fn child_labels(test: &LoadTest) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".into(), RUNNER_APP_NAME.into()),
        ("app.kubernetes.io/managed-by".into(), OPERATOR_NAME.into()),
        (NAME_LABEL.into(), name_label_of(&test.name_any())),
        (UID_LABEL.into(), test.uid().unwrap_or_default()),
    ])
}

pub(super) fn owner_reference(test: &LoadTest) -> Option<OwnerReference> {
    // `blockOwnerDeletion` needs permission to update the finalizers of the owner. The owner need
    // not outlive its children, so the field is not set.
    test.controller_owner_ref(&())
        .map(|owner| OwnerReference { block_owner_deletion: None, ..owner })
}

pub(super) fn child_metadata(test: &LoadTest) -> ObjectMeta {
    ObjectMeta {
        name: Some(child_name(test)),
        namespace: test.namespace(),
        labels: Some(child_labels(test)),
        owner_references: owner_reference(test).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Returns the metadata of the result of a test, without its name. A result that outlives its test
/// has no owner.
pub fn result_metadata(test: &LoadTest) -> ObjectMeta {
    let mut labels = child_labels(test);
    // The label by which monitors select runner pods.
    labels.remove("app.kubernetes.io/name");
    let owner = owner_reference(test).filter(|_| !test.spec.keep_result);
    ObjectMeta {
        namespace: test.namespace(),
        labels: Some(labels),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Returns true if the controlling owner of an object has this UID.
pub fn is_controlled_by<K: Resource>(object: &K, owner_uid: &str) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    owners.clone().any(|owner| owner.controller == Some(true) && owner.uid == owner_uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example_test;

    #[test]
    fn child_names_are_valid_and_within_the_limit() {
        let mut test = example_test();
        for name in ["a".repeat(253), format!("{}.b", "a".repeat(42)), "x".into(), "a.b.c".into()] {
            test.metadata.name = Some(name);
            let child = child_name(&test);
            assert!(child.len() <= MAX_JOB_NAME_LENGTH, "{child}");
            assert!(child.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{child}");
            assert!(child.ends_with("-0a1b2c3d"), "{child}");
            assert!(child_labels(&test).values().all(|value| value.len() <= 63));
        }
    }

    #[test]
    fn child_names_differ_between_tests_of_the_same_name() {
        let (first, mut second) = (example_test(), example_test());
        second.metadata.uid = Some("ffffffff-0000-4000-8000-000000000000".into());
        assert_ne!(child_name(&first), child_name(&second));
    }
}
