//! Values with units: users, durations, rates, percentages, and bounds on them.
//!
//! Each value is parsed once, where a spec or a command line enters the program, and prints in the
//! notation that it was read from. This module must not know metrics or resources.

mod bound;
mod duration;
mod extensible_enum;
mod quantity;
mod users;

pub use bound::{Bound, BoundError, Comparison, compare_quantities};
pub use duration::{Duration, DurationError};
#[cfg(feature = "crd")]
pub(crate) use duration::{optional_schema_between, schema_between};
pub use extensible_enum::{Extensible, Named};
pub use quantity::{Percent, PositiveRate, Quantity, QuantityError, Rate};
pub use users::Users;

/// Rounds to `digits` significant digits and drops trailing zeros, without an exponent.
fn round_significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, reason = "log10 of an f64 is within ±309")]
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(digits - 1 - magnitude).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::round_significant;

    #[test]
    fn rounding_keeps_four_digits_and_no_trailing_zero() {
        for (value, text) in [
            (523.44, "523.4"),
            (1.25, "1.25"),
            (0.0, "0"),
            (0.12, "0.12"),
            (131.5, "131.5"),
            (0.000_123_456, "0.0001235"),
            (123_456.0, "123456"),
            (999.96, "1000"),
        ] {
            assert_eq!(round_significant(value, 4), text);
        }
    }
}
