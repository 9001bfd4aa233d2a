//! Holds an environment to the lease of its node (rule 2 of the ownership protocol): it stands still once the lease has
//! lapsed, goes on when it is renewed, and is killed when the session that it was started under is over, because another
//! node may have its volume then. What it has sent stands still and goes on with it.

use std::sync::Arc;

use vivarium_api::node::stage::StageRecord;

use super::freezer::Freezer;
use super::guest::{Guest, Standing};
use crate::cgroup::Group;
use crate::environment::egress::Egress;
use crate::environment::lease::{Lease, Permit};
use crate::error::{Error, Result};

/// The lease of a volume, if it has one, while it permits an environment to run.
pub(super) fn of(record: &StageRecord) -> Result<Option<Lease>> {
    let Some(name) = &record.lease else { return Ok(None) };
    let lease = Lease::open(name, &record.session)?;
    match lease.look()? {
        Permit::Run { .. } => Ok(Some(lease)),
        Permit::Freeze => Err(Error::Refused(
            "the node has heard neither from the API server nor from the store of the environment's journal for too \
             long, so that another node may be about to take the environment over; it can start when either answers"
                .into(),
        )),
        Permit::End => Err(Error::Refused(format!(
            "the session {} of the node driver, which published volume {}, is over; the environment is started anew by \
             the operator",
            record.session, record.volume_id
        ))),
    }
}

/// Follows the lease until the environment is killed for it, or this is dropped.
pub(super) async fn follow(lease: Lease, guest: Arc<Guest>, freezer: Arc<Freezer>, group: Group, egress: Egress) {
    loop {
        let permit = lease.look().unwrap_or_else(|error| {
            log::error!("{error} The environment is halted.");
            Permit::Freeze
        });
        let waited = match permit {
            Permit::Run { until } => match resume(&guest, &freezer, &egress).await {
                Ok(()) => lease.wait(Some(until)).await,
                Err(error) => Err(error),
            },
            Permit::Freeze => {
                let news = guest.standing.send_replace(Standing::Halted) != Standing::Halted;
                let halted = freezer.halt(true).await;
                if news {
                    log::warn!("the lease has lapsed: the environment is halted");
                    // It stands still, which is what counts.
                    stop(&egress, true).await.unwrap_or_else(|error| log::error!("{error}"));
                }
                match halted {
                    Ok(()) => lease.wait(None).await,
                    Err(error) => Err(error),
                }
            }
            Permit::End => {
                log::warn!("the session of the node driver is over: the environment is killed");
                end(&guest, &group, &egress).await;
                return;
            }
        };
        // What cannot be halted must not go on.
        if let Err(error) = waited {
            log::error!("{error} The environment is killed, because it cannot be held to its lease.");
            end(&guest, &group, &egress).await;
            return;
        }
    }
}

async fn resume(guest: &Guest, freezer: &Freezer, egress: &Egress) -> Result<()> {
    if *guest.standing.borrow() == Standing::Halted {
        stop(egress, false).await?;
        freezer.halt(false).await?;
        log::info!("the lease is renewed: the environment goes on");
    }
    guest.standing.send_replace(Standing::Running);
    Ok(())
}

async fn stop(egress: &Egress, stopped: bool) -> Result<()> {
    let egress = egress.clone();
    tokio::task::spawn_blocking(move || egress.stop(stopped)).await.map_err(|error| {
        Error::Failed(format!("What the environment sends was neither stopped nor resumed: {error}."))
    })?
}

async fn end(guest: &Guest, group: &Group, egress: &Egress) {
    guest.standing.send_replace(Standing::Over);
    stop(egress, true).await.unwrap_or_else(|error| log::error!("{error}"));
    loop {
        let group = group.clone();
        match tokio::task::spawn_blocking(move || group.kill()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => log::error!("{error}"),
            Err(error) => log::error!("the environment is not killed: {error}"),
        }
    }
}
