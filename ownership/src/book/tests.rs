//! The book, looked at twice a second. Who has which volumes is answered at once; what else has to be done is left to the
//! tests.

use super::*;

fn at(tenths: u64) -> Instant {
    Instant(tenths * 100_000_000)
}

/// Nodes n0, n1, ... under sessions s0.m0.b, s1.m1.b, ...
struct Cluster {
    book: Book<u64>,
    leases: BTreeMap<String, Lease>,
    /// Numbers of the nodes that do not renew.
    silent: Vec<usize>,
    held: Holdings,
    now: u64,
}

fn lease(session: &str) -> Lease {
    Lease { session: session.into(), duration: Duration::from_secs(4), fenced: false, renewed: 0 }
}

fn holder(node: &str, session: &str) -> Holder {
    Holder { node: node.into(), session: Some(session.into()) }
}

fn fence(session: &str, store: &str) -> Task {
    Task::CreateFence { session: session.into(), store: store.into() }
}

fn close(session: &str, node: &str) -> Task {
    Task::CloseLease { session: session.into(), node: node.into() }
}

impl Cluster {
    fn new(nodes: usize, silent: &[usize]) -> Self {
        let leases = (0..nodes).map(|n| (format!("n{n}"), lease(&format!("s{n}.m{n}.b")))).collect();
        let held = (0..nodes).map(|n| (holder(&format!("n{n}"), &format!("s{n}.m{n}.b")), ["a".to_owned()].into()));
        let held = held.collect();
        Self { book: Book::new(Timing::default()), leases, silent: silent.to_vec(), held, now: 0 }
    }

    fn fence(&mut self, node: &str) {
        self.leases.get_mut(node).unwrap().fenced = true;
    }

    /// Half a second passes: what there is to do at its end, but for what is looked up.
    fn look(&mut self) -> Vec<Task> {
        self.now += 5;
        let now = self.now;
        let leases = self.leases.iter().map(|(name, lease)| {
            let silent = self.silent.iter().any(|number| *name == format!("n{number}"));
            let version = if silent { format!("{}", lease.fenced) } else { now.to_string() };
            (name.clone(), version, lease.clone())
        });
        self.book.saw_leases(leases.collect::<Vec<_>>(), at(now));
        let mut tasks = self.book.next(at(now), now);
        if tasks.contains(&Task::FindHolders) {
            self.book.holds(&self.held, at(now));
            tasks = self.book.next(at(now), now);
        }
        tasks.retain(|task| !matches!(task, Task::LookForBeats { .. }));
        tasks
    }

    /// What there is to do first, and when.
    fn until_something(&mut self) -> (u64, Vec<Task>) {
        for _ in 0..2000 {
            let tasks = self.look();
            if !tasks.is_empty() {
                return (self.now, tasks);
            }
        }
        panic!("nothing happened");
    }

    /// Lets time pass; whether there was ever something to do.
    fn pass(&mut self, tenths: u64) -> bool {
        let end = self.now + tenths;
        let mut any = false;
        while self.now < end {
            any |= !self.look().is_empty();
        }
        any
    }
}

#[test]
fn a_silent_node_is_fenced_store_first_and_dead_once_everything_is_waited_out() {
    let mut cluster = Cluster::new(3, &[1]);
    let session = "s1.m1.b";
    let (now, tasks) = cluster.until_something();
    assert_eq!((now, tasks), (45, vec![fence(session, "a")]));
    assert!(cluster.book.deaths().is_empty(), "nothing was done to it yet");
    cluster.book.fenced(session, "a", at(50));
    assert_eq!(cluster.look(), [close(session, "n1")]);
    assert_eq!(cluster.book.deaths()[session].over["a"], None);
    cluster.book.closed(session, Duration::from_secs(4), at(60));
    while cluster.now < 105 {
        cluster.look();
        assert_eq!(cluster.book.deaths()[session].over["a"], None, "at {}", cluster.now);
    }
    cluster.look();
    let death = cluster.book.deaths()[session].clone();
    assert_eq!((death.node.as_str(), death.detected, death.over["a"]), ("n1", 45, Some(110)));
}

