//! The same as `behaviour.rs` asks, of a real S3: the one that the environment names. `hack/test` gives it the lab's.

use crate::common;
use std::env::var;

use crate::common::{content, key, soon};
use vivarium_store::{Backend, Cause, Config, CreateError, Credential, Name, PART_SIZE, ProveError, S3, Source, Store};

fn given(name: &str) -> String {
    var(name).unwrap_or_else(|_| {
        panic!("{name} is not set. This test needs a real S3: VIVARIUM_TEST_S3 = http://host:port, VIVARIUM_TEST_S3_BUCKET, VIVARIUM_TEST_S3_ACCESS_KEY, VIVARIUM_TEST_S3_SECRET_KEY; 'hack/lab up --store ceph' has one")
    })
}

/// The bucket, below a prefix that is this test's own.
fn s3() -> S3 {
    S3 {
        endpoint: given("VIVARIUM_TEST_S3"),
        bucket: given("VIVARIUM_TEST_S3_BUCKET"),
        region: "us-east-1".into(),
        prefix: format!("tests/{}", Name::random()),
        path_style: true,
        allow_http: true,
        access_key: Credential::new(&given("VIVARIUM_TEST_S3_ACCESS_KEY")),
        secret_key: Credential::new(&given("VIVARIUM_TEST_S3_SECRET_KEY")),
    }
}

fn open(s3: S3) -> Store {
    Store::open(&Config { name: "s3".into(), backend: Backend::S3(Box::new(s3)), mirrors: vec![] }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real S3: run hack/test --only store"]
async fn the_s3_store_behaves() {
    common::behaves(&open(s3()), PART_SIZE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real S3: run hack/test --only store"]
async fn of_many_writers_of_a_large_object_one_wins() {
    let store = open(s3());
    let bodies: Vec<_> = (0..3).map(|_| content(PART_SIZE + 5)).collect();
    let key = key(1);
    let attempts = bodies.iter().map(|(body, digest)| store.create(&key, Source::Bytes(body.clone()), *digest, soon()));
    let told = futures::future::join_all(attempts).await;
    assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 1, "{told:?}");
    let winner = told.iter().position(Result::is_ok).unwrap();
    assert!(store.read(&key, 1 << 30, soon()).await.unwrap().unwrap().bytes == bodies[winner].0);
    store.delete(&key, soon()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a real S3: run hack/test --only store"]
async fn wrong_credentials_are_refused_at_once_and_shown_nowhere() {
    let secret = "visible-nowhere-4711";
    let mut wrong = s3();
    wrong.secret_key = Credential::new(secret);
    let access = given("VIVARIUM_TEST_S3_ACCESS_KEY");
    let store = open(wrong);
    let begin = std::time::Instant::now();
    let error = store.prove(soon()).await.unwrap_err();
    assert!(begin.elapsed().as_secs() < 20);
    let ProveError::Failed { failure, .. } = &error else { panic!("{error}") };
    assert_eq!(failure.cause, Cause::Denied, "{failure}");
    let (body, digest) = content(10);
    let create = store.create(&key(1), Source::Bytes(body), digest, soon()).await.unwrap_err();
    assert!(matches!(create, CreateError::Unknown { .. }), "{create}");
    assert!(failure.message.starts_with("it answered 403"), "{failure}");
    for text in [format!("{error} {error:?}"), format!("{create} {create:?}")] {
        assert!(!text.contains(secret) && !text.contains(&access), "{text}");
    }
}

#[tokio::test]
#[ignore = "needs a real S3: run hack/test --only store"]
async fn nobody_there_is_told_as_such() {
    let mut nowhere = s3();
    nowhere.endpoint = "http://127.0.0.1:1".into();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
    let error = open(nowhere).prove(deadline).await.unwrap_err();
    let ProveError::Failed { failure, .. } = error else { panic!("{error}") };
    assert_eq!(failure.cause, Cause::Unreachable, "{failure}");
    assert!(failure.message.starts_with("it cannot be reached: Connection refused"), "{failure}");
}

#[tokio::test]
#[ignore = "needs a real S3: run hack/test --only store"]
async fn a_bucket_that_is_not_there_is_no_empty_journal() {
    let mut wrong = s3();
    wrong.bucket = "there-is-no-such-bucket".into();
    let store = open(wrong);
    let read = store.read(&key(1), 1 << 20, soon()).await;
    assert!(read.is_err(), "{read:?}");
    let ProveError::Failed { failure, .. } = store.prove(soon()).await.unwrap_err() else { panic!("it was tried") };
    assert_eq!(failure.cause, Cause::Missing, "{failure}");
}
