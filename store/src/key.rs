//! What objects are called: typed keys, and the one place that turns them into paths and back. A key holds only checked
//! names, so no path leads anywhere else.

use std::fmt;

/// A name that cannot be part of a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' cannot be part of an object's name: it must be 1 to {max} letters, digits, '-', '_' and '.', not beginning with '.'",
    max = Name::MAX
)]
pub struct KeyError(pub String);

/// One checked segment of an object's path: the id of a volume, a session, a writer, the digest of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX: usize = 128;

    /// Checks a name.
    ///
    /// # Errors
    /// [`KeyError`] says what a name may be.
    pub fn new(name: impl Into<String>) -> Result<Self, KeyError> {
        let name = name.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=Self::MAX).contains(&name.len()) && !name.starts_with('.') && name.chars().all(allowed) {
            Ok(Self(name))
        } else {
            Err(KeyError(name))
        }
    }

    /// A name that nobody else has: 128 random bits.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Transaction number `seq` of a volume (a barrier takes a number too).
    Transaction {
        /// Its volume.
        volume: Name,
        /// Its number.
        seq: u64,
    },
    /// The whole state of a volume after transaction `seq`.
    Checkpoint {
        /// Its volume.
        volume: Name,
        /// Last transaction in it.
        seq: u64,
    },
    /// Transactions `from` to `to`, both included, as one.
    Merged {
        /// Their volume.
        volume: Name,
        /// First of them.
        from: u64,
        /// Last of them.
        to: u64,
    },
    /// A record of how far the garbage of a volume was collected.
    Boundary {
        /// Its volume.
        volume: Name,
        /// The newest one counts.
        generation: u64,
    },
    /// Says that a volume was deleted: what is left of it is garbage.
    Deleted {
        /// The volume.
        volume: Name,
    },
    /// A part of a large object of a volume.
    Part {
        /// Its volume.
        volume: Name,
        /// The one attempt that wrote it.
        writer: Name,
        /// Position in the content, from 0.
        number: u32,
    },
    /// A layer of a template.
    Layer {
        /// Its digest.
        digest: Name,
    },
    /// A part of a large layer.
    LayerPart {
        /// The layer.
        digest: Name,
        /// The one attempt that wrote it.
        writer: Name,
        /// Position in the content, from 0.
        number: u32,
    },
    /// The end of a session's authority.
    Fence {
        /// The session.
        session: Name,
    },
    /// A sign of life of a session.
    Beat {
        /// The session.
        session: Name,
        /// Grows with each.
        number: u64,
    },
    /// What [`crate::Store::prove`] writes and removes.
    Probe {
        /// The one proof that wrote it.
        proof: Name,
        /// Which of its objects.
        number: u32,
    },
}

