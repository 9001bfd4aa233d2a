//! Proof that a store keeps what everything here rests on: of many who create one object at once exactly one is told that it
//! succeeded, what exists is never created again, and what was acknowledged can be read at once. Some stores ignore the
//! condition and tell everybody "yes"; they are found out here, before anything is entrusted to them.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::{PutMode, PutOptions, PutPayload};

use crate::store::RequestError;
use crate::{Cause, CreateError, Created, Deadline, Failure, Key, Name, ReadError, Source, Store};

/// Writers that race for one object.
const WRITERS: usize = 16;
/// Objects that they race for, one after the other.
const ROUNDS: u32 = 6;
/// Time in which a store that checks late would notice.
const PAUSE: Duration = Duration::from_millis(250);

/// What was done to prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Objects that were raced for.
    pub rounds: u32,
    /// Writers in each race.
    pub writers: usize,
}

/// There is no proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The store does not do what it has to.
    #[error(
        "{store} cannot keep journals: {what}. Two nodes could both believe that they wrote the same transaction. Use a store whose 'If-None-Match: *' is atomic"
    )]
    NotAtomic {
        /// The store.
        store: String,
        /// What it did.
        what: String,
    },
    /// The store did not answer, or not enough.
    #[error("{store} could not be tried: {failure}")]
    Failed {
        /// The store.
        store: String,
        /// The last answer.
        failure: Failure,
    },
}

/// What one writer of a race was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Won,
    Lost,
    /// Maybe it won.
    Unclear(Failure),
}

/// What a race shows: nothing wrong (`Ok(true)`: it was decided), or what the store did wrong. `holds` is the writer
/// whose body the object holds afterwards.
fn judge(told: &[Told], holds: Option<usize>) -> Result<bool, String> {
    let writers = told.len();
    let won: BTreeSet<usize> = (0..writers).filter(|writer| told[*writer] == Told::Won).collect();
    let unclear = told.iter().any(|told| matches!(told, Told::Unclear(_)));
    match (won.len(), holds) {
        (2.., _) => Err(format!(
            "{} of {writers} writers were told at the same time that they created the same object",
            won.len()
        )),
        (1, Some(holder)) if won.contains(&holder) => Ok(true),
        (1, Some(_)) => Err("it acknowledged one writer's object and holds another's".into()),
        (1, None) => Err("it does not show an object right after it acknowledged it".into()),
        (_, Some(holder)) if matches!(told[holder], Told::Unclear(_)) => Ok(true),
        (_, Some(_)) => Err("it holds the object of a writer that was told that it lost".into()),
        (_, None) if unclear => Ok(false),
        (_, None) => Err("it told every writer of an object that it exists, and there is none".into()),
    }
}

impl Store {
    /// Tries the store and its mirrors out with objects of its own, which it removes again.
    ///
    /// # Errors
    /// [`ProveError`]: what the store did wrong, or why it could not be tried until the deadline.
    pub async fn prove(&self, deadline: Deadline) -> Result<Proof, ProveError> {
        let proofs = join_all(self.members().iter().map(|store| store.prove_alone(deadline))).await;
        let worst = |result: &Result<Proof, ProveError>| match result {
            Ok(_) => 0,
            Err(ProveError::Failed { .. }) => 1,
            Err(ProveError::NotAtomic { .. }) => 2,
        };
        let proof = Proof { rounds: ROUNDS, writers: WRITERS };
        proofs.into_iter().max_by_key(worst).unwrap_or(Ok(proof))
    }

    async fn prove_alone(&self, deadline: Deadline) -> Result<Proof, ProveError> {
        let proof = Name::random();
        let result = self.try_out(&proof, deadline).await;
        for number in 0..=ROUNDS {
            if let Err(error) = self.delete(&probe(&proof, number), deadline).await {
                tracing::debug!(%error, "an object of a proof stays behind");
            }
        }
        result
    }

    async fn try_out(&self, proof: &Name, deadline: Deadline) -> Result<Proof, ProveError> {
        let wrong = |what: String| ProveError::NotAtomic { store: self.to_string(), what };
        for number in 0..ROUNDS {
            let key = probe(proof, number);
            self.race(&key, deadline).await?;
            if number == 0 {
                // Once is enough: it is about a check that comes late, not about chance.
                tokio::time::sleep(PAUSE).await;
                let body = body();
                if self.put_once(&key, body.clone(), deadline).await == Told::Won {
                    return Err(wrong("it let an object that exists be created again".into()));
                }
                if self.content(&key, deadline).await? == Some(body) {
                    return Err(wrong(
                        "it refused to create an object that exists, and replaced it all the same".into(),
                    ));
                }
            }
        }
        // The way that everything goes later: made, found again, and refused to others.
        let key = probe(proof, ROUNDS);
        let (ours, other) = (body(), body());
        let create = |body: &Bytes| {
            let digest = blake3::hash(body).into();
            self.create(&key, Source::Bytes(body.clone()), digest, deadline)
        };
        for expected in [None, Some(Created::Ours)] {
            match create(&ours).await {
                Ok(created) if expected.is_none_or(|expected| expected == created) => {}
                Ok(_) => return Err(wrong("it let an object that exists be created again".into())),
                Err(error) => return Err(self.of_create(error)),
            }
        }
        match create(&other).await {
            Err(CreateError::Conflict { .. }) => {}
            Ok(_) => return Err(wrong("it let an object that exists be created again".into())),
            Err(error) => return Err(self.of_create(error)),
        }
        Ok(Proof { rounds: ROUNDS, writers: WRITERS })
    }

