//! `vivarium-operator run`: fills its caches, waits to become leader, acts from then on, and ends in order.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use vivarium_ownership::Timing;

use crate::environment::lifecycle;
use crate::error::Failure;
use crate::metrics::Metrics;
use crate::nodes::Known;
use crate::nodes::watch::Watch;
use crate::watches::{self, Role};
use crate::{health, leader};

/// What the command line says.
pub struct Settings {
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Image of an environment's container.
    pub stub_image: String,
    /// Address of /metrics and /healthz.
    pub metrics_addr: SocketAddr,
    /// Name of this replica.
    pub identity: String,
    /// Whether to take part in the election.
    pub leader_elect: bool,
    /// Times of the ownership protocol.
    pub timing: Timing,
}

/// Runs until SIGTERM or SIGINT, or until leadership is lost.
pub fn run(settings: Settings) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter(crate::log_filter()).with_writer(std::io::stderr).init();
    crate::runtime()?.block_on(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    let client = crate::client().await?;
    let metrics = Arc::new(Metrics::default());
    let listener = health::listen(settings.metrics_addr).await?;
    tokio::spawn(health::serve(listener, Arc::clone(&metrics)));
    let (stop, stopped) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ends: what is being done is finished first");
        stop.send_replace(true);
    });

    let (leads, led) = watch::channel(!settings.leader_elect);
    // The lease is released only after the controllers have ended.
    let (ended, mut has_ended) = watch::channel(false);
    let election = async {
        if !settings.leader_elect {
            drop(has_ended.wait_for(|ended| *ended).await);
            return Ok(());
        }
        let stop = async { drop(has_ended.wait_for(|ended| *ended).await) };
        leader::run(client.clone(), &settings.namespace, &settings.identity, leads, stop).await
    };
    // Whether or not this replica leads.
    let (told, known) = watch::channel(Known::default());
    tokio::spawn(Watch::new(client.clone(), &settings.namespace, settings.timing, told).run());
    let (mut begins, shown) = (led.clone(), Arc::clone(&metrics));
    tokio::spawn(async move {
        if begins.wait_for(|leads| *leads).await.is_ok() {
            shown.leads(true);
        }
    });
    let acting = async {
        let given = lifecycle::Settings { stub_image: settings.stub_image.clone() };
        let role = Role { identity: settings.identity.clone(), leads: led };
        watches::run(client.clone(), &settings.namespace, role, given, metrics, known, stopped).await;
        ended.send_replace(true);
    };
    tokio::pin!(election);
    tokio::select! {
        // Before the controllers have ended, the election ends only by loss.
        outcome = &mut election => outcome?,
        () = acting => election.await?,
    }
    Ok(())
}
