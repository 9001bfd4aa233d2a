//! One replica acts: an election by a `Lease`, shorter than client-go's usual 15 s: when the leader dies with its node, the
//! next one leads before the time of that node is waited out, so that the failover of environments does not wait for it.
//! What to do next is [`step`], a pure function; [`run`] carries it out.
//!
//! A lease is coordination and no lock: two replicas can both believe that they lead for a moment. What must never
//! happen twice is guarded elsewhere (names of pods, preconditions of writes, holder of a volume).

use std::future::Future;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

/// Name of the lease, in the namespace that Vivarium is installed in.
pub const LEASE: &str = "vivarium-operator";
/// How long others wait after the last renewal that they saw.
pub const DURATION: Duration = Duration::from_secs(6);
/// How long a leader that cannot renew goes on.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(4);
/// Time between renewals.
pub const RETRY: Duration = Duration::from_secs(1);
/// Time between two looks of who does not lead. A node that is drained takes the leader along, which then gives its lease
/// back, and the environments of that node wait for the next one.
pub const LOOK: Duration = Duration::from_millis(250);

/// What this replica knows of the lease.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Name of this replica.
    pub identity: String,
    /// The record as it was last seen, and when on this replica's clock it was seen to change. The clocks of others
    /// are not trusted.
    observed: Option<(Record, Timestamp)>,
    /// When this replica's own renewal last succeeded.
    renewed: Option<Timestamp>,
}

/// The part of a lease that an election looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who leads; none after a release.
    pub holder: Option<String>,
    /// Changes with every renewal.
    pub renew_time: Option<Timestamp>,
    /// How long the holder asked others to wait.
    pub duration: SignedDuration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the lease as its holder: to become leader (`transition`) or to stay it.
    Write {
        /// Whether the lease changes hands.
        transition: bool,
    },
    /// Somebody else leads: look again later.
    Wait,
    /// This replica led and must stop now: it was superseded, or it could not renew in time.
    Lost,
}

impl State {
    /// A replica that knows nothing yet.
    #[must_use]
    pub fn new(identity: &str) -> Self {
        Self { identity: identity.into(), observed: None, renewed: None }
    }

    /// Whether this replica holds the lease as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.renewed.is_some()
    }

    /// Notes that a write as holder succeeded; `at` is when it was sent.
    pub fn wrote(&mut self, at: Timestamp) {
        self.renewed = Some(at);
    }
}

/// Decides. `lease` is what was just read (`None`: there is no such lease), `Err` when it could not be read.
#[must_use]
pub fn step(state: &mut State, lease: Result<Option<&Record>, ()>, now: Timestamp) -> Step {
    let in_time = |since: Timestamp| now.duration_since(since) < signed(RENEW_DEADLINE);
    let Ok(record) = lease else {
        return match state.renewed {
            Some(since) if !in_time(since) => Step::Lost,
            _ => Step::Wait,
        };
    };
    let Some(record) = record else { return Step::Write { transition: true } };
    let since = match &state.observed {
        Some((seen, since)) if seen == record => *since,
        _ => {
            state.observed = Some((record.clone(), now));
            now
        }
    };
    let mine = record.holder.as_deref() == Some(state.identity.as_str());
    match (mine, state.renewed) {
        (false, Some(_)) => Step::Lost,
        (true, Some(renewed)) if !in_time(renewed) => Step::Lost,
        // Also after a restart under the same name: the former process of that name is gone.
        (true, _) => Step::Write { transition: false },
        (false, None) if record.holder.as_deref().unwrap_or_default().is_empty() => Step::Write { transition: true },
        (false, None) if now.duration_since(since) >= record.duration => Step::Write { transition: true },
        (false, None) => Step::Wait,
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Why a replica stopped leading.
#[derive(Debug, thiserror::Error)]
#[error("replica {identity} lost the lease {LEASE}: it was taken over, or could not be renewed within {} s; the process ends so that it starts clean", RENEW_DEADLINE.as_secs())]
pub struct Lost {
    identity: String,
}

/// Takes part in the election until `stop` resolves (then the lease is released) or leadership is lost. `leads` becomes
/// true when this replica leads.
pub async fn run(
    client: Client,
    namespace: &str,
    identity: &str,
    leads: watch::Sender<bool>,
    stop: impl Future<Output = ()>,
) -> Result<(), Lost> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut state = State::new(identity);
    tokio::pin!(stop);
    loop {
        let begin = Instant::now();
        let tried = tokio::time::timeout(RENEW_DEADLINE / 2, attempt(&api, &mut state)).await;
        let outcome = tried.unwrap_or_else(|_| {
            tracing::warn!(
                "the lease {LEASE} could not be read or written within {} s",
                (RENEW_DEADLINE / 2).as_secs()
            );
            step(&mut state, Err(()), Timestamp::now())
        });
        if outcome == Step::Lost {
            return Err(Lost { identity: identity.into() });
        }
        leads.send_if_modified(|led| std::mem::replace(led, state.leads()) != state.leads());
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep_until(begin + if state.leads() { RETRY } else { LOOK }) => {}
        }
    }
    if state.leads() {
        release(&api, &state).await;
    }
    Ok(())
}