#[test]
fn a_node_that_is_heard_again_in_time_lives() {
    let mut cluster = Cluster::new(3, &[1]);
    cluster.until_something();
    cluster.silent.clear();
    assert_eq!(cluster.look(), []);
    // Once a fence is there, there is no way back.
    cluster.silent = vec![1];
    cluster.until_something();
    cluster.book.fenced("s1.m1.b", "a", at(cluster.now));
    cluster.silent.clear();
    cluster.look();
    assert_eq!(cluster.look(), [close("s1.m1.b", "n1")]);
}

#[test]
fn who_is_asked_for_is_ended_although_it_lives() {
    let mut cluster = Cluster::new(3, &[]);
    assert!(!cluster.pass(100));
    cluster.book.end("n1", 0);
    assert_eq!(cluster.look(), [fence("s1.m1.b", "a")]);
    assert_eq!(cluster.look(), [fence("s1.m1.b", "a")], "until it is done");
}

#[test]
fn one_without_volumes_has_no_fence_and_begins_another_session_all_the_same() {
    let mut cluster = Cluster::new(3, &[]);
    cluster.held.clear();
    cluster.pass(10);
    cluster.book.end("n2", 0);
    assert_eq!(cluster.look(), [close("s2.m2.b", "n2")]);
    assert_eq!(cluster.book.silent(), BTreeSet::from(["n2".to_owned()]));
}

#[test]
fn a_silent_node_is_told_of_before_anything_is_done_to_it_and_without_volumes_too() {
    let mut cluster = Cluster::new(3, &[1]);
    cluster.held.clear();
    assert!(cluster.book.silent().is_empty());
    assert!(!cluster.pass(50));
    assert_eq!(cluster.book.silent(), BTreeSet::from(["n1".to_owned()]));
    assert!(cluster.book.deaths().is_empty());
    cluster.silent.clear();
    cluster.look();
    assert!(cluster.book.silent().is_empty(), "it was heard again");
}

#[test]
fn what_somebody_says_is_off_is_not_waited_for_unless_it_is_heard() {
    for (silent, expected) in [(&[1][..], true), (&[], false)] {
        let mut cluster = Cluster::new(3, silent);
        cluster.book.are_off(["n1".to_owned()]);
        cluster.pass(10);
        cluster.book.end("n1", 0);
        let session = "s1.m1.b";
        cluster.until_something();
        cluster.pass(50);
        cluster.book.fenced(session, "a", at(cluster.now));
        assert_eq!(cluster.look(), [close(session, "n1")]);
        cluster.book.closed(session, Duration::from_secs(4), at(cluster.now));
        cluster.look();
        assert_eq!(cluster.book.deaths()[session].over["a"].is_some(), expected);
    }
}

#[test]
fn beats_keep_a_node_that_the_api_server_does_not_hear() {
    let mut cluster = Cluster::new(3, &[1]);
    for _ in 0..100 {
        let look = Task::LookForBeats { node: "n1".into(), session: "s1.m1.b".into() };
        assert_eq!(cluster.look(), [], "at {}", cluster.now);
        let now = cluster.now;
        if cluster.book.next(at(now), now).contains(&look) {
            cluster.book.saw_beat("n1", "s1.m1.b", at(now).as_millis(), at(now));
        }
    }
}

#[test]
fn a_storm_is_waited_out_a_while() {
    let (one, _) = Cluster::new(4, &[1]).until_something();
    let (storm, _) = Cluster::new(4, &[1, 2]).until_something();
    assert_eq!((one, storm), (45, 145));
    let mut zone = Cluster::new(9, &[1, 2]);
    zone.book.zones([("n1".to_owned(), "z".to_owned()), ("n2".to_owned(), "z".to_owned())].into());
    assert_eq!(zone.until_something().0, 145, "a whole zone is silent");
}

