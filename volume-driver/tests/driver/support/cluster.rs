//! A cluster that holds one `EnvironmentVolume`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use vivarium_api::node::guest::PodReference;
use vivarium_api::v1alpha1::volume::{DigestStatus, Holder, RestoreProgress, SourceStatus, VolumeTemplate};
use vivarium_api::v1alpha1::{
    Condition, ConditionStatus, EnvironmentTemplate, EnvironmentVolume, EnvironmentVolumeSpec, EnvironmentVolumeStatus,
    condition,
};
use vivarium_node::claim::TemplateDirectory;
use vivarium_node::directory::{
    DirectoryError, Journaled, PUBLISHED, Published, STORE_CURRENT, VolumeDirectory, VolumeName,
};
use vivarium_node::ids::VolumeId;
use vivarium_node::journal::prove::Fingerprint;

#[derive(Clone)]
pub struct Cluster {
    /// Its one template, if it has one.
    pub template: Arc<Mutex<Option<EnvironmentTemplate>>>,
    object: watch::Sender<Option<EnvironmentVolume>>,
    pub reports: Arc<Mutex<Vec<Published>>>,
    /// Reasons of the condition `StoreCurrent`, as told.
    told: Arc<Mutex<Vec<&'static str>>>,
    /// UIDs of pods that were said to be prepared for.
    pub prepared: Arc<Mutex<Vec<String>>>,
    /// What becomes of writes that would have another log decide.
    pub switches: Switches,
}

/// What becomes of writes that would have another log decide.
#[derive(Clone, Default)]
pub struct Switches {
    blocked: Arc<AtomicBool>,
    unheard: Arc<AtomicBool>,
}

impl Switches {
    /// Whether they do not arrive.
    pub fn block(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::SeqCst);
    }

    /// They arrive again, and the answer to the next one is lost.
    pub fn lose_next_answer(&self) {
        self.unheard.store(true, Ordering::SeqCst);
        self.block(false);
    }
}

/// One more version of an object.
fn count(object: &mut EnvironmentVolume) {
    let version = object.metadata.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or(0_u64);
    object.metadata.resource_version = Some((version + 1).to_string());
}

impl Cluster {
    /// Object `team-a/shop` with the given uid, placed on n1 and held there at epoch 1.
    pub fn new(uid: &str, image: &str, layers: Vec<String>, size: &str) -> Self {
        let mut object = EnvironmentVolume::new(
            "shop",
            EnvironmentVolumeSpec {
                template: VolumeTemplate { name: "t".into(), image: image.into(), layers },
                size: Quantity(size.into()),
                environment: Some("shop".into()),
                store: None,
                source: None,
                restore: None,
                standby: 0,
            },
        );
        object.metadata.uid = Some(uid.into());
        object.metadata.namespace = Some("team-a".into());
        let cluster = Self {
            template: Arc::default(),
            object: watch::Sender::new(Some(object)),
            reports: Arc::default(),
            told: Arc::default(),
            prepared: Arc::default(),
            switches: Switches::default(),
        };
        cluster.give("n1", "s1", 1);
        cluster
    }

    pub fn change(&self, change: impl FnOnce(&mut EnvironmentVolume)) {
        self.object.send_modify(|object| {
            let object = object.as_mut().unwrap();
            change(object);
            count(object);
        });
    }

    pub fn status(&self, change: impl FnOnce(&mut EnvironmentVolumeStatus)) {
        self.change(|object| change(object.status.get_or_insert_default()));
    }

    pub fn give(&self, node: &str, session: &str, epoch: u64) {
        self.status(|status| {
            status.holder = Some(Holder { node: node.into(), session: session.into() });
            status.node = Some(node.into());
            status.epoch = epoch;
        });
    }

    pub fn object(&self) -> EnvironmentVolume {
        self.object.borrow().clone().unwrap()
    }

    /// Reasons of the condition `StoreCurrent`, as told.
    pub fn told(&self) -> Vec<&'static str> {
        self.told.lock().unwrap().clone()
    }

    /// Reasons of the condition `Published`, as reported.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.reports.lock().unwrap().iter().map(|report| report.reason).collect()
    }
}

#[async_trait]
impl VolumeDirectory for Cluster {
    async fn get(&self, volume: &VolumeName) -> Result<Option<EnvironmentVolume>, DirectoryError> {
        Ok(self.object.borrow().clone().filter(|_| volume.to_string() == "team-a/shop"))
    }

