//! The node's `Lease`: says which session holds authority on this node, and is where the chart's uninstallation asks for
//! the runtime to be taken back.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Client, ResourceExt};
use vivarium_api::names;

use super::{ApiError, failed, is_conflict};

/// How often it is renewed, and for how long it speaks.
const RENEW: Duration = Duration::from_secs(10);
const DURATION_SECONDS: i32 = 40;
/// An API server that does not answer for so long does not answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const REQUESTED: &str = "requested";
const DONE: &str = "done";

/// Whose lease it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Name of the node.
    pub node: String,
    /// Session of this driver.
    pub session: String,
}

/// The lease as it should be, from what it is.
fn renewed(found: Option<Lease>, identity: &Identity, now: Timestamp) -> Lease {
    let mut lease = found.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(names::node_lease(&identity.node)),
            namespace: Some(identity.namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(identity.session.as_str()) {
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n + 1));
        spec.acquire_time = Some(MicroTime(now));
        spec.holder_identity = Some(identity.session.clone());
    }
    spec.lease_duration_seconds = Some(DURATION_SECONDS);
    spec.renew_time = Some(MicroTime(now));
    lease.annotations_mut().insert(names::ANNOTATION_SESSION.into(), identity.session.clone());
    lease
}

fn uninstall_is_requested(lease: &Lease) -> bool {
    lease.annotations().get(names::ANNOTATION_UNINSTALL).is_some_and(|value| value == REQUESTED)
}

/// Keeps the lease. `uninstall` is run when the annotation asks for it, and answered with `done` once it succeeded.
pub async fn keep<U>(client: Client, identity: Identity, uninstall: impl Fn() -> U)
where
    U: Future<Output = Result<(), String>>,
{
    let api: Api<Lease> = Api::namespaced(client, &identity.namespace);
    let name = names::node_lease(&identity.node);
    let changes = watch_object(api.clone(), &name).default_backoff();
    tokio::pin!(changes);
    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = renew.tick() => {
                let call = write(&api, &identity, &name, |lease| lease);
                if let Err(error) = in_time(call).await {
                    tracing::warn!(error, "the lease of the node is not renewed");
                }
            }
            change = changes.next() => match change {
                Some(Ok(Some(lease))) if uninstall_is_requested(&lease) => {
                    tracing::info!("the runtime is taken back: the chart is being uninstalled");
                    match uninstall().await {
                        Ok(()) => {
                            let done = |mut lease: Lease| {
                                lease.annotations_mut().insert(names::ANNOTATION_UNINSTALL.into(), DONE.into());
                                lease
                            };
                            if let Err(error) = in_time(write(&api, &identity, &name, done)).await {
                                tracing::error!(error, "the runtime is taken back, but that cannot be told");
                            }
                        }
                        Err(error) => tracing::error!(error, "the runtime cannot be taken back"),
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!(%error, "the lease of the node cannot be watched"),
                None => return,
            }
        }
    }
}

async fn in_time(call: impl Future<Output = Result<(), ApiError>>) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the API server does not answer".into()),
    }
}

/// Writes the lease from what it is now; what somebody else wrote in between is read and kept.
async fn write(
    api: &Api<Lease>,
    identity: &Identity,
    name: &str,
    change: impl Fn(Lease) -> Lease,
) -> Result<(), ApiError> {
    loop {
        let found = api.get_opt(name).await.map_err(failed("read", name))?;
        let fresh = found.is_none();
        let lease = change(renewed(found, identity, Timestamp::now()));
        let params = PostParams::default();
        let written = if fresh { api.create(&params, &lease).await } else { api.replace(name, &params, &lease).await };
        match written {
            Ok(_) => return Ok(()),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(failed("write", name)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(session: &str) -> Identity {
        Identity { namespace: "v".into(), node: "n1".into(), session: session.into() }
    }

    #[test]
    fn a_renewal_keeps_what_others_wrote_and_counts_sessions() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut lease = renewed(None, &identity("a"), at(1));
        assert_eq!(lease.name_any(), "vivarium-node-n1");
        lease.annotations_mut().insert(names::ANNOTATION_UNINSTALL.into(), REQUESTED.into());
        let lease = renewed(Some(lease), &identity("a"), at(2));
        assert!(uninstall_is_requested(&lease));
        let spec = lease.spec.clone().unwrap();
        assert_eq!(
            (spec.lease_transitions, spec.acquire_time, spec.renew_time),
            (Some(0), Some(MicroTime(at(1))), Some(MicroTime(at(2))))
        );
        let lease = renewed(Some(lease), &identity("b"), at(3));
        assert_eq!(lease.annotations()[names::ANNOTATION_SESSION], "b");
        let spec = lease.spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.holder_identity.as_deref()), (Some(1), Some("b")));
    }
}
