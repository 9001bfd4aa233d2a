//! What every rendering of the charts must hold, as pure functions of the objects. Each returns what is broken, one
//! sentence each.

use serde_json::Value;

use super::render::NAMESPACE;

/// Kinds that have no namespace; everything else must name the release's.
const CLUSTER_KINDS: &[&str] = &[
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "JournalStore",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "VolumeSnapshotClass",
];

/// The one workload that is privileged.
const PRIVILEGED: (&str, &str) = ("DaemonSet", "vivarium-node");

/// The one workload that talks to a socket of the node, which is root's; beyond that it has no privileges.
const ON_THE_SOCKET: (&str, &str) = ("DaemonSet", "vivarium-claims");

/// Whose containerd a node has.
pub struct Distribution {
    /// The word for it in the values.
    pub name: &'static str,
    socket: &'static str,
    /// Whose files its configuration imports.
    drop_ins: &'static str,
}

/// The socket of plain containerd is its own default, its directory what the book asks for; those of k3s and RKE2 are
/// theirs (docs.k3s.io and docs.rke2.io, on containerd). In another directory nobody reads of the runtime.
pub const DISTRIBUTIONS: &[Distribution] = &[
    Distribution { name: "plain", socket: "/run/containerd/containerd.sock", drop_ins: "/etc/containerd/conf.d" },
    Distribution {
        name: "k3s",
        socket: "/run/k3s/containerd/containerd.sock",
        drop_ins: "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d",
    },
    Distribution {
        name: "rke2",
        socket: "/run/k3s/containerd/containerd.sock",
        drop_ins: "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d",
    },
];

/// Everything that is broken in a rendering of the chart `vivarium`.
pub fn broken(objects: &[Value]) -> Vec<String> {
    let mut found: Vec<String> = objects
        .iter()
        .flat_map(|object| {
            [wildcards(object), namespace(object), images(object), privileges(object), service_account(object, objects)]
        })
        .flatten()
        .collect();
    let mut names: Vec<String> = objects.iter().map(name).collect();
    names.sort();
    found.extend(names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| format!("{} is there twice", pair[0])));
    found
}

/// A definition that Helm would delete takes every object of its kind along.
pub fn keeps_data(object: &Value) -> Option<String> {
    let keeps = object["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    (!keeps).then(|| format!("{} would be deleted with the release", name(object)))
}

/// Where a rendering for a distribution looks for containerd in another place than that has it. Every container of the
/// node driver is told the paths and has both of them at the same place as the node.
pub fn containerd(objects: &[Value], distribution: &Distribution) -> Vec<String> {
    let is_driver = |object: &&Value| name(object) == format!("{} {}", PRIVILEGED.0, PRIVILEGED.1);
    let Some(driver) = objects.iter().find(is_driver) else { return vec!["there is no node driver".to_owned()] };
    let Distribution { name: layout, socket, drop_ins } = *distribution;
    let folder = socket.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    let mut must = |what: &str, path: &Value, expected: &str| {
        if path != expected {
            found.push(format!("{what} of the node driver is {path}, not {expected}"));
        }
    };
    let told = [
        ("VIVARIUM_CONTAINERD_LAYOUT", layout),
        ("VIVARIUM_CONTAINERD_SOCKET", socket),
        ("VIVARIUM_CONTAINERD_CONF_DIR", drop_ins),
    ];
    let mounted = [("containerd-socket", folder), ("containerd-drop-ins", drop_ins)];
    for container in containers(driver) {
        for (variable, expected) in told {
            must(variable, &named(&container["env"], variable)["value"], expected);
        }
        for (volume, expected) in mounted {
            must(volume, &named(&container["volumeMounts"], volume)["mountPath"], expected);
        }
    }
    for (volume, expected) in mounted {
        let volumes = &driver["spec"]["template"]["spec"]["volumes"];
        must(volume, &named(volumes, volume)["hostPath"]["path"], expected);
    }
    found
}

/// The entry of that name in a list; null if there is none.
fn named<'a>(entries: &'a Value, name: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    list(entries).iter().find(|entry| entry["name"] == name).unwrap_or(&NONE)
}

/// No rule of a role may say `*`: what a program may do is what somebody thought of.
fn wildcards(object: &Value) -> Vec<String> {
    if !matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")) {
        return Vec::new();
    }
    let rules = list(&object["rules"]);
    let words = rules.iter().flat_map(|rule| ["apiGroups", "resources", "verbs"].map(|field| list(&rule[field])));
    words
        .flatten()
        .filter(|word| word.as_str().is_some_and(|word| word.contains('*')))
        .map(|word| format!("{} allows {word}", name(object)))
        .collect()
}

