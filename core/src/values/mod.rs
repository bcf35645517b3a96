//! Values with units: durations, rates, shares and the bounds built from them.
//!
//! Each is parsed once, where a spec or a command line enters, and printed in the
//! same notation it is read in. Must not know any metric or resource.

mod bound;
mod duration;
mod quantity;

pub use bound::{Bound, BoundError, Comparison, compare};
pub(crate) use duration::schema_between;
pub use duration::{Duration, DurationError};
pub use quantity::{Quantity, QuantityError, Rate, Share};

/// Rounds to `digits` significant digits and drops trailing zeros, without an exponent.
fn significant(value: f64, digits: i32) -> String {
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
    use super::significant;

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
            assert_eq!(significant(value, 4), text);
        }
    }
}
