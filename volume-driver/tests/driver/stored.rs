//! Template layers that come from a store of journals.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{TestNode, soon};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use vivarium_node::garbage::{Named, Policy, sweep};
use vivarium_node::ids::LayerDigest;
use vivarium_node::template::TemplateError;
use vivarium_store::{Prefix, Sizes, Store};

/// Objects of more bytes are split.
const PART: usize = 3000;

fn store(memory: &Arc<InMemory>) -> Arc<Store> {
    Arc::new(Store::over("test", memory.clone(), Sizes { part: PART, in_flight: 2 }))
}

/// An image with a layer of each packing, one of them in several parts.
fn image(registry: &Registry) -> (String, Vec<LayerDigest>) {
    let mut noise = vec![0; 20_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let layers = [
        (Tarball::new().file("plain", b"1").finish(), Packing::None),
        (Tarball::new().file("gzip", b"2").finish(), Packing::Gzip),
        (Tarball::new().file("zstd", &noise).finish(), Packing::Zstd),
    ];
    let (image, layers) = registry.image("1", &layers);
    (image, layers.iter().map(|layer| LayerDigest::parse(layer).unwrap()).collect())
}

async fn objects(store: &Store) -> Vec<String> {
    store.list(&Prefix::Layers, None, soon()).await.unwrap().iter().map(|listed| listed.key.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_layers_from_the_store_while_the_registry_is_dead() {
    let (memory, registry) = (Arc::new(InMemory::new()), Registry::start().await);
    let store = store(&memory);
    let (image, layers) = image(&registry);
    let first = TestNode::new();
    let pool = first.pool();
    let cache = first.templates(&pool, &registry.address);
    // They were here before there was a store.
    cache.ensure(&image, &layers, &[]).await.unwrap();
    cache.keep_in(&store, &image, &layers).await.unwrap();
    let kept = objects(&store).await;
    for layer in &layers {
        assert!(kept.contains(&format!("layers/{}/layer", layer.directory())), "{kept:?}");
    }
    assert!(kept.iter().any(|key| key.contains("/part/")), "none is large enough to be split: {kept:?}");
    // A layer that was deleted while something began to need it is put there again by whoever asks for it the next time.
    let at_once = Policy { grace: Duration::ZERO, ..Policy::default() };
    sweep(&store, &Named::default(), &[], &at_once, jiff::Timestamp::now()).await.unwrap();
    assert_eq!(objects(&store).await, [""; 0], "nothing named them");
    cache.keep_in(&store, &image, &layers).await.unwrap();
    let again = objects(&store).await;
    assert_eq!(again.len(), kept.len());
    let kept = again;
    let address = registry.address.clone();
    drop(registry);
    cache.keep_in(&store, &image, &layers).await.expect("what is there is not fetched again");
    assert_eq!(objects(&store).await, kept);

    let second = TestNode::new();
    let pool = second.pool();
    let cache = second.templates(&pool, &address);
    let error = cache.ensure(&image, &layers, &[]).await.unwrap_err();
    assert!(matches!(error, TemplateError::Unreachable { .. }), "the registry is not dead: {error}");
    cache.ensure(&image, &layers, &[store]).await.unwrap();
    for (layer, file) in layers.iter().zip(["plain", "gzip", "zstd"]) {
        assert!(cache.path(layer).join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(pool.templates_path()).unwrap().count(), layers.len(), "something is left over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_of_the_store_is_refused_and_the_registry_is_asked() {
    let registry = Registry::start().await;
    let (image, layers) = image(&registry);
    // Of each layer the object, or a part of it.
    for index in 0..layers.len() {
        let memory = Arc::new(InMemory::new());
        let store = store(&memory);
        let node = TestNode::new();
        let pool = node.pool();
        let cache = node.templates(&pool, &registry.address);
        cache.keep_in(&store, &image, &layers).await.unwrap();
        let under = format!("layers/{}", layers[index].directory());
        let objects: Vec<String> = objects(&store).await.into_iter().filter(|path| path.starts_with(&under)).collect();
        let path = Path::from(objects.iter().max().unwrap().as_str());
        let mut bytes = memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        memory.put_opts(&path, bytes.into(), object_store::PutOptions::default()).await.unwrap();
        let dead = node.templates(&pool, "127.0.0.1:1");
        let elsewhere = image.replace(&registry.address, "127.0.0.1:1");
        let error = dead.ensure(&elsewhere, &layers, std::slice::from_ref(&store)).await.unwrap_err();
        assert!(matches!(error, TemplateError::Unreachable { .. }), "{error}");
        assert!(!cache.has(&layers[index]), "layer {index} was taken as it was");
        assert_eq!(fs::read_dir(pool.templates_path()).unwrap().count(), layers.len() - 1, "something is left over");
        cache.ensure(&image, &layers, &[store]).await.unwrap();
        assert!(layers.iter().all(|layer| cache.has(layer)));
    }
}