/// One round: read, decide, write.
async fn attempt(api: &Api<Lease>, state: &mut State) -> Step {
    let now = Timestamp::now();
    let lease = match api.get_opt(LEASE).await {
        Ok(lease) => lease,
        Err(error) => {
            tracing::warn!(%error, "the lease {LEASE} cannot be read");
            return step(state, Err(()), now);
        }
    };
    let outcome = step(state, Ok(lease.as_ref().map(record).as_ref()), now);
    if let Step::Write { transition } = outcome {
        let wanted = renewed(lease, &state.identity, now, transition);
        let written = match &wanted.metadata.resource_version {
            Some(_) => api.replace(LEASE, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Ok(_) => {
                if transition {
                    tracing::info!(identity = state.identity, "leads now");
                }
                state.wrote(now);
            }
            // A conflict means that somebody else wrote: the next round sees who.
            Err(error) => {
                tracing::debug!(%error, "the lease {LEASE} was not written");
                return step(state, Err(()), Timestamp::now());
            }
        }
    }
    outcome
}

async fn release(api: &Api<Lease>, state: &State) {
    let Ok(Some(mut lease)) = api.get_opt(LEASE).await else { return };
    let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&state.identity)) else {
        return;
    };
    spec.holder_identity = None;
    match api.replace(LEASE, &PostParams::default(), &lease).await {
        Ok(_) => tracing::info!("the lease {LEASE} is released"),
        Err(error) => tracing::warn!(%error, "the lease {LEASE} could not be released; it expires by itself"),
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.filter(|s| *s > 0);
    Record {
        holder: spec.holder_identity,
        renew_time: spec.renew_time.map(|t| t.0),
        duration: seconds.map_or(signed(DURATION), |s| SignedDuration::from_secs(s.into())),
    }
}

fn renewed(lease: Option<Lease>, identity: &str, now: Timestamp, transition: bool) -> Lease {
    let mut lease = lease.unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(LEASE.into()), ..ObjectMeta::default() },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(identity.into());
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    if transition {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n.saturating_add(1)));
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000 + second).unwrap()
    }

    fn held_by(holder: &str, renewed: i64) -> Record {
        let holder = Some(holder.to_owned()).filter(|h| !h.is_empty());
        Record { holder, renew_time: Some(at(renewed)), duration: SignedDuration::from_secs(15) }
    }

    #[test]
    fn a_lease_that_is_missing_or_released_is_taken() {
        assert_eq!(step(&mut State::new("a"), Ok(None), at(0)), Step::Write { transition: true });
        assert_eq!(step(&mut State::new("a"), Ok(Some(&held_by("", 0))), at(0)), Step::Write { transition: true });
    }

    #[test]
    fn a_foreign_lease_is_taken_only_after_it_stood_still_for_its_duration_on_the_own_clock() {
        let mut state = State::new("b");
        // Its time stamp is old, but this replica has only just begun to look.
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", -500))), at(0)), Step::Wait);
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", -500))), at(14)), Step::Wait);
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", 14))), at(15)), Step::Wait);
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", 14))), at(29)), Step::Wait);
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", 14))), at(30)), Step::Write { transition: true });
    }

    #[test]
    fn a_leader_renews_and_stops_when_it_is_superseded() {
        let mut state = State::new("a");
        state.wrote(at(0));
        assert_eq!(step(&mut state, Ok(Some(&held_by("a", 0))), at(2)), Step::Write { transition: false });
        assert_eq!(step(&mut state, Ok(Some(&held_by("b", 3))), at(4)), Step::Lost);
    }

    #[test]
    fn a_leader_that_cannot_renew_gives_up_before_others_take_over() {
        let mut state = State::new("a");
        state.wrote(at(0));
        assert_eq!(step(&mut state, Err(()), at(3)), Step::Wait);
        assert_eq!(step(&mut state, Err(()), at(4)), Step::Lost);
        assert!(RENEW_DEADLINE < DURATION);
    }

    #[test]
    fn a_replica_that_never_led_waits_for_the_api_server() {
        assert_eq!(step(&mut State::new("a"), Err(()), at(1_000)), Step::Wait);
    }

    #[test]
    fn a_restarted_process_of_the_same_name_goes_on() {
        assert_eq!(step(&mut State::new("a"), Ok(Some(&held_by("a", 0))), at(1)), Step::Write { transition: false });
    }
}
