//! What a pod asks to see: the attributes of its ephemeral volume, checked.

use std::collections::HashMap;

use vivarium_api::view;

use crate::journal::wanted::Wanted;
use crate::publish::Refusal;

/// Attributes of this prefix come from the kubelet.
const KUBELET: &str = "csi.storage.k8s.io/";

/// What of an environment is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its tree in a state; none: that of the last commit.
    Tree(Option<Wanted>),
    /// The tree that a node set aside when it came back.
    Diverged {
        /// The node.
        node: String,
        /// The incarnation that wrote it.
        epoch: u64,
    },
    /// Which instants there are.
    History,
}

/// A volume that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Name of the environment, in the pod's namespace.
    pub environment: String,
    /// What of it.
    pub what: What,
}

impl Request {
    /// Reads the attributes.
    ///
    /// # Errors
    /// [`Refusal::Missing`], [`Refusal::Invalid`].
    pub fn parse(attributes: &HashMap<String, String>) -> Result<Self, Refusal> {
        let known = [view::ENVIRONMENT, view::AT, view::DIVERGED, view::SHOW];
        let unknown = attributes.keys().find(|key| !key.starts_with(KUBELET) && !known.contains(&key.as_str()));
        if let Some(unknown) = unknown {
            return Err(invalid("volumeAttributes", unknown, &format!("there are {}", known.join(", "))));
        }
        let get = |key| attributes.get(key).map(String::as_str).unwrap_or_default();
        let environment = get(view::ENVIRONMENT).to_owned();
        if environment.is_empty() {
            return Err(Refusal::Missing("environment among its volumeAttributes"));
        }
        // It becomes part of a request to the API server.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        if environment.starts_with('.') || !environment.bytes().all(plain) {
            return Err(invalid(view::ENVIRONMENT, &environment, "it must be the name of an environment"));
        }
        let (at, diverged) = (get(view::AT), get(view::DIVERGED));
        let what = match (get(view::SHOW), diverged) {
            ("" | view::SHOW_TREE, "") => What::Tree(instant(at)?),
            ("" | view::SHOW_TREE, diverged) if at.is_empty() => set_aside(diverged)?,
            ("" | view::SHOW_TREE, _) => {
                return Err(invalid(view::AT, at, "what was set aside is of one instant: leave it out"));
            }
            (view::SHOW_HISTORY, "") if at.is_empty() => What::History,
            (view::SHOW_HISTORY, _) => {
                return Err(invalid(view::SHOW, view::SHOW_HISTORY, "leave out `at` and `diverged`"));
            }
            (other, _) => return Err(invalid(view::SHOW, other, "it must be `tree` or `history`")),
        };
        Ok(Self { environment, what })
    }
}

fn instant(text: &str) -> Result<Option<Wanted>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    Wanted::parse(text).map(Some).ok_or_else(|| {
        let wanted = "it must be a time such as 2026-01-31T12:00:00Z (RFC 3339), or the number of a transaction, or empty for the last commit";
        invalid(view::AT, text, wanted)
    })
}

fn set_aside(text: &str) -> Result<What, Refusal> {
    let parsed = text.rsplit_once('/').and_then(|(node, epoch)| Some((node, epoch.parse().ok()?)));
    match parsed {
        Some((node, epoch)) if !node.is_empty() => Ok(What::Diverged { node: node.to_owned(), epoch }),
        _ => Err(invalid(view::DIVERGED, text, "it must be `<node>/<epoch>`, as status.diverged of the volume says")),
    }
}

fn invalid(field: &'static str, value: &str, message: &str) -> Refusal {
    Refusal::Invalid { field, value: value.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(attributes: &[(&str, &str)]) -> Result<What, String> {
        let mut all: HashMap<String, String> =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        all.insert("csi.storage.k8s.io/pod.name".into(), "p".into());
        Request::parse(&all).map(|request| request.what).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn attributes_become_a_request() {
        let time = "2026-01-31T12:00:00Z";
        for (attributes, expected) in [
            (&[][..], What::Tree(None)),
            (&[("at", "")], What::Tree(None)),
            (&[("at", "17")], What::Tree(Some(Wanted::Sequence(17)))),
            (&[("at", time), ("view", "tree")], What::Tree(Some(Wanted::Time(time.parse().unwrap())))),
            (&[("at", "2026-01-31T13:00:00+01:00")], What::Tree(Some(Wanted::Time(time.parse().unwrap())))),
            (&[("diverged", "n1/3")], What::Diverged { node: "n1".into(), epoch: 3 }),
            (&[("view", "history")], What::History),
        ] {
            let all = [&[("environment", "shop")], attributes].concat();
            assert_eq!(parse(&all).unwrap(), expected, "{attributes:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (attributes, reason) in [
            (&[][..], "no environment"),
            (&[("environment", "../x")], "name of an environment"),
            (&[("environment", "a/b")], "name of an environment"),
            (&[("environment", "..")], "name of an environment"),
            (&[("environment", "a"), ("at", "yesterday")], "RFC 3339"),
            (&[("environment", "a"), ("at", "-1")], "RFC 3339"),
            (&[("environment", "a"), ("at", "2026-01-31T12:00:00")], "RFC 3339"),
            (&[("environment", "a"), ("diverged", "n1")], "<node>/<epoch>"),
            (&[("environment", "a"), ("diverged", "/1")], "<node>/<epoch>"),
            (&[("environment", "a"), ("diverged", "n1/1"), ("at", "1")], "leave it out"),
            (&[("environment", "a"), ("view", "all")], "`tree` or `history`"),
            (&[("environment", "a"), ("view", "history"), ("at", "1")], "leave out"),
            (&[("environment", "a"), ("namespace", "b")], "there are environment, at, diverged, view"),
        ] {
            let refusal = parse(attributes).unwrap_err();
            assert!(refusal.contains(reason), "{attributes:?}: {refusal}");
        }
    }
}
