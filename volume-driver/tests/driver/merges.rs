//! Merged transactions: what they make of a restore, and what goes because of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::place::Place;
use crate::support::{id, soon};
use jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, path::Path};
use vivarium_journal::op::{Op, Time};
use vivarium_journal::touched::Touched;
use vivarium_journal::write::Writer;
use vivarium_journal::{Digest, Header, Kind, TreePath};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::keep::{Kept, Memory, Policy, Subject, keep};
use vivarium_node::journal::log::{Appended, Log, Unnamed};
use vivarium_node::journal::pieces::{MILESTONE, Piece};
use vivarium_node::journal::prove::prove;
use vivarium_node::journal::standby::{Followed, Follower};
use vivarium_node::journal::tree::describe;
use vivarium_node::journal::wanted::Wanted;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Key, Name, Prefix, Sizes, Store};

/// Merges, and nothing goes.
const MERGE: Policy = Policy {
    bytes: u64::MAX,
    transactions: u64::MAX,
    retention: Duration::from_hours(1),
    fine: Duration::from_hours(1),
    coarse: 60,
    deletions: usize::MAX,
    merges: usize::MAX,
};
/// What was merged goes, however young it is.
const COARSEN: Policy = Policy { fine: Duration::ZERO, coarse: 0, ..MERGE };

fn subject(wanted: Vec<Wanted>) -> Subject {
    Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted }
}

struct Chain {
    place: Place,
    memory: Arc<InMemory>,
    store: Arc<Store>,
    log: Log,
    parent: Digest,
    last: u64,
}

impl Chain {
    fn new() -> Self {
        let memory: Arc<InMemory> = Arc::new(InMemory::new());
        let store = Arc::new(Store::over("store", memory.clone(), Sizes::default()));
        let log = Log::new(&id("v1"), store.clone()).unwrap();
        Self { place: Place::new(), memory, store, log, parent: Digest::EMPTY, last: 0 }
    }

    /// Adds transactions until there are so many: barriers first and at each multiple of 100, small changes else.
    async fn grow(&mut self, last: u64) {
        while self.last < last {
            let sequence = self.last + 1;
            let names = [format!("upper/file{}", sequence % 7), format!("upper/log{}", sequence / 300)];
            let [file, log] = names.each_ref().map(|name| TreePath::parse(name.as_bytes()).unwrap());
            let time = Time { seconds: sequence as i64, nanoseconds: 0 };
            let data = [sequence as u8; 600];
            let mut ops = Vec::new();
            let barrier = sequence == 1 || sequence.is_multiple_of(100);
            if sequence == 2 {
                ops.push(Op::MakeDirectory(TreePath::parse(b"upper").unwrap()));
                let files = [
                    "upper/file0",
                    "upper/file1",
                    "upper/file2",
                    "upper/file3",
                    "upper/file4",
                    "upper/file5",
                    "upper/file6",
                ];
                ops.extend(files.map(|name| Op::MakeFile(TreePath::parse(name.as_bytes()).unwrap())));
            }
            if !barrier {
                if sequence == 2 || sequence % 300 == 1 {
                    ops.push(Op::MakeFile(log));
                }
                ops.push(Op::Write { path: file, offset: sequence % 3 * 600, data: &data });
                ops.push(Op::Write { path: log, offset: sequence % 300 * 10, data: &data[..10] });
                // All of them: a tree is compared with its times.
                for path in [file, log, TreePath::parse(b"upper").unwrap()] {
                    ops.push(Op::Times { path, access: time, modification: time });
                }
            }
            let header = Header {
                kind: if barrier { Kind::Barrier } else { Kind::Delta },
                volume: "v1".into(),
                writer: [sequence as u8; 16],
                epoch: 1 + sequence / 100,
                first: sequence,
                sequence,
                parent: self.parent,
                time: i64::try_from(sequence).unwrap() * 1_000_000_000,
                layers: vec![],
            };
            let file = Unnamed::new(self.place.pool.path()).unwrap();
            let mut writer = Writer::new(&file.file, &header).unwrap();
            let mut touched = Touched::default();
            for op in &ops {
                writer.push(op).unwrap();
                touched.note(op);
            }
            let (_, summary) = writer.finish(&touched.changes()).unwrap();
            let added = self.log.append(sequence, &file.path(), summary.length, summary.content).await.unwrap();
            assert_eq!(added, Appended::Yes);
            (self.parent, self.last) = (summary.digest, sequence);
        }
    }

    async fn kept(&self, policy: &Policy) -> Kept {
        self.kept_in(&self.store, policy, vec![]).await.unwrap()
    }

    async fn kept_in(&self, store: &Arc<Store>, policy: &Policy, wanted: Vec<Wanted>) -> Result<Kept, JournalError> {
        self.kept_with(store, policy, wanted, &mut Memory::default()).await
    }

