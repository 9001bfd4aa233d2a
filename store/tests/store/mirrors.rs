//! A store with mirrors: what is acknowledged is in all of them, they never hold different things, the first has whatever any
//! has, and it can be given up.

use crate::common;
use std::sync::Arc;

use crate::common::{behaves, content, key, soon};
use bytes::Bytes;
use futures::future::join_all;
use object_store::memory::InMemory;
use proptest::prelude::*;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{CreateError, Created, Key, Name, Prefix, ProveError, ReadError, Sizes, Source, Store};

const SIZES: Sizes = Sizes { part: 64, in_flight: 3 };
const DOWN: Faults = Faults { fails: 1.0, ..Faults::NONE };

/// Stores by themselves, and what they do.
struct Stores {
    alone: Vec<Store>,
    wrapped: Vec<Faulty>,
}

impl Stores {
    fn new(count: usize, seed: u64, faults: Faults) -> Self {
        let wrapped: Vec<Faulty> =
            (0..count as u64).map(|n| Faulty::new(Arc::new(InMemory::new()), seed + n, faults)).collect();
        let alone = wrapped.iter().enumerate();
        let alone = alone.map(|(n, objects)| Store::over(&format!("s{n}"), Arc::new(objects.clone()), SIZES)).collect();
        Self { alone, wrapped }
    }

    /// Those from one on as a set.
    fn set(&self, from: usize) -> Store {
        self.alone[from].clone().with_mirrors(self.alone[from + 1..].to_vec())
    }

    fn all_do(&self, faults: Faults) {
        self.wrapped.iter().for_each(|store| store.set(faults));
    }

    /// What each has.
    async fn keys(&self) -> Vec<Vec<Key>> {
        let lists = self.alone.iter().map(async |store| store.list(&Prefix::All, None, soon()).await.unwrap());
        let lists = join_all(lists).await;
        lists.into_iter().map(|list| list.into_iter().map(|entry| entry.key).collect()).collect()
    }

    async fn content(&self, store: usize, key: &Key) -> Option<Bytes> {
        self.alone[store].read(key, 1 << 20, soon()).await.unwrap().map(|object| object.bytes)
    }
}

fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(test)
}

async fn create(store: &Store, key: &Key, body: &Bytes) -> Result<Created, CreateError> {
    store.create(key, Source::Bytes(body.clone()), blake3::hash(body).into(), soon()).await
}

fn volume() -> Name {
    Name::new("volume").unwrap()
}

fn before(key: &Key) -> Option<Key> {
    match key {
        Key::Transaction { seq: seq @ 2.., .. } => Some(common::key(seq - 1)),
        _ => None,
    }
}

#[test]
fn it_is_a_store_like_any_other() {
    paused(async {
        let stores = Stores::new(3, 0, Faults::NONE);
        behaves(&stores.set(0), SIZES.part).await;
        let keys = stores.keys().await;
        assert!(keys[1] == keys[0] && keys[2] == keys[0], "{keys:?}");
    });
}

#[test]
fn a_mirror_that_is_no_store_is_found_out() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        stores.wrapped[1].set(Faults { ignores_condition: 1.0, ..Faults::NONE });
        assert!(
            matches!(stores.set(0).prove(soon()).await, Err(ProveError::NotAtomic { store, .. }) if store.contains("s1"))
        );
        stores.wrapped[0].set(DOWN);
        assert!(
            matches!(stores.set(0).prove(soon()).await, Err(ProveError::NotAtomic { .. })),
            "the worse of two counts"
        );
        stores.wrapped[1].set(Faults::NONE);
        assert!(
            matches!(stores.set(0).prove(soon()).await, Err(ProveError::Failed { store, .. }) if store.contains("s0"))
        );
    });
}

