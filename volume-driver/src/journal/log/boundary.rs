//! How far the garbage of a journal was collected, as its store says it (`docs/src/formats/store.md`).

use tokio::time::Instant;
use vivarium_store::{CreateError, Created, Key, Prefix, Source, Store};

use super::{Log, PATIENCE};
use crate::journal::JournalError;

/// How far the garbage of a journal was collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Number of the boundary; each is higher than those before.
    pub generation: u64,
    /// Transactions before this one may be gone, barriers excepted. There is a checkpoint of it.
    pub sequence: u64,
}

impl Boundary {
    /// Nothing was collected.
    pub const NONE: Self = Self { generation: 0, sequence: 0 };
}

impl Log {
    /// How far garbage was collected.
    ///
    /// # Errors
    /// The store does not answer, or the newest boundary is damaged.
    pub async fn boundary(&self) -> Result<Boundary, JournalError> {
        let listed = self.list(&Prefix::Boundaries(self.name.clone()), None).await?;
        let numbers = listed.iter().filter_map(|entry| match entry.key {
            Key::Boundary { generation, .. } => Some(generation),
            _ => None,
        });
        let key = |generation| Key::Boundary { volume: self.name.clone(), generation };
        let mut generation = numbers.max().unwrap_or(0);
        let read = async |generation| {
            let key = &key;
            let read = |store: Store| async move {
                let read = store.read(&key(generation), LENGTH as u64, Instant::now() + PATIENCE).await;
                let Some(object) = read.map_err(|error| self.unread(0, error))? else { return Ok(None) };
                let sequence = decode(&object.bytes);
                sequence
                    .map(Some)
                    .ok_or_else(|| self.damaged(0, format!("boundary {generation} of its garbage cannot be read")))
            };
            self.sound(read).await
        };
        let mut newest = None;
        if generation > 0 {
            newest = read(generation).await?;
        }
        // What is not listed may be there all the same.
        while let Some(next) = read(generation + 1).await? {
            (generation, newest) = (generation + 1, Some(next));
        }
        Ok(newest.map_or(Boundary::NONE, |sequence| Boundary { generation, sequence }))
    }

    /// Raises the boundary from `found` to `sequence`: whoever reads the journal from then on does not rely on a
    /// transaction before that one. `false`: somebody else was faster.
    ///
    /// # Errors
    /// It is not known whether it was raised; it can be tried again.
    pub async fn raise_boundary(&self, found: Boundary, sequence: u64) -> Result<bool, JournalError> {
        let bytes = encode(sequence);
        let digest = *blake3::hash(&bytes).as_bytes();
        let key = Key::Boundary { volume: self.name.clone(), generation: found.generation + 1 };
        match self.store.create(&key, Source::Bytes(bytes.into()), digest, Instant::now() + PATIENCE).await {
            Ok(Created::New | Created::Ours) => Ok(true),
            Err(CreateError::Conflict { .. }) => Ok(false),
            Err(error) => Err(self.unreachable(&error)),
        }
    }
}

const MAGIC: [u8; 8] = *b"VIVBOUND";
const VERSION: u16 = 1;
/// Bytes of it.
pub const LENGTH: usize = 40;

pub fn encode(sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let mut writer = [0; 16];
    // Unique, not secret. The call fails only where the kernel has no such call.
    let _ = rustix::rand::getrandom(&mut writer, rustix::rand::GetRandomFlags::empty());
    bytes.extend_from_slice(&writer);
    bytes
}

pub fn decode(bytes: &[u8]) -> Option<u64> {
    let fields = bytes.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?.strip_prefix(&[0; 6])?;
    let (sequence, writer) = fields.split_first_chunk::<8>()?;
    (writer.len() == 16).then(|| u64::from_le_bytes(*sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_read_as_it_was_written_and_nothing_else_is() {
        let bytes = encode(0x0102_0304_0506_0708);
        assert_eq!((bytes.len(), decode(&bytes)), (LENGTH, Some(0x0102_0304_0506_0708)));
        assert_ne!(encode(1), encode(1), "two writers are told apart");
        for at in 0..16 {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(decode(&other), None, "byte {at}");
        }
        for length in 0..LENGTH {
            assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
        }
    }
}
