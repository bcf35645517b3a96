//! Access to one field of a struct, for the tables of the catalogue.

/// Reads and writes one field of a struct.
#[derive(Debug)]
pub(crate) struct Field<S, V> {
    /// Reads the field.
    pub get: fn(&S) -> V,
    /// Writes the field.
    pub set: fn(&mut S, V),
}

/// Access to the field at a path, such as `tokens.output`.
macro_rules! field {
    ($($path:tt)+) => {
        $crate::metrics::catalog::field::Field { get: |all| all.$($path)+, set: |all, value| all.$($path)+ = value }
    };
}

pub(crate) use field;
