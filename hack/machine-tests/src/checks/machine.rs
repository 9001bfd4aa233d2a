//! What the machine and containerd are, before anything runs.

use serde_json::Value;
use vivarium_api::names::RUNTIME_CLASS;

use crate::{
    cri,
    failure::{Failure, ensure, read},
    groups::{CONTROLLERS, ROOT},
};

/// One hierarchy, of version 2, with the controllers that a kubelet hands to pods.
pub fn pure_cgroup2() -> Result<(), Failure> {
    let table = read("/proc/self/mountinfo")?;
    let kinds: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_once(" - ")?.1.split(' ').next())
        .filter(|kind| kind.starts_with("cgroup"))
        .collect();
    ensure(kinds == ["cgroup2"], || format!("control groups are mounted as {kinds:?}, and not once as cgroup2"))?;
    let there = read(format!("{ROOT}/cgroup.controllers"))?;
    let missing: Vec<_> = CONTROLLERS.iter().filter(|name| !there.split(' ').any(|one| one == **name)).collect();
    ensure(missing.is_empty(), || format!("the machine lacks the controllers {missing:?}; it has: {there}"))
}

/// Without this the kubelet refuses pods with a user namespace for this runtime class.
pub fn runtime_maps_users() -> Result<(), Failure> {
    let info: Value = serde_json::from_str(&cri::crictl(&["info"])?)?;
    let handlers = info["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let handler = handlers.iter().find(|handler| handler["name"] == RUNTIME_CLASS);
    let handler = handler.ok_or_else(|| Failure(format!("containerd has no runtime {RUNTIME_CLASS}: {handlers:?}")))?;
    let features = &handler["features"];
    ensure(features["user_namespaces"] == true, || format!("the runtime's features say otherwise: {features}"))
}