    async fn kept_with(
        &self,
        store: &Arc<Store>,
        policy: &Policy,
        wanted: Vec<Wanted>,
        memory: &mut Memory,
    ) -> Result<Kept, JournalError> {
        let subject = subject(wanted);
        let log = Log::new(&id("v1"), store.clone()).unwrap();
        keep(&self.place.volumes, &self.place.templates, &log, &subject, memory, policy).await
    }

    /// Brings the copy of a node on, or makes it, until there is nothing more; tells how many objects were carried out.
    async fn followed(&self, place: &Place) -> Result<usize, JournalError> {
        let (volumes, log) = (place.volumes.clone(), self.log.clone());
        let follower = Follower { volumes, id: id("v1"), size: 64 << 20, log, layers: vec![] };
        let mut carried_out = 0;
        loop {
            match follower.step(&place.templates, 0, 0).await? {
                Followed::Same(at) => {
                    assert_eq!(at.sequence, self.last);
                    return Ok(carried_out);
                }
                Followed::Moved { to, count, more } => {
                    assert!(more || to.sequence == self.last, "it takes {} for the end", to.sequence);
                    carried_out += count;
                }
                Followed::Made(_) => {}
                Followed::Nothing => panic!("there is nothing to follow"),
            }
        }
    }

    /// What a node has that is given the volume; the barrier is taken away again.
    async fn given(&self, place: &Place) -> (Vec<String>, Origin) {
        let (_, origin) = place.begin(&self.store, 1_000_000).await.unwrap();
        let barrier = Key::Transaction { volume: Name::new("v1").unwrap(), seq: self.last + 1 };
        self.log.delete(&barrier).await.unwrap();
        (place.tree(), origin)
    }

    /// What a restore on trial finds of a state.
    async fn tried(&self, state: u64) -> Option<Digest> {
        let Place { volumes, templates, .. } = &self.place;
        prove(volumes, templates, &self.log, &subject(vec![]), state).await.unwrap()
    }

    async fn listed(&self, prefix: Prefix) -> Vec<Key> {
        let listed = self.store.list(&prefix, None, soon()).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }

    async fn transactions(&self) -> BTreeSet<u64> {
        let all = self.listed(Prefix::Transactions(Name::new("v1").unwrap())).await;
        all.iter().filter_map(|key| if let Key::Transaction { seq, .. } = key { Some(*seq) } else { None }).collect()
    }

    async fn damage(&self, key: &Key) {
        let path = Path::from(key.path());
        let mut bytes = self.memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        self.memory.put(&path, bytes.into()).await.unwrap();
    }

    /// What a restore gives, and from how many objects. The barrier that it adds is taken away again.
    async fn restored(&self) -> (Vec<String>, u64) {
        let begun = Instant::now();
        let (tree, origin) = self.given(&Place::new()).await;
        let Origin::Restored(restored) = origin else { panic!("{origin:?}") };
        println!("{} objects: restored in {:?}", restored.transactions, begun.elapsed());
        (tree, restored.transactions)
    }
}

