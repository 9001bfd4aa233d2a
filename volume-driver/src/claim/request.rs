//! What is asked for, as plain values, and what follows from it. Nothing here touches the pool.

use std::collections::HashMap;

use super::error::ClaimError;
use super::record::{Claim, Origin};
use crate::ids::VolumeId;

/// Parameter of a `StorageClass`: volumes begin with the tree of the `EnvironmentTemplate` of that name.
pub const TEMPLATE: &str = "template";
/// What the provisioner adds by itself, if it is told to.
const OF_THE_PROVISIONER: &str = "csi.storage.k8s.io/";
/// Size of a volume that nobody gave one.
const DEFAULT_SIZE: u64 = 1 << 30;
/// Smallest volume.
const MIN_SIZE: u64 = 1 << 20;
const CLAIM: &str = "pvc-";
const SNAPSHOT: &str = "snap-";
/// Hexadecimal digits of a handle for the name, and for the node.
const DIGITS: (usize, usize) = (32, 16);

/// Handle of the volume that is asked for under a name on a node: the same name is the same volume.
#[must_use]
pub fn claim_id(name: &str, node: &str) -> VolumeId {
    handle(CLAIM, name, node)
}

/// Handle of the snapshot that is asked for under a name on a node.
#[must_use]
pub fn snapshot_id(name: &str, node: &str) -> VolumeId {
    handle(SNAPSHOT, name, node)
}

fn handle(prefix: &str, name: &str, node: &str) -> VolumeId {
    let digest = blake3::hash(name.as_bytes()).to_hex();
    VolumeId::made(format!("{prefix}{}-{}", &digest[..DIGITS.0], digest_of_node(node)))
}

fn digest_of_node(node: &str) -> String {
    blake3::hash(node.as_bytes()).to_hex()[..DIGITS.1].to_owned()
}

/// Whether a handle is that of a volume of a pod. Those of environments are UUIDs.
#[must_use]
pub fn is_claim(id: &VolumeId) -> bool {
    has_form(id, CLAIM)
}

/// Whether a handle is that of a snapshot.
#[must_use]
pub fn is_snapshot(id: &VolumeId) -> bool {
    has_form(id, SNAPSHOT)
}

fn has_form(id: &VolumeId, prefix: &str) -> bool {
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts = id.as_str().strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(name, node)| digits(name, DIGITS.0) && digits(node, DIGITS.1))
}

/// Whether the handle of a volume or snapshot was made on a node. What was made elsewhere is there, even if it is not here.
#[must_use]
pub fn is_of(id: &VolumeId, node: &str) -> bool {
    id.as_str().rsplit_once('-').is_some_and(|(_, of)| of == digest_of_node(node))
}

/// How large a volume should be, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// At least; 0: as it comes.
    pub required: u64,
    /// At most; 0: no limit.
    pub limit: u64,
}

impl Range {
    /// Reads it as it is on the wire, where bytes have a sign.
    ///
    /// # Errors
    /// [`ClaimError::OutOfRange`].
    pub fn new(required: i64, limit: i64) -> Result<Self, ClaimError> {
        let (Ok(required), Ok(limit)) = (u64::try_from(required), u64::try_from(limit)) else {
            return Err(ClaimError::OutOfRange("a size cannot be negative".into()));
        };
        if limit != 0 && limit < required {
            let message = format!("it should have at least {required} bytes and at most {limit}, which cannot be");
            return Err(ClaimError::OutOfRange(message));
        }
        Ok(Self { required, limit })
    }

    /// The size of a new volume that begins with the tree of one of `source` bytes (0: of none).
    ///
    /// # Errors
    /// [`ClaimError::OutOfRange`].
    pub fn size(self, source: u64) -> Result<u64, ClaimError> {
        if self.required != 0 && self.required < source {
            let message = format!(
                "it is made from a volume of {source} bytes, so {} bytes are too few: ask for at least {source}",
                self.required
            );
            return Err(ClaimError::OutOfRange(message));
        }
        let size = match (self.required, source) {
            (0, 0) if self.limit == 0 => DEFAULT_SIZE,
            (0, 0) => DEFAULT_SIZE.min(self.limit),
            (0, source) => source,
            (required, _) => required,
        };
        let size = size.max(MIN_SIZE);
        if self.limit != 0 && size > self.limit {
            let message = format!("it needs {size} bytes, and at most {} are allowed", self.limit);
            return Err(ClaimError::OutOfRange(message));
        }
        Ok(size)
    }

