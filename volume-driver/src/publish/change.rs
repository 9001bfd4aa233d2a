//! Taking the journal of a volume that runs here to the store that its object names.
//!
//! What is to be done next is decided by [`vivarium_ownership::change`], the parts are in [`crate::journal::change`]. An attempt
//! that fails is given up and begun anew, with another name for the log; nothing of what the environment wrote depends on
//! it. From the moment in which the doubt is on the disk there is no going back: the switch is repeated until the API server
//! has said how it ended, by this process or the next, and both do it in the same way.
//!
//! Leaves to others: a volume that nobody runs stays where it is until somebody does; and between stores of which one is a
//! directory of a node nothing is taken, since who runs on the volume would be bound by no lease, or by one that nobody asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition::{self, ConditionStatus};
use vivarium_api::v1alpha1::volume::{EnvironmentVolumeStatus, LeftLog, MOST_LEFT, VolumeLog};
use vivarium_ownership::change::{Change, Step};

use super::{Publisher, Refusal, blocking, layers};
use crate::directory::{DirectoryError, STORE_CURRENT, VolumeName};
use crate::ids::VolumeId;
use crate::journal::JournalError;
use crate::journal::change::{self, Doubt, Settled};
use crate::journal::keeper::Holding;
use crate::journal::local::Local;
use crate::journal::log::Log;
use crate::template::TemplateError;
use crate::volume::record::JournalRecord;

/// How long until another attempt, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_mins(2)];
/// How long until the API server is asked again how the switch ended.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether the environment is bound.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long that may take: a lease is renewed every second.
const BOUND_WITHIN: Duration = Duration::from_secs(15);
/// Transactions that may be left to be copied while nothing is committed.
const FEW: u64 = 3;

/// Why a journal is not taken to another store yet.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The volume, its journal or its object.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The next store gets no template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It is not there.
    #[error(
        "JournalStore `{0}`, which spec.store names, was not opened on this node yet: kubectl describe js {0} says more"
    )]
    NotReady(String),
    /// A directory of a node.
    #[error(
        "a journal is taken from one store that every node reaches to another such one only, and `{from}` or `{to}` is a directory of a node: set spec.store back to `{from}`"
    )]
    NotShared {
        /// The store that has it.
        from: String,
        /// The one that the spec names.
        to: String,
    },
    /// Too many logs cannot be deleted.
    #[error(
        "{MOST_LEFT} logs that were left are not deleted yet: it goes on once some of their stores answer, or their states are older than the retention time"
    )]
    TooManyLeft,
    /// There is no tree.
    #[error("nothing was written yet")]
    NothingYet,
    /// The object changed meanwhile.
    #[error("the object of the volume changes all the time")]
    Changed,
    /// The environment may outlast what the next store grants.
    #[error("JournalStore `{0}` has not answered whether this node may go on: it is waited for")]
    NotBound(String),
}

impl ChangeError {
    /// One word, for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refusal(Refusal::Journal(error)) => error.reason(),
            Self::Template(_) => "TemplateNotKept",
            Self::NotReady(_) | Self::NotBound(_) => "StoreNotReady",
            Self::NotShared { .. } => "StoreNotShared",
            Self::TooManyLeft => "TooManyLogs",
            Self::Refusal(_) | Self::NothingYet | Self::Changed => "ChangingStore",
        }
    }
}

impl From<JournalError> for ChangeError {
    fn from(error: JournalError) -> Self {
        Self::Refusal(error.into())
    }
}

impl From<DirectoryError> for ChangeError {
    fn from(error: DirectoryError) -> Self {
        Self::Refusal(error.into())
    }
}

/// What is taken where.
struct Task {
    name: VolumeName,
    id: VolumeId,
    epoch: u64,
    record: JournalRecord,
    to: String,
}