impl Key {
    /// Path of the object, below the store's prefix.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Transaction { volume, seq } => format!("volumes/{volume}/log/{seq:020}"),
            Self::Checkpoint { volume, seq } => format!("volumes/{volume}/checkpoint/{seq:020}"),
            Self::Merged { volume, from, to } => format!("volumes/{volume}/merged/{from:020}-{to:020}"),
            Self::Boundary { volume, generation } => format!("volumes/{volume}/boundary/{generation:020}"),
            Self::Deleted { volume } => format!("volumes/{volume}/deleted"),
            Self::Part { volume, writer, number } => format!("volumes/{volume}/part/{writer}/{number:010}"),
            Self::Layer { digest } => format!("layers/{digest}/layer"),
            Self::LayerPart { digest, writer, number } => format!("layers/{digest}/part/{writer}/{number:010}"),
            Self::Fence { session } => format!("fence/{session}"),
            Self::Beat { session, number } => format!("beat/{session}/{number:020}"),
            Self::Probe { proof, number } => format!("probe/{proof}/{number:010}"),
        }
    }

    /// The key of a path; `None` for a path that no key has.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let name = |name: &str| Name::new(name).ok();
        let segments: Vec<&str> = path.split('/').collect();
        let key = match segments[..] {
            ["volumes", volume, "log", seq] => Self::Transaction { volume: name(volume)?, seq: seq.parse().ok()? },
            ["volumes", volume, "checkpoint", seq] => {
                Self::Checkpoint { volume: name(volume)?, seq: seq.parse().ok()? }
            }
            ["volumes", volume, "merged", range] => {
                let (from, to) = range.split_once('-')?;
                Self::Merged { volume: name(volume)?, from: from.parse().ok()?, to: to.parse().ok()? }
            }
            ["volumes", volume, "boundary", generation] => {
                Self::Boundary { volume: name(volume)?, generation: generation.parse().ok()? }
            }
            ["volumes", volume, "deleted"] => Self::Deleted { volume: name(volume)? },
            ["volumes", volume, "part", writer, number] => {
                Self::Part { volume: name(volume)?, writer: name(writer)?, number: number.parse().ok()? }
            }
            ["layers", digest, "layer"] => Self::Layer { digest: name(digest)? },
            ["layers", digest, "part", writer, number] => {
                Self::LayerPart { digest: name(digest)?, writer: name(writer)?, number: number.parse().ok()? }
            }
            ["fence", session] => Self::Fence { session: name(session)? },
            ["beat", session, number] => Self::Beat { session: name(session)?, number: number.parse().ok()? },
            ["probe", proof, number] => Self::Probe { proof: name(proof)?, number: number.parse().ok()? },
            _ => return None,
        };
        // `+7` and a number without its zeros parse, but are no names that `path` makes.
        (key.path() == path).then_some(key)
    }

    /// Whether it is a part of a large object.
    #[must_use]
    pub fn is_part(&self) -> bool {
        matches!(self, Self::Part { .. } | Self::LayerPart { .. })
    }

    /// Of a part: the object that it was made for, and the attempt that made it. `None`: it is no part, or its name does not
    /// say so.
    #[must_use]
    pub fn part_of(&self) -> Option<(Self, &Name)> {
        match self {
            Self::Part { volume, writer, .. } => Some((crate::writer::object(volume, writer)?, writer)),
            Self::LayerPart { digest, writer, .. } => Some((Self::Layer { digest: digest.clone() }, writer)),
            _ => None,
        }
    }

    /// Where a part of this object's content lies; `None` for objects that are never large.
    pub(crate) fn part(&self, writer: &Name, number: u32) -> Option<Self> {
        match self {
            Self::Transaction { volume, .. } | Self::Checkpoint { volume, .. } | Self::Merged { volume, .. } => {
                Some(Self::Part { volume: volume.clone(), writer: writer.clone(), number })
            }
            Self::Layer { digest } => Some(Self::LayerPart { digest: digest.clone(), writer: writer.clone(), number }),
            Self::Boundary { .. }
            | Self::Deleted { .. }
            | Self::Part { .. }
            | Self::LayerPart { .. }
            | Self::Fence { .. }
            | Self::Beat { .. }
            | Self::Probe { .. } => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// What can be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Everything.
    All,
    /// Everything of a volume.
    Volume(Name),
    /// Transactions of a volume.
    Transactions(Name),
    /// Checkpoints of a volume.
    Checkpoints(Name),
    /// Merged transactions of a volume.
    Merged(Name),
    /// Boundaries of a volume.
    Boundaries(Name),
    /// Parts of the large objects of a volume.
    Parts(Name),
    /// Layers and their parts.
    Layers,
    /// Everything of a layer.
    Layer(Name),
    /// Fences.
    Fences,
    /// Signs of life of a session.
    Beats(Name),
    /// Signs of life of all sessions.
    AllBeats,
    /// What proofs left behind.
    Probes,
}

impl Prefix {
    /// Directory of the objects, below the store's prefix.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Volume(volume) => format!("volumes/{volume}"),
            Self::Transactions(volume) => format!("volumes/{volume}/log"),
            Self::Checkpoints(volume) => format!("volumes/{volume}/checkpoint"),
            Self::Merged(volume) => format!("volumes/{volume}/merged"),
            Self::Boundaries(volume) => format!("volumes/{volume}/boundary"),
            Self::Parts(volume) => format!("volumes/{volume}/part"),
            Self::Layers => "layers".into(),
            Self::Layer(digest) => format!("layers/{digest}"),
            Self::Fences => "fence".into(),
            Self::Beats(session) => format!("beat/{session}"),
            Self::AllBeats => "beat".into(),
            Self::Probes => "probe".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name).unwrap()
    }

    fn any_name() -> impl Strategy<Value = Name> {
        "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}".prop_map(|text| name(&text))
    }

    fn any_key() -> impl Strategy<Value = Key> {
        let (n, m) = (any_name, any_name);
        prop_oneof![
            (n(), any::<u64>()).prop_map(|(volume, seq)| Key::Transaction { volume, seq }),
            (n(), any::<u64>()).prop_map(|(volume, seq)| Key::Checkpoint { volume, seq }),
            (n(), any::<u64>(), any::<u64>()).prop_map(|(volume, from, to)| Key::Merged { volume, from, to }),
            (n(), any::<u64>()).prop_map(|(volume, generation)| Key::Boundary { volume, generation }),
            n().prop_map(|volume| Key::Deleted { volume }),
            (n(), m(), any::<u32>()).prop_map(|(volume, writer, number)| Key::Part { volume, writer, number }),
            n().prop_map(|digest| Key::Layer { digest }),
            (n(), m(), any::<u32>()).prop_map(|(digest, writer, number)| Key::LayerPart { digest, writer, number }),
            n().prop_map(|session| Key::Fence { session }),
            (n(), any::<u64>()).prop_map(|(session, number)| Key::Beat { session, number }),
            (n(), any::<u32>()).prop_map(|(proof, number)| Key::Probe { proof, number }),
        ]
    }

    proptest! {
        #[test]
        fn a_key_is_read_back_from_its_path(key in any_key()) {
            prop_assert_eq!(Key::parse(&key.path()), Some(key));
        }

        #[test]
        fn whatever_parses_is_the_path_of_its_key(path in "[a-z0-9/.+-]{0,60}") {
            if let Some(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path);
            }
        }

        #[test]
        fn transactions_are_sorted_by_their_number(a in any::<u64>(), b in any::<u64>()) {
            let key = |seq| Key::Transaction { volume: name("v"), seq };
            prop_assert_eq!(a.cmp(&b), key(a).path().cmp(&key(b).path()));
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "a\0b", "a%2fb", "a:b", "ä", &"x".repeat(129)] {
            assert_eq!(Name::new(bad), Err(KeyError(bad.into())), "{bad:?}");
        }
        for good in ["a", "0b8e-1", "a..b", "x.y.z", "sha256-00", &"x".repeat(128)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn foreign_paths_have_no_key() {
        for path in [
            "",
            "volumes",
            "volumes/v/log",
            "volumes/v/log/1",
            "volumes/v/log/+0000000000000000001",
            "volumes/../log/00000000000000000001",
            "volumes/v/log/00000000000000000001/x",
            "/fence/s",
            "fence/s/",
            "layers/l/layer/x",
        ] {
            assert_eq!(Key::parse(path), None, "{path:?}");
        }
    }

    #[test]
    fn paths_are_as_the_format_page_says() {
        let (v, w) = (name("v"), name("w"));
        for (key, path) in [
            (Key::Transaction { volume: v.clone(), seq: 7 }, "volumes/v/log/00000000000000000007"),
            (Key::Checkpoint { volume: v.clone(), seq: 7 }, "volumes/v/checkpoint/00000000000000000007"),
            (
                Key::Merged { volume: v.clone(), from: 1, to: 7 },
                "volumes/v/merged/00000000000000000001-00000000000000000007",
            ),
            (Key::Boundary { volume: v.clone(), generation: 7 }, "volumes/v/boundary/00000000000000000007"),
            (Key::Deleted { volume: v.clone() }, "volumes/v/deleted"),
            (Key::Part { volume: v.clone(), writer: w.clone(), number: 7 }, "volumes/v/part/w/0000000007"),
            (Key::Layer { digest: v.clone() }, "layers/v/layer"),
            (Key::LayerPart { digest: v.clone(), writer: w, number: 7 }, "layers/v/part/w/0000000007"),
            (Key::Fence { session: v.clone() }, "fence/v"),
            (Key::Beat { session: v.clone(), number: 7 }, "beat/v/00000000000000000007"),
            (Key::Probe { proof: v, number: 7 }, "probe/v/0000000007"),
        ] {
            assert_eq!(key.path(), path);
        }
    }
}
