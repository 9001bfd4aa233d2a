//! A journal is taken to another store while its environment runs: from a store that answers and from one that does not,
//! with an API server whose answers get lost, and with another holder in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::place::Place;
use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{TestNode, id};
use object_store::memory::InMemory;
use vivarium_api::node::guest::PodReference;
use vivarium_api::v1alpha1::volume::VolumeLog;
use vivarium_journal::Kind;
use vivarium_node::csi::node::Node;
use vivarium_node::directory::VolumeName;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::change::Doubt;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::wanted::Wanted;
use vivarium_node::publish::{PublishCall, Publisher, StageCall};
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Sizes, Store};

const VOLUME: &str = "11111111-2222-3333-4444-555555555555";
const DEAD: Faults = Faults { fails: 1.0, ..Faults::NONE };

/// A node on which an environment runs whose journal is in store `a`; there is a store `b`.
struct Bench {
    node: TestNode,
    cluster: Cluster,
    service: Node,
    a: Faulty,
    _registry: Registry,
}

impl Bench {
    async fn new() -> Self {
        let node = TestNode::new();
        let registry = Registry::start().await;
        let (image, layers) =
            registry.image("1", &[(Tarball::new().program("sbin/init", b"#!").finish(), Packing::Gzip)]);
        let cluster = Cluster::new(VOLUME, &image, layers, "64Mi");
        cluster.change(|object| object.spec.store = Some("a".into()));
        let service = node.service(&node.pool(), &cluster, &registry.address);
        let a = Faulty::new(Arc::new(InMemory::new()), 7, Faults::NONE);
        let publisher = service.publisher.clone();
        publisher.stores.put("a", Some(Store::over("a", Arc::new(a.clone()), Sizes::default()).into()));
        publisher.stores.put("b", Some(Store::memory("b").into()));
        tokio::spawn(publisher.keeper.clone().run());
        let promises = publisher.promises.clone();
        tokio::spawn(async move {
            loop {
                promises.renewed(vivarium_node::authority::now(), &promises.lease());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let bench = Self { node, cluster, service, a, _registry: registry };
        publisher.stage(StageCall { id: id(VOLUME), name: name() }).await.unwrap();
        bench.publish(1).await;
        bench
    }

    fn publisher(&self) -> &Arc<Publisher> {
        &self.service.publisher
    }

    async fn publish(&self, epoch: u64) {
        let pod = format!("shop-{epoch}");
        let pod = PodReference { namespace: "team-a".into(), uid: format!("uid-{pod}"), name: pod };
        let call = PublishCall { id: id(VOLUME), name: name(), target: self.target(epoch), pod };
        self.publisher().publish(call).await.unwrap();
    }

    fn target(&self, epoch: u64) -> PathBuf {
        self.node.target(&format!("uid-shop-{epoch}"))
    }

    fn write(&self, file: &str) {
        std::fs::write(self.target(1).join("upper").join(file), file).unwrap();
    }

    /// From now on the spec names store `b`.
    async fn want_another_store(&self) {
        // Others write the object as well.
        while self.cluster.object().status.unwrap().log.is_none() {
            self.publisher().name_log(&name(), &id(VOLUME)).await.unwrap();
        }
        self.cluster.change(|object| object.spec.store = Some("b".into()));
        self.publisher().change_store(&name(), &id(VOLUME));
    }

    /// The journal is closed, and the API server does not hear which log is to decide: the two, and their ends.
    async fn in_doubt(&self) -> (VolumeLog, VolumeLog, (u64, u64)) {
        self.committed("one").await;
        let former = self.log();
        self.cluster.switches.block(true);
        self.want_another_store().await;
        eventually("the journal is closed", || !self.publisher().keeper.has(&id(VOLUME))).await;
        let next = self.cluster.object().status.unwrap().next_log.unwrap();
        let ends = (self.tail(&former).await, self.tail(&next).await);
        (former, next, ends)
    }

    fn log(&self) -> VolumeLog {
        self.cluster.object().log().unwrap()
    }

    fn decides(&self, store: &str) -> bool {
        self.log().store == store
    }

    /// The end of a log, by the store itself.
    async fn tail(&self, log: &VolumeLog) -> u64 {
        let store = self.publisher().stores.get(&log.store).unwrap();
        Log::named(&id(VOLUME), &log.name, store).unwrap().tail(0).await.unwrap().sequence
    }

    async fn committed(&self, file: &str) {
        let before = self.tail(&self.log()).await;
        self.write(file);
        let log = self.log();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.tail(&log).await == before {
            assert!(tokio::time::Instant::now() < deadline, "`{file}` is not committed to {log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What another node would find that has only the store of the log that decides.
    async fn elsewhere(&self, files: &[&str]) {
        self.publisher().unpublish(&id(VOLUME), self.target(1)).await.unwrap();
        self.publisher().volumes.delete(&id(VOLUME)).unwrap();
        self.cluster.give("n1", "s1", 2);
        self.publish(2).await;
        for file in files {
            assert_eq!(std::fs::read_to_string(self.target(2).join("upper").join(file)).unwrap(), *file);
        }
    }
}

fn name() -> VolumeName {
    VolumeName::parse("team-a/shop").unwrap()
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_and_what_will_be_written_is_in_the_other_store() {
    let bench = Bench::new().await;
    bench.committed("one").await;
    let (former, then) = (bench.log(), jiff::Timestamp::now());
    bench.want_another_store().await;
    eventually("the other store decides", || bench.decides("b")).await;
    eventually("it is told", || bench.cluster.told().last() == Some(&"Current")).await;
    assert_eq!(bench.cluster.told()[0], "ChangingStore");
    let end = bench.tail(&former).await;
    bench.committed("two").await;
    assert_eq!(bench.tail(&former).await, end, "nothing is added to what was left");

    let status = bench.cluster.object().status.unwrap();
    assert_eq!(status.log, Some(VolumeLog { store: "b".into(), name: format!("{VOLUME}-1") }));
    assert_eq!((status.next_log, status.logs), (None, 1));
    let [left] = status.left.as_slice() else { panic!("{:?}", status.left) };
    assert_eq!(left.log(), former);
    // What was made to begin the next log with may not have come to this one.
    assert!([end, end + 1].contains(&left.last.unwrap()), "{left:?} {end}");
    let record = bench.publisher().records.get(&id(VOLUME)).unwrap().unwrap().journal.unwrap();
    assert_eq!((record.store.as_str(), record.bound_by.into_iter().collect::<Vec<_>>()), ("b", vec!["a".to_owned()]));
    assert!(bench.publisher().promises.is_bound("a", "b"), "who runs is bound by both");

    // Each state is in the log that had it, by number and by time.
    let logs = bench.cluster.object().past();
    assert_eq!(logs, [bench.log(), former.clone()]);
    for (wanted, store) in [
        (Some(Wanted::Sequence(1)), "a"),
        (Some(Wanted::Sequence(bench.tail(&bench.log()).await)), "b"),
        (Some(Wanted::Time(then)), "a"),
        (Some(Wanted::Time(jiff::Timestamp::now())), "b"),
        (None, "b"),
    ] {
        let found = bench.publisher().log_with(&name(), &id(VOLUME), &logs, 1, wanted).await.unwrap().0;
        assert_eq!(found.store(), store, "{wanted:?}");
        if let Some(wanted) = wanted {
            assert!(wanted.find(&found, 0).await.unwrap().is_ok(), "{wanted:?}");
        }
    }

    // There and back: a name is not used twice.
    bench.cluster.change(|object| object.spec.store = Some("a".into()));
    bench.publisher().change_store(&name(), &id(VOLUME));
    eventually("the first store decides again", || bench.decides("a")).await;
    assert_eq!(bench.log().name, format!("{VOLUME}-2"));
    bench.committed("three").await;
    bench.elsewhere(&["one", "two", "three"]).await;

    // With the volume all of its logs go.
    bench.publisher().unpublish(&id(VOLUME), bench.target(2)).await.unwrap();
    let logs = bench.cluster.object().logs();
    assert_eq!(logs.len(), 3);
    bench.cluster.status(|status| status.holder = None);
    bench.publisher().destroy(&name(), &id(VOLUME)).await.unwrap();
    for log in logs {
        assert_eq!(bench.tail(&log).await, 0, "{log:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_can_be_left() {
    let bench = Bench::new().await;
    bench.committed("one").await;
    bench.a.set(DEAD);
    bench.write("two");
    tokio::time::sleep(Duration::from_secs(2)).await;
    bench.want_another_store().await;
    eventually("the other store decides", || bench.decides("b")).await;
    bench.committed("three").await;
    bench.elsewhere(&["one", "two", "three"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_while_it_is_not_known_which_store_decides() {
    let bench = Bench::new().await;
    let (former, next, ends) = bench.in_doubt().await;
    assert!(ends.0 <= ends.1, "the next log has everything");
    bench.write("two");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!bench.publisher().keeper.has(&id(VOLUME)) && bench.decides("a"));
    assert_eq!((bench.tail(&former).await, bench.tail(&next).await), ends);
    bench.cluster.switches.lose_next_answer();
    eventually("the other store decides", || bench.decides("b")).await;
    bench.committed("three").await;
    assert_eq!(bench.tail(&former).await, ends.0);
    assert_eq!(bench.cluster.object().status.unwrap().left.len(), 1, "it was left once");
    bench.elsewhere(&["one", "two", "three"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_volume_in_between_adds_to_neither_store() {
    let bench = Bench::new().await;
    let (former, next, ends) = bench.in_doubt().await;
    bench.cluster.give("n2", "s9", 2);
    bench.write("two");
    bench.cluster.switches.block(false);
    bench.publisher().unpublish(&id(VOLUME), bench.target(1)).await.unwrap();
    assert!(bench.decides("a"));
    assert_eq!((bench.tail(&former).await, bench.tail(&next).await), ends);

    // It is this node's again, and what was under way counts for nothing: the object says which log decides.
    bench.cluster.give("n1", "s1", 3);
    bench.publish(3).await;
    assert_eq!(std::fs::read_to_string(bench.target(3).join("upper/two")).unwrap(), "two", "nobody else wrote");
    assert!(bench.tail(&former).await > ends.0);
    assert_eq!(bench.tail(&next).await, ends.1);
    bench.publisher().change_store(&name(), &id(VOLUME));
    eventually("the other store decides", || bench.decides("b")).await;
    assert_eq!(bench.log().name, format!("{VOLUME}-2"), "the first attempt was given up");
    let left = bench.cluster.object().status.unwrap().left;
    assert!(left.iter().any(|left| left.log() == next && left.last.is_none()), "and is to be deleted: {left:?}");
    assert_eq!(bench.cluster.object().past(), [bench.log(), former]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_node_is_no_store_to_go_to() {
    let bench = Bench::new().await;
    bench.committed("one").await;
    let directory = tempfile::tempdir().unwrap();
    let local = vivarium_store::Backend::Local { directory: directory.path().to_owned() };
    let local = Store::open(&vivarium_store::Config { name: "b".into(), backend: local, mirrors: vec![] }).unwrap();
    bench.publisher().stores.put("b", Some(local.into()));
    bench.want_another_store().await;
    eventually("it is refused", || bench.cluster.told().last() == Some(&"StoreNotShared")).await;
    assert!(bench.decides("a"));
    bench.committed("two").await;
    // Whoever takes it back is told that all is well.
    bench.cluster.change(|object| object.spec.store = Some("a".into()));
    eventually("it is told", || bench.cluster.told().last() == Some(&"Current")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doubt_nothing_can_be_committed_by_the_next_process_either() {
    let (place, store) = (Place::new(), Arc::new(Store::memory("a")));
    let (mut journal, _) = place.begin(&store, 1).await.unwrap();
    std::fs::write(place.upper("one"), b"1").unwrap();
    place.commit(&mut journal).await;
    let to = VolumeLog { store: "a".into(), name: "v1-1".into() };
    journal.doubt(Doubt::new(1, to, 2)).await.unwrap();
    let opening = Place::opening(1);
    let log = Log::new(&opening.id, store.clone()).unwrap();
    let mut journal = Journal::resume(&place.volumes, &place.templates, log, &opening).unwrap();
    std::fs::write(place.upper("two"), b"2").unwrap();
    place.pool.sync().unwrap();
    let refused = journal.commit().await.unwrap_err();
    assert!(matches!(refused, JournalError::Doubtful { .. }), "{refused}");
    // An epoch that is opened later is opened in the log that the object names.
    let (mut journal, origin) = place.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::Here);
    assert!(place.commit(&mut journal).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_for_another_log_is_not_sent_to_the_one_that_decides() {
    let faulty = Faulty::new(Arc::new(InMemory::new()), 7, Faults::NONE);
    let (place, store) = (Place::new(), Arc::new(Store::over("a", Arc::new(faulty.clone()), Sizes::default())));
    let (mut journal, _) = place.begin(&store, 1).await.unwrap();
    std::fs::write(place.upper("one"), b"1").unwrap();
    place.commit(&mut journal).await;
    // Another log with the same, in which somebody else may go on.
    let next = Log::named(&id("v1"), "v1-1", Arc::new(Store::memory("b"))).unwrap();
    let seed = journal.seed().await.unwrap().unwrap();
    let seeded = seed.put(&next, place.pool.path()).await.unwrap();
    journal.commit().await.unwrap();
    faulty.set(DEAD);
    std::fs::write(place.upper("two"), b"2").unwrap();
    place.pool.sync().unwrap();
    assert!(journal.commit().await.is_err());
    drop(journal);

    let opening = Place::opening(2);
    let begun = Journal::begin(&place.volumes, &place.templates, next.clone(), &opening, async || true).await;
    let (mut journal, origin) = begun.unwrap();
    assert_eq!(origin, Origin::Here, "the base counts in both");
    assert_eq!(next.tail(0).await.unwrap().sequence, seeded + 1, "a barrier, and nothing else");
    assert_eq!(next.kind(seeded + 1).await.unwrap(), Some(Kind::Barrier));
    assert!(place.commit(&mut journal).await > 0, "what it was about is in the tree still");
}
