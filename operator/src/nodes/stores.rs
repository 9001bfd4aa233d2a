//! The stores of journals, as the operator needs them: for fences and beats. A store is opened once and kept;
//! its object and its credentials are read again now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use vivarium_api::v1alpha1::JournalStore;
use vivarium_store::Store;
use vivarium_store::object::{self, StoreError};

use crate::error::brief;

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
    version: (Option<String>, Option<i64>, Vec<Option<String>>),
    store: Arc<Store>,
}

/// Stores by name. Clones share them.
#[derive(Clone)]
pub struct Stores {
    client: Client,
    namespace: String,
    opened: Arc<Mutex<BTreeMap<String, Opened>>>,
}

impl Stores {
    /// None is open. The Secrets are in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.into(), opened: Arc::default() }
    }

    /// The store of that name, at once if it was opened before: [`Self::open_shared`] sees to it that it is as its object
    /// says.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, name: &str) -> Result<Arc<Store>, Error> {
        let opened = self.lock().get(name).map(|opened| opened.store.clone());
        match opened {
            Some(store) => Ok(store),
            None => self.open(name).await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, name: &str) -> Result<Arc<Store>, Error> {
        let failed = |source| Error::Read { name: name.to_owned(), source };
        let object = Api::<JournalStore>::all(self.client.clone()).get(name).await.map_err(failed)?;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secrets = object::Secrets::new();
        for secret in object::secrets(&object) {
            let found = api.get_opt(secret).await.map_err(failed)?;
            secrets.extend(found.map(|found| (secret.to_owned(), found)));
        }
        let versions = secrets.values().map(ResourceExt::resource_version).collect();
        let version = (object.uid(), object.metadata.generation, versions);
        if let Some(opened) = self.lock().get(name).filter(|opened| opened.version == version) {
            return Ok(opened.store.clone());
        }
        let wrong = |source| Error::Open { name: name.to_owned(), source };
        let config = object::config(&object, &secrets).map_err(wrong)?;
        let opened = tokio::task::spawn_blocking(move || Store::open(&config)).await;
        let store = opened
            .map_err(|error| wrong(StoreError::Invalid(error.to_string())))?
            .map_err(|error| wrong(error.into()))?;
        let store = Arc::new(store);
        self.lock().insert(name.into(), Opened { version, store: store.clone() });
        Ok(store)
    }

    /// Opens every store that several nodes can reach, anew if anything about it changed, so that none has to be opened
    /// while a node is dead.
    ///
    /// # Errors
    /// The API server does not list them. One that cannot be opened now is left out, or as it was before.
    pub async fn open_shared(&self) -> Result<Vec<Arc<Store>>, kube::Error> {
        let all = Api::<JournalStore>::all(self.client.clone()).list(&ListParams::default()).await?;
        let mut shared = Vec::new();
        for name in all.iter().filter(|store| store.spec.s3.is_some()).map(ResourceExt::name_any) {
            match self.open(&name).await {
                Ok(store) => shared.push(store),
                Err(error) => {
                    let former = self.lock().get(&name).map(|opened| opened.store.clone());
                    tracing::warn!(%error, former = former.is_some(), "a node whose journals are in it can hardly be fenced");
                    shared.extend(former);
                }
            }
        }
        Ok(shared)
    }
}