#[test]
fn fences_and_beats_are_in_the_last_store_alone() {
    paused(async {
        let stores = Stores::new(3, 0, Faults::NONE);
        let session = Name::new("session").unwrap();
        let (fence, beat) =
            (Key::Fence { session: session.clone() }, Key::Beat { session: session.clone(), number: 1 });
        // The others need not answer for that.
        stores.wrapped[0].set(DOWN);
        stores.wrapped[1].set(DOWN);
        let (set, what_is_left) = (stores.set(0), stores.set(2));
        let body = Bytes::from_static(b"fenced");
        assert!(!set.exists(&fence, soon()).await.unwrap());
        create(&set, &fence, &body).await.unwrap();
        create(&set, &beat, &body).await.unwrap();
        for store in [&set, &what_is_left] {
            assert!(store.exists(&fence, soon()).await.unwrap());
            let beats = store.list(&Prefix::Beats(session.clone()), None, soon()).await.unwrap();
            assert!(beats.len() == 1 && beats[0].key == beat, "{beats:?}");
        }
        stores.all_do(Faults::NONE);
        assert_eq!(stores.keys().await.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 2]);
        set.delete(&beat, soon()).await.unwrap();
        assert_eq!(stores.keys().await[2], [fence]);
    });
}

#[test]
fn while_a_mirror_is_away_nothing_is_acknowledged_and_what_it_lacks_comes_later() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        let set = stores.set(0);
        let bodies: Vec<Bytes> = [10, 300, 20].iter().map(|length| content(*length).0).collect();
        create(&set, &key(1), &bodies[0]).await.unwrap();
        stores.wrapped[1].set(DOWN);
        for (seq, body) in [(2, &bodies[1]), (3, &bodies[2])] {
            let error = create(&set, &key(seq), body).await.unwrap_err();
            assert!(matches!(&error, CreateError::Unknown { store, .. } if store.contains("s1")), "{error}");
        }
        // A split object has come to its first part in the mirror. Another writer finds the other one taken, and its owner does not
        // know.
        let (other, _) = content(20);
        assert!(matches!(create(&set, &key(3), &other).await, Err(CreateError::Unknown { .. })));
        assert!(set.mend(&volume(), Some(&key(3)), before, soon()).await.is_err());
        stores.all_do(Faults::NONE);
        assert_eq!(stores.content(0, &key(2)).await, None, "its list of parts comes after its parts in the mirror");
        assert_eq!(stores.content(1, &key(3)).await, None);
        assert!(set.mend(&volume(), Some(&key(3)), before, soon()).await.unwrap() > 0);
        assert_eq!(stores.content(1, &key(3)).await, Some(bodies[2].clone()));
        assert_eq!(create(&set, &key(2), &bodies[1]).await.unwrap(), Created::New);
        assert_eq!(create(&set, &key(3), &bodies[2]).await.unwrap(), Created::Ours);
        assert!(matches!(create(&set, &key(3), &other).await, Err(CreateError::Conflict { .. })));
        assert_eq!(set.mend(&volume(), Some(&key(3)), before, soon()).await.unwrap(), 0);
        for (n, body) in bodies.iter().enumerate() {
            assert_eq!(stores.content(1, &key(n as u64 + 1)).await.as_ref(), Some(body));
        }
    });
}

#[test]
fn what_no_list_shows_is_mended_too() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        for seq in 1..=5 {
            create(if seq < 3 { &stores.alone[1] } else { &stores.alone[0] }, &key(seq), &content(100).0)
                .await
                .unwrap();
        }
        let set = stores.set(0);
        stores.wrapped[0].set(Faults { stale_list: 1.0, ..Faults::NONE });
        set.mend(&volume(), Some(&key(5)), before, soon()).await.unwrap();
        for seq in 3..=5 {
            assert!(stores.content(1, &key(seq)).await.is_some(), "{seq}");
            assert_eq!(stores.content(1, &key(seq)).await, stores.content(0, &key(seq)).await);
        }
    });
}

#[test]
fn a_mirror_that_holds_something_else_is_named() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        create(&stores.alone[1], &key(1), &content(10).0).await.unwrap();
        let error = create(&stores.set(0), &key(1), &content(10).0).await.unwrap_err();
        assert!(matches!(&error, CreateError::Diverged { store, .. } if store.contains("s1")), "{error}");
        let mended = stores.set(0).mend(&volume(), Some(&key(1)), before, soon()).await;
        assert_eq!(mended.unwrap(), 0, "it is there");
    });
}

