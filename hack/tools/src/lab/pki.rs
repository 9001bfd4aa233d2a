//! Certificates and kubeconfigs of the lab: two authorities (cluster and front proxy), one certificate for each
//! component. Made anew at every `lab up`; they are worth nothing outside the lab.

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::{
    error::Error,
    forward, network,
    node::Node,
    state::{self, Layout},
};

/// An authority that signs.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Certificate and key, PEM.
struct Identity {
    certificate: String,
    key: String,
}

fn failed(name: &str) -> impl FnOnce(rcgen::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Certificate { name, source }
}

impl Authority {
    fn new(layout: &Layout, file: &str, name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(failed(name))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed(name))?.pem();
        let authority = Self { certificate, issuer: Issuer::new(params, key) };
        state::write(&layout.pki(&format!("{file}.crt")), &authority.certificate)?;
        state::write(&layout.pki(&format!("{file}.key")), authority.issuer.key().serialize_pem())?;
        Ok(authority)
    }

    /// A certificate for a client that is also a server under `names`.
    fn issue(&self, subject: &Subject<'_>, names: &[String]) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(failed(subject.user))?;
        let mut params = CertificateParams::new(names).map_err(failed(subject.user))?;
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.distinguished_name.push(DnType::CommonName, subject.user);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed(subject.user))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Whom a certificate stands for: user (common name) and group (organization).
struct Subject<'a> {
    user: &'a str,
    group: Option<&'a str>,
}

impl<'a> Subject<'a> {
    fn user(user: &'a str) -> Self {
        Self { user, group: None }
    }

    fn of(user: &'a str, group: &'a str) -> Self {
        Self { user, group: Some(group) }
    }
}

/// Names and addresses that the API server is called by.
fn server_names() -> Vec<String> {
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let addresses = ["localhost", "127.0.0.1", "10.96.0.1"];
    names.into_iter().chain(addresses).map(Into::into).chain([network::ADDRESS.to_string()]).collect()
}

/// Writes everything below `pki/`, and the kubeconfig for this machine.
pub fn create(layout: &Layout, nodes: impl Iterator<Item = Node>) -> Result<(), Error> {
    let ca = Authority::new(layout, "ca", "vivarium-lab")?;
    let front_proxy = Authority::new(layout, "front-proxy-ca", "vivarium-lab-front-proxy")?;
    let save = |name: &str, identity: &Identity| {
        state::write(&layout.pki(&format!("{name}.crt")), &identity.certificate)?;
        state::write(&layout.pki(&format!("{name}.key")), &identity.key)
    };
    save("apiserver", &ca.issue(&Subject::user("kube-apiserver"), &server_names())?)?;
    let kubelet_client = Subject::of("kube-apiserver-kubelet-client", "system:masters");
    save("apiserver-kubelet", &ca.issue(&kubelet_client, &[])?)?;
    save("front-proxy", &front_proxy.issue(&Subject::user("front-proxy-client"), &[])?)?;

    let inner = format!("https://{}:6443", network::ADDRESS);
    let config = |name: &str, subject: &Subject<'_>| {
        let identity = ca.issue(subject, &[])?;
        state::write(&layout.kubeconfig_of(name), kubeconfig(&inner, &ca.certificate, &identity))?;
        Ok::<_, Error>(identity)
    };
    let admin = config("admin", &Subject::of("admin", "system:masters"))?;
    state::write(&layout.kubeconfig(), kubeconfig(&format!("https://{}", forward::LISTEN), &ca.certificate, &admin))?;
    config("controller-manager", &Subject::user("system:kube-controller-manager"))?;
    config("scheduler", &Subject::user("system:kube-scheduler"))?;
    config("proxy", &Subject::user("system:kube-proxy"))?;
    for node in nodes {
        let (name, user) = (node.name(), format!("system:node:{}", node.name()));
        let identity = ca.issue(&Subject::of(&user, "system:nodes"), &[name.clone(), node.address()])?;
        save(&name, &identity)?;
        state::write(&layout.kubeconfig_of(&name), kubeconfig(&inner, &ca.certificate, &identity))?;
    }
    let accounts = KeyPair::generate().map_err(failed("service accounts"))?;
    state::write(&layout.pki("accounts.key"), accounts.serialize_pem())?;
    state::write(&layout.pki("accounts.pub"), accounts.public_key_pem())
}

fn kubeconfig(server: &str, authority: &str, identity: &Identity) -> String {
    let base64 = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: {server}
    certificate-authority-data: {authority}
users:
- name: lab
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: lab
  context:
    cluster: lab
    user: lab
current-context: lab
",
        authority = base64(authority),
        certificate = base64(&identity.certificate),
        key = base64(&identity.key),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_holds_everything_and_needs_no_file() {
        let identity = Identity { certificate: "CERT".into(), key: "KEY".into() };
        let text = kubeconfig("https://127.0.0.1:16443", "CA", &identity);
        for line in [
            "    server: https://127.0.0.1:16443",
            "    certificate-authority-data: Q0E=",
            "    client-certificate-data: Q0VSVA==",
            "    client-key-data: S0VZ",
            "current-context: lab",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_server_answers_to_the_address_of_the_forwarder_and_to_the_one_in_the_cluster() {
        for name in ["127.0.0.1", "10.250.0.1", "10.96.0.1", "kubernetes.default.svc"] {
            assert!(server_names().contains(&name.to_owned()));
        }
    }

    #[test]
    fn all_files_of_a_lab_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(folder.path());
        create(&layout, [Node::new(1)].into_iter()).unwrap();
        for file in ["ca.crt", "apiserver.key", "front-proxy-ca.crt", "n1.crt", "n1.kubeconfig", "accounts.pub"] {
            assert!(layout.pki(file).is_file(), "{file}");
        }
        assert!(layout.kubeconfig().is_file());
    }
}