fn merged(first: u64, last: u64) -> Key {
    Key::Merged { volume: Name::new("v1").unwrap(), from: first, to: last }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_transactions_are_restored_from_few_objects() {
    let mut chain = Chain::new();
    chain.grow(2200).await;
    let (tree, objects) = chain.restored().await;
    assert_eq!(objects, 2200 - 23, "barriers are not carried out");
    chain.kept(&MERGE).await;
    assert_eq!(chain.log.merged().await.unwrap().len(), 137 + 8);
    assert_eq!(chain.transactions().await.len(), 2200, "something young has gone");
    let (again, objects) = chain.restored().await;
    assert!(again == tree, "the merged ones lead to another tree");
    assert!(objects <= 8 + 9 + 8, "{objects}");

    // What lies in merged ones goes: but for barriers, milestones and the end.
    let kept = chain.kept(&COARSEN).await;
    assert!(kept.deleted > 2000, "{kept:?}");
    let stays = |n: &u64| *n == 1 || n.is_multiple_of(100) || n.is_multiple_of(MILESTONE) || *n > 2048;
    assert_eq!(chain.transactions().await, (1..=2200).filter(stays).collect());
    let left: Vec<Piece> = chain.log.merged().await.unwrap().into_iter().collect();
    let long = Piece::of_level(256, 0, 2200);
    assert_eq!(left, long.chain(Piece::of_level(16, 2048, 2200)).collect::<Vec<_>>());
    let ends = (0..=8).map(|number| number * 256).chain([1]).chain(2049..=2200);
    assert_eq!(chain.log.states().await.unwrap(), ends.collect());
    // An instant is answered with the newest state that is left and not younger.
    for (second, state) in
        [(0, 1), (1, 1), (255, 1), (700, 512), (1024, 1024), (2000, 1792), (2049, 2049), (2100, 2100), (5000, 2200)]
    {
        let moment = chain.log.at(Timestamp::from_second(second).unwrap(), 0).await.unwrap();
        assert_eq!(moment.position.sequence, state, "at {second}");
        assert_eq!(moment.time, Timestamp::from_second(i64::try_from(state).unwrap()).unwrap());
        assert_eq!(moment.too_old, second == 0);
    }
    assert!(chain.restored().await.0 == tree);
    assert_eq!(chain.kept(&COARSEN).await.deleted, 0);

    // The end is found by whoever sees nothing of what is there.
    let blind = Arc::new(Faulty::new(chain.memory.clone(), 1, Faults { stale_list: 1.0, ..Faults::NONE }));
    let blind = Log::new(&id("v1"), Arc::new(Store::over("blind", blind, Sizes::default()))).unwrap();
    for known in [0, 1, 300, 1024, 1500, 2100, 2200] {
        assert_eq!(blind.tail(known).await.unwrap().sequence, 2200, "from {known}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_somebody_waits_for_is_there_however_much_is_merged() {
    let mut chain = Chain::new();
    chain.grow(2200).await;
    let states = [70, 700, 1501];
    let mut before = Vec::new();
    for state in states {
        before.push(chain.tried(state).await.expect("nothing was merged"));
    }
    let wanted = vec![Wanted::Sequence(700), Wanted::Time(Timestamp::from_second(1501).unwrap())];
    let kept = chain.kept_in(&chain.store, &COARSEN, wanted.clone()).await.unwrap();
    assert!(kept.deleted > 0, "{kept:?}");
    for (state, before) in states.into_iter().zip(before) {
        let expected = (state != 70).then_some(before);
        assert_eq!(chain.tried(state).await, expected, "{state}");
    }
    // Neither does the boundary pass it.
    let everything = Policy { bytes: 1, retention: Duration::ZERO, ..COARSEN };
    chain.kept_in(&chain.store, &everything, wanted.clone()).await.unwrap();
    let kept = chain.kept_in(&chain.store, &everything, wanted).await.unwrap();
    assert_eq!((kept.checkpoint, kept.boundary), (2200, 0), "{kept:?}");
    assert!(chain.tried(700).await.is_some());
    // Nobody waits any more, or for what is gone already.
    assert_eq!(chain.kept(&everything).await.boundary, 2200);
    assert_eq!(chain.tried(700).await, None);
    chain.grow(2300).await;
    chain.kept_in(&chain.store, &everything, vec![Wanted::Sequence(700)]).await.unwrap();
    let kept = chain.kept_in(&chain.store, &everything, vec![Wanted::Sequence(700)]).await.unwrap();
    assert_eq!(kept.boundary, 2300, "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_of_merged_transactions_is_no_state_by_itself() {
    let mut chain = Chain::new();
    chain.grow(4200).await;
    chain.kept(&COARSEN).await;
    // A barrier and a milestone, to which nothing leads any more.
    for number in [100, 512] {
        assert_eq!(chain.log.moment(number).await.unwrap(), None, "{number}");
        assert_eq!(chain.tried(number).await, None, "{number}");
        let (reason, message) = Wanted::Sequence(number).find(&chain.log, 0).await.unwrap().unwrap_err();
        assert_eq!(reason, "NoSuchState");
        assert!(message.contains("the next one that is kept is that after transaction 4096"), "{message}");
    }
    for number in [1, 4096, 4112, 4150] {
        assert!(chain.log.moment(number).await.unwrap().is_some(), "{number}");
        assert!(chain.tried(number).await.is_some(), "{number}");
    }
    // One that was lost is another matter.
    chain.log.delete(&Key::Transaction { volume: Name::new("v1").unwrap(), seq: 4195 }).await.unwrap();
    let subject = subject(vec![]);
    let Place { volumes, templates, .. } = &chain.place;
    let error = prove(volumes, templates, &chain.log, &subject, 4198).await.unwrap_err();
    assert!(error.blames_store() && error.reason() == "JournalDamaged", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_on_from_a_checkpoint_stays() {
    let mut chain = Chain::new();
    chain.grow(331).await;
    let checkpoint = Policy { bytes: 1, ..MERGE };
    assert_eq!(chain.kept(&checkpoint).await.checkpoint, 331);
    chain.grow(700).await;
    let (tree, _) = chain.restored().await;
    chain.kept(&COARSEN).await;
    let left = chain.transactions().await;
    assert!(!left.contains(&322) && left.contains(&331) && left.contains(&336) && !left.contains(&337), "{left:?}");
    let (again, objects) = chain.restored().await;
    assert!(again == tree, "another tree");
    assert!(objects <= 1 + 5 + 11 + 11 + 12, "it was not restored from the checkpoint: {objects}");
    // Nothing before the checkpoint is needed, and nothing behind it goes.
    let kept = chain.kept(&Policy { retention: Duration::ZERO, ..COARSEN }).await;
    assert_eq!(kept.boundary, 331);
    assert_eq!(chain.transactions().await.range(..331).copied().collect::<Vec<_>>(), [1, 100, 200, 300]);
    assert!(chain.log.merged().await.unwrap().iter().all(|piece| piece.first > 331));
    assert!(chain.restored().await.0 == tree, "another tree once the boundary was raised");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_transaction_that_is_damaged_counts_as_absent() {
    let mut chain = Chain::new();
    chain.grow(600).await;
    let (tree, _) = chain.restored().await;
    chain.kept(&MERGE).await;
    for (first, last) in [(33, 48), (1, 256), (257, 512)] {
        chain.damage(&merged(first, last)).await;
    }
    // A whole file, of other transactions.
    let other = chain.memory.get(&Path::from(merged(193, 208).path())).await.unwrap().bytes().await.unwrap();
    chain.memory.put(&Path::from(merged(273, 288).path()), other.into()).await.unwrap();
    let (again, _) = chain.restored().await;
    assert!(again == tree, "another tree");
    // What lies in a long one that is damaged goes by the short ones, once it is known to be.
    let mut memory = Memory::default();
    for _ in 0..2 {
        chain.kept_with(&chain.store, &COARSEN, vec![], &mut memory).await.unwrap();
    }
    let left = chain.transactions().await;
    assert!((33..=48).chain(273..=288).all(|number| left.contains(&number)), "{left:?}");
    assert!(!left.contains(&10) && !left.contains(&401), "{left:?}");
    assert!(chain.restored().await.0 == tree, "another tree");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_fell_behind_goes_on_with_merged_transactions_or_is_made_anew() {
    let (mut chain, places) = (Chain::new(), [Place::new(), Place::new(), Place::new(), Place::new()]);
    let [follows, is_given, follows_between, is_given_between] = &places;
    // Two stop where merged transactions begin, and two where none does.
    for (last, of) in [(256, [follows, is_given]), (262, [follows_between, is_given_between])] {
        chain.grow(last).await;
        for place in of {
            chain.followed(place).await.unwrap();
        }
    }
    chain.grow(700).await;
    chain.kept(&COARSEN).await;
    assert!(!chain.transactions().await.contains(&263));
    let (tree, _) = chain.restored().await;
    let copy = |place: &Place| {
        let copy = std::fs::File::open(place.pool.volumes_path().join(".standby-v1/live")).unwrap();
        let mut lines = Vec::new();
        describe(std::os::fd::AsFd::as_fd(&copy), &mut |line| lines.push(line.to_owned())).unwrap();
        lines
    };

    // A merged one up to the milestone, and the rest one by one.
    assert_eq!(chain.followed(follows).await.unwrap(), 1 + 700 - 512);
    assert!(copy(follows) == tree, "another tree");
    let error = chain.followed(follows_between).await.unwrap_err();
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    assert_eq!(chain.followed(follows_between).await.unwrap(), 0, "it is made from the log");
    assert!(copy(follows_between) == tree, "another tree");

    let (taken, origin) = chain.given(is_given).await;
    let Origin::TakenOver(how) = origin else { panic!("{origin:?}") };
    assert!(how.transactions <= 1 + 11 + 12, "{how:?}");
    assert!(taken == tree, "another tree");
    let (restored, origin) = chain.given(is_given_between).await;
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    assert!(restored == tree, "another tree");
}

/// The store fails and loses answers, lists lack what is there, and the process dies: all can be restored at any time.
#[tokio::test(flavor = "multi_thread")]
async fn merging_that_breaks_off_anywhere_loses_nothing() {
    let everything = Policy { bytes: 1, retention: Duration::ZERO, ..COARSEN };
    let (mut chain, mut finished) = (Chain::new(), 0);
    for seed in 0..10 {
        chain.grow(chain.last + 90).await;
        let (tree, _) = chain.restored().await;
        let faults = Faults { fails: 0.03, answer_lost: 0.03, stale_list: 0.02, ..Faults::NONE };
        let broken = Arc::new(Faulty::new(chain.memory.clone(), seed, faults));
        let broken = Arc::new(Store::over("broken", broken, Sizes::default()));
        let policy = if seed % 3 == 2 { &everything } else { &COARSEN };
        let life = Duration::from_millis(100 + seed * 150);
        let attempt = tokio::time::timeout(life, chain.kept_in(&broken, policy, vec![])).await;
        finished += u32::from(matches!(attempt, Ok(Ok(_))));
        assert!(chain.restored().await.0 == tree, "seed {seed}");
    }
    assert!((1..10).contains(&finished), "{finished} of 10 were finished: the moments are badly chosen");
}
