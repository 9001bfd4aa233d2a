//! Parts to which nothing refers: their writer died before it created the list of them, somebody else was faster, or the
//! list was deleted and the parts were not.
//!
//! No list of the store and no clock decides. The name of a part says which object it was made for, and that one is asked
//! for. If it is there, it is never replaced: it is made of these parts, or they are of no use to anybody, however late
//! what their writer has sent arrives. If it is not there, its writer may be slow, or its last request under way for however
//! long; then only the caller can know that nobody reads what may come of that.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};

use crate::{Deadline, Key, Listed, MaintainError, Name, ReadError, Store};

/// Questions at the same time.
const IN_FLIGHT: usize = 16;
/// Most objects that are asked for in one sweep; the others are, in the next.
const MOST_ASKED: usize = 2000;

/// An attempt to create an object.
type Attempt = (Key, Name);

/// Attempts of which objects are known to be made. It spares questions; nothing is lost with it.
#[derive(Clone, Debug, Default)]
pub struct Used(BTreeSet<Attempt>);

impl Used {
    /// This object is about to be deleted.
    pub fn forget(&mut self, object: &Key) {
        self.0.retain(|(of, _)| of != object);
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The object is made of its parts.
    Used,
    /// There is the object, and it is not made of them.
    Unused,
    /// There is no such object.
    Absent,
    /// What there is cannot be understood.
    Unknown,
}

impl Store {
    /// Deletes those of the listed parts to which nothing refers, and nothing that is of use ever will. `is_past` says of an
    /// object that is not there, and of its parts, that nobody will rely on it any more, should it still come. At most `most`
    /// parts are deleted. Returns those.
    ///
    /// # Errors
    /// [`MaintainError`]. It can be tried again.
    pub async fn sweep_parts(
        &self,
        listed: &[Listed],
        is_past: impl Fn(&Key, &[&Listed]) -> bool,
        used: &mut Used,
        most: usize,
        deadline: Deadline,
    ) -> Result<Vec<Key>, MaintainError> {
        let mut attempts = BTreeMap::<Attempt, Vec<&Listed>>::new();
        for entry in listed {
            if let Some((object, writer)) = entry.key.part_of() {
                attempts.entry((object, writer.clone())).or_default().push(entry);
            }
        }
        used.0.retain(|attempt| attempts.contains_key(attempt));
        let open = attempts.into_iter().filter(|(attempt, _)| !used.0.contains(attempt)).take(MOST_ASKED);
        let asked: Vec<_> = open
            .map(async |(attempt, parts)| {
                let fate = self.fate(&attempt, deadline).await?;
                Ok::<_, MaintainError>((attempt, parts, fate))
            })
            .collect();
        let told: Vec<_> = futures::stream::iter(asked).buffered(IN_FLIGHT).try_collect().await?;
        let mut doomed = Vec::new();
        for (attempt, parts, fate) in told {
            match fate {
                Fate::Used => drop(used.0.insert(attempt)),
                Fate::Absent if !is_past(&attempt.0, &parts) => {}
                Fate::Unused | Fate::Absent => doomed.extend(parts.iter().map(|part| part.key.clone())),
                Fate::Unknown => {}
            }
        }
        doomed.truncate(most);
        self.delete_whole(&doomed, deadline).await?;
        Ok(doomed)
    }

    async fn fate(&self, (object, writer): &Attempt, deadline: Deadline) -> Result<Fate, MaintainError> {
        match self.fetch_object(object, deadline).await {
            Ok(None) => Ok(Fate::Absent),
            Ok(Some((_, Some(list)))) if list.writer_name().as_ref() == Ok(writer) => Ok(Fate::Used),
            Ok(Some(_)) => Ok(Fate::Unused),
            Err(ReadError::Damaged { .. }) => Ok(Fate::Unknown),
            Err(source) => Err(MaintainError::Read { key: object.clone().into(), source }),
        }
    }

    /// Whether an object is split; `None` if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn is_split(&self, key: &Key, deadline: Deadline) -> Result<Option<bool>, ReadError> {
        Ok(self.fetch_object(key, deadline).await?.map(|(_, list)| list.is_some()))
    }
}