    /// Whether a volume of that size is one that was asked for.
    #[must_use]
    pub fn holds(self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

/// A volume that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// Its handle.
    pub id: VolumeId,
    /// The name.
    pub name: String,
    /// How large.
    pub range: Range,
    /// What it begins with.
    pub origin: Origin,
}

impl NewClaim {
    /// Puts a request to a node together: `content` is the volume or snapshot that it names as its source.
    ///
    /// # Errors
    /// A parameter that there is not, or that contradicts the source.
    pub fn new(
        name: &str,
        node: &str,
        range: Range,
        parameters: &HashMap<String, String>,
        content: Option<Origin>,
    ) -> Result<Self, ClaimError> {
        let unknown = parameters.keys().filter(|key| *key != TEMPLATE && !key.starts_with(OF_THE_PROVISIONER)).min();
        if let Some(unknown) = unknown {
            return Err(ClaimError::Parameter { name: unknown.clone() });
        }
        // Whoever restores or clones has what the template gave the source.
        let template = parameters.get(TEMPLATE).map(|template| template_name(template)).transpose()?;
        let origin = content.or(template.map(Origin::Template)).unwrap_or(Origin::Empty);
        Ok(Self { id: claim_id(name, node), name: name.to_owned(), range, origin })
    }

    /// Whether a volume that is there is the one that is asked for.
    ///
    /// # Errors
    /// [`ClaimError::Different`].
    pub fn matches(&self, found: &Claim) -> Result<(), ClaimError> {
        let differs = if !self.range.holds(found.record.size) {
            format!("its size is {} bytes", found.record.size)
        } else if self.origin != found.record.origin {
            "it was made from something else".to_owned()
        } else {
            return Ok(());
        };
        Err(ClaimError::Different { name: self.name.clone(), differs })
    }
}

/// Names of objects are DNS subdomains.
fn template_name(name: &str) -> Result<String, ClaimError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if (1..=253).contains(&name.len()) && name.bytes().all(plain) {
        Ok(name.to_owned())
    } else {
        Err(ClaimError::NoTemplate { name: name.to_owned() })
    }
}

/// One page of a list, and the token of the next one.
pub type Page<T> = (Vec<T>, Option<String>);

