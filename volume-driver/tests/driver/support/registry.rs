//! A registry in the process: the read half of the OCI distribution interface, over plain HTTP on loopback.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

type Store = Arc<Mutex<HashMap<String, (String, Vec<u8>)>>>;
type Faults = Arc<Mutex<HashMap<String, Fault>>>;

/// What becomes of a document whose first half was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends.
    Cut,
    /// Nothing more comes, and the connection stays.
    Stall,
}

pub struct Registry {
    /// `127.0.0.1:<port>`.
    pub address: String,
    /// Documents by tag or digest: media type and content.
    pub store: Store,
    /// Those of them that do not arrive as a whole.
    pub faults: Faults,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.extend(format!("{byte:02x}").chars());
    }
    text
}

#[derive(Clone, Copy)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Registry {
    pub async fn start() -> Self {
        let (store, faults) = (Store::default(), Faults::default());
        let router = Router::new()
            .route("/v2/", get(|| async { StatusCode::OK }))
            .route("/v2/{name}/manifests/{reference}", get(document))
            .route("/v2/{name}/blobs/{reference}", get(document))
            .with_state((store.clone(), faults.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, store, faults, task }
    }

    pub fn put(&self, key: &str, kind: &str, bytes: Vec<u8>) {
        self.store.lock().unwrap().insert(key.to_owned(), (kind.to_owned(), bytes));
    }

    /// Stores an image under a tag; tells its reference by digest and its layers' diff ids.
    pub fn image(&self, tag: &str, layers: &[(Vec<u8>, Packing)]) -> (String, Vec<String>) {
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, packing) in layers {
            diff_ids.push(digest(tar));
            let (suffix, blob) = match packing {
                Packing::None => ("", tar.clone()),
                Packing::Gzip => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    std::io::Write::write_all(&mut encoder, tar).unwrap();
                    ("+gzip", encoder.finish().unwrap())
                }
                Packing::Zstd => ("+zstd", zstd::encode_all(&tar[..], 1).unwrap()),
            };
            let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            descriptors.push(json!({"mediaType": kind, "digest": digest(&blob), "size": blob.len()}));
            self.put(&digest(&blob), "application/octet-stream", blob);
        }
        self.manifest(tag, &descriptors, &diff_ids)
    }

    pub fn manifest(&self, tag: &str, layers: &[serde_json::Value], diff_ids: &[String]) -> (String, Vec<String>) {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let name = digest(&manifest);
        self.put(&digest(&config), "application/octet-stream", config);
        for key in [tag, &name] {
            self.put(key, "application/vnd.oci.image.manifest.v1+json", manifest.clone());
        }
        (format!("{}/os@{name}", self.address), diff_ids.to_vec())
    }

    pub fn tagged(&self, tag: &str) -> String {
        format!("{}/os:{tag}", self.address)
    }
}

async fn document(
    State((store, faults)): State<(Store, Faults)>,
    Path((_, reference)): Path<(String, String)>,
) -> Response {
    let found = store.lock().unwrap().get(&reference).cloned();
    let Some((kind, bytes)) = found else {
        let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
        let kind = [("content-type", "application/json")];
        return (StatusCode::NOT_FOUND, kind, body.to_string()).into_response();
    };
    let headers = [("content-type", kind), ("docker-content-digest", digest(&bytes))];
    let fault = faults.lock().unwrap().get(&reference).copied();
    let Some(fault) = fault else { return (headers, bytes).into_response() };
    let half = futures::stream::iter([Ok::<_, std::io::Error>(bytes[..bytes.len() / 2].to_vec())]);
    let body = match fault {
        // A body that fails before it ever had to wait fails before anything of it is sent.
        Fault::Cut => Body::from_stream(half.chain(futures::stream::once(async {
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut off"))
        }))),
        Fault::Stall => Body::from_stream(half.chain(futures::stream::pending())),
    };
    let length = [("content-length", bytes.len().to_string())];
    (headers, length, body).into_response()
}
