//! Whether an object in the cluster is as it should be, so that nothing is written when nothing would change. The API
//! server adds defaults and keeps quantities in another notation: what is wanted must be there, more may be.

use serde_json::Value;

use crate::quantity::Amount;

/// Whether `observed` has everything that `wanted` has. Lists must be equally long.
#[must_use]
pub fn covers(observed: &Value, wanted: &Value) -> bool {
    match (observed, wanted) {
        (Value::Object(observed), Value::Object(wanted)) => wanted.iter().all(|(key, value)| {
            let there = observed.get(key);
            // An object without content says nothing; the API server drops it.
            there.is_some_and(|there| covers(there, value)) || (there.is_none() && is_empty(value))
        }),
        (Value::Array(observed), Value::Array(wanted)) => {
            observed.len() == wanted.len() && observed.iter().zip(wanted).all(|(o, w)| covers(o, w))
        }
        (Value::String(observed), Value::String(wanted)) => {
            observed == wanted
                || matches!((Amount::parse(observed), Amount::parse(wanted)), (Some(a), Some(b)) if a == b)
        }
        _ => observed == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_notation_of_the_server_are_no_difference() {
        for (observed, wanted) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1})),
            (json!({"a": "1Gi"}), json!({"a": "1024Mi"})),
            (json!([{"a": 1, "b": 2}]), json!([{"a": 1}])),
            (json!({}), json!({"a": {}, "b": ""})),
        ] {
            assert!(covers(&observed, &wanted), "{observed} {wanted}");
        }
    }

    #[test]
    fn what_is_missing_or_other_is_a_difference() {
        for (observed, wanted) in [
            (json!({"a": 1}), json!({"a": 2})),
            (json!({}), json!({"a": 1})),
            (json!([1, 2]), json!([1])),
            (json!({"a": "1Gi"}), json!({"a": "2Gi"})),
            (json!({"a": "x"}), json!({"a": {}})),
        ] {
            assert!(!covers(&observed, &wanted), "{observed} {wanted}");
        }
    }
}
