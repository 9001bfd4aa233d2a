//! `lab status` and `lab logs`: what runs, and where to read on.

use std::{collections::BTreeMap, fs, io::Write};

use serde_json::Value;

use super::{
    ceph, control_plane,
    error::{Error, io, refused},
    node,
    process::{self, Record},
    state::{Layout, StoreKind},
};
use crate::command::end_of;

/// Status of the condition Ready of each node, by name.
pub fn readiness(layout: &Layout) -> Result<BTreeMap<String, String>, Error> {
    let json = control_plane::kubectl(layout, &["get", "nodes", "--output=json", "--request-timeout=5s"])?;
    let list = serde_json::from_str(&json)
        .map_err(|source| Error::Record { path: "the output of kubectl get nodes".to_owned(), source })?;
    Ok(parse(&list))
}

fn parse(list: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = list["items"].as_array().into_iter().flatten();
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.filter(|condition| condition["type"] == "Ready").map(|condition| text(&condition["status"])).next()
    };
    nodes.map(|node| (text(&node["metadata"]["name"]), ready(node).unwrap_or_default())).collect()
}

/// Prints a table; tells whether everything is well.
pub fn print(layout: &Layout) -> Result<bool, Error> {
    let Some(cluster) = layout.cluster()? else {
        say(&[format!("there is no lab at {}: hack/lab up", layout.root().display())]);
        return Ok(false);
    };
    let mut well = true;
    let mut table = vec![format!("{:<20} {:<8} STATE", "CONTROL PLANE", "PID")];
    for name in control_plane::processes(&cluster) {
        let record = Record::load_alive(layout, name)?;
        well &= record.is_some();
        let state = if record.is_some() { "running" } else { "NOT RUNNING" };
        table.push(format!("{name:<20} {:<8} {state}", pid(record.map(|record| record.pid()))));
    }
    let ready = readiness(layout).unwrap_or_default();
    table.push(String::new());
    table.push(row(["NODE", "READY", "NETWORK", "PID", "CONTAINERD", "KUBELET", "KUBE-PROXY"].map(Into::into)));
    for node in cluster.nodes() {
        let init = node.running(layout)?;
        let children = init.as_ref().map(process::children).unwrap_or_default();
        let child = |name: &str| pid(children.iter().find(|child| child.0 == name).map(|child| child.1));
        let linked = node::is_connected(node);
        let stopped = init.as_ref().is_some_and(Record::is_stopped);
        let ready = ready.get(&node.name()).map_or("unknown", String::as_str);
        well &= init.is_some() && !stopped && linked && ready == "True";
        table.push(row([
            node.name(),
            if init.is_some() { ready } else { "off" }.to_owned(),
            if linked { "up" } else { "cut" }.to_owned(),
            pid(init.map(|record| record.pid())),
            child("containerd"),
            child("kubelet"),
            child("kube-proxy"),
        ]));
    }
    if cluster.store() == StoreKind::Ceph {
        let (is_well, said) = ceph::status(layout);
        well &= is_well;
        table.push(format!("\nOBJECT STORE         {said}"));
    }
    let (kubeconfig, programs) = (layout.kubeconfig(), layout.programs());
    table.push(format!("\nexport KUBECONFIG={} PATH={}:$PATH", kubeconfig.display(), programs.display()));
    say(&table);
    Ok(well)
}

fn row(fields: [String; 7]) -> String {
    let [name, ready, network, pid, containerd, kubelet, proxy] = fields;
    format!("{name:<8} {ready:<8} {network:<8} {pid:<8} {containerd:<11} {kubelet:<8} {proxy}")
}

/// A reader that has seen enough, such as head(1), is no failure.
fn say(lines: &[String]) {
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}

fn pid(pid: Option<i32>) -> String {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

/// Prints where the logs are, or the end of those whose name begins with `name`.
pub fn logs(layout: &Layout, name: Option<&str>) -> Result<(), Error> {
    let folder = layout.logs();
    let entries =
        fs::read_dir(&folder).map_err(|_| refused(format!("there is no lab at {}", layout.root().display())))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let wanted = name.unwrap_or_default();
    paths.retain(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(wanted)));
    if paths.is_empty() {
        return Err(refused(format!(
            "no log in {} begins with `{wanted}`; `hack/lab logs` lists them",
            folder.display()
        )));
    }
    let mut text = Vec::new();
    for path in paths {
        if name.is_none() {
            text.push(path.display().to_string());
            continue;
        }
        let log = fs::read(&path).map_err(io("read", path.display()))?;
        text.push(format!("==> {} <==\n{}\n", path.display(), end_of(&String::from_utf8_lossy(&log), 40)));
    }
    say(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_condition_ready_is_found_among_others() {
        let node = |name: &str, status: &str| {
            json!({ "metadata": { "name": name }, "status": { "conditions": [
                { "type": "DiskPressure", "status": "False" }, { "type": "Ready", "status": status } ] } })
        };
        let list = json!({ "items": [node("n1", "True"), node("n2", "Unknown"), { "metadata": { "name": "n3" } }] });
        let expected = [("n1", "True"), ("n2", "Unknown"), ("n3", "")];
        assert_eq!(parse(&list), expected.map(|(name, ready)| (name.to_owned(), ready.to_owned())).into());
    }
}
