//! Several stores that must all have an object before it counts. With F + 1 of them F may be lost.
//!
//! | of the members | the set says |
//! |---|---|
//! | any found another writer's object | `Conflict`: whatever the others hold, this writer is not the one that goes on |
//! | else any is final in another way (its object cannot be read, the source changed) | that error |
//! | else any does not know | `Unknown`: the same content again, to all; those that have it answer `Ours` |
//! | else any found its own object | `Ours` |
//! | all made it | `New` |

use futures::future::join_all;

use crate::{CreateError, Created, Deadline, Digest, Key, Object, ReadError, Source, Store};

/// A set of at least one store.
#[derive(Clone, Debug)]
pub struct Set {
    first: Store,
    others: Vec<Store>,
}

impl Set {
    /// A set of one.
    #[must_use]
    pub fn one(store: Store) -> Self {
        Self { first: store, others: Vec::new() }
    }

    /// A set; `None` if there is no store.
    #[must_use]
    pub fn of(stores: impl IntoIterator<Item = Store>) -> Option<Self> {
        let mut stores = stores.into_iter();
        Some(Self { first: stores.next()?, others: stores.collect() })
    }

    /// The members, in order.
    pub fn members(&self) -> impl Iterator<Item = &Store> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Creates an object in all members at once. See the module for what comes out.
    ///
    /// # Errors
    /// [`CreateError`], as [`Store::create`]; repeat it after `Unknown` with the same content.
    pub async fn create(
        &self,
        key: &Key,
        source: Source<'_>,
        digest: Digest,
        deadline: Deadline,
    ) -> Result<Created, CreateError> {
        let attempts = self.members().map(|store| store.create(key, source.clone(), digest, deadline));
        combine(join_all(attempts).await)
    }

    /// Reads from the first member that has the object whole. `None` only if every member says that it is not there.
    ///
    /// # Errors
    /// [`ReadError`] of the last member that failed, if none gave the object.
    pub async fn read(&self, key: &Key, limit: u64, deadline: Deadline) -> Result<Option<Object>, ReadError> {
        let mut failed = None;
        for store in self.members() {
            match store.read(key, limit, deadline).await {
                Ok(Some(object)) => return Ok(Some(object)),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

fn combine(results: Vec<Result<Created, CreateError>>) -> Result<Created, CreateError> {
    let rank = |result: &Result<Created, CreateError>| match result {
        Ok(Created::New) => 0,
        Ok(Created::Ours) => 1,
        Err(CreateError::Unknown { .. }) => 2,
        Err(CreateError::Conflict { .. }) => 4,
        Err(_) => 3,
    };
    results.into_iter().max_by_key(rank).unwrap_or(Ok(Created::New))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Failure, Name};

    fn key() -> Key {
        Key::Fence { session: Name::new("s").unwrap() }
    }

    #[test]
    fn the_worst_answer_counts() {
        let make = |letter: char| match letter {
            'n' => Ok(Created::New),
            'o' => Ok(Created::Ours),
            'u' => Err(CreateError::Unknown { store: String::new(), key: key().into(), failure: Failure::timed_out() }),
            'x' => Err(CreateError::Changed { key: key().into() }),
            _ => Err(CreateError::Conflict { store: String::new(), key: key().into() }),
        };
        let letter = |result: Result<Created, CreateError>| match result {
            Ok(Created::New) => 'n',
            Ok(Created::Ours) => 'o',
            Err(CreateError::Unknown { .. }) => 'u',
            Err(CreateError::Changed { .. }) => 'x',
            Err(_) => 'c',
        };
        for (members, set) in [
            ("n", 'n'),
            ("nn", 'n'),
            ("no", 'o'),
            ("oo", 'o'),
            ("nu", 'u'),
            ("ou", 'u'),
            ("un", 'u'),
            ("ux", 'x'),
            ("nc", 'c'),
            ("uc", 'c'),
            ("cu", 'c'),
            ("xc", 'c'),
            ("noucx", 'c'),
        ] {
            assert_eq!(letter(combine(members.chars().map(make).collect())), set, "{members}");
        }
    }
}