#[test]
fn nodes_that_died_long_ago_make_no_storm() {
    // Two of five have been silent for minutes, another fails: one dead node like any other.
    let mut cluster = Cluster::new(5, &[1, 2]);
    cluster.held.retain(|holder, _| !["n1", "n2"].contains(&holder.node.as_str()));
    cluster.pass(1200);
    cluster.silent.push(3);
    let began = cluster.now;
    assert_eq!(cluster.until_something().0 - began, 45);
    // The same, seen by a replica that was only just started.
    let mut cluster = Cluster::new(5, &[1, 2]);
    cluster.held.retain(|holder, _| !["n1", "n2"].contains(&holder.node.as_str()));
    cluster.fence("n1");
    cluster.fence("n2");
    cluster.pass(50);
    cluster.silent.push(3);
    let began = cluster.now;
    assert_eq!(cluster.until_something().0 - began, 45);
}

#[test]
fn nodes_that_fail_together_are_a_storm_before_the_first_is_suspect() {
    // Both are cut off at the same instant, and one renewed its lease a second later than the other.
    let mut cluster = Cluster::new(4, &[1]);
    cluster.pass(10);
    cluster.silent.push(2);
    assert!(!cluster.pass(130), "the first was ended before the second was suspect");
    assert!(cluster.pass(20));
}

#[test]
fn when_a_storm_passes_the_last_that_is_heard_is_not_ended() {
    let mut cluster = Cluster::new(4, &[1, 2]);
    assert!(!cluster.pass(80));
    cluster.silent = vec![1];
    assert!(!cluster.pass(50), "it has not waited for as long as in a storm");
    assert!(cluster.pass(30));
}

#[test]
fn when_a_storm_passes_an_old_beat_that_arrives_only_now_does_not_end_the_wait() {
    let mut cluster = Cluster::new(4, &[1, 2]);
    assert!(!cluster.pass(80));
    cluster.silent = vec![1];
    // Its lease was seen at 0.5 s.
    cluster.book.saw_beat("n1", "s1.m1.b", at(50).as_millis(), at(80));
    assert!(!cluster.pass(100), "it was ended as if it had fallen silent alone");
    assert!(cluster.pass(20));
}

#[test]
fn nodes_that_fail_one_after_the_other_are_a_storm_also_once_the_first_is_fenced() {
    let mut cluster = Cluster::new(4, &[1]);
    cluster.pass(30);
    cluster.silent.push(2);
    cluster.until_something();
    cluster.fence("n1");
    cluster.book.fenced("s1.m1.b", "a", at(cluster.now));
    cluster.book.closed("s1.m1.b", Duration::from_secs(4), at(cluster.now));
    assert!(cluster.until_something().0 > 140);
}

#[test]
fn a_session_that_is_over_is_forgotten_once_it_holds_nothing_and_its_node_is_back() {
    let mut cluster = Cluster::new(3, &[1]);
    cluster.until_something();
    cluster.fence("n1");
    cluster.book.fenced("s1.m1.b", "a", at(cluster.now));
    cluster.book.closed("s1.m1.b", Duration::from_secs(4), at(cluster.now));
    cluster.pass(200);
    cluster.held.remove(&holder("n1", "s1.m1.b"));
    cluster.pass(200);
    assert!(cluster.book.deaths().contains_key("s1.m1.b"), "its node is dead");
    cluster.leases.insert("n1".into(), lease("t1.m1.c"));
    cluster.silent.clear();
    cluster.pass(10);
    assert!(cluster.book.endings.is_empty());
}

