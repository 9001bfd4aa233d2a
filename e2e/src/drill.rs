//! A drill: environments with a database under load, all on one node, an outside witness of what they have written, and
//! something that is done to that node. Afterwards it is known which of them went on, where, after how long, and with what.
//!
//! The environments stay for the next drill: it begins where they all are. One other node takes them over, the rest is
//! closed (cordoned), so that they are all together again.
//!
//! The environment variables with which `hack/drill` asks for more than CI does are read here alone.

use std::time::Duration;

use serde_json::Value;

use crate::story::{self, Story};
use crate::witness::{Outage, Testimony, Witness, now};
use crate::{DEADLINE, Environment, Namespace, eventually, get, kubectl, kubectl_ok, lab};

/// Port of the witness.
const PORT: u16 = 7777;
/// Namespace of the environments.
const NAME: &str = "drill";

/// What a dead node may take along at most, as `docs/src/concepts/failover.md` says: changes of this long before its death.
pub const RPO: Duration = Duration::from_secs(2);
/// And a node that lives and is cut off, whose environments go on until its promise is over: what they write after the
/// cut, too.
pub const LEASE: Duration = Duration::from_secs(4);
/// What all of it may take longer here. Three nodes, their store of three replicas and the control plane share two
/// processors and one disk with whatever else runs: a commit that takes a tenth of a second elsewhere was seen to take
/// three of them. See [`allowance`].
const ALLOWANCE: Duration = Duration::from_secs(3);

/// What is promised of acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing is lost: the node was emptied in order.
    Nothing,
    /// The node died at the cut.
    Dead,
    /// It did, after nothing could be committed for so long.
    Hindered(Duration),
    /// The node was cut off and lived on.
    Isolated,
}

impl Promise {
    /// Writes acknowledged longer than this before the last word must be there; [`allowance`] is to be added.
    #[must_use]
    pub fn window(self) -> Duration {
        match self {
            Self::Nothing => Duration::ZERO,
            Self::Dead => RPO,
            Self::Hindered(before) => RPO + before,
            Self::Isolated => RPO + LEASE,
        }
    }

    /// How long before the cut something may have been wrong with the node already.
    fn before(self) -> Duration {
        match self {
            Self::Hindered(before) => before,
            Self::Nothing | Self::Dead | Self::Isolated => Duration::ZERO,
        }
    }

    /// What is wrong with an outage; nothing if the promise was kept, to which so much is added.
    fn broken_by(self, outage: &Outage, allowance: Duration) -> Option<String> {
        let kept = match self {
            Self::Nothing => outage.lost == 0,
            _ => outage.window <= self.window() + allowance,
        };
        (!kept).then(|| format!("{} writes of {:.1} s are lost", outage.lost, outage.window.as_secs_f32()))
    }
}

