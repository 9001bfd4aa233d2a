//! The node's `Lease`: one of the two witnesses that this node lives, renewed every second by compare-and-swap, and where
//! somebody else marks the session as fenced. Also where the chart's uninstallation asks for the runtime to be taken back.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, FusedFuture};
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Client, ResourceExt};
use vivarium_api::lease::content;
use vivarium_api::names;
use vivarium_ownership::node;

use super::{ApiError, failed, is_conflict};
use crate::authority::{Promises, now};

/// From one renewal to the next.
const RENEW: Duration = Duration::from_secs(1);
/// An answer that comes later is of little use: a promise counts from the question. And if it is lost, there must be time
/// for another renewal before the node counts as silent.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Whose lease it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Name of the node.
    pub node: String,
    /// Whether the session is one that the `Lease` may already be of.
    pub resumed: bool,
}

/// Whether the node should say that it lives.
pub type IsWell = Arc<dyn Fn() -> bool + Send + Sync>;

/// The lease as it should be, from what it is.
fn renewed(found: Option<Lease>, identity: &Identity, wanted: &node::Lease, now: Timestamp) -> Lease {
    let mut lease = found.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(names::node_lease(&identity.node)),
            namespace: Some(identity.namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_ref() != Some(&wanted.session) {
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n + 1));
        spec.acquire_time = Some(MicroTime(now));
        spec.holder_identity = Some(wanted.session.clone());
    }
    spec.lease_duration_seconds = Some(i32::try_from(wanted.duration.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(MicroTime(now));
    lease.annotations_mut().insert(names::ANNOTATION_SESSION.into(), wanted.session.clone());
    lease.annotations_mut().insert(names::ANNOTATION_RENEWED.into(), wanted.renewed.to_string());
    lease
}

/// What the chart's uninstallation wants of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uninstall {
    /// To know whether the runtime could be taken back.
    Check,
    /// To take it back.
    Remove,
}

impl Uninstall {
    fn wanted(lease: &Lease) -> Option<Self> {
        match lease.annotations().get(names::ANNOTATION_UNINSTALL)?.as_str() {
            names::uninstall::CHECK => Some(Self::Check),
            names::uninstall::REQUESTED => Some(Self::Remove),
            _ => None,
        }
    }

    /// The question and the answer to it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Check => (names::uninstall::CHECK, names::uninstall::READY),
            Self::Remove => (names::uninstall::REQUESTED, names::uninstall::DONE),
        }
    }
}

/// What renews.
struct Renewal {
    api: Api<Lease>,
    name: String,
    identity: Identity,
    promises: Arc<Promises>,
    is_well: IsWell,
    /// The lease as it was read or written last; none: it has to be read.
    known: Option<Lease>,
    /// The lease is of this session, so that another one in it is the end of this.
    established: bool,
}

impl Renewal {
    /// One renewal. Nothing but an acknowledged compare-and-swap counts.
    async fn renew(&mut self) -> Result<(), ApiError> {
        let known = match self.known.take() {
            Some(known) => Some(known),
            None => self.api.get_opt(&self.name).await.map_err(failed("read", &self.name))?,
        };
        if let Some(known) = known.as_ref().filter(|_| self.established) {
            self.promises.saw(&content(known));
        }
        if self.promises.is_over() {
            // Whoever watches has to see that nobody renews it.
            return std::future::pending().await;
        }
        let (sent, wanted) = (now(), self.promises.lease());
        let fresh = known.is_none();
        let lease = renewed(known, &self.identity, &wanted, Timestamp::now());
        let params = PostParams::default();
        let written = if fresh {
            self.api.create(&params, &lease).await
        } else {
            self.api.replace(&self.name, &params, &lease).await
        };
        match written {
            Ok(written) => {
                self.established = true;
                self.promises.renewed(sent, &content(&written));
                self.known = Some(written);
                Ok(())
            }
            // Somebody else wrote, or an answer was lost: it is read again at once.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(failed("write", &self.name)(error)),
        }
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !(self.is_well)() {
                continue;
            }
            // A conflict needs a second round, and two in a row are rare.
            for _ in 0..3 {
                let renewed = tokio::time::timeout(TIMEOUT, self.renew()).await;
                match renewed {
                    Ok(Ok(())) if self.known.is_some() => break,
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the lease of the node is not renewed");
                        break;
                    }
                    Err(_) => {
                        tracing::warn!("the lease of the node is not renewed yet: the API server does not answer");
                    }
                }
            }
        }
    }
}

/// Keeps the lease while the node is well. `uninstall` is run when the annotation asks for it, and answered once it
/// succeeded.
pub async fn keep<U>(
    client: Client,
    identity: Identity,
    promises: Arc<Promises>,
    is_well: IsWell,
    uninstall: impl Fn(Uninstall) -> U,
) where
    U: Future<Output = Result<(), String>>,
{
    let api: Api<Lease> = Api::namespaced(client, &identity.namespace);
    let name = names::node_lease(&identity.node);
    let renewal = Renewal {
        api: api.clone(),
        name: name.clone(),
        established: identity.resumed,
        identity,
        promises: promises.clone(),
        is_well,
        known: None,
    };
    let changes = watch_object(api.clone(), &name).default_backoff();
    tokio::select! {
        () = renewal.run() => {}
        () = follow(changes, &promises, |wanted| answer(&api, &name, wanted, uninstall(wanted))) => {}
    }
}

