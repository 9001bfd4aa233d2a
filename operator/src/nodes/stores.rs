//! The stores of journals, as the operator needs them: for fences and beats. A store is opened when it is first needed and
//! kept; its object and its credentials are read again now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use vivarium_api::v1alpha1::JournalStore;
use vivarium_store::Store;
use vivarium_store::object::{self, StoreError};

use crate::error::brief;

/// How long a store is used before its object is read again.
const FRESH: Duration = Duration::from_secs(60);

/// A store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server does not say what it is.
    #[error("JournalStore {name} or its Secret cannot be read: {}", brief(.source))]
    Read {
        /// The store.
        name: String,
        /// Why not.
        source: kube::Error,
    },
    /// It is no store.
    #[error("JournalStore {name} cannot be opened: {source}")]
    Open {
        /// The store.
        name: String,
        /// Why not.
        source: StoreError,
    },
}

struct Opened {
    version: (Option<String>, Option<i64>, Option<String>),
    read: Instant,
    store: Arc<Store>,
}

/// Stores by name.
pub struct Stores {
    client: Client,
    namespace: String,
    opened: BTreeMap<String, Opened>,
}

impl Stores {
    /// None is open. The Secrets are in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.into(), opened: BTreeMap::new() }
    }

    /// The store of that name. While the API server does not answer, it is the one that was opened last.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&mut self, name: &str) -> Result<Arc<Store>, Error> {
        if let Some(opened) = self.opened.get(name).filter(|opened| opened.read.elapsed() < FRESH) {
            return Ok(opened.store.clone());
        }
        match self.read(name).await {
            Ok(store) => Ok(store),
            Err(error) => match self.opened.get(name) {
                Some(opened) => Ok(opened.store.clone()),
                None => Err(error),
            },
        }
    }

    async fn read(&mut self, name: &str) -> Result<Arc<Store>, Error> {
        let failed = |source| Error::Read { name: name.to_owned(), source };
        let object = Api::<JournalStore>::all(self.client.clone()).get(name).await.map_err(failed)?;
        let secret = match &object.spec.s3 {
            Some(s3) => {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
                secrets.get_opt(&s3.credentials_secret.name).await.map_err(failed)?
            }
            None => None,
        };
        let version =
            (object.uid(), object.metadata.generation, secret.as_ref().and_then(ResourceExt::resource_version));
        if let Some(opened) = self.opened.get_mut(name).filter(|opened| opened.version == version) {
            opened.read = Instant::now();
            return Ok(opened.store.clone());
        }
        let wrong = |source| Error::Open { name: name.to_owned(), source };
        let config = object::config(&object, secret.as_ref()).map_err(wrong)?;
        let opened = tokio::task::spawn_blocking(move || Store::open(&config)).await;
        let store = opened
            .map_err(|error| wrong(StoreError::Invalid(error.to_string())))?
            .map_err(|error| wrong(error.into()))?;
        let store = Arc::new(store);
        self.opened.insert(name.into(), Opened { version, read: Instant::now(), store: store.clone() });
        Ok(store)
    }

    /// Opens every store that several nodes can reach, so that none has to be opened while a node is dead.
    ///
    /// # Errors
    /// The API server does not list them. One that cannot be opened is left out.
    pub async fn open_shared(&mut self) -> Result<Vec<Arc<Store>>, kube::Error> {
        let all = Api::<JournalStore>::all(self.client.clone()).list(&ListParams::default()).await?;
        let mut shared = Vec::new();
        for name in all.iter().filter(|store| store.spec.s3.is_some()).map(ResourceExt::name_any) {
            match self.get(&name).await {
                Ok(store) => shared.push(store),
                Err(error) => tracing::warn!(%error, "no node whose journals are in it can be fenced"),
            }
        }
        Ok(shared)
    }
}