impl Publisher {
    /// Takes the journal of a volume that runs here to the store that its object names, in the background and until that is
    /// done or nobody wants it any more.
    pub fn change_store(self: &Arc<Self>, name: &VolumeName, id: &VolumeId) {
        let Some(alone) = self.changing.begin(id) else { return };
        let (this, name, id) = (self.clone(), name.clone(), id.clone());
        tokio::spawn(async move {
            let _alone = alone;
            let [mut pause, most] = AGAIN;
            loop {
                let error = match this.try_change(&name, &id).await {
                    // What became of it, the object says.
                    Ok(true) => continue,
                    Ok(false) => return,
                    Err(error) => error,
                };
                tracing::warn!(%error, volume = %name, "its journal is taken to another store later");
                if let Err(error) = this.tell_change(&name, &id, Err((error.reason(), error.to_string()))).await {
                    tracing::info!(%error, volume = %name, "what is in the way of that is told later");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(most);
            }
        });
    }

    async fn tell_change(
        &self,
        name: &VolumeName,
        id: &VolumeId,
        found: Result<(), (&'static str, String)>,
    ) -> Result<(), Refusal> {
        let object = self.object(name, id).await?;
        // Nothing is said of what never was to be changed.
        if found.is_ok() && !says_other_store(&object) {
            return Ok(());
        }
        Ok(self.directory.store_current(&object, found).await?)
    }

    /// Makes one attempt. `false`: nothing is to be done here.
    async fn try_change(&self, name: &VolumeName, id: &VolumeId) -> Result<bool, ChangeError> {
        let Some(task) = self.find_task(name, id).await? else { return Ok(false) };
        let from = task.record.store.clone();
        let message = format!("the journal is taken from JournalStore `{from}` to `{}`", task.to);
        self.tell_change(name, id, Err(("ChangingStore", message))).await?;
        self.change(&task).await?;
        tracing::info!(volume = %name, from, to = task.to, "the journal was taken to another store");
        Ok(true)
    }

    async fn find_task(&self, name: &VolumeName, id: &VolumeId) -> Result<Option<Task>, ChangeError> {
        let mut object = match self.object(name, id).await {
            Err(Refusal::NoObject { .. }) => return Ok(None),
            other => other?,
        };
        let (records, volume) = (self.records.clone(), id.clone());
        let Some(publication) = blocking(move || Ok(records.get(&volume)?)).await? else { return Ok(None) };
        let epoch = publication.stage.epoch;
        let Some(record) = publication.journal.filter(|_| holds(&object, &self.me.session, epoch)) else {
            return Ok(None);
        };
        let Some(to) = object.next_store().map(str::to_owned) else {
            if give_up(&mut object) && !self.directory.swap_status(&object).await? {
                return Err(ChangeError::Changed);
            }
            self.tell_change(name, id, Ok(())).await?;
            return Ok(None);
        };
        Ok(Some(Task { name: name.clone(), id: id.clone(), epoch, record, to }))
    }

    async fn change(&self, task: &Task) -> Result<(), ChangeError> {
        let Task { name, id, epoch, record, to } = task;
        let store = self.stores.get(to).ok_or_else(|| ChangeError::NotReady(to.clone()))?;
        let from_shared = self.stores.get(&record.store).is_none_or(|store| store.is_shared());
        if !store.is_shared() || !from_shared {
            return Err(ChangeError::NotShared { from: record.store.clone(), to: to.clone() });
        }
        let object = self.object(name, id).await?;
        // A node that has never had the template brings the volume back from the next store alone, too.
        self.templates.keep_in(&store, &object.spec.template.image, &layers(&object)?).await?;
        let former: BTreeSet<&str> = record.bound_by.iter().chain([&record.store]).map(String::as_str).collect();
        for former in &former {
            self.promises.also(former, to);
        }
        let mut change = Change::new(0);
        let mut next = None;
        let mut kept = None;
        let mut copied = 0;
        loop {
            match (change.step(), &next) {
                (Step::Claim, _) => {
                    let (log, number) = self.claim(task).await?;
                    next = Some(Log::named(id, &log.name, store.clone())?);
                    change.claimed(number);
                }
                (Step::Seed, Some(next)) => {
                    copied = self.keeper.seed(id, *epoch, next).await?.ok_or(ChangeError::NothingYet)?;
                    change.committed(copied);
                    change.seeded(copied);
                }
                (Step::Copy { number }, Some(next)) => {
                    copied = self.keeper.copy(id, *epoch, copied, next).await?;
                    change.committed(copied);
                    (number..=copied).for_each(|number| change.copied(number));
                }
                (Step::Hold, Some(next)) => {
                    let head = self.keeper.head(id, *epoch).await?;
                    if head > copied + FEW {
                        change.committed(head);
                        continue;
                    }
                    self.is_wanted(task).await?;
                    // No call of the kubelet finds the journal closed while it changes.
                    let alone = self.operations.own(id).await.ok_or_else(|| Refusal::Busy(id.clone()))?;
                    let mut holding = self.keeper.hold(id, *epoch).await?;
                    let last = holding.copy_rest(copied, next).await?;
                    change.hold(Some(last));
                    (copied + 1..=last).for_each(|number| change.copied(number));
                    copied = last;
                    kept = Some((holding, alone));
                }
                (Step::Bind, _) => {
                    self.bound(&former, to).await?;
                    change.bound();
                }
                (Step::Switch, Some(next)) => {
                    let Some((holding, _alone)) = kept.take() else { return Err(ChangeError::Changed) };
                    let log = VolumeLog { store: to.clone(), name: next.name().to_string() };
                    self.switch(task, holding, Doubt::new(*epoch, log, copied)).await;
                    change.switched();
                }
                (Step::Done, _) => return Ok(()),
                (_, None) | (Step::Lost, _) => return Err(ChangeError::Changed),
            }
        }
    }

    /// The object, if it still names the same store and incarnation.
    async fn is_wanted(&self, task: &Task) -> Result<EnvironmentVolume, ChangeError> {
        let object = self.object(&task.name, &task.id).await?;
        let wanted = object.next_store() == Some(&task.to) && holds(&object, &self.me.session, task.epoch);
        if wanted { Ok(object) } else { Err(ChangeError::Changed) }
    }

    /// Has the object name a log that nobody ever wrote to.
    async fn claim(&self, task: &Task) -> Result<(VolumeLog, u32), ChangeError> {
        let mut object = self.is_wanted(task).await?;
        give_up(&mut object);
        let status = object.status.get_or_insert_default();
        // The one that decides at present comes there as well.
        if status.left.len() >= MOST_LEFT {
            return Err(ChangeError::TooManyLeft);
        }
        status.logs += 1;
        let (number, to) = (status.logs, task.to.clone());
        let log = VolumeLog { store: to, name: format!("{}-{number}", task.id) };
        status.next_log = Some(log.clone());
        if !self.directory.swap_status(&object).await? {
            return Err(ChangeError::Changed);
        }
        Ok((log, number))
    }

    /// Binds what runs here by the stores that its journals are in, or may be in by now: what former processes promised was, and
    /// this has to come before the first promise of this one.
    ///
    /// # Errors
    /// The records cannot be read, or the pool fails.
    pub async fn bind_again(&self) -> Result<(), Refusal> {
        let records = self.records.clone();
        for (id, publication) in blocking(move || Ok(records.list()?)).await? {
            let Some(JournalRecord { store, bound_by, .. }) = &publication.journal else { continue };
            let next = self.doubt(&id).await?.map(|doubt| doubt.to.store);
            for former in bound_by.iter().chain(next.as_ref().map(|_| store)) {
                for other in next.iter().chain([store]) {
                    self.promises.also(former, other);
                }
            }
        }
        Ok(())
    }

    /// Waits until the environment is bound by what a store grants.
    async fn bound(&self, former: &BTreeSet<&str>, to: &str) -> Result<(), ChangeError> {
        let all = async {
            while !former.iter().all(|former| self.promises.is_bound(former, to)) || !self.promises.may_start(to) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(BOUND_WITHIN, all).await.map_err(|_| ChangeError::NotBound(to.to_owned()))
    }

    /// Has the object name the next log as the one that decides, and goes on with the journal in whichever does. Whoever calls
    /// this has the right to do something to the volume.
    async fn switch(&self, task: &Task, holding: Holding<'_>, doubt: Doubt) {
        if let Err(error) = holding.doubt(doubt).await {
            tracing::error!(%error, "the journal stays in its store");
        }
        while let Err(error) = self.resume_journal(&task.id).await {
            tracing::warn!(%error, volume = %task.name, "whether its journal is in another store is not known yet");
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Finds out which log decides, if that is in doubt. Whoever calls this has the right to do something to the volume.
    ///
    /// # Errors
    /// The API server does not answer, or the pool fails. It has to be called again.
    pub(super) async fn settle_doubt(&self, name: &VolumeName, id: &VolumeId) -> Result<Settled, Refusal> {
        let record = async |log: &VolumeLog| {
            let (records, id, log) = (self.records.clone(), id.clone(), log.clone());
            blocking(move || Ok(records.switched(&id, &log)?)).await
        };
        change::settle(&self.volumes, id, async |doubt| self.name_next(name, id, doubt).await, record).await
    }

    /// Has the object name the log that is in doubt, if the volume still is whose it was when the doubt began.
    async fn name_next(&self, name: &VolumeName, id: &VolumeId, doubt: &Doubt) -> Result<Settled, Refusal> {
        loop {
            let object = match self.object(name, id).await {
                Err(Refusal::NoObject { .. }) => return Ok(Settled::Over),
                other => other?,
            };
            if !holds(&object, &self.me.session, doubt.epoch) {
                return Ok(Settled::Over);
            }
            if object.log().as_ref() == Some(&doubt.to) {
                return Ok(Settled::Switched);
            }
            if object.status.as_ref().and_then(|status| status.next_log.as_ref()) != Some(&doubt.to) {
                return Ok(Settled::Stays);
            }
            if self.directory.swap_status(&switched(object, doubt)).await? {
                return Ok(Settled::Switched);
            }
        }
    }

    /// The log that may decide by now.
    pub(super) async fn doubt(&self, id: &VolumeId) -> Result<Option<Doubt>, Refusal> {
        let (volumes, id) = (self.volumes.clone(), id.clone());
        blocking(move || Ok(Local::doubt(&volumes, &id)?)).await
    }

    /// Has the object say which log decides, which it need not as long as there was one only: from then on another store can be
    /// named. Nothing if it does, or if the journal was never begun.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn name_log(&self, name: &VolumeName, id: &VolumeId) -> Result<(), Refusal> {
        let mut object = self.object(name, id).await?;
        let begun = object.status.as_ref().is_some_and(|status| status.journal.is_some() && status.log.is_none());
        let Some(log) = object.log().filter(|_| begun) else { return Ok(()) };
        object.status.get_or_insert_default().log = Some(log);
        // If somebody was faster, the object brings this here again.
        Ok(self.directory.swap_status(&object).await.map(drop)?)
    }
}

/// Whether a session has a volume under an epoch.
fn holds(object: &EnvironmentVolume, session: &str, epoch: u64) -> bool {
    let status = object.status.as_ref();
    status.is_some_and(|s| s.epoch == epoch && s.holder.as_ref().is_some_and(|holder| holder.session == session))
}

fn says_other_store(object: &EnvironmentVolume) -> bool {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, STORE_CURRENT).is_some_and(|found| found.status != ConditionStatus::True)
}

/// Leaves the log of an attempt that was given up, if there is one: from then on no object of that version can name it as the one
/// that decides, and what is in it is deleted.
fn give_up(object: &mut EnvironmentVolume) -> bool {
    let status = object.status.get_or_insert_default();
    let Some(next) = status.next_log.take() else { return false };
    leave(status, next, None);
    true
}

fn leave(status: &mut EnvironmentVolumeStatus, log: VolumeLog, last: Option<u64>) {
    let VolumeLog { store, name } = log;
    status.left.push(LeftLog { store, name, time: Time(Timestamp::now()), last });
}

/// The object with the log that was in doubt as the one that decides.
fn switched(mut object: EnvironmentVolume, doubt: &Doubt) -> EnvironmentVolume {
    let former = object.log();
    let status = object.status.get_or_insert_default();
    if let Some(former) = former {
        leave(status, former, Some(doubt.last));
    }
    status.log = Some(doubt.to.clone());
    status.next_log = None;
    object
}
