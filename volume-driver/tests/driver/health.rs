//! What a probe is told over HTTP, of a driver in front of a real pool and a real socket: 200 while both answer, and
//! 503 when one of them is gone or hangs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::support::TestNode;
use crate::support::cluster::Cluster;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vivarium_node::csi::server::{listen, services};
use vivarium_node::health::{Health, Stage, router};
use vivarium_node::pool::Pool;

struct Driver {
    /// Taken away with everything in it at the end.
    _node: TestNode,
    pool: Arc<Pool>,
    socket: PathBuf,
    service: JoinHandle<Result<(), tonic::transport::Error>>,
    stage: watch::Sender<Stage>,
    address: SocketAddr,
}

impl Driver {
    /// One that serves.
    async fn start() -> Self {
        let node = TestNode::new();
        let pool = node.pool();
        let socket = node.dir.path().join("csi.sock");
        let cluster = Cluster::new("11111111-2222-3333-4444-555555555555", "none", vec![], "1Gi");
        let server = services(pool.clone(), node.service(&pool, &cluster, "127.0.0.1:1"));
        let service = tokio::spawn(server.serve_with_incoming(listen(&socket).unwrap()));
        let health = Health { pool: pool.clone(), csi_socket: socket.clone() };
        let (stage, stages) = watch::channel(Stage::Serves(health));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router(stages)).await.unwrap() });
        Self { _node: node, pool, socket, service, stage, address }
    }

    /// Status and text of the answer to a probe.
    async fn probe(&self) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = "GET /healthz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned())
    }

    /// Ends the CSI service; its socket stays where it is, as after a crash.
    async fn end_service(&mut self) {
        self.service.abort();
        assert!((&mut self.service).await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_serves_or_waits_for_its_turn_is_healthy_and_one_that_starts_is_not() {
    let driver = Driver::start().await;
    assert_eq!(driver.probe().await, (200, "ok\n".to_owned()));
    driver.stage.send_replace(Stage::Waits);
    assert_eq!(driver.probe().await.0, 200);
    driver.stage.send_replace(Stage::Starts);
    assert_eq!(driver.probe().await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_pool_is_gone_is_unhealthy_until_it_is_back() {
    let driver = Driver::start().await;
    mount("none", driver.pool.path(), "tmpfs", MountFlags::empty(), None).unwrap();
    let (status, text) = driver.probe().await;
    assert!(status == 503 && text.contains("is not btrfs"), "{status} {text}");
    unmount(driver.pool.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!(driver.probe().await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_csi_service_is_gone_is_unhealthy() {
    let mut driver = Driver::start().await;
    driver.end_service().await;
    let (status, text) = driver.probe().await;
    assert!(status == 503 && text.contains("cannot connect to the socket"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_csi_service_takes_calls_and_answers_none_is_unhealthy() {
    let mut driver = Driver::start().await;
    driver.end_service().await;
    std::fs::remove_file(&driver.socket).unwrap();
    // The kernel takes connections for it.
    let _silent = UnixListener::bind(&driver.socket).unwrap();
    let (status, text) = driver.probe().await;
    assert!(status == 503 && text.contains("not answer"), "{status} {text}");
}
