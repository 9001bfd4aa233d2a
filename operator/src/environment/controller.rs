//! Runs the pipeline for one environment at a time: look at the caches; if anything is to be done, read afresh, do it,
//! and go on until nothing is left to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Requeue;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use vivarium_api::v1alpha1::environment::Phase;
use vivarium_api::v1alpha1::{VirtualEnvironment, VirtualEnvironmentStatus};

use super::apply::{self, Outcome};
use super::decision::{Action, Child, Decision};
use super::dereference;
use super::lifecycle::{Settings, decide};
use super::misunderstood;
use super::status::{Note, must_come_first, notes};
use super::validate;
use super::world::{Met, World};
use crate::cache::Caches;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::nodes::Known;

/// Rounds of read, decide, act in one go; a start takes five. What is left then is done in the next run.
const ROUNDS: u32 = 12;
/// Pause before a run that goes on where the last one stopped, at the latest.
const GO_ON: Duration = Duration::from_millis(200);
/// Pause after a failure of the API server.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Pause before an object that cannot be read is tried again.
const MISUNDERSTOOD_AGAIN: Duration = Duration::from_secs(30);
/// How often the Secrets of an environment that runs are looked for: the operator may read those that a spec names, and
/// watch none.
const SECRETS_EVERY: Duration = Duration::from_secs(60);

/// What every run needs.
pub struct Context {
    /// API server.
    pub client: Client,
    /// Caches of what is watched.
    pub caches: Caches,
    /// Given from outside.
    pub settings: Settings,
    /// Namespace that Vivarium is installed in.
    pub install_namespace: String,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What is known of nodes that are dead or may be.
    pub known: watch::Receiver<Known>,
    /// Whether this replica leads.
    pub leads: watch::Receiver<bool>,
}

impl Context {
    fn known(&self) -> Known {
        self.known.borrow().clone()
    }
}

/// A run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The world could not be read.
    #[error(transparent)]
    Read(#[from] dereference::Error),
    /// An action or the status could not be carried out.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// An object could not be built.
    #[error("cannot write the boot configuration of an environment as JSON: {0}")]
    Build(#[from] serde_json::Error),
}

impl Error {
    fn kind(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Apply(_) => "apply",
            Self::Build(_) => "build",
        }
    }
}

/// One run for one environment.
pub async fn reconcile(
    object: Arc<DeserializeGuard<VirtualEnvironment>>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    let begin = Instant::now();
    let done = match &object.0 {
        Ok(environment) => Box::pin(run(environment, &context)).await,
        Err(invalid) => {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let why = match misunderstood::read(&context.client, &namespace, &name).await {
                Ok(Some(raw)) => misunderstood::why(raw),
                Ok(None) => return Ok(Requeue::await_change()),
                // Which field it is, is not known then.
                Err(_) => Some(invalid.error.clone()),
            };
            if let Some(why) = why {
                tracing::warn!(namespace, name, error = why, "an environment cannot be read and is left alone");
                context.events.publish(object.as_ref(), &misunderstood::note(&why));
            }
            // A change of its status alone does not bring it here.
            Ok(Requeue::requeue(MISUNDERSTOOD_AGAIN))
        }
    };
    context.metrics.reconciled(begin.elapsed(), done.as_ref().err().map(Error::kind));
    done
}

/// What follows from a failed run.
#[allow(clippy::needless_pass_by_value, reason = "kube's Controller gives it by value")]
pub fn on_error(_object: Arc<DeserializeGuard<VirtualEnvironment>>, error: &Error, _context: Arc<Context>) -> Requeue {
    tracing::warn!("{error}");
    Requeue::requeue(AFTER_FAILURE)
}

