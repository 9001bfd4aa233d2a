//! The stores as witnesses (rules 3 and 5): each is asked every second whether this session was fenced in it, and gets a
//! sign of life when the API server does not hear of the node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use vivarium_store::{Key, Name, Prefix, Source, Store};

use super::{Promises, now};
use crate::kube::lease::IsWell;
use crate::kube::stores::Stores;

/// From one question to the next.
const PACE: Duration = Duration::from_secs(1);
/// An answer that comes later is of little use: a promise counts from the question.
const PATIENCE: Duration = Duration::from_secs(2);
/// Beats that are left in the store: one is enough for whoever looks, and who lists may see old ones longer.
const BEATS: u64 = 3;

/// Asks all stores that are in use, for ever, while the node is well.
pub async fn ask(promises: Arc<Promises>, stores: Stores, is_well: IsWell) {
    let Ok(session) = Name::new(promises.session()) else {
        tracing::error!(
            session = promises.session(),
            "the session cannot be the name of an object: stores are not asked"
        );
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval(PACE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked: HashMap<String, JoinSet<()>> = HashMap::new();
    loop {
        tick.tick().await;
        if !is_well() {
            continue;
        }
        for name in promises.stores() {
            let Some(store) = stores.get(&name).filter(|store| store.is_shared()) else { continue };
            let tasks = asked.entry(name).or_default();
            while tasks.try_join_next().is_some() {}
            // One question more than the patience allows for: a store that hangs is not flooded.
            if tasks.len() > 2 {
                continue;
            }
            tasks.spawn(ask_one(promises.clone(), store.clone(), session.clone()));
            if promises.beat_is_due() {
                tasks.spawn(beat(store, session.clone()));
            }
        }
    }
}

async fn ask_one(promises: Arc<Promises>, store: Arc<Store>, session: Name) {
    let sent = now();
    match store.exists(&Key::Fence { session }, Instant::now() + PATIENCE).await {
        Ok(false) => promises.not_fenced(store.name(), sent),
        Ok(true) => {
            tracing::error!(store = store.name(), "this session was fenced: another node takes its volumes over");
            promises.fenced();
        }
        Err(error) => tracing::warn!(%error, "a store does not say whether this session was fenced"),
    }
}

/// Shows that the session lives. Numbers grow also over restarts of the driver, because the clock does.
async fn beat(store: Arc<Store>, session: Name) {
    let number = now().as_millis();
    let key = Key::Beat { session: session.clone(), number };
    let content = format!("{session} {number}\n").into_bytes();
    let digest = *blake3::hash(&content).as_bytes();
    let deadline = Instant::now() + PATIENCE;
    if let Err(error) = store.create(&key, Source::Bytes(content.into()), digest, deadline).await {
        tracing::warn!(%error, "a sign of life does not reach the store");
        return;
    }
    let old = match store.list(&Prefix::Beats(session), None, deadline).await {
        Ok(listed) => listed,
        Err(error) => return tracing::debug!(%error, "old beats are removed later"),
    };
    let many = old.len().saturating_sub(usize::try_from(BEATS).unwrap_or(usize::MAX));
    for entry in old.into_iter().take(many) {
        if let Err(error) = store.delete(&entry.key, deadline).await {
            return tracing::debug!(%error, "old beats are removed later");
        }
    }
}