#[test]
fn a_layer_is_there_when_all_have_it() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        let layer = Key::Layer { digest: Name::new("sha256-1").unwrap() };
        // What a part begins with may look like a list of parts.
        let mut body = content(300).0.to_vec();
        body[64..72].copy_from_slice(b"VIVSPLIT");
        let body = Bytes::from(body);
        create(&stores.alone[0], &layer, &body).await.unwrap();
        let set = stores.set(0);
        assert!(!set.exists(&layer, soon()).await.unwrap());
        // Its parts are taken along.
        assert_eq!(create(&set, &layer, &body).await.unwrap(), Created::Ours);
        assert!(set.exists(&layer, soon()).await.unwrap());
        assert_eq!(stores.content(1, &layer).await, Some(body));
    });
}

#[test]
fn what_is_deleted_is_gone_everywhere_and_last_from_the_first() {
    paused(async {
        let stores = Stores::new(2, 0, Faults::NONE);
        let set = stores.set(0);
        for seq in 1..=4 {
            create(&set, &key(seq), &content(150).0).await.unwrap();
        }
        stores.wrapped[1].set(DOWN);
        assert!(set.delete(&key(1), soon()).await.is_err());
        assert!(set.delete_whole(&[key(2)], soon()).await.is_err());
        stores.all_do(Faults::NONE);
        assert_eq!(stores.keys().await[0], stores.keys().await[1]);
        set.delete(&key(1), soon()).await.unwrap();
        let keys = stores.keys().await;
        assert!(
            keys[0] == keys[1] && keys[0].iter().all(|key| key.part_of().is_none_or(|(of, _)| of != common::key(1)))
        );
        let all: Vec<Key> = keys[0].clone();
        set.delete_whole(&all, soon()).await.unwrap();
        assert_eq!(stores.keys().await, [vec![], vec![]]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Writers of a set, some of which learn in the middle that its first store was given up.
    #[test]
    fn what_is_acknowledged_is_in_all_stores_and_nobody_acknowledges_anything_else(
        seed in any::<u64>(),
        count in 2usize..4,
        chances in proptest::array::uniform4(prop_oneof![Just(0.0), 0.0..0.6f64]),
        lengths in proptest::collection::vec(1usize..300, 1..5),
        knows in proptest::collection::vec(any::<bool>(), 4),
    ) {
        paused(async move {
            let [slow, fails, answer_lost, answer_late] = chances;
            let stores = Stores::new(count, seed, Faults { slow, fails, answer_lost, answer_late, ..Faults::NONE });
            let bodies: Vec<Bytes> = lengths.iter().enumerate()
                .map(|(n, length)| format!("writer {n:02} ").into_bytes().into_iter().cycle().take((*length).max(10)).collect())
                .collect();
            let write = async |n: usize, body: &Bytes| {
                let set = stores.set(0);
                for attempt in 0..3 {
                    if attempt == 1 && knows[n % knows.len()] {
                        set.become_like(&stores.set(1));
                    }
                    match create(&set, &key(1), body).await {
                        Ok(_) => return true,
                        Err(CreateError::Unknown { .. } | CreateError::Unreadable { source: ReadError::Failed { .. }, .. }) => {}
                        Err(_) => return false,
                    }
                }
                false
            };
            let told = join_all(bodies.iter().enumerate().map(|(n, body)| write(n, body))).await;
            stores.all_do(Faults::NONE);
            let winners: Vec<usize> = (0..told.len()).filter(|n| told[*n]).collect();
            prop_assert!(winners.len() <= 1, "{winners:?}");
            for store in 1..count {
                let there = stores.content(store, &key(1)).await;
                // From the second on each store has what the one before it has, or nothing.
                if store > 1 && there.is_some() {
                    prop_assert_eq!(&there, &stores.content(store - 1, &key(1)).await);
                }
                if let Some(winner) = winners.first() {
                    prop_assert_eq!(there.as_ref(), Some(&bodies[*winner]));
                }
            }
            if !knows.iter().take(told.len()).any(|knows| *knows) && stores.content(1, &key(1)).await.is_some() {
                prop_assert_eq!(stores.content(0, &key(1)).await, stores.content(1, &key(1)).await);
            }
            Ok(())
        })?;
    }
}
