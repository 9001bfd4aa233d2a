//! Conditions by the Kubernetes API conventions, the same shape on every kind.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// State of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known.
    Unknown,
}

/// One observation of an object's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of the condition, unique in its list.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// Whether the condition holds.
    pub status: ConditionStatus,
    /// Generation of the object that this was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    #[schemars(with = "DateTime")]
    pub last_transition_time: Timestamp,
    /// Why, as one CamelCase word; each has a page in the runbook.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, as a sentence that says what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// A time stamp as the API server knows it.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[allow(dead_code, reason = "only its schema is used")]
struct DateTime(#[schemars(extend("format" = "date-time"))] String);

/// Puts a condition into a list, keeping the transition time of an unchanged status.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition of that type, if any.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of that type is there and True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == ConditionStatus::True)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: ConditionStatus, second: i64) -> Condition {
        Condition {
            type_: "Ready".into(),
            status,
            observed_generation: Some(1),
            last_transition_time: Timestamp::from_second(second).unwrap(),
            reason: "Test".into(),
            message: String::new(),
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut list = vec![ready(ConditionStatus::False, 1)];
        set(&mut list, ready(ConditionStatus::False, 2));
        assert_eq!(list[0].last_transition_time.as_second(), 1);
        set(&mut list, ready(ConditionStatus::True, 3));
        assert_eq!(list[0].last_transition_time.as_second(), 3);
        assert_eq!(list.len(), 1);
    }
}