/// A number from the environment of the test.
fn asked(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

/// How many environments are on the node, unless `hack/drill` says otherwise.
#[must_use]
pub fn count(usual: usize) -> usize {
    asked("VIVARIUM_DRILL_ENVIRONMENTS").unwrap_or(usual)
}

/// How often, unless `hack/drill` says otherwise.
#[must_use]
pub fn rounds(usual: usize) -> usize {
    asked("VIVARIUM_DRILL_ROUNDS").unwrap_or(usual)
}

/// Whether times are judged: a person asked for it, on a machine that does nothing else.
#[must_use]
pub fn times_count() -> bool {
    asked("VIVARIUM_DRILL_JUDGE") == Some(1)
}

/// What is added to a promise: nothing where times are judged.
#[must_use]
pub fn allowance() -> Duration {
    if times_count() { Duration::ZERO } else { ALLOWANCE }
}

/// Puts the lab right at the end, whatever happened.
struct Repair;

impl Drop for Repair {
    fn drop(&mut self) {
        for node in lab::nodes() {
            for switch in ["power-on", "heal"] {
                let ran = lab::lab(&["node", switch, &node]);
                if !ran.ok {
                    eprintln!("hack/lab node {switch} {node}: {}{}", ran.stdout, ran.stderr);
                }
            }
            kubectl_ok(&["uncordon", &node]);
        }
        if !std::thread::panicking() {
            lab_is_well();
        }
    }
}

/// An instant, and how often each environment had begun a new life until then.
pub struct Cut {
    /// When, as of [`now`].
    pub at: u64,
    lives: Vec<usize>,
}

/// The drill.
pub struct Drill {
    /// Who hears the environments.
    pub witness: Witness,
    /// Each with the name by which the witness knows it.
    pub environments: Vec<(String, Environment)>,
    /// Where all of them are.
    pub node: String,
    /// The one node that takes them over.
    pub refuge: String,
    story: Story,
    namespace: Option<Namespace>,
    _repair: Repair,
}

impl Drop for Drill {
    fn drop(&mut self) {
        // The environments stay, unless something went wrong: then the namespace is described and goes.
        let namespace = self.namespace.take();
        if !std::thread::panicking() {
            namespace.into_iter().for_each(Namespace::keep);
        }
    }
}

impl Drill {
    /// Brings so many environments together on one node, and makes them write.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let repair = Repair;
        lab_is_well();
        let nodes = lab::nodes();
        assert!(nodes.len() >= 3, "this drill needs three nodes: hack/lab down; hack/lab up --nodes 3");
        let namespace = Namespace::kept(NAME);
        let wanted: Vec<_> = (0..count).map(|number| namespace.environment(&format!("ve{number}"))).collect();
        for surplus in namespace.names("ve").iter().filter(|name| wanted.iter().all(|ve| ve.name != **name)) {
            kubectl_ok(&["-n", &namespace.name, "delete", "ve", surplus, "--wait=false"]);
        }
        let node = most_used(&namespace, &nodes);
        for other in nodes.iter().filter(|other| **other != node) {
            kubectl_ok(&["cordon", other]);
        }
        let applied = crate::apply(&wanted.iter().map(Environment::manifest).collect::<Vec<_>>());
        assert!(applied.ok, "{}", applied.stderr);
        let mut elsewhere = Vec::new();
        for ve in &wanted {
            ve.wait_ready();
            if ve.node() != node {
                kubectl_ok(&["-n", &namespace.name, "delete", "pod", &ve.pod(), "--wait=false"]);
                elsewhere.push(ve);
            }
        }
        for ve in elsewhere {
            eventually(&format!("{} is on {node}", ve.name), DEADLINE, || {
                let on = ve.node();
                if on == node { Ok(()) } else { Err(on) }
            });
            ve.wait_ready();
        }
        let refuge = nodes.iter().find(|other| **other != node).expect("there are three").clone();
        kubectl_ok(&["uncordon", &refuge]);
        let witness = Witness::start(PORT);
        let environments: Vec<_> = wanted.into_iter().map(|ve| (known_as(&ve), ve)).collect();
        let story = Story::of(&namespace.name);
        let drill = Self { witness, environments, node, refuge, story, namespace: Some(namespace), _repair: repair };
        drill.load();
        drill
    }

    /// Those that do not speak yet are made to.
    fn load(&self) {
        std::thread::sleep(Duration::from_secs(3));
        let silent = self.environments.iter().filter(|(name, _)| self.witness.of(name).last() == 0);
        let silent: Vec<_> = silent.map(|(name, ve)| (name.clone(), ve)).collect();
        if !silent.is_empty() {
            self.witness.watch(&silent);
        }
        self.all_speak(now());
        Self::settle();
    }

    /// Waits until everything that was made so far is in the journals.
    fn settle() {
        std::thread::sleep(RPO + ALLOWANCE);
    }

    /// Waits until each environment has said something after an instant.
    pub fn all_speak(&self, since: u64) {
        for (name, _) in &self.environments {
            eventually(&format!("{name} writes"), DEADLINE, || {
                if self.witness.of(name).last() >= since { Ok(()) } else { Err("nothing is heard".into()) }
            });
        }
    }

    fn testimonies(&self) -> Vec<Testimony> {
        self.environments.iter().map(|(name, _)| self.witness.of(name)).collect()
    }

    /// Changes of lives since an instant.
    fn outages(&self, cut: &Cut) -> Vec<Vec<Outage>> {
        let all = self.testimonies();
        let since = |((testimony, lives), (name, _)): ((&Testimony, &usize), &(String, Environment))| {
            let outages = testimony.outages().unwrap_or_else(|offence| panic!("{name}: {offence}"));
            outages[*lives..].to_vec()
        };
        all.iter().zip(&cut.lives).zip(&self.environments).map(since).collect()
    }

    /// Now.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let lives = self.testimonies().iter().map(|testimony| testimony.outages().map_or(0, <[_]>::len)).collect();
        Cut { at: now(), lives }
    }

    /// Cuts the power of the node.
    #[must_use]
    pub fn cut_power(&self) -> Cut {
        let cut = self.cut();
        lab::lab_ok(&["node", "power-off", &self.node]);
        cut
    }

    /// The node that neither has the environments nor takes them over.
    #[must_use]
    pub fn third(&self) -> String {
        let third = lab::nodes().into_iter().find(|node| *node != self.node && *node != self.refuge);
        third.expect("there are three")
    }

    /// Sees to it that the operator's leader does not die with the node: the next one would need seconds of its own.
    pub fn lead_from_elsewhere(&self) {
        let leader = Leader::find().unwrap_or_else(|why| panic!("{why}"));
        if leader.node == self.node {
            kubectl_ok(&["-n", "vivarium-system", "delete", "pod", &leader.pod, "--wait=false"]);
        }
        eventually("the operator is led from another node", DEADLINE, || {
            let leader = Leader::find()?;
            if leader.node == self.node { Err(format!("{} leads", leader.pod)) } else { Ok(()) }
        });
    }

    /// Each environment answers again after exactly one change of lives, on another node, with what is promised. If its
    /// node was lost, its status tells how.
    pub fn moved(&self, what: &str, cut: &Cut, promise: Promise) -> Vec<Outage> {
        for (place, (name, _)) in self.environments.iter().enumerate() {
            eventually(&format!("{name} writes elsewhere"), DEADLINE, || {
                let outages = &self.outages(cut)[place];
                let last = self.witness.of(name).last();
                let answers = outages.last().is_some_and(|outage| outage.answered < last);
                if answers {
                    Ok(())
                } else {
                    Err(format!("{outages:?}; the last word was {}", story::after(last, cut.at)))
                }
            });
        }
        for (name, ve) in &self.environments {
            ve.wait_ready();
            assert_ne!(ve.node(), self.node, "{name}");
        }
        let outages = self.one_each(cut);
        self.report(what, cut, &outages, promise);
        for ((name, _), outage) in self.environments.iter().zip(&outages) {
            if let Some(how) = promise.broken_by(outage, allowance()) {
                panic!("{name}: {how}; the promise was {promise:?}");
            }
        }
        if promise != Promise::Nothing {
            self.failovers_are_told(cut, promise);
        }
        outages
    }

    /// The status of each environment has its failover from the node, which was not found dead before the cut, with
    /// every instant of it; and there is an event.
    fn failovers_are_told(&self, cut: &Cut, promise: Promise) {
        for (name, ve) in &self.environments {
            let status = ve.object()["status"].clone();
            let failover = &status["lastFailover"];
            // One of an earlier incarnation is whole, and told long ago.
            assert_eq!(failover["epoch"], status["epoch"], "{name}: this failover is not told: {failover}");
            let [detected, ..] = story::instants(failover).unwrap_or_else(|why| panic!("{name}: {why}"));
            let early = Duration::from_millis(cut.at.saturating_sub(detected));
            assert!(early <= promise.before(), "{name}: its node was found dead {early:?} before the cut: {failover}");
            let (from, to) = (failover["fromNode"].as_str(), failover["toNode"].as_str());
            assert_eq!((from, to), (Some(self.node.as_str()), status["node"].as_str()), "{name}: {failover}");
            // Nobody waits for it to be written.
            eventually(&format!("an event FailedOver of {name}"), DEADLINE, || {
                let told = self.story.has_event(&ve.name, "FailedOver", cut.at);
                if told { Ok(()) } else { Err("there is none since the cut".into()) }
            });
        }
    }

    /// The one change of lives of each environment since an instant; there must not be more.
    pub fn one_each(&self, cut: &Cut) -> Vec<Outage> {
        let one = |((name, _), of_one): (&(String, Environment), Vec<Outage>)| {
            assert_eq!(of_one.len(), 1, "{name}: {of_one:?}");
            of_one[0]
        };
        self.environments.iter().zip(self.outages(cut)).map(one).collect()
    }

    /// What a person wants to see of it.
    fn report(&self, what: &str, cut: &Cut, outages: &[Outage], promise: Promise) {
        println!("--- {what}: {} environments with a database under load, on {}", outages.len(), self.node);
        let (_, first) = &self.environments[0];
        for line in self.story.told(&first.name, cut.at) {
            println!("    {} {line}", first.name);
        }
        let objects: Vec<_> = self.environments.iter().map(|(_, ve)| ve.object()).collect();
        println!("    phases (medians): {}", story::phases(&objects, cut.at));
        println!("    {}", Figures::of(cut.at, outages).told());
        println!(
            "    verdict: no two at once; databases whole; promised: {promise:?}, {:?} + {:?}",
            promise.window(),
            allowance()
        );
    }

    /// Every environment goes on writing for a while, and none is started anew.
    pub fn undisturbed(&self, what: &str, seconds: u64) {
        let cut = self.cut();
        std::thread::sleep(Duration::from_secs(seconds));
        self.nothing_since(what, &cut);
        let pause =
            self.testimonies().iter().map(|testimony| testimony.longest_pause(cut.at)).max().unwrap_or_default();
        println!(
            "--- {what}: {} environments went on for {seconds} s, the longest pause was {:.1} s",
            self.environments.len(),
            pause.as_secs_f32()
        );
        // The machine has hiccups; what is longer was frozen.
        assert!(pause <= ALLOWANCE, "an environment stood still for {pause:?} during {what}");
        for (_, ve) in &self.environments {
            for line in self.story.told(&ve.name, cut.at) {
                println!("    {} {line}", ve.name);
            }
        }
    }

    /// Every environment writes, and none was started anew since an instant.
    pub fn nothing_since(&self, what: &str, cut: &Cut) {
        self.all_speak(now() - 1_000);
        for ((name, _), outages) in self.environments.iter().zip(self.outages(cut)) {
            assert_eq!(outages, [], "{name} was disturbed by {what}");
        }
    }

    /// The node takes part again: its driver has a session that nobody fenced, an environment can run on it, and nothing
    /// of before runs there.
    pub fn node_is_back(&self) {
        driver_is_back(&self.node);
        kubectl_ok(&["uncordon", &self.node]);
        let namespace = Namespace::new("drill-back");
        let selector = serde_json::json!({"kubernetes.io/hostname": self.node});
        let ve = namespace.environment("back").with("/placement/nodeSelector", selector);
        ve.apply();
        ve.wait_ready();
        assert_eq!(ve.node(), self.node);
        let left = lab::node_sh(&self.node, "ls /run/vivarium/guests | wc -l");
        assert_eq!(left, "1", "guests on {} beside the new one", self.node);
        ve.delete();
    }

    /// The node is back and what moved away stayed where it went, once.
    pub fn back_and_still_there(&self, cut: &Cut) {
        self.node_is_back();
        self.all_speak(now());
        let _ = self.one_each(cut);
    }

    /// The environments are on the refuge now: the next drill is there, and the former node, which is on again, is its
    /// refuge.
    pub fn turn(&mut self) {
        self.go_on_with(self.node.clone());
    }

    /// Like [`Self::turn`] with the third node as the refuge.
    pub fn next(&mut self) {
        self.go_on_with(self.third());
    }

    fn go_on_with(&mut self, refuge: String) {
        driver_is_back(&self.node);
        lab_is_well();
        kubectl_ok(&["uncordon", &refuge]);
        self.node = std::mem::replace(&mut self.refuge, refuge);
        for (name, ve) in &self.environments {
            assert_eq!(ve.node(), self.node, "{name}");
        }
        self.all_speak(now());
        Self::settle();
    }
}

