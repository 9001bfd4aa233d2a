//! Parts of large objects that nobody needs go, and no other: whoever writes, dies, tries again, deletes and sweeps at the
//! same time, and however late the store does what it was asked to.
//!
//! The same is done with sweepers that are wrong, and must be found out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout};
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{CreateError, Key, Name, Prefix, ReadError, Sizes, Source, Store, Used};

const SIZES: Sizes = Sizes { part: 64, in_flight: 3 };

fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(test)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn volume() -> Name {
    Name::new("v").unwrap()
}

fn number(key: &Key) -> u64 {
    match key {
        Key::Transaction { seq, .. } | Key::Checkpoint { seq, .. } => *seq,
        key => panic!("{key} has parts"),
    }
}

/// Who takes parts away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweeper {
    /// As it is done.
    Right,
    /// In one phase: what no object refers to now is taken for garbage.
    Absent,
    /// Takes for garbage what the list shows no object for.
    Listed,
    /// Takes an attempt for used up when there is any object.
    NotAsked,
}

/// What goes on in one journal.
struct World {
    store: Store,
    objects: Faulty,
    random: RefCell<fastrand::Rng>,
    /// The newest transaction that is known to be there.
    head: Cell<u64>,
    /// What lies before is not needed.
    boundary: Cell<u64>,
    acknowledged: RefCell<BTreeSet<Key>>,
    written: Cell<u64>,
    /// Parts that the right sweeper took away.
    swept: Cell<usize>,
    until: Instant,
}

impl World {
    fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().u64(..end)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn pause(&self, longest: u64) {
        sleep(Duration::from_millis(self.below(longest * 1000))).await;
    }

    /// Adds to the log what is mostly large, and dies at any time.
    async fn write(&self) {
        while !self.is_over() {
            let life = Duration::from_millis(self.below(60_000));
            let _ = timeout(life, self.write_once()).await;
            self.pause(5).await;
        }
    }

    async fn write_once(&self) {
        let seq = self.head.get() + 1;
        if self.create(Key::Transaction { volume: volume(), seq }).await {
            self.head.set(self.head.get().max(seq));
        }
    }

    /// Makes checkpoints, and takes away what is before the newest one.
    async fn keep(&self) {
        while !self.is_over() {
            let life = Duration::from_millis(self.below(60_000));
            let _ = timeout(life, self.keep_once()).await;
            self.pause(20).await;
        }
    }

    async fn keep_once(&self) {
        let seq = self.head.get();
        let key = Key::Checkpoint { volume: volume(), seq };
        if seq == 0 || !self.create(key.clone()).await {
            return;
        }
        // As whoever raises a boundary does: only what was read back counts.
        if !matches!(self.store.read(&key, 1000, soon()).await, Ok(Some(_))) {
            return;
        }
        self.boundary.set(self.boundary.get().max(seq));
        for entry in self.store.list(&Prefix::All, None, soon()).await.unwrap_or_default() {
            let old = matches!(entry.key, Key::Transaction { .. } | Key::Checkpoint { .. })
                && number(&entry.key) < self.boundary.get();
            if old {
                let _ = self.store.delete(&entry.key, soon()).await;
            }
        }
    }

    /// Whether an object is there afterwards, mine or that of another writer.
    async fn create(&self, key: Key) -> bool {
        self.written.set(self.written.get() + 1);
        let length = 20 + self.below(400) as usize;
        let body: Bytes = format!("content {:05} ", self.written.get()).bytes().cycle().take(length).collect();
        loop {
            let deadline = Instant::now() + Duration::from_secs(self.below(40));
            match self.store.create(&key, Source::Bytes(body.clone()), blake3::hash(&body).into(), deadline).await {
                Ok(_) => {
                    self.acknowledged.borrow_mut().insert(key);
                    return true;
                }
                Err(CreateError::Conflict { .. }) => return true,
                Err(CreateError::Unknown { .. }) if !self.is_over() => {}
                Err(_) => return false,
            }
        }
    }

    async fn sweep(&self, sweeper: Sweeper) {
        let mut used = Used::default();
        while !self.is_over() {
            self.pause(10).await;
            let life = Duration::from_millis(self.below(60_000));
            let _ = timeout(life, self.sweep_once(sweeper, &mut used)).await;
        }
    }

    async fn sweep_once(&self, sweeper: Sweeper, used: &mut Used) {
        // What it knows of the boundary may be old by the time that it sweeps.
        let boundary = self.boundary.get();
        let is_past = |object: &Key| number(object) < boundary;
        let all = self.store.list(&Prefix::All, None, soon()).await.unwrap_or_default();
        let listed: BTreeSet<Key> = all.iter().map(|entry| entry.key.clone()).collect();
        let parts: Vec<_> = all.into_iter().filter(|entry| matches!(entry.key, Key::Part { .. })).collect();
        let _ = match sweeper {
            Sweeper::Right => {
                let swept = self.store.sweep_parts(&parts, |object, _| is_past(object), used, 1000, soon()).await;
                swept.map(|swept| self.swept.set(self.swept.get() + swept.len()))
            }
            Sweeper::Absent => self.store.sweep_parts(&parts, |_, _| true, used, 1000, soon()).await.map(drop),
            Sweeper::Listed => {
                let of = |key: &Key| key.part_of().unwrap().0;
                let doomed: Vec<Key> = parts.iter().map(|part| part.key.clone()).collect();
                let doomed: Vec<Key> = doomed.into_iter().filter(|part| !listed.contains(&of(part))).collect();
                self.store.delete_whole(&doomed, soon()).await
            }
            Sweeper::NotAsked => {
                let of = |key: &Key| number(&key.part_of().unwrap().0);
                let doomed: Vec<Key> = parts.iter().map(|part| part.key.clone()).collect();
                let doomed: Vec<Key> = doomed.into_iter().filter(|part| of(part) <= self.head.get()).collect();
                self.store.delete_whole(&doomed, soon()).await
            }
        };
    }

