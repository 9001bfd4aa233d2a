//! The pod that reads: it has one read-only volume for each tree, lives as long as it is asked something, and is deleted whatever
//! comes of that.

use std::ffi::OsStr;
use std::io::{BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use vivarium_api::{names, view};

use crate::at::At;
use crate::kubectl::Kubectl;
use crate::{Error, Reading};

/// How long it may take until a tree is there. It has to be put together from its journal.
const PATIENCE: Duration = Duration::from_secs(300);
/// After so many seconds the cluster ends a pod that this program could not delete.
const LIFE: u64 = 3600;
/// gRPC codes of answers that stay the same however often the kubelet asks.
const FINAL: [&str; 4] = ["InvalidArgument", "NotFound", "OutOfRange", "FailedPrecondition"];

/// What a volume of the pod shows.
#[derive(Clone, Debug)]
pub enum Show {
    /// The tree at an instant; none: of the last commit.
    Tree(Option<At>),
    /// What was set aside: `<node>/<epoch>`.
    Diverged(String),
    /// The index of instants.
    History,
}

/// A pod that has trees.
pub struct Reader {
    kubectl: Kubectl,
    pod: String,
}

impl Drop for Reader {
    fn drop(&mut self) {
        delete(&self.kubectl, &self.pod);
    }
}

fn delete(kubectl: &Kubectl, pod: &str) {
    if let Err(error) = kubectl.output(&["delete", "pod", pod, "--ignore-not-found", "--wait=false"], b"") {
        eprintln!("warning: the pod {pod} stays for up to an hour: {error}");
    }
}

impl Reader {
    /// Starts one for an environment.
    ///
    /// # Errors
    /// What the API server or the node driver refuses, in their words.
    pub fn start(kubectl: &Kubectl, environment: &str, shows: &[Show], reading: &Reading) -> Result<Self, Error> {
        let volume = volume(kubectl, environment)?;
        let image = image(kubectl, reading)?;
        let node =
            match shows.iter().find_map(|show| if let Show::Diverged(of) = show { of.split_once('/') } else { None }) {
                Some((node, _)) => Some(node),
                None => reading.node.as_deref(),
            };
        let near = volume["status"]["node"].as_str();
        let manifest = manifest(environment, shows, &image, node, near, Timestamp::now());
        let made = kubectl.output(&["create", "-o", "json", "-f", "-"], manifest.to_string().as_bytes())?;
        let made: Value = serde_json::from_slice(&made).map_err(|error| Error::NotUnderstood("kubectl", error))?;
        let pod = made["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let reader = Self { kubectl: kubectl.clone(), pod };
        reader.end_with_signals();
        reader.wait()?;
        Ok(reader)
    }

    /// Runs the program that reads, gives what it prints to `take`, and then sees that it ended well.
    ///
    /// # Errors
    /// As `take`, or what the program said.
    pub fn read<T, A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        take: impl FnOnce(BufReader<ChildStdout>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut command = self.kubectl.command(["exec", &self.pod, "-c", "reader", "--", view::READER]);
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("run kubectl"))?;
        let (Some(out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::said("kubectl has no output"));
        };
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        });
        let taken = take(BufReader::new(out));
        let status = child.wait().map_err(Error::io("run kubectl"))?;
        let said = said.join().unwrap_or_default();
        // kubectl adds a line of its own.
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("command terminated with")).collect();
        if !status.success() {
            return Err(Error::said(said.join("\n")));
        }
        for line in said {
            eprintln!("{line}");
        }
        taken
    }

    /// A person who has had enough does not leave the pod behind.
    fn end_with_signals(&self) {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        // Every thread that is started from here on leaves them to the one below.
        if signals.thread_block().is_err() {
            return;
        }
        let (kubectl, pod) = (self.kubectl.clone(), self.pod.clone());
        std::thread::spawn(move || {
            if signals.wait().is_ok() {
                delete(&kubectl, &pod);
                std::process::exit(130);
            }
        });
    }

    /// Waits until the pod runs, or cannot.
    fn wait(&self) -> Result<(), Error> {
        let (tell, news) = mpsc::channel();
        let field = format!("involvedObject.name={}", self.pod);
        let pods = watch(&self.kubectl, &["pod", &self.pod], tell.clone(), standing)?;
        let events = watch(&self.kubectl, &["events", "--field-selector", &field], tell, complaint)?;
        let mut last = String::from("it was not scheduled");
        let result = loop {
            match news.recv_timeout(PATIENCE) {
                Ok(News::Runs) => break Ok(()),
                Ok(News::Never(why)) => break Err(Error::said(why)),
                Ok(News::NotYet(why)) => last = why,
                Err(_) => break Err(Error::said(format!("pod {} does not start: {last}", self.pod))),
            }
        };
        for mut child in [pods, events] {
            let _ = child.kill();
            let _ = child.wait();
        }
        result
    }
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    Runs,
    NotYet(String),
    Never(String),
}