    async fn race(&self, key: &Key, deadline: Deadline) -> Result<(), ProveError> {
        let bodies: Vec<Bytes> = (0..WRITERS).map(|_| body()).collect();
        loop {
            let told = join_all(bodies.iter().map(|body| self.put_once(key, body.clone(), deadline))).await;
            let content = self.content(key, deadline).await?;
            let holds = content.map(|content| bodies.iter().position(|body| *body == content));
            let Some(holds) = holds.map_or(Some(None), |holder| holder.map(Some)) else {
                let what = "it shows another content than any that was written".into();
                return Err(ProveError::NotAtomic { store: self.to_string(), what });
            };
            match judge(&told, holds) {
                Ok(true) => return Ok(()),
                Err(what) => return Err(ProveError::NotAtomic { store: self.to_string(), what }),
                Ok(false) => {
                    let failure = told.into_iter().find_map(|told| match told {
                        Told::Unclear(failure) => Some(failure),
                        _ => None,
                    });
                    let failure = failure.unwrap_or_else(Failure::timed_out);
                    let hopeless = matches!(failure.cause, Cause::Denied | Cause::Missing);
                    let over = tokio::time::Instant::now() + PAUSE >= deadline;
                    if hopeless || over {
                        return Err(ProveError::Failed { store: self.to_string(), failure });
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// What the store says to one request to create an object, without another look.
    async fn put_once(&self, key: &Key, body: Bytes, deadline: Deadline) -> Told {
        let path = self.path(&key.path());
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let inner = self.inner();
        let call = inner.objects.put_opts(&path, PutPayload::from_bytes(body), options);
        match self.request(deadline, 0, call).await {
            Ok(_) => Told::Won,
            Err(RequestError::Exists) => Told::Lost,
            Err(RequestError::NotFound(failure) | RequestError::Failed(failure)) => Told::Unclear(failure),
        }
    }

    async fn content(&self, key: &Key, deadline: Deadline) -> Result<Option<Bytes>, ProveError> {
        match self.read(key, 1 << 10, deadline).await {
            Ok(object) => Ok(object.map(|object| object.bytes)),
            Err(error) => Err(self.of_read(error)),
        }
    }

    fn of_create(&self, error: CreateError) -> ProveError {
        match error {
            CreateError::Unknown { failure, .. } => ProveError::Failed { store: self.to_string(), failure },
            CreateError::Unreadable { source, .. } => self.of_read(source),
            CreateError::Conflict { .. } => ProveError::NotAtomic {
                store: self.to_string(),
                what: "it holds another content than the one that it was given".into(),
            },
            error => ProveError::Failed {
                store: self.to_string(),
                failure: Failure { cause: Cause::Other, message: error.to_string() },
            },
        }
    }

    fn of_read(&self, error: ReadError) -> ProveError {
        match error {
            ReadError::Failed { failure, .. } => ProveError::Failed { store: self.to_string(), failure },
            error => ProveError::NotAtomic { store: self.to_string(), what: error.to_string() },
        }
    }
}

fn probe(proof: &Name, number: u32) -> Key {
    Key::Probe { proof: proof.clone(), number }
}

/// A content like no other.
fn body() -> Bytes {
    format!("vivarium probe {}", Name::random()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_has_exactly_one_winner_and_holds_what_it_wrote() {
        let unclear = || Told::Unclear(Failure::timed_out());
        let (won, lost) = (|| Told::Won, || Told::Lost);
        for (told, holds, verdict) in [
            (vec![won(), lost()], Some(0), Ok(true)),
            (vec![unclear(), lost()], Some(0), Ok(true)),
            (vec![unclear(), lost()], None, Ok(false)),
            (vec![won(), won()], Some(0), Err("2 of 2 writers were told")),
            (vec![won(), lost()], Some(1), Err("holds another's")),
            (vec![won(), unclear()], Some(1), Err("holds another's")),
            (vec![won(), lost()], None, Err("does not show")),
            (vec![lost(), lost()], None, Err("told every writer")),
            (vec![lost(), unclear()], Some(0), Err("told that it lost")),
        ] {
            match (judge(&told, holds), verdict) {
                (Ok(decided), Ok(expected)) => assert_eq!(decided, expected, "{told:?} {holds:?}"),
                (Err(what), Err(expected)) => assert!(what.contains(expected), "{what}"),
                (result, _) => panic!("{told:?} {holds:?}: {result:?}"),
            }
        }
    }
}
