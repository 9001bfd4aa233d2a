//! Plain containers of a pod, through the task API.

mod support;

use support::{Lab, Plan};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-vivarium-v1");

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_status_and_output_arrive() {
    let lab = Lab::new(SHIM).await;
    let (status, output) = lab.run("one", &Plan::shell("echo hello; cat /proc/self/uid_map; exit 7")).await;
    assert_eq!(status, 7);
    assert!(output.starts_with("hello\n"), "{output}");
    let map: Vec<&str> = output.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", &lab.base.to_string(), "65536"]);
    assert_eq!(lab.leftovers("one"), Vec::<String>::new());
}