#[test]
fn a_volume_of_a_session_that_its_node_does_not_act_under_is_taken_from_it() {
    // Another machine under the name of the node; this replica never saw the session of the former.
    let mut cluster = Cluster::new(3, &[]);
    cluster.held.insert(holder("n1", "old.m9.b"), ["b".to_owned()].into());
    let (now, tasks) = cluster.until_something();
    assert_eq!(tasks, [fence("old.m9.b", "b")]);
    assert!(now > 35, "a lease that is missing for a moment is no proof");
    cluster.book.fenced("old.m9.b", "b", at(now));
    assert_eq!(cluster.look(), [close("old.m9.b", "n1")]);
    // A node that has no lease at all.
    let mut cluster = Cluster::new(3, &[]);
    cluster.leases.remove("n2");
    assert_eq!(cluster.until_something().1, [fence("s2.m2.b", "a")]);
    // The same machine: it killed everything before, so nothing is closed or waited for.
    let mut cluster = Cluster::new(3, &[]);
    cluster.leases.insert("n1".into(), lease("t1.m1.c"));
    assert!(!cluster.pass(100));
    let death = &cluster.book.deaths()["s1.m1.b"];
    assert!(death.is_back && death.over["a"].is_some());
}

#[test]
fn a_session_that_is_newer_than_what_was_seen_of_its_node_is_not_ended() {
    let mut cluster = Cluster::new(3, &[]);
    cluster.pass(50);
    // The volumes are looked up, and say what the leases, which were looked up before, do not say yet.
    cluster.held.insert(holder("n1", "t1.m1.c"), ["a".to_owned()].into());
    cluster.book.holds(&cluster.held, at(cluster.now));
    cluster.leases.insert("n1".into(), lease("t1.m1.c"));
    assert!(!cluster.pass(100));
}

#[test]
fn one_store_that_does_not_answer_holds_up_no_other() {
    let mut cluster = Cluster::new(3, &[1]);
    cluster.held.insert(holder("n1", "s1.m1.b"), ["a".to_owned(), "b".to_owned()].into());
    assert_eq!(cluster.until_something().1, [fence("s1.m1.b", "a"), fence("s1.m1.b", "b")]);
    cluster.book.fenced("s1.m1.b", "b", at(50));
    assert_eq!(cluster.look(), [fence("s1.m1.b", "a"), close("s1.m1.b", "n1")]);
    cluster.book.closed("s1.m1.b", Duration::from_secs(4), at(50));
    cluster.pass(100);
    let death = &cluster.book.deaths()["s1.m1.b"];
    assert_eq!((death.over["a"], death.over["b"].is_some()), (None, true));
}

#[test]
fn what_was_written_last_on_a_dead_node_can_be_given_up() {
    // Nobody holds the volume any more, but its last commit is missing.
    let mut cluster = Cluster::new(3, &[1]);
    cluster.held.remove(&holder("n1", "s1.m1.b"));
    cluster.held.insert(Holder { node: "n1".into(), session: None }, ["b".to_owned()].into());
    assert_eq!(cluster.until_something().1, [fence("s1.m1.b", "b")]);
}

#[test]
fn a_new_session_of_the_same_machine_is_proof_and_a_fence_that_is_found_is_brought_to_its_end() {
    let mut cluster = Cluster::new(3, &[]);
    cluster.fence("n1");
    assert_eq!(cluster.look(), [fence("s1.m1.b", "a")]);
    cluster.book.fenced("s1.m1.b", "a", at(6));
    cluster.leases.insert("n1".into(), lease("t1.m1.c"));
    assert_eq!(cluster.look(), []);
    let death = &cluster.book.deaths()["s1.m1.b"];
    assert_eq!((death.over["a"], death.is_back), (Some(10), true));
}

#[test]
fn only_a_session_of_the_same_machine_supersedes() {
    for (then, now, expected) in [
        ("a.m.b", "c.m.d", true),
        ("a.m.b", "c.m.b", true),
        ("a.m.b", "a.m.b", false),
        ("a.m.b", "c.n.d", false),
        ("a..b", "c..d", false),
        ("a", "b", false),
    ] {
        assert_eq!(is_superseded(then, now), expected, "{then} {now}");
    }
}

#[test]
fn another_machine_under_the_same_name_proves_nothing() {
    let mut cluster = Cluster::new(3, &[]);
    cluster.fence("n1");
    cluster.look();
    cluster.book.fenced("s1.m1.b", "a", at(6));
    cluster.leases.insert("n1".into(), lease("t1.other.c"));
    assert_eq!(cluster.look(), [close("s1.m1.b", "n1")]);
}