    async fn find(&self, namespace: &str, environment: &str) -> Result<Option<EnvironmentVolume>, DirectoryError> {
        self.get(&VolumeName { namespace: namespace.into(), name: environment.into() }).await
    }

    fn watch(&self, _: &VolumeName) -> BoxStream<'static, Result<Option<EnvironmentVolume>, DirectoryError>> {
        WatchStream::new(self.object.subscribe()).map(Ok).boxed()
    }

    async fn report(&self, _: &EnvironmentVolume, published: Published) -> Result<(), DirectoryError> {
        self.status(|status| {
            let condition = Condition {
                type_: PUBLISHED.into(),
                status: if published.published { ConditionStatus::True } else { ConditionStatus::False },
                observed_generation: None,
                last_transition_time: jiff::Timestamp::now(),
                reason: published.reason.into(),
                message: published.message.clone(),
            };
            condition::set(&mut status.conditions, condition);
        });
        self.reports.lock().unwrap().push(published);
        Ok(())
    }

    async fn journaled(&self, _: &VolumeName, _: &VolumeId, journaled: Journaled) -> Result<(), DirectoryError> {
        self.status(|status| {
            status.journal = journaled.journal.or(status.journal.take());
            status.released_epoch = journaled.released.unwrap_or(status.released_epoch);
            status.lag = journaled.lag;
        });
        Ok(())
    }

    async fn restore(&self, _: &EnvironmentVolume, progress: RestoreProgress) -> Result<(), DirectoryError> {
        self.status(|status| status.restore = Some(progress));
        Ok(())
    }

    async fn fingerprint(&self, _: &VolumeName, _: &VolumeId, found: Fingerprint) -> Result<(), DirectoryError> {
        self.status(|status| {
            status.digest = Some(DigestStatus {
                sequence: found.sequence,
                digest: found.digest.to_string(),
                time: Time(jiff::Timestamp::now()),
            });
        });
        Ok(())
    }

    async fn branched(&self, _: &EnvironmentVolume, source: SourceStatus) -> Result<(), DirectoryError> {
        self.status(|status| status.source = Some(source));
        Ok(())
    }

    async fn prepared(&self, _: &VolumeName, pod: &PodReference) -> Result<(), DirectoryError> {
        self.prepared.lock().unwrap().push(pod.uid.clone());
        Ok(())
    }

    async fn swap_status(&self, volume: &EnvironmentVolume) -> Result<bool, DirectoryError> {
        let no_answer = || DirectoryError {
            attempt: "write the status of",
            volume: VolumeName::parse("team-a/shop").unwrap(),
            message: "there was no answer".into(),
        };
        let log = |object: &EnvironmentVolume| object.status.as_ref().and_then(|status| status.log.clone());
        let switches = log(&self.object()).is_some_and(|former| log(volume) != Some(former));
        if switches && self.switches.blocked.load(Ordering::SeqCst) {
            return Err(no_answer());
        }
        let mut swapped = false;
        self.object.send_modify(|object| {
            let now = object.as_mut().unwrap();
            swapped = now.metadata.resource_version == volume.metadata.resource_version;
            if swapped {
                now.status.clone_from(&volume.status);
                count(now);
            }
        });
        if switches && self.switches.unheard.swap(false, Ordering::SeqCst) { Err(no_answer()) } else { Ok(swapped) }
    }

    async fn store_current(
        &self,
        _: &EnvironmentVolume,
        found: Result<(), (&'static str, String)>,
    ) -> Result<(), DirectoryError> {
        let reason = found.as_ref().err().map_or("Current", |(reason, _)| *reason);
        self.status(|status| {
            let condition = Condition {
                type_: STORE_CURRENT.into(),
                status: if found.is_ok() { ConditionStatus::True } else { ConditionStatus::False },
                observed_generation: None,
                last_transition_time: jiff::Timestamp::now(),
                reason: reason.into(),
                message: String::new(),
            };
            condition::set(&mut status.conditions, condition);
        });
        self.told.lock().unwrap().push(reason);
        Ok(())
    }
}

#[async_trait]
impl TemplateDirectory for Cluster {
    async fn template(&self, name: &str) -> Result<Option<EnvironmentTemplate>, String> {
        let template = self.template.lock().unwrap().clone();
        Ok(template.filter(|template| template.metadata.name.as_deref() == Some(name)))
    }
}