/// A node that takes part has a lease that was renewed lately.
fn driver_is_back(node: &str) {
    let began = now();
    eventually(&format!("the node driver of {node} is there"), DEADLINE, || {
        let lease = get(&["-n", "vivarium-system", "lease", &format!("vivarium-node-{node}")]).unwrap_or_default();
        let renewed = lease["spec"]["renewTime"].as_str().and_then(story::instant);
        if renewed.is_some_and(|renewed| renewed > began) { Ok(()) } else { Err(lease["spec"].to_string()) }
    });
}

/// Everything runs, and the store has all its copies.
fn lab_is_well() {
    eventually("the lab is well", DEADLINE, || {
        let ran = lab::lab(&["status"]);
        if ran.ok { Ok(()) } else { Err(ran.stdout) }
    });
}

/// What is left of another one of that name may still speak.
fn known_as(ve: &Environment) -> String {
    let uid = ve.object()["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    format!("{}.{}", ve.name, uid.get(..8).unwrap_or_default())
}

/// The node on which most of a namespace's environments are.
fn most_used(namespace: &Namespace, nodes: &[String]) -> String {
    let columns = "jsonpath={.items[*].status.node}";
    let used = kubectl(&["-n", &namespace.name, "get", "ve", "-o", columns]).stdout;
    let there = |node: &&String| used.split_whitespace().filter(|on| on == node).count();
    nodes.iter().max_by_key(there).expect("there are nodes").clone()
}

/// The replica of the operator that leads.
pub struct Leader {
    /// Node that it is on.
    pub node: String,
    pod: String,
    uid: String,
}

impl Leader {
    /// Who it is now.
    ///
    /// # Errors
    /// Nobody is, or one whose pod is gone.
    pub fn find() -> Result<Self, String> {
        let lease = get(&["-n", "vivarium-system", "lease", "vivarium-operator"]).unwrap_or_default();
        let pod = lease["spec"]["holderIdentity"].as_str().filter(|pod| !pod.is_empty()).unwrap_or("nobody");
        let found =
            get(&["-n", "vivarium-system", "pod", pod]).ok_or_else(|| format!("there is no leader: {lease}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self { node: text(&found["spec"]["nodeName"]), pod: pod.into(), uid: text(&found["metadata"]["uid"]) })
    }

    /// Kills its process, not its pod. Returns when it is dead, and tells who it was.
    pub fn kill(&self) -> String {
        let Self { node, pod, uid } = self;
        lab::node_sh(
            node,
            &format!(
                "for pid in $(pgrep -x vivarium-operat); do grep -q {uid} /proc/$pid/cgroup && kill -KILL $pid && done=1; done; test $done"
            ),
        );
        format!("{pod} on {node}")
    }
}

/// Kills the operator's leader.
pub fn kill_leader() -> String {
    Leader::find().unwrap_or_else(|why| panic!("{why}")).kill()
}

/// What the node driver of a node has said in the last seconds.
#[must_use]
pub fn driver_log(node: &str, seconds: u64) -> String {
    let list =
        ["-n", "vivarium-system", "get", "pods", "-o", "name", "--field-selector", &format!("spec.nodeName={node}")];
    let pods = kubectl_ok(&list);
    let pod = pods.lines().find(|pod| pod.contains("vivarium-node")).expect("a node driver");
    kubectl_ok(&["-n", "vivarium-system", "logs", pod, "--all-containers", &format!("--since={seconds}s")])
}

/// What was measured of one cut or many.
#[derive(Default)]
pub struct Figures {
    answered: Vec<Duration>,
    silent: Vec<Duration>,
    windows: Vec<Duration>,
    lost: u64,
}

impl Figures {
    /// Of the outages after an instant.
    #[must_use]
    pub fn of(cut: u64, outages: &[Outage]) -> Self {
        let mut figures = Self::default();
        figures.add(cut, outages);
        figures
    }

    /// Takes more in.
    pub fn add(&mut self, cut: u64, outages: &[Outage]) {
        self.answered.extend(outages.iter().map(|outage| outage.since(cut)));
        self.silent.extend(outages.iter().map(Outage::silent));
        self.windows.extend(outages.iter().map(|outage| outage.window));
        self.lost = outages.iter().map(|outage| outage.lost).fold(self.lost, u64::max);
        for times in [&mut self.answered, &mut self.silent, &mut self.windows] {
            times.sort_unstable();
        }
    }

    /// From the cut to the first answer, in 99 of 100 cases.
    #[must_use]
    pub fn p99(&self) -> Duration {
        share(&self.answered, 99)
    }

    /// The longest that one took.
    #[must_use]
    pub fn longest(&self) -> Duration {
        share(&self.answered, 100)
    }

    /// In one line.
    #[must_use]
    pub fn told(&self) -> String {
        let three = |times: &[Duration]| {
            let [half, most, all] = [50, 99, 100].map(|percent| share(times, percent).as_secs_f32());
            format!("P50 {half:.1} s, P99 {most:.1} s, max {all:.1} s")
        };
        format!(
            "from the cut to the first answer: {}; silent: {}; lost before the last word: {}, at most {} writes ({} outages)",
            three(&self.answered),
            three(&self.silent),
            three(&self.windows),
            self.lost,
            self.answered.len()
        )
    }
}

/// The smallest of sorted values that so many percent do not exceed (nearest rank).
fn share(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn shares_are_of_nearest_rank() {
        let hundred: Vec<_> = (1..=100).map(seconds).collect();
        assert_eq!([50, 99, 100].map(|percent| share(&hundred, percent)), [50, 99, 100].map(seconds));
        assert_eq!(share(&hundred[..10], 99), seconds(10));
        assert_eq!(share(&[], 99), Duration::ZERO);
    }

    #[test]
    fn a_promise_is_broken_by_what_is_older() {
        let outage = |lost, window| Outage { last: 0, answered: 1, lost, window };
        for allowance in [Duration::ZERO, ALLOWANCE] {
            let limit = RPO + allowance;
            for (promise, lost, window, kept) in [
                (Promise::Nothing, 0, Duration::ZERO, true),
                (Promise::Nothing, 1, Duration::ZERO, false),
                (Promise::Dead, 50, limit, true),
                (Promise::Dead, 51, limit + Duration::from_millis(1), false),
                (Promise::Hindered(seconds(9)), 110, limit + seconds(9), true),
                (Promise::Isolated, 90, limit + LEASE, true),
                (Promise::Isolated, 91, limit + LEASE + Duration::from_millis(1), false),
            ] {
                let broken = promise.broken_by(&outage(lost, window), allowance);
                assert_eq!(broken.is_none(), kept, "{promise:?} {lost} {window:?} {allowance:?}");
            }
        }
    }

    #[test]
    fn figures_are_from_the_cut() {
        let outage = |last, answered| Outage { last, answered, lost: 3, window: seconds(1) };
        let mut figures = Figures::of(1000, &[outage(1500, 13_000)]);
        figures.add(2000, &[outage(1900, 12_000)]);
        assert_eq!((figures.p99(), figures.longest()), (seconds(12), seconds(12)));
        assert!(
            figures.told().contains("silent: P50 10.1 s") && figures.told().contains("P50 10.0 s"),
            "{}",
            figures.told()
        );
    }
}