/// An object without a namespace would land wherever the person stands.
fn namespace(object: &Value) -> Vec<String> {
    let expected =
        if CLUSTER_KINDS.contains(&object["kind"].as_str().unwrap_or_default()) { None } else { Some(NAMESPACE) };
    let found = object["metadata"]["namespace"].as_str();
    if found == expected {
        Vec::new()
    } else {
        vec![format!("{} has namespace {found:?}, not {expected:?}", name(object))]
    }
}

/// Every image must follow `images.registry`, and name a tag or digest.
fn images(object: &Value) -> Vec<String> {
    let environment = |container: &Value| -> Vec<Value> {
        let named = |variable: &&Value| variable["name"].as_str().is_some_and(|name| name.ends_with("_IMAGE"));
        list(&container["env"]).iter().filter(named).map(|variable| variable["value"].clone()).collect()
    };
    let images = containers(object).into_iter().flat_map(|container| {
        let mut all = environment(container);
        all.push(container["image"].clone());
        all
    });
    let good = |image: &Value| {
        let reference = image.as_str().unwrap_or_default();
        let (registry, rest) = reference.split_once('/').unwrap_or_default();
        registry.contains(['.', ':']) && rest.starts_with("vivarium/") && rest.contains([':', '@'])
    };
    images.filter(|image| !good(image)).map(|image| format!("{} has image {image}", name(object))).collect()
}

/// One workload is privileged; the others run under the pod security standard `restricted`.
fn privileges(object: &Value) -> Vec<String> {
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, called) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    let who = (kind.as_str(), called.as_str());
    if who == PRIVILEGED {
        return Vec::new();
    }
    let Some(pod) = pod(object) else { return Vec::new() };
    let mut found = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{} {what}", name(object)));
        }
    };
    must(who == ON_THE_SOCKET || pod["securityContext"]["runAsNonRoot"] == true, "may run as root");
    must(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile");
    for field in ["hostPID", "hostNetwork", "hostIPC"] {
        must(pod[field].is_null(), "shares a namespace with the node");
    }
    let socket = |path: &Value| {
        who == ON_THE_SOCKET && path["path"].as_str().is_some_and(|path| path.ends_with("/plugins/csi.vivarium.dev"))
    };
    let allowed = |path: &Value| path.is_null() || socket(path);
    must(list(&pod["volumes"]).iter().all(|volume| allowed(&volume["hostPath"])), "mounts a path of the node");
    for container in containers(object) {
        let context = &container["securityContext"];
        must(context["allowPrivilegeEscalation"] == false, "may gain privileges");
        must(context["readOnlyRootFilesystem"] == true, "may write its image");
        must(context["capabilities"]["drop"] == serde_json::json!(["ALL"]), "keeps capabilities");
    }
    found
}

/// A pod whose service account the chart does not make would wait for ever.
fn service_account(object: &Value, all: &[Value]) -> Vec<String> {
    let Some(account) = pod(object).and_then(|pod| pod["serviceAccountName"].as_str()) else { return Vec::new() };
    let made = all.iter().any(|other| other["kind"] == "ServiceAccount" && other["metadata"]["name"] == account);
    if made { Vec::new() } else { vec![format!("{} runs as {account}, which the chart does not make", name(object))] }
}

/// Spec of the pod that an object makes or is.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Deployment" | "DaemonSet" | "StatefulSet" | "Job" => Some(&object["spec"]["template"]["spec"]),
        "Pod" => Some(&object["spec"]),
        _ => None,
    }
}