/// Watches objects, from those that are there; what `judge` says of each is told.
fn watch(
    kubectl: &Kubectl,
    what: &[&str],
    tell: mpsc::Sender<News>,
    judge: fn(&Value) -> Option<News>,
) -> Result<Child, Error> {
    let mut command = kubectl.command(["get", "--watch", "-o", "json"].iter().chain(what));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(Error::io("run kubectl"))?;
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let documents = serde_json::Deserializer::from_reader(BufReader::new(out)).into_iter::<Value>();
            for news in documents.map_while(Result::ok).filter_map(|document| judge(&document)) {
                if tell.send(news).is_err() {
                    return;
                }
            }
        });
    }
    Ok(child)
}

/// What a pod's object says.
fn standing(pod: &Value) -> Option<News> {
    let status = &pod["status"];
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    match status["phase"].as_str()? {
        "Running" => Some(News::Runs),
        "Pending" => match waiting["reason"].as_str() {
            Some("ContainerCreating") | None => None,
            Some(reason) => {
                Some(News::NotYet(format!("{reason}: {}", waiting["message"].as_str().unwrap_or_default())))
            }
        },
        other => Some(News::Never(format!(
            "the pod that reads is {other}: {}",
            status["message"].as_str().unwrap_or("see its events")
        ))),
    }
}

/// What an event about a pod says. The kubelet repeats what the node driver answers.
fn complaint(event: &Value) -> Option<News> {
    let message = event["message"].as_str()?;
    match event["reason"].as_str()? {
        "FailedMount" => {
            let (code, text) = message
                .split_once("rpc error: code = ")
                .and_then(|(_, rest)| rest.split_once(" desc = "))
                .unwrap_or(("", message));
            let news = if FINAL.contains(&code) { News::Never } else { News::NotYet };
            Some(news(text.to_owned()))
        }
        "FailedScheduling" | "Failed" => Some(News::NotYet(message.to_owned())),
        _ => None,
    }
}

/// The volume of an environment, or a volume of that name that was retained.
fn volume(kubectl: &Kubectl, environment: &str) -> Result<Value, Error> {
    let selector = format!("{}={environment}", names::LABEL_ENVIRONMENT);
    let list = kubectl.get(&["environmentvolumes", "-l", &selector])?.unwrap_or_default();
    let used =
        list["items"].as_array().into_iter().flatten().find(|volume| volume["spec"]["environment"] == environment);
    if let Some(volume) = used {
        return Ok(volume.clone());
    }
    let retained = kubectl.get(&["environmentvolume", environment])?;
    retained.filter(|volume| volume["spec"]["environment"].is_null()).ok_or_else(|| {
        Error::said(format!(
            "there is no environment {environment} in this namespace, and no volume of that name that was retained"
        ))
    })
}

fn image(kubectl: &Kubectl, reading: &Reading) -> Result<String, Error> {
    if let Some(image) = &reading.image {
        return Ok(image.clone());
    }
    let (namespace, name) = (&reading.system_namespace, view::TOOL_CONFIG);
    let found = kubectl.output(&["get", "configmap", name, "-o", "json", &format!("--namespace={namespace}")], b"")?;
    let found: Value = serde_json::from_slice(&found).map_err(|error| Error::NotUnderstood("kubectl", error))?;
    found["data"][view::TOOL_CONFIG_IMAGE].as_str().map(str::to_owned).ok_or_else(|| {
        Error::said(format!("the ConfigMap {namespace}/{name} names no {}: give --image", view::TOOL_CONFIG_IMAGE))
    })
}

/// Where the pod finds tree number `index`.
#[must_use]
pub fn root(index: usize) -> String {
    format!("/view/{index}")
}