async fn run(environment: &VirtualEnvironment, context: &Context) -> Result<Requeue, Error> {
    let cached = dereference::from_caches(
        &context.caches,
        Arc::new(environment.clone()),
        &context.install_namespace,
        context.known(),
    );
    let decision = decide(&cached, Timestamp::now(), &context.settings)?;
    if decision.actions.is_empty() && !changed(&cached, &decision.status) {
        let secrets = watch_secrets(context, &cached).await?;
        let again = decision.again.into_iter().chain(secrets).min();
        return Ok(again.map_or_else(Requeue::await_change, Requeue::requeue));
    }
    let (namespace, name) = (environment.namespace().unwrap_or_default(), environment.name_any());
    let mut met = Met::default();
    for _ in 0..ROUNDS {
        let read = dereference::from_server(
            &context.client,
            &context.caches,
            &namespace,
            &name,
            &context.install_namespace,
            context.known(),
        );
        let Some(mut world) = read.await? else { return Ok(Requeue::await_change()) };
        world.met = met.clone();
        let mut decision = decide(&world, Timestamp::now(), &context.settings)?;
        let prepares = decision.only_prepares();
        if !prepares {
            let asked = dereference::with_pods(&context.client, &context.caches, world, &context.install_namespace);
            world = asked.await?;
            decision = decide(&world, Timestamp::now(), &context.settings)?;
        }
        if decision.actions.is_empty() {
            write_status(context, &world, &decision.status).await?;
            return Ok(after(&decision));
        }
        if !prepares && must_come_first(world.environment.status.as_ref(), &decision.status) {
            write_status(context, &world, &decision.status).await?;
        }
        match act(context, &world, &decision).await {
            Ok(Some(Outcome::Taken)) => met.taken = decision.status.epoch.max(met.taken),
            Ok(Some(Outcome::PodRefused(why))) => met.pod_refused = Some(why),
            Ok(Some(Outcome::ResizeRefused(why))) => met.resize_refused = Some(why),
            Ok(Some(Outcome::NamespaceEnds)) => return Ok(Requeue::await_change()),
            Ok(None) if prepares && claims(&decision) => return Ok(Requeue::requeue(GO_ON)),
            Ok(_) => {}
            Err(error) => {
                // What was found out is told, also when it could not be carried out.
                write_status(context, &world, &decision.status).await?;
                return Err(error);
            }
        }
    }
    Ok(Requeue::requeue(GO_ON))
}

/// Whether a claim was made, which is bound in a moment, as its watch tells. Whatever else there is to tell can wait so long.
fn claims(decision: &Decision) -> bool {
    decision.actions.iter().any(|action| matches!(action, Action::Apply(Child::Claim(_))))
}

/// Tells of Secrets with authorized keys that are gone while the environment runs. When to look again.
async fn watch_secrets(context: &Context, cached: &World) -> Result<Option<Duration>, Error> {
    let phase = cached.environment.status.as_ref().and_then(|status| status.phase);
    if phase != Some(Phase::Running) || !validate::names_secrets(&cached.environment) {
        return Ok(None);
    }
    let secrets = dereference::secrets_of(&context.client, &cached.environment).await?;
    let world = World { secrets: Some(secrets), ..cached.clone() };
    if let Err(refusal) = validate::secrets(&world) {
        let note = Note::warning(refusal.reason, format!("{}. {KEYS_STAY}", refusal.message));
        context.events.publish(world.environment.as_ref(), &note);
    }
    Ok(Some(SECRETS_EVERY))
}

const KEYS_STAY: &str = "The environment keeps the keys that it had until its next start, which needs them";

/// Carries actions out until one finds the world changed.
async fn act(context: &Context, world: &World, decision: &Decision) -> Result<Option<Outcome>, Error> {
    for action in &decision.actions {
        context.metrics.acted(kind(action));
        tracing::debug!(environment = world.name(), action = kind(action), "acts");
        match apply::apply(&context.client, world, action).await? {
            Outcome::Done(note) => {
                if let Some(note) = note {
                    context.events.publish(world.environment.as_ref(), &note);
                }
            }
            other => return Ok(Some(other)),
        }
    }
    Ok(None)
}

async fn write_status(context: &Context, world: &World, status: &VirtualEnvironmentStatus) -> Result<(), Error> {
    if !changed(world, status) {
        return Ok(());
    }
    apply::status(&context.client, world, status).await?;
    context.metrics.wrote_status();
    context.metrics.proved(world.environment.status.as_ref(), status);
    let before = world.environment.status.as_ref().and_then(|status| status.last_failover.as_ref());
    if let Some(failover) = status.last_failover.as_ref().filter(|f| f.ready.is_some() && before != Some(*f)) {
        context.metrics.failed_over(failover);
    }
    for note in notes(world.environment.status.as_ref(), status) {
        context.events.publish(world.environment.as_ref(), &note);
    }
    Ok(())
}

/// Nothing is written that would change nothing.
fn changed(world: &World, status: &VirtualEnvironmentStatus) -> bool {
    world.environment.status.as_ref() != Some(status)
}

fn after(decision: &Decision) -> Requeue {
    decision.again.map_or_else(Requeue::await_change, Requeue::requeue)
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::AddFinalizer => "AddFinalizer",
        Action::RemoveFinalizer => "RemoveFinalizer",
        Action::CreateVolume(_) => "CreateVolume",
        Action::ReplaceVolume(..) => "ReplaceVolume",
        Action::ReplaceVolumeStatus(_) => "ReplaceVolumeStatus",
        Action::DeleteVolume(_) => "DeleteVolume",
        Action::Apply(_) => "Apply",
        Action::Delete(..) => "Delete",
        Action::CreatePod(_) => "CreatePod",
        Action::DeletePod(_) => "DeletePod",
        Action::RemovePod(_) => "RemovePod",
        Action::AwakenPod { .. } => "AwakenPod",
        Action::EndMove => "EndMove",
        Action::ResizePod { .. } => "ResizePod",
    }
}