fn containers(object: &Value) -> Vec<&Value> {
    let Some(pod) = pod(object) else { return Vec::new() };
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"])).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The one thing that is broken in a list of objects.
    fn only(objects: &[Value]) -> String {
        let found = broken(objects);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    fn restricted(image: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p", "namespace": NAMESPACE}, "spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"image": image, "securityContext": {"allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}}]}})
    }

    const IMAGE: &str = "registry.example.org/vivarium/operator:1";

    #[test]
    fn a_good_pod_breaks_nothing() {
        assert_eq!(broken(&[restricted(IMAGE)]), [""; 0]);
    }

    #[test]
    fn a_wildcard_in_a_role_is_found() {
        let role = json!({"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "*"]}]});
        assert_eq!(only(&[role]), "ClusterRole r allows \"*\"");
    }

    #[test]
    fn an_image_that_does_not_follow_the_values_is_found() {
        for image in
            ["vivarium/operator:1", "registry.example.org/other/thing:1", "registry.example.org/vivarium/operator"]
        {
            assert!(only(&[restricted(image)]).contains(image), "{image}");
        }
    }

    #[test]
    fn each_privilege_is_found() {
        for (pointer, value, what) in [
            ("/spec/securityContext/runAsNonRoot", json!(false), "may run as root"),
            ("/spec/hostPID", json!(true), "shares a namespace"),
            ("/spec/volumes", json!([{"hostPath": {"path": "/"}}]), "mounts a path"),
            ("/spec/containers/0/securityContext/capabilities/drop", json!([]), "keeps capabilities"),
        ] {
            let mut pod = restricted(IMAGE);
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[field] = value;
            assert!(only(&[pod]).contains(what), "{pointer}");
        }
    }

    #[test]
    fn what_is_on_the_socket_may_have_that_and_nothing_else() {
        let mut pod = restricted(IMAGE);
        pod["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
        let on = |path: &str| {
            let mut template = pod["spec"].clone();
            template["volumes"] = json!([{"hostPath": {"path": path}}]);
            json!({"kind": "DaemonSet", "metadata": {"name": "vivarium-claims", "namespace": NAMESPACE},
                "spec": {"template": {"spec": template}}})
        };
        assert_eq!(broken(&[on("/var/lib/kubelet/plugins/csi.vivarium.dev")]), [""; 0]);
        for path in ["/", "/var/lib/kubelet", "/var/lib/kubelet/plugins/other"] {
            assert!(only(&[on(path)]).contains("mounts a path"), "{path}");
        }
    }

    #[test]
    fn a_missing_namespace_and_a_second_object_of_a_name_are_found() {
        let mut lost = restricted(IMAGE);
        lost["metadata"].as_object_mut().unwrap().remove("namespace");
        assert!(only(&[lost]).contains("has namespace None"));
        assert_eq!(only(&[restricted(IMAGE), restricted(IMAGE)]), "Pod p is there twice");
    }

    #[test]
    fn each_path_that_is_not_the_distributions_is_found() {
        let rke2 = DISTRIBUTIONS.iter().find(|distribution| distribution.name == "rke2").unwrap();
        let folder = "/run/k3s/containerd";
        let driver = json!({"kind": "DaemonSet", "metadata": {"name": "vivarium-node"}, "spec": {"template": {"spec": {
            "containers": [{
                "env": [
                    {"name": "VIVARIUM_CONTAINERD_LAYOUT", "value": "rke2"},
                    {"name": "VIVARIUM_CONTAINERD_SOCKET", "value": rke2.socket},
                    {"name": "VIVARIUM_CONTAINERD_CONF_DIR", "value": rke2.drop_ins}],
                "volumeMounts": [
                    {"name": "containerd-socket", "mountPath": folder},
                    {"name": "containerd-drop-ins", "mountPath": rke2.drop_ins}]}],
            "volumes": [
                {"name": "containerd-socket", "hostPath": {"path": folder}},
                {"name": "containerd-drop-ins", "hostPath": {"path": rke2.drop_ins}}]}}}});
        assert_eq!(containerd(std::slice::from_ref(&driver), rke2), [""; 0]);
        let of_driver = "/spec/template/spec";
        for pointer in [
            "containers/0/env/0/value",
            "containers/0/env/1/value",
            "containers/0/env/2/value",
            "containers/0/volumeMounts/0/mountPath",
            "containers/0/volumeMounts/1/mountPath",
            "volumes/0/hostPath/path",
            "volumes/1/hostPath/path",
        ] {
            let mut other = driver.clone();
            *other.pointer_mut(&format!("{of_driver}/{pointer}")).unwrap() = json!("/elsewhere");
            assert_eq!(containerd(&[other], rke2).len(), 1, "{pointer}");
        }
        assert_eq!(containerd(&[], rke2), ["there is no node driver"]);
    }

    #[test]
    fn an_account_that_is_not_made_is_found() {
        let mut pod = restricted(IMAGE);
        pod["spec"]["serviceAccountName"] = json!("nobody");
        assert!(only(&[pod]).contains("runs as nobody"));
    }
}
