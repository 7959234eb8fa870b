//! `uniqueItems`, for items that were chosen to make it slow.
//!
//! Invariant: finding equal items takes time proportional to their size. `jsonschema` puts them into a hash set with
//! hashes of its own, which are equal for `[0]`, `[[0]]` and `[[], 0]`: it then compares each item with all others, which
//! takes seconds for a megabyte and four times as long for two.

use std::collections::HashMap;

use serde_json::Value;

use super::walk::{Exhausted, STRING_BYTES_PER_STEP, Walk, to_u64};

impl Walk<'_> {
    /// The first two items that are equal. They are compared as text in one form, in a set that nobody can make slow
    /// by choosing the items.
    pub(super) fn equal_items(&mut self, array: &[Value]) -> Result<Option<(usize, usize)>, Exhausted> {
        let mut seen = HashMap::new();
        for (index, item) in array.iter().enumerate() {
            let mut text = String::new();
            self.deeper(|walk| walk.canonical(item, &mut text))?;
            if let Some(earlier) = seen.insert(text, index) {
                return Ok(Some((earlier, index)));
            }
        }
        Ok(None)
    }

    /// Writes `value` so that equal values have equal texts: 1 is 1.0, and the order of properties does not matter.
    fn canonical(&mut self, value: &Value, text: &mut String) -> Result<(), Exhausted> {
        match value {
            Value::Array(array) => {
                text.push('[');
                for item in array {
                    self.deeper(|walk| walk.canonical(item, text))?;
                    text.push(',');
                }
                text.push(']');
            }
            Value::Object(object) => {
                let mut properties: Vec<_> = object.iter().collect();
                properties.sort_unstable_by_key(|(name, _)| *name);
                text.push('{');
                for (name, part) in properties {
                    self.charge(to_u64(name.len() / STRING_BYTES_PER_STEP))?;
                    text.push_str(&Value::String(name.clone()).to_string());
                    self.deeper(|walk| walk.canonical(part, text))?;
                    text.push(',');
                }
                text.push('}');
            }
            // Floats that are whole and small enough to be exact; all others are not equal to any integer.
            Value::Number(number) => match number.as_f64() {
                Some(0.0) => text.push('0'),
                Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 2f64.powi(64) => {
                    text.push_str(&format!("{float:.0}"));
                }
                _ => text.push_str(&number.to_string()),
            },
            Value::String(string) => {
                self.charge(to_u64(string.len() / STRING_BYTES_PER_STEP))?;
                text.push_str(&value.to_string());
            }
            Value::Null | Value::Bool(_) => text.push_str(&value.to_string()),
        }
        Ok(())
    }
}
