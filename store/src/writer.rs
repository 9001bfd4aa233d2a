//! Ids of attempts to create a large object. The parts of an attempt carry its id, and it says which object they are for, so
//! that whoever finds parts can ask for that one instead of reading all that could refer to them. The layout is specified in
//! `docs/src/formats/store.md`.

use crate::{Key, Name};

const TRANSACTION: u8 = 1;
const CHECKPOINT: u8 = 2;
/// Bits that chance decides where the rest says which object.
const RANDOM: u32 = 56;

/// Id of a new attempt to create `key`.
pub fn id(key: &Key) -> u128 {
    let of = |kind: u8, number: u64| u128::from(kind) << 120 | u128::from(number) << RANDOM;
    let of = match key {
        Key::Transaction { seq, .. } => of(TRANSACTION, *seq),
        Key::Checkpoint { seq, .. } => of(CHECKPOINT, *seq),
        // Parts of layers lie beside their layer; nothing else is ever large.
        _ => 0,
    };
    of | fastrand::u128(..) & ((1 << RANDOM) - 1)
}

/// The id as a name.
pub fn name(id: u128) -> Result<Name, crate::KeyError> {
    Name::new(format!("{id:032x}"))
}

/// The object of `volume` that an attempt was for; `None` if its name does not say.
pub fn object(volume: &Name, writer: &Name) -> Option<Key> {
    let id = u128::from_str_radix(writer.as_str(), 16).ok()?;
    let (volume, seq) = (volume.clone(), (id >> RANDOM) as u64);
    match (id >> 120) as u8 {
        TRANSACTION => Some(Key::Transaction { volume, seq }),
        CHECKPOINT => Some(Key::Checkpoint { volume, seq }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_which_object_it_is_for() {
        let volume = Name::new("v").unwrap();
        for seq in [0, 1, 0x1234_5678_9abc, u64::MAX] {
            let transaction = Key::Transaction { volume: volume.clone(), seq };
            let checkpoint = Key::Checkpoint { volume: volume.clone(), seq };
            for key in [transaction, checkpoint] {
                let ids = [id(&key), id(&key)];
                assert_ne!(ids[0], ids[1]);
                assert_eq!(ids.map(|id| object(&volume, &name(id).unwrap())), [Some(key.clone()), Some(key)]);
            }
        }
    }

    #[test]
    fn what_does_not_say_it_is_of_no_known_object() {
        let volume = Name::new("v").unwrap();
        let merged = id(&Key::Merged { volume: volume.clone(), from: 1, to: 64 });
        assert_eq!(object(&volume, &name(merged).unwrap()), None);
        for writer in ["w", "ff000000000000000000000000000000", &"0".repeat(128), &"1".repeat(33)] {
            assert_eq!(object(&volume, &Name::new(writer).unwrap()), None, "{writer}");
        }
    }

    #[test]
    fn the_layout_is_as_the_format_page_says() {
        let of = id(&Key::Checkpoint { volume: Name::new("v").unwrap(), seq: 0x1122 });
        assert!(name(of).unwrap().as_str().starts_with("020000000000001122"));
    }
}