    /// What was sent arrives, some time.
    async fn arrive(&self) {
        while !self.is_over() {
            self.pause(30).await;
            self.objects.arrive().await;
        }
    }

    /// Whether all that anybody relies on can be read.
    async fn judge(&self) -> Result<(), String> {
        let is_needed = |key: &Key| number(key) >= self.boundary.get();
        let acknowledged = self.acknowledged.borrow().clone();
        for key in acknowledged.iter().filter(|key| is_needed(key)) {
            if !matches!(self.store.read(key, 1000, soon()).await, Ok(Some(_))) {
                return Err(format!("{key} was acknowledged, and cannot be read"));
            }
        }
        let all = self.store.list(&Prefix::All, None, soon()).await.unwrap();
        let objects = all.into_iter().map(|entry| entry.key).filter(|key| !matches!(key, Key::Part { .. }));
        for key in objects.filter(is_needed) {
            if let Err(error @ ReadError::Damaged { .. }) = self.store.read(&key, 1000, soon()).await {
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// Parts that no object at or behind the boundary is made of or may still be made of.
    async fn left_over(&self) -> Vec<Key> {
        let mut left = Vec::new();
        for entry in self.store.list(&Prefix::Parts(volume()), None, soon()).await.unwrap() {
            let (object, _) = entry.key.part_of().unwrap();
            let there = self.store.exists(&object, soon()).await.unwrap();
            if !there && number(&object) < self.boundary.get() {
                left.push(entry.key);
            }
        }
        left
    }
}

/// How many parts were swept, or what went wrong.
async fn simulate(seed: u64, faults: Faults, sweeper: Sweeper) -> Result<usize, String> {
    let objects = Faulty::new(Arc::new(InMemory::new()), seed, faults);
    let store = Store::over("test", Arc::new(objects.clone()), SIZES);
    let world = World {
        store,
        objects,
        random: RefCell::new(fastrand::Rng::with_seed(seed)),
        head: Cell::new(0),
        boundary: Cell::new(0),
        acknowledged: RefCell::default(),
        written: Cell::new(0),
        swept: Cell::new(0),
        until: Instant::now() + Duration::from_mins(3),
    };
    let writers = join_all([world.write(), world.write()]);
    let keepers = join_all([world.keep(), world.keep()]);
    let sweepers = join_all([world.sweep(sweeper), world.sweep(sweeper)]);
    tokio::join!(writers, keepers, sweepers, world.arrive());
    world.objects.set(Faults::NONE);
    world.judge().await?;
    while world.objects.arrive().await {}
    world.judge().await?;
    if sweeper == Sweeper::Right {
        world.sweep_once(sweeper, &mut Used::default()).await;
        world.judge().await?;
        let left = world.left_over().await;
        if !left.is_empty() {
            return Err(format!("{left:?} stay for ever"));
        }
    }
    Ok(world.swept.get())
}

fn any_faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![Just(0.0), 0.0..0.3f64];
    (chance(), chance(), chance(), chance(), chance(), chance()).prop_map(
        |(slow, fails, answer_lost, answer_late, stale_list, held_up)| Faults {
            slow,
            fails,
            answer_lost,
            answer_late,
            stale_list,
            held_up,
            ..Faults::NONE
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn no_part_goes_that_anybody_needs(seed in any::<u64>(), faults in any_faults()) {
        let result = paused(simulate(seed, faults, Sweeper::Right));
        prop_assert!(result.is_ok(), "{:?}", result);
    }
}

const FAULTS: Faults = Faults { slow: 0.2, answer_lost: 0.1, stale_list: 0.2, held_up: 0.1, ..Faults::NONE };

#[test]
fn there_is_something_to_sweep() {
    let swept: Vec<_> = (0..10).map(|seed| paused(simulate(seed, FAULTS, Sweeper::Right)).unwrap()).collect();
    assert!(swept.iter().filter(|swept| **swept > 10).count() > 5, "{swept:?}");
}

#[test]
fn a_sweeper_that_is_wrong_is_found_out() {
    for sweeper in [Sweeper::Absent, Sweeper::Listed, Sweeper::NotAsked] {
        let found = (0..200).find(|seed| paused(simulate(*seed, FAULTS, sweeper)).is_err());
        assert!(found.is_some(), "{sweeper:?} does no harm");
    }
}
