//! A number of users that is never zero.

use std::{fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};

/// A number of virtual users: at least 1.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Users(NonZeroU32);

impl Users {
    /// One user.
    pub const ONE: Self = Self(NonZeroU32::MIN);

    /// A number of users; `None` for zero.
    pub const fn new(users: u32) -> Option<Self> {
        match NonZeroU32::new(users) {
            Some(users) => Some(Self(users)),
            None => None,
        }
    }

    /// The number of users.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// How many groups of at most `size` users there are.
    #[must_use]
    pub const fn groups_of(self, size: Self) -> Self {
        match Self::new(self.get().div_ceil(size.get())) {
            Some(groups) => groups,
            // A quotient that is rounded up is at least 1.
            None => Self::ONE,
        }
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Users {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Users".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "minimum": 1, "maximum": crate::resource::MAX_USERS})
    }
}

#[cfg(test)]
mod tests {
    use super::Users;

    #[test]
    fn zero_users_can_not_be_built() {
        assert_eq!(Users::new(0), None);
        assert!(serde_json::from_str::<Users>("0").is_err());
        assert_eq!(serde_json::from_str::<Users>("7").ok(), Users::new(7));
    }

    #[test]
    fn groups_are_rounded_up() {
        let groups =
            |users, size| Users::new(users).unwrap().groups_of(Users::new(size).unwrap()).get();
        assert_eq!((groups(200, 100), groups(201, 100), groups(1, 100)), (2, 3, 1));
    }
}
