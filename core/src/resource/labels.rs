//! The labels of everything that the operator creates for a test.

/// Label with the name of the test.
pub const NAME_LABEL: &str = "loadtest.cell0.io/name";
/// Label with the UID of the test.
pub const UID_LABEL: &str = "loadtest.cell0.io/uid";
/// Maximum length of a label's value in Kubernetes.
const MAX_LENGTH: usize = 63;

/// The value of [`NAME_LABEL`] for a test: its name, cut to the length of a label.
pub fn name_label_of(name: &str) -> String {
    let cut: String = name.chars().take(MAX_LENGTH).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_to_a_valid_label() {
        assert_eq!(name_label_of("burst"), "burst");
        let long = format!("{}.-b", "a".repeat(61));
        assert_eq!(name_label_of(&long), "a".repeat(61));
    }
}