/// The page of `all`, which is sorted by handle, that begins after the handle in `token`, with at most `most` entries (0: all).
/// Whatever came or went since the last page, nothing that stays is left out or told twice.
///
/// # Errors
/// [`ClaimError::Token`], [`ClaimError::Negative`].
pub fn page<T>(
    all: Vec<T>,
    id: impl Fn(&T) -> &VolumeId,
    token: &str,
    most: i32,
    is_ours: impl Fn(&VolumeId) -> bool,
) -> Result<Page<T>, ClaimError> {
    let most = usize::try_from(most).map_err(|_| ClaimError::Negative(most))?;
    let after = match token {
        "" => None,
        token => {
            let id = VolumeId::parse(token).ok().filter(is_ours);
            Some(id.ok_or_else(|| ClaimError::Token(token.to_owned()))?)
        }
    };
    let mut rest: Vec<T> =
        all.into_iter().filter(|entry| after.as_ref().is_none_or(|after| id(entry) > after)).collect();
    if most == 0 || rest.len() <= most {
        return Ok((rest, None));
    }
    rest.truncate(most);
    let next = rest.last().map(|entry| id(entry).to_string());
    Ok((rest, next))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::record::{ClaimRecord, VERSION};
    use super::*;

    #[test]
    fn handles_follow_from_names_and_are_told_apart() {
        let id = claim_id("pvc-1", "n1");
        assert_eq!(VolumeId::parse(id.as_str()), Ok(id.clone()), "it can be a directory");
        assert_eq!((claim_id("pvc-1", "n1") == id, claim_id("pvc-2", "n1") == id), (true, false));
        assert!(is_claim(&id) && !is_snapshot(&id));
        assert!(is_snapshot(&snapshot_id("pvc-1", "n1")) && !is_claim(&snapshot_id("pvc-1", "n1")));
        assert_eq!((is_of(&id, "n1"), is_of(&id, "n2"), is_of(&snapshot_id("s", "n2"), "n2")), (true, false, true));
        let upper = format!("pvc-{}-{}", "AB".repeat(16), "AB".repeat(8));
        for other in ["11111111-2222-3333-4444-555555555555", "pvc-", "pvc-1", "pvc-1-1", &upper] {
            assert!(!is_claim(&VolumeId::parse(other).unwrap()), "{other}");
        }
    }

    #[test]
    fn sizes_follow_from_the_request_and_the_source() {
        let gib = 1 << 30;
        for (required, limit, source, expected) in [
            (0, 0, 0, Some(DEFAULT_SIZE)),
            (0, 5 << 20, 0, Some(5 << 20)),
            (1, 0, 0, Some(MIN_SIZE)),
            (1, 2, 0, None),
            (gib, gib, 0, Some(gib as u64)),
            (0, 0, 7 << 20, Some(7 << 20)),
            (gib, 0, 7 << 20, Some(gib as u64)),
            (6 << 20, 0, 7 << 20, None),
            (0, 6 << 20, 7 << 20, None),
        ] {
            let size = Range::new(required, limit).unwrap().size(source);
            assert_eq!(size.as_ref().ok().copied(), expected, "{required} {limit} {source}");
            assert!(size.err().is_none_or(|error| matches!(error, ClaimError::OutOfRange(_))));
        }
        for (required, limit) in [(-1, 0), (0, -1), (2, 1)] {
            assert!(matches!(Range::new(required, limit), Err(ClaimError::OutOfRange(_))), "{required} {limit}");
        }
    }

    fn wanted(parameters: &[(&str, &str)], content: Option<Origin>) -> Result<NewClaim, ClaimError> {
        let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NewClaim::new("pvc-1", "n1", Range::default(), &parameters, content)
    }

    #[test]
    fn a_volume_begins_with_its_source_or_else_the_template() {
        let snapshot = || Origin::Snapshot("snap-1".into());
        let template = ("template", "debian-13");
        for (parameters, content, expected) in [
            (&[][..], None, Origin::Empty),
            (&[template], None, Origin::Template("debian-13".into())),
            (&[template, ("csi.storage.k8s.io/pvc/name", "x")], Some(snapshot()), snapshot()),
        ] {
            assert_eq!(wanted(parameters, content).unwrap().origin, expected);
        }
    }

    #[test]
    fn parameters_that_there_are_not_are_named() {
        let error = wanted(&[("tempalte", "debian-13")], None).unwrap_err();
        assert!(error.to_string().contains("'tempalte'"), "{error}");
        for name in ["", "../x", "Debian", "a/b"] {
            assert!(matches!(wanted(&[("template", name)], None), Err(ClaimError::NoTemplate { .. })), "{name}");
        }
    }

    #[test]
    fn the_same_name_is_the_same_volume_or_an_error() {
        let record = ClaimRecord {
            version: VERSION,
            name: "pvc-1".into(),
            size: 10,
            origin: Origin::Empty,
            created: Timestamp::UNIX_EPOCH,
        };
        let found = Claim { id: claim_id("pvc-1", "n1"), record };
        for (required, limit, origin, same) in [
            (0, 0, Origin::Empty, true),
            (10, 10, Origin::Empty, true),
            (11, 0, Origin::Empty, false),
            (0, 9, Origin::Empty, false),
            (0, 0, Origin::Template("t".into()), false),
        ] {
            let new = NewClaim { range: Range { required, limit }, origin, ..wanted(&[], None).unwrap() };
            assert_eq!(new.matches(&found).is_ok(), same, "{new:?}");
        }
    }

    #[test]
    fn pages_hold_each_entry_once_whatever_comes_and_goes() {
        let mut ids: Vec<VolumeId> = (0..5).map(|n| claim_id(&n.to_string(), "n1")).collect();
        ids.sort();
        let page = |ids: &[VolumeId], token: &str, most| page(ids.to_vec(), |id| id, token, most, is_claim);
        assert_eq!(page(&ids, "", 0).unwrap(), (ids.clone(), None));
        assert_eq!(page(&ids, "", 5).unwrap(), (ids.clone(), None));
        let (first, token) = page(&ids, "", 2).unwrap();
        assert_eq!(first, ids[..2]);
        let token = token.unwrap();
        // The last one of the page went meanwhile.
        let left: Vec<_> = ids.iter().filter(|id| id.as_str() != token).cloned().collect();
        assert_eq!(page(&left, &token, 3).unwrap(), (ids[2..].to_vec(), None));
        for bad in ["invalid-token", "../..", "snap-1"] {
            assert!(matches!(page(&ids, bad, 0), Err(ClaimError::Token(_))), "{bad}");
        }
        assert!(matches!(page(&ids, "", -1), Err(ClaimError::Negative(-1))));
    }
}
