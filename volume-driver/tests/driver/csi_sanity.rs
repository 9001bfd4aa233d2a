//! The specification's own test, csi-sanity, against the driver's services on their socket, in front of a real pool. Nothing
//! of it is left out but what is about calls that the driver does not claim to answer.

use std::process::Stdio;

use crate::support::TestNode;
use crate::support::cluster::Cluster;
use vivarium_node::csi::server::{listen, services};

/// What csi-sanity may skip: words of its own reasons, each of a capability that the driver does not have, or of a case that
/// is about another part of the specification.
const NOT_CLAIMED: &[&str] = &[
    "GroupControllerService not supported",
    "ControllerPublishVolume not supported",
    "Controller Publish, UnpublishVolume not supported",
    "ControllerUnpublishVolume not supported",
    // A volume is enlarged by its node.
    "ControllerExpandVolume not supported",
    "ControllerModifyVolume not supported",
    "Modify volume not supported",
    "Modify Volume not supported",
    "GetSnapshot not supported",
    "ControllerListVolumeHealth not supported",
    "NodeGetStorageHealth not supported",
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported",
    "Service does not have single node multi writer capability",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the program csi-sanity: run hack/test --only csi-sanity"]
async fn the_driver_keeps_to_the_specification() {
    let program = std::env::var_os("VIVARIUM_CSI_SANITY").expect("VIVARIUM_CSI_SANITY names the program csi-sanity");
    let node = TestNode::new();
    let pool = node.pool_of(4 << 30);
    let cluster = Cluster::new("11111111-2222-3333-4444-555555555555", "none", vec![], "1Gi");
    let service = node.service(&pool, &cluster, "127.0.0.1:1");
    let socket = node.dir.path().join("csi.sock");
    let incoming = listen(&socket).unwrap();
    let server = tokio::spawn(services(pool, service).serve_with_incoming(incoming));

    let report = node.dir.path().join("report.json");
    let at = |name: &str| node.dir.path().join(name).display().to_string();
    let status = tokio::process::Command::new(program)
        .arg(format!("--csi.endpoint=unix://{}", socket.display()))
        .arg(format!("--csi.mountdir={}", at("target")))
        .arg(format!("--csi.stagingdir={}", at("staging")))
        .arg(format!("--csi.testvolumesize={}", 64 << 20))
        .arg(format!("--csi.testvolumeexpandsize={}", 128 << 20))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.v")
        .stdin(Stdio::null())
        .status()
        .await
        .unwrap();
    assert!(status.success(), "csi-sanity: {status}");
    assert!(!server.is_finished(), "the driver ended");

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let specs: Vec<&serde_json::Value> =
        report.as_array().unwrap().iter().flat_map(|suite| suite["SpecReports"].as_array().unwrap()).collect();
    let of = |state: &str| specs.iter().filter(|spec| spec["State"] == state).copied().collect::<Vec<_>>();
    for spec in of("skipped") {
        let why = spec["Failure"]["Message"].as_str().unwrap_or_default();
        assert!(NOT_CLAIMED.contains(&why), "skipped for another reason than its capabilities: {why}: {spec:#}");
    }
    let (passed, skipped) = (of("passed").len(), of("skipped").len());
    println!("csi-sanity: {passed} passed, {skipped} are about what is not claimed");
    assert!(passed >= 60, "only {passed} of csi-sanity ran");
}
