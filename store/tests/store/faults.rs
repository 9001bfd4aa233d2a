//! Whatever a store does short of ignoring the condition of a create: a writer that is told that it succeeded has its
//! content at the key, and no two writers of one key are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tokio::time::Instant;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{CreateError, Created, Key, Name, Prefix, ProveError, Sizes, Source, Store};

const SIZES: Sizes = Sizes { part: 64, in_flight: 3 };

fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(test)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn store(seed: u64, faults: Faults) -> (Store, Faulty) {
    let objects = Faulty::new(Arc::new(InMemory::new()), seed, faults);
    (Store::over("test", Arc::new(objects.clone()), SIZES), objects)
}

fn key(seq: u64) -> Key {
    Key::Transaction { volume: Name::new("v").unwrap(), seq }
}

fn body(writer: usize, length: usize) -> Bytes {
    format!("writer {writer:02} ").into_bytes().into_iter().cycle().take(length.max(10)).collect()
}

async fn create(store: &Store, key: &Key, body: &Bytes) -> Result<Created, CreateError> {
    store.create(key, Source::Bytes(body.clone()), blake3::hash(body).into(), soon()).await
}

fn any_faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![Just(0.0), 0.0..0.7f64];
    (chance(), chance(), chance(), chance(), chance(), chance()).prop_map(
        |(slow, fails, answer_lost, answer_late, full, loser_told_500)| Faults {
            slow,
            fails,
            answer_lost,
            answer_late,
            full,
            loser_told_500,
            ..Faults::NONE
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_two_writers_of_one_key_succeed(
        seed in any::<u64>(),
        faults in any_faults(),
        lengths in proptest::collection::vec(1usize..400, 1..5),
        attempts in 1usize..4,
    ) {
        paused(async move {
            let (store, objects) = store(seed, faults);
            let bodies: Vec<Bytes> = lengths.iter().enumerate().map(|(n, length)| body(n, *length)).collect();
            let write = |body: Bytes| {
                let store = store.clone();
                async move {
                    for _ in 0..attempts {
                        match create(&store, &key(1), &body).await {
                            Err(CreateError::Unknown { .. }) => {}
                            result => return result.map_err(|error| error.to_string()).map(|_| true),
                        }
                    }
                    Ok(false)
                }
            };
            let told = join_all(bodies.iter().cloned().map(write)).await;
            objects.set(Faults::NONE);
            let there = store.read(&key(1), 1000, soon()).await.unwrap();
            let succeeded: Vec<usize> = (0..told.len()).filter(|n| told[*n] == Ok(true)).collect();
            prop_assert!(succeeded.len() <= 1, "{told:?}");
            for winner in succeeded {
                let there = there.clone().map(|object| object.bytes);
                prop_assert_eq!(there.as_ref(), Some(&bodies[winner]));
            }
            for refused in told.iter().filter_map(|told| told.as_ref().err()) {
                prop_assert!(refused.contains("another writer"), "{}", refused);
                prop_assert!(there.is_some());
            }
            // Those who do not know ask again until they know. Then there is one winner, and everyone knows.
            let mut winners = 0;
            for (n, told) in told.iter().enumerate() {
                winners += usize::from(match told {
                    Ok(true) => true,
                    Ok(false) => create(&store, &key(1), &bodies[n]).await.is_ok(),
                    Err(_) => false,
                });
            }
            prop_assert_eq!(winners, 1);
            Ok(())
        })?;
    }

    #[test]
    fn what_is_read_under_faults_is_what_was_written(
        seed in any::<u64>(),
        faults in any_faults(),
        length in 1usize..400,
        from in 0u64..420,
        span in 0u64..420,
    ) {
        paused(async move {
            let (store, objects) = store(seed, Faults::NONE);
            let body = body(0, length);
            create(&store, &key(1), &body).await.unwrap();
            objects.set(faults);
            if let Ok(object) = store.read(&key(1), 1000, soon()).await {
                prop_assert_eq!(object.map(|object| object.bytes), Some(body.clone()));
            }
            for span in [vivarium_store::Span::Range(from..from + span), vivarium_store::Span::Tail(span)] {
                if let Ok(slice) = store.read_span(&key(1), span, soon()).await {
                    let slice = slice.unwrap();
                    let at = slice.offset as usize;
                    prop_assert_eq!(slice.total, body.len() as u64);
                    prop_assert_eq!(&slice.bytes[..], &body[at..at + slice.bytes.len()]);
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_deletion_that_succeeded_leaves_nothing(seed in any::<u64>(), faults in any_faults(), length in 1usize..400) {
        paused(async move {
            let (store, objects) = store(seed, Faults::NONE);
            create(&store, &key(1), &body(0, length)).await.unwrap();
            objects.set(faults);
            let first = store.delete(&key(1), soon()).await;
            objects.set(Faults::NONE);
            let left = store.list(&Prefix::All, None, soon()).await.unwrap();
            prop_assert!(first.is_err() || left.is_empty(), "{:?}", left);
            store.delete(&key(1), soon()).await.unwrap();
            prop_assert!(!store.exists(&key(1), soon()).await.unwrap());
            Ok(())
        })?;
    }

    #[test]
    fn a_store_with_faults_is_not_taken_for_one_that_is_not_atomic(seed in any::<u64>(), faults in any_faults()) {
        paused(async move {
            let (store, objects) = store(seed, faults);
            match store.prove(Instant::now() + Duration::from_secs(120)).await {
                Ok(_) | Err(ProveError::Failed { .. }) => {}
                Err(error) => prop_assert!(false, "{}", error),
            }
            objects.set(Faults::NONE);
            store.prove(soon()).await.unwrap();
            Ok(())
        })?;
    }

    #[test]
    fn a_store_that_ignores_the_condition_is_refused(seed in any::<u64>(), chance in 0.3..1.0f64) {
        paused(async move {
            let (store, _) = store(seed, Faults { ignores_condition: chance, ..Faults::NONE });
            let error = store.prove(soon()).await.unwrap_err();
            prop_assert!(matches!(error, ProveError::NotAtomic { .. }), "{}", error);
            Ok(())
        })?;
    }
}

#[test]
fn the_answer_of_a_success_may_be_lost() {
    for length in [10, 300] {
        paused(async {
            let (store, objects) = store(1, Faults { answer_lost: 1.0, ..Faults::NONE });
            let body = body(0, length);
            assert_eq!(create(&store, &key(1), &body).await.unwrap(), Created::Ours, "{length} bytes");
            objects.set(Faults::NONE);
            assert_eq!(store.read(&key(1), 1000, soon()).await.unwrap().unwrap().bytes, body);
        });
    }
}

#[test]
fn an_answer_may_come_after_the_deadline() {
    paused(async {
        let (store, objects) = store(1, Faults { answer_late: 1.0, ..Faults::NONE });
        assert_eq!(create(&store, &key(1), &body(0, 10)).await.unwrap(), Created::Ours);
        objects.set(Faults::NONE);
        assert_eq!(store.read(&key(1), 1000, soon()).await.unwrap().unwrap().bytes, body(0, 10));
    });
}

#[test]
fn a_loser_that_is_told_of_an_internal_error_finds_out_that_it_lost() {
    paused(async {
        let (store, _) = store(1, Faults { loser_told_500: 1.0, ..Faults::NONE });
        create(&store, &key(1), &body(0, 10)).await.unwrap();
        let lost = create(&store, &key(1), &body(1, 10)).await;
        assert!(matches!(lost, Err(CreateError::Conflict { .. })), "{lost:?}");
    });
}

#[test]
fn a_store_that_does_not_answer_leaves_the_outcome_open_and_ends_in_time() {
    paused(async {
        let (store, _) = store(1, Faults { fails: 1.0, ..Faults::NONE });
        let begin = Instant::now();
        let error = create(&store, &key(1), &body(0, 10)).await.unwrap_err();
        assert!(matches!(error, CreateError::Unknown { .. }), "{error}");
        assert!(begin.elapsed() <= Duration::from_secs(30));
    });
}

#[test]
fn a_full_store_says_so() {
    paused(async {
        let (store, _) = store(1, Faults { full: 1.0, ..Faults::NONE });
        let error = create(&store, &key(1), &body(0, 10)).await.unwrap_err();
        let CreateError::Unknown { failure, .. } = error else { panic!("{error}") };
        assert_eq!(failure.cause, vivarium_store::Cause::Full);
    });
}

#[test]
fn a_list_may_lack_what_is_there() {
    paused(async {
        let (store, _) = store(1, Faults { stale_list: 1.0, ..Faults::NONE });
        create(&store, &key(1), &body(0, 10)).await.unwrap();
        assert_eq!(store.list(&Prefix::All, None, soon()).await.unwrap(), []);
        assert!(store.exists(&key(1), soon()).await.unwrap());
    });
}