fn manifest(
    environment: &str,
    shows: &[Show],
    image: &str,
    node: Option<&str>,
    near: Option<&str>,
    now: Timestamp,
) -> Value {
    let volumes: Vec<Value> = shows
        .iter()
        .enumerate()
        .map(|(index, show)| {
            let mut attributes = json!({ view::ENVIRONMENT: environment });
            match show {
                Show::Tree(None) => {}
                Show::Tree(Some(at)) => attributes[view::AT] = at.attribute(now).into(),
                Show::Diverged(which) => attributes[view::DIVERGED] = which.as_str().into(),
                Show::History => attributes[view::SHOW] = view::SHOW_HISTORY.into(),
            }
            let csi = json!({"driver": names::CSI_DRIVER, "readOnly": true, "volumeAttributes": attributes});
            json!({"name": format!("view{index}"), "csi": csi})
        })
        .collect();
    let mounts: Vec<Value> = (0..shows.len())
        .map(|index| json!({"name": format!("view{index}"), "mountPath": root(index), "readOnly": true}))
        .collect();
    let on = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
    let mut affinity = json!({});
    if let Some(node) = node {
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": [on(node)]});
    } else if let Some(near) = near {
        // Template and data are there already.
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{"weight": 1, "preference": on(near)}]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "ve-reader-", "labels": {"app.kubernetes.io/name": "ve-reader"}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "nodeSelector": {names::TOPOLOGY_POOL: "true"},
            "affinity": {"nodeAffinity": affinity},
            "containers": [{
                "name": "reader",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": [view::READER, "hold"],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
                "securityContext": {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    // Files of everybody, and nothing else that root could do.
                    "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_shows_what_is_asked_for_and_no_more() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let shows =
            [Show::Tree(Some("10m".parse().unwrap())), Show::Tree(None), Show::History, Show::Diverged("n2/4".into())];
        let pod = manifest("shop", &shows, "image", Some("n2"), Some("n1"), now);
        let spec = &pod["spec"];
        let attributes: Vec<String> =
            spec["volumes"].as_array().unwrap().iter().map(|v| v["csi"]["volumeAttributes"].to_string()).collect();
        assert_eq!(
            attributes,
            [
                r#"{"at":"2026-01-31T11:50:00Z","environment":"shop"}"#,
                r#"{"environment":"shop"}"#,
                r#"{"environment":"shop","view":"history"}"#,
                r#"{"diverged":"n2/4","environment":"shop"}"#
            ]
        );
        assert!(spec["volumes"].as_array().unwrap().iter().all(|volume| volume["csi"]["readOnly"] == true));
        let affinity = spec["affinity"]["nodeAffinity"].to_string();
        assert!(affinity.contains("required") && affinity.contains("n2") && !affinity.contains("n1"), "{affinity}");
        let affinity = manifest("shop", &shows, "image", None, Some("n1"), now)["spec"]["affinity"].to_string();
        assert!(affinity.contains("preferred") && affinity.contains("n1"), "{affinity}");
    }

    #[test]
    fn the_words_of_the_node_driver_arrive() {
        let event = |reason: &str, message: &str| complaint(&json!({"reason": reason, "message": message}));
        let failed = |code: &str| {
            event(
                "FailedMount",
                &format!("MountVolume.SetUp failed for volume \"view0\" : rpc error: code = {code} desc = too old"),
            )
        };
        assert_eq!(failed("OutOfRange"), Some(News::Never("too old".into())));
        assert_eq!(failed("NotFound"), Some(News::Never("too old".into())));
        assert_eq!(failed("Aborted"), Some(News::NotYet("too old".into())));
        assert_eq!(event("FailedScheduling", "no room"), Some(News::NotYet("no room".into())));
        assert_eq!(event("Scheduled", "fine"), None);
    }

    #[test]
    fn a_pod_runs_or_waits_or_never_will() {
        let pod = |phase: &str, waiting: Value| {
            standing(
                &json!({"status": {"phase": phase, "message": "m", "containerStatuses": [{"state": {"waiting": waiting}}]}}),
            )
        };
        assert_eq!(pod("Running", json!(null)), Some(News::Runs));
        assert_eq!(pod("Pending", json!({"reason": "ContainerCreating"})), None);
        assert_eq!(
            pod("Pending", json!({"reason": "ErrImagePull", "message": "x"})),
            Some(News::NotYet("ErrImagePull: x".into()))
        );
        assert_eq!(pod("Failed", json!(null)), Some(News::Never("the pod that reads is Failed: m".into())));
    }
}
