//! One `VirtualEnvironment` in a test: written as a user would, and used through `kubectl exec`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{DEADLINE, Ran, TEMPLATE, apply, eventually, get, kubectl, kubectl_ok, run_with};

/// A `VirtualEnvironment` by name, with the spec that the test wants.
#[derive(Clone)]
pub struct Environment {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Spec as it is applied.
    pub spec: Value,
}

impl Environment {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        let spec = json!({"template": {"name": TEMPLATE}, "resources": {"disk": "1Gi"}});
        Self { namespace: namespace.into(), name: name.into(), spec }
    }

    /// Sets a part of the spec, named by a JSON pointer such as `/resources/disk`; missing objects are made.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        self.set(pointer, value);
        self
    }

    /// Like [`Self::with`], in place.
    pub fn set(&mut self, pointer: &str, value: Value) {
        let mut at = &mut self.spec;
        for part in pointer.trim_start_matches('/').split('/') {
            at = at.as_object_mut().expect("an object").entry(part).or_insert_with(|| json!({}));
        }
        *at = value;
    }

    /// The object as it is applied.
    #[must_use]
    pub fn manifest(&self) -> Value {
        json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
            "metadata": {"name": self.name, "namespace": self.namespace}, "spec": self.spec})
    }

    /// `kubectl apply`; the answer is the test's to judge.
    #[must_use]
    pub fn try_apply(&self) -> Ran {
        apply(&[self.manifest()])
    }

    /// `kubectl apply` that must be accepted.
    pub fn apply(&self) {
        let ran = self.try_apply();
        assert!(ran.ok, "the manifest of {} was refused: {}", self.name, ran.stderr);
    }

    /// Applies and waits until it is Ready.
    #[must_use]
    pub fn up(self) -> Self {
        self.apply();
        self.wait_ready();
        self
    }

    /// The object as the API server has it.
    #[must_use]
    pub fn object(&self) -> Value {
        get(&["-n", &self.namespace, "ve", &self.name]).unwrap_or_else(|| panic!("environment {} is gone", self.name))
    }

    /// One condition: (status, reason, message); empty strings if it is not there.
    #[must_use]
    pub fn condition(&self, type_: &str) -> (String, String, String) {
        condition_of(&self.object(), type_)
    }

    /// Waits until the condition Ready is True for the newest generation.
    pub fn wait_ready(&self) {
        self.wait_ready_for(DEADLINE);
    }

    /// Like [`Self::wait_ready`] with a deadline of its own.
    pub fn wait_ready_for(&self, deadline: Duration) {
        eventually(&format!("environment {} Ready", self.name), deadline, || {
            let object = self.object();
            let (status, reason, message) = condition_of(&object, "Ready");
            let seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            if status == "True" && seen { Ok(()) } else { Err(format!("{status} {reason}: {message}")) }
        });
    }

    /// Waits until the condition has that reason, and returns its message.
    #[must_use]
    pub fn wait_reason(&self, type_: &str, reason: &str) -> String {
        eventually(&format!("condition {type_} of {} with reason {reason}", self.name), DEADLINE, || {
            let (status, found, message) = self.condition(type_);
            if found == reason { Ok(message) } else { Err(format!("{status} {found}: {message}")) }
        })
    }

    /// Waits until `status.phase` is that.
    pub fn wait_phase(&self, phase: &str) {
        eventually(&format!("phase {phase} of {}", self.name), DEADLINE, || {
            let object = self.object();
            if object["status"]["phase"] == phase { Ok(()) } else { Err(object["status"].to_string()) }
        });
    }

    /// Name of the pod of the newest incarnation.
    #[must_use]
    pub fn pod(&self) -> String {
        self.object()["status"]["podName"].as_str().unwrap_or_default().to_owned()
    }

    /// The pod of the newest incarnation.
    #[must_use]
    pub fn pod_object(&self) -> Value {
        let pod = self.pod();
        get(&["-n", &self.namespace, "pod", &pod]).unwrap_or_else(|| panic!("pod {pod} is gone"))
    }

    /// Node that it runs on.
    #[must_use]
    pub fn node(&self) -> String {
        self.object()["status"]["node"].as_str().unwrap_or_default().to_owned()
    }

    /// Address of its Service.
    #[must_use]
    pub fn service_ip(&self) -> String {
        eventually("address of the Service", DEADLINE, || {
            self.object()["status"]["serviceIP"].as_str().map(Into::into).ok_or_else(|| "no status.serviceIP".into())
        })
    }

    /// Runs a command inside; its end is the test's to judge.
    #[must_use]
    pub fn exec(&self, command: &[&str]) -> Ran {
        self.exec_with(command, "")
    }

    /// Runs a command inside with something on its standard input.
    #[must_use]
    pub fn exec_with(&self, command: &[&str], input: impl AsRef<[u8]>) -> Ran {
        let pod = self.pod();
        let mut all = vec!["-n", &self.namespace, "exec", "-i", &pod, "--"];
        all.extend(command);
        run_with("kubectl", &all, input)
    }

    /// Puts a program into `/usr/local/bin`.
    pub fn install(&self, name: &str, program: &[u8]) {
        let line = format!("cat > /usr/local/bin/{name} && chmod 755 /usr/local/bin/{name}");
        let ran = self.exec_with(&["sh", "-c", &line], program);
        assert!(ran.ok, "{name} in {}: {}", self.name, ran.stderr);
    }

    /// Runs a shell line inside that must succeed, and returns what it printed, trimmed.
    pub fn sh(&self, line: &str) -> String {
        let ran = self.exec(&["sh", "-c", line]);
        assert!(ran.ok, "in {}: `{line}` ended with {}: {}{}", self.name, ran.code, ran.stdout, ran.stderr);
        ran.stdout.trim().to_owned()
    }

    /// Waits until a shell line inside succeeds.
    pub fn sh_eventually(&self, line: &str) -> String {
        eventually(&format!("`{line}` in {}", self.name), DEADLINE, || {
            let ran = self.exec(&["sh", "-c", line]);
            if ran.ok { Ok(ran.stdout.trim().to_owned()) } else { Err(format!("{}{}", ran.stdout, ran.stderr)) }
        })
    }

    /// Number that changes at every boot of the guest.
    #[must_use]
    pub fn boot(&self) -> String {
        // The kernel's boot id is the node's; init's start time is the guest's own.
        self.sh("cut -d' ' -f22 /proc/1/stat")
    }

    /// `kubectl delete`, waiting until it is gone.
    pub fn delete(&self) {
        let ran = kubectl(&["-n", &self.namespace, "delete", "ve", &self.name, "--timeout=180s"]);
        assert!(ran.ok, "{}{}", ran.stdout, ran.stderr);
    }

    /// Deletes the pod by hand, waiting until that pod is gone.
    pub fn delete_pod(&self) {
        kubectl_ok(&["-n", &self.namespace, "delete", "pod", &self.pod(), "--timeout=180s"]);
    }
}

/// One condition of an object: (status, reason, message); empty strings if it is not there.
#[must_use]
pub fn condition_of(object: &Value, type_: &str) -> (String, String, String) {
    let found = object["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == type_);
    let text = |field: &str| found.and_then(|c| c[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}