/// Sees what others write into the lease. `uninstall` does what the chart wants.
async fn follow<U, E>(
    changes: impl Stream<Item = Result<Option<Lease>, E>>,
    promises: &Promises,
    uninstall: impl Fn(Uninstall) -> U,
) where
    U: Future<Output = ()>,
    E: std::fmt::Display,
{
    tokio::pin!(changes);
    // It can take minutes, in which marks of a fence have to be seen all the same. One at a time.
    let work = future::Fuse::terminated();
    tokio::pin!(work);
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = &mut work => continue,
        };
        let lease = match change {
            Some(Ok(Some(lease))) => lease,
            Some(Ok(None)) => continue,
            Some(Err(error)) => {
                tracing::warn!(%error, "the lease of the node cannot be watched");
                continue;
            }
            None => return,
        };
        let content = content(&lease);
        // What a watch tells may be older than this session. Its own mark is enough to act at once; whether the lease is of
        // another session by now, the next renewal finds out.
        if content.session == promises.session() {
            promises.saw(&content);
        }
        if let Some(wanted) = Uninstall::wanted(&lease).filter(|_| work.is_terminated()) {
            work.set(uninstall(wanted).fuse());
        }
    }
}

/// Waits for what the chart wanted, and tells it.
async fn answer(api: &Api<Lease>, name: &str, wanted: Uninstall, done: impl Future<Output = Result<(), String>>) {
    tracing::info!(?wanted, "the chart is being uninstalled");
    match done.await {
        Ok(()) => match tokio::time::timeout(TIMEOUT, tell(api, name, wanted)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, ?wanted, "it is done, but that cannot be told"),
            Err(_) => tracing::error!(?wanted, "it is done, but the API server does not answer"),
        },
        Err(error) => tracing::error!(error, ?wanted, "the runtime cannot be taken back"),
    }
}

/// Answers the chart, if it still asks. What somebody else wrote in between is read and kept.
async fn tell(api: &Api<Lease>, name: &str, wanted: Uninstall) -> Result<(), ApiError> {
    let (question, answer) = wanted.words();
    loop {
        let mut lease = api.get(name).await.map_err(failed("read", name))?;
        match lease.annotations_mut().get_mut(names::ANNOTATION_UNINSTALL) {
            Some(said) if said == question => *said = answer.into(),
            _ => return Ok(()),
        }
        match api.replace(name, &PostParams::default(), &lease).await {
            Ok(_) => return Ok(()),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(failed("write", name)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { namespace: "v".into(), node: "n1".into(), resumed: false }
    }

    fn wanted(session: &str) -> node::Lease {
        node::Lease { session: session.into(), duration: Duration::from_secs(4), fenced: false, renewed: 17 }
    }

    #[test]
    fn a_renewal_keeps_what_others_wrote_and_counts_sessions() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut lease = renewed(None, &identity(), &wanted("a"), at(1));
        assert_eq!(lease.name_any(), "vivarium-node-n1");
        assert_eq!(content(&lease), wanted("a"));
        lease.annotations_mut().insert(names::ANNOTATION_UNINSTALL.into(), "requested".into());
        let lease = renewed(Some(lease), &identity(), &wanted("a"), at(2));
        assert_eq!(Uninstall::wanted(&lease), Some(Uninstall::Remove));
        let spec = lease.spec.clone().unwrap();
        assert_eq!(
            (spec.lease_transitions, spec.acquire_time, spec.renew_time),
            (Some(0), Some(MicroTime(at(1))), Some(MicroTime(at(2))))
        );
        let lease = renewed(Some(lease), &identity(), &wanted("b"), at(3));
        assert_eq!(lease.annotations()[names::ANNOTATION_SESSION], "b");
        let spec = lease.spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.holder_identity.as_deref()), (Some(1), Some("b")));
    }

    #[test]
    fn the_mark_of_a_fence_is_of_one_session() {
        let mut lease = renewed(None, &identity(), &wanted("a"), Timestamp::UNIX_EPOCH);
        lease.annotations_mut().insert(names::ANNOTATION_FENCED.into(), "a".into());
        assert!(content(&lease).fenced);
        let next = renewed(Some(lease), &identity(), &wanted("b"), Timestamp::UNIX_EPOCH);
        assert!(!content(&next).fenced, "the next session is not the one that was fenced");
    }

    #[tokio::test]
    async fn a_fence_is_seen_while_the_runtime_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let leases = crate::authority::published::Leases::open(dir.path(), "a", "b").unwrap();
        let promises = Promises::open(vivarium_ownership::Timing::default(), "a", leases).unwrap();
        let asked = renewed(None, &identity(), &wanted("a"), Timestamp::UNIX_EPOCH);
        let with = |annotation: &str, value: &str| {
            let mut lease = asked.clone();
            lease.annotations_mut().insert(annotation.into(), value.into());
            Ok::<_, std::io::Error>(Some(lease))
        };
        let changes = futures::stream::iter([
            with(names::ANNOTATION_UNINSTALL, names::uninstall::REQUESTED),
            with(names::ANNOTATION_FENCED, "a"),
        ]);
        let begun = std::cell::Cell::new(None);
        let takes_long = |wanted| {
            begun.set(Some(wanted));
            future::pending()
        };
        tokio::time::timeout(Duration::from_secs(5), follow(changes, &promises, takes_long)).await.unwrap();
        assert_eq!(begun.get(), Some(Uninstall::Remove));
        assert!(promises.is_over());
    }
}
