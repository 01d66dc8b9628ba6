//! An external authority signs for the swarm: a real CFSSL server, which wants to see certificates.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::json;
use swarm_api::v1::node_ca_client::NodeCaClient;

use super::rotation::{
    Agent, ask_to_join, dial, progress, remove, root, rotate, until_over, worker_token,
};
use super::*;

/// What a CFSSL server signs with, and with which usages, unless it is told otherwise.
const SIGNING: &str = r#"{"signing": {
    "default": {"expiry": "2160h", "usages": ["digital signature", "server auth", "client auth"]},
    "profiles": {"CA": {
        "expiry": "8760h",
        "usages": ["cert sign", "crl sign"],
        "ca_constraint": {"is_ca": true, "max_path_len": 0, "max_path_len_zero": true}
    }}
}}"#;

/// An authority, its key, and a server with a certificate of it.
struct Cfssl {
    directory: TempDir,
    address: SocketAddr,
    root_pem: String,
    server: Option<Child>,
}

impl Drop for Cfssl {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Cfssl {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut own = Self {
            directory,
            address: free_address(),
            root_pem: String::new(),
            server: None,
        };
        own.write("signing.json", SIGNING);
        let key = json!({"algo": "ecdsa", "size": 256});
        let ca = json!({"CN": "Example CA", "key": key, "names": [{"O": "Example"}]});
        own.write("ca.json", &ca.to_string());
        own.generate("ca", &["-initca", "ca.json"]);
        own.root_pem = std::fs::read_to_string(own.path("ca.pem")).unwrap();
        let server = json!({"CN": "ca.example.com", "hosts": ["127.0.0.1"], "key": key});
        own.write("server.json", &server.to_string());
        let signed = [
            "-ca",
            "ca.pem",
            "-ca-key",
            "ca-key.pem",
            "-config",
            "signing.json",
            "server.json",
        ];
        own.generate("server", &signed);
        own
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A certificate `name.pem` and its key.
    fn generate(&self, name: &str, how: &[&str]) {
        let output = Command::new("cfssl")
            .arg("gencert")
            .args(how)
            .current_dir(self.directory.path())
            .output()
            .expect("`cargo xtask setup` installs cfssl (Debian: golang-cfssl)");
        let made: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        self.write(&format!("{name}.pem"), made["cert"].as_str().unwrap());
        self.write(&format!("{name}-key.pem"), made["key"].as_str().unwrap());
    }

    /// Serves clients with a certificate of its own root or one of `roots`.
    async fn start(&mut self, roots: &str) {
        let directory = self.directory.path().to_owned();
        self.serve(Some(roots), &directory).await;
    }

    /// Serves clients without a certificate.
    async fn start_for_anybody(&mut self) {
        let directory = self.directory.path().to_owned();
        self.serve(None, &directory).await;
    }

    /// Serves, signing with the authority in the directory `ca`.
    async fn serve(&mut self, roots: Option<&str>, ca: &Path) {
        self.stop();
        let mut mutual = Vec::new();
        if let Some(roots) = roots {
            self.write("clients.pem", &format!("{}{roots}", self.root_pem));
            mutual = vec!["-mutual-tls-ca", "clients.pem"];
        }
        let of_ca = |name: &str| ca.join(name).display().to_string();
        let log = std::fs::File::create(self.path("log")).unwrap();
        let server = Command::new("cfssl")
            .args(["serve", "-address", "127.0.0.1", "-config", "signing.json"])
            .args(["-port", &self.address.port().to_string()])
            .args(["-ca", &of_ca("ca.pem"), "-ca-key", &of_ca("ca-key.pem")])
            .args(["-tls-cert", "server.pem", "-tls-key", "server-key.pem"])
            .args(mutual)
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        until("the CFSSL server", || async {
            let connected = TcpStream::connect(self.address).await;
            connected
                .map(drop)
                .map_err(|error| Status::unavailable(error.to_string()))
        })
        .await;
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn url(&self) -> String {
        format!("https://{}/api/v1/cfssl/sign", self.address)
    }

    fn named(&self) -> v1::ExternalCa {
        v1::ExternalCa {
            url: self.url(),
            root_ca_pem: String::new(),
        }
    }
}

async fn rotate_to(of: &Manager, cfssl: &Cfssl) -> Result<(), Status> {
    let rotate = v1::RotateRootRequest {
        root_ca_pem: cfssl.root_pem.clone(),
        external_cas: vec![cfssl.named()],
        ..v1::RotateRootRequest::default()
    };
    let mut control = ControlClient::new(of.local());
    control.rotate_root(rotate).await.map(drop)
}

async fn name(of: &Manager, external_cas: Vec<v1::ExternalCa>) -> Result<(), Status> {
    let mut control = ControlClient::new(of.local());
    let get = v1::GetClusterRequest {};
    let cluster = control.get_cluster(get).await?.into_inner();
    let spec = v1::ClusterSpec {
        external_cas,
        ..cluster.spec.unwrap()
    };
    let update = v1::UpdateClusterRequest {
        version: cluster.version,
        spec: Some(spec),
    };
    control.update_cluster(update).await.map(drop)
}

async fn urls(of: &Manager) -> Vec<String> {
    let cas = of.lasting().await.unwrap().0.spec.unwrap().external_cas;
    cas.into_iter().map(|ca| ca.url).collect()
}

async fn join(of: &Manager) -> Result<String, Status> {
    let (token, root) = (worker_token(of).await, root(of).await);
    let (answer, _) = ask_to_join(of, &token, &root).await?;
    Ok(answer.certificate_chain_pem)
}

/// Why nobody can join.
async fn refusal(of: &Manager) -> String {
    let status = join(of).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    status.message().to_owned()
}

async fn renew(of: &Manager, agent: &Agent) -> Result<String, Status> {
    let own = agent.credentials();
    let channel = dial(of.config.advertise_address, &own.roots, Some(&own)).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let (csr, _) = request();
    let renew = v1::RenewNodeCertificateRequest { csr };
    let renewed = NodeCaClient::new(channel)
        .renew_node_certificate(renew)
        .await?;
    Ok(renewed.into_inner().certificate_chain_pem)
}

fn is_of(chain: &str, root_pem: &str) {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let root = crate::ca::key_id(&der(root_pem)).unwrap();
    assert_eq!(crate::ca::issuer_of(&der(chain)).unwrap(), root);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_authority_signs_for_the_swarm_and_may_be_away() {
    let mut cfssl = Cfssl::new();
    let mut first = Manager::found().await;
    let mut agent = Agent::beside(&first).await;
    agent.start(&[&first]);
    let before = root(&first).await;

    // It is not there yet, then it does not know the swarm: the change waits, and says for what.
    rotate_to(&first, &cfssl).await.unwrap();
    let url = cfssl.url();
    let problem = async |why: &str| {
        until("the problem", || async {
            let found = progress(&first).await?;
            assert!(found.under_way);
            let text = format!("{url}: {why}");
            (found.problem.contains(&text))
                .then_some(())
                .ok_or(Status::unavailable(found.problem))
        })
        .await;
    };
    problem("cannot connect").await;
    assert!(refusal(&first).await.contains("swarm update --external-ca"));
    cfssl.start("").await;
    problem("the connection failed").await;
    cfssl.start(&before).await;
    until_over(&first).await;
    assert_eq!(root(&first).await, cfssl.root_pem);
    assert_eq!(urls(&first).await, [url.as_str()]);
    assert_eq!(progress(&first).await.unwrap().problem, "");

    // Only its own root's certificates count from now on.
    cfssl.start("").await;
    is_of(&join(&first).await.unwrap(), &cfssl.root_pem);
    is_of(&renew(&first, &agent).await.unwrap(), &cfssl.root_pem);
    let mut second = Manager::join(&first).await;
    first.until_managers(2).await;

    // While it is away nobody joins or renews, and all else goes on.
    cfssl.stop();
    let ends = agent.ends.load(Ordering::Relaxed);
    let words = format!("no external CA has signed the certificate: {url}: cannot connect: ");
    for text in [refusal(&first).await, refusal(&second).await] {
        assert!(text.starts_with(&words), "{text}");
    }
    let refused = renew(&first, &agent).await.unwrap_err();
    assert!(refused.message().starts_with(&words), "{refused}");
    first.create("web").await.unwrap();
    second.end().await;
    second.start();
    first.end().await;
    first.start();
    second.until_managers(2).await;
    first.create("api").await.unwrap();
    // One end is the first manager's.
    assert!(agent.ends.load(Ordering::Relaxed) <= ends + 1);

    cfssl.start("").await;
    is_of(&join(&second).await.unwrap(), &cfssl.root_pem);
    is_of(&renew(&first, &agent).await.unwrap(), &cfssl.root_pem);

    // A manager without a certificate has none to show.
    second.end().await;
    std::fs::remove_file(own_path(&second.config)).unwrap();
    second.start();
    let failure = second.failure().await;
    let text = format!("{:#}", anyhow::Error::from(failure));
    assert!(text.contains("no external CA has signed"), "{text}");
    cfssl.start_for_anybody().await;
    second.start();
    second.until_managers(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_external_authorities_are_seen_through_and_the_swarm_can_leave_them() {
    let (mut cfssl, mut other) = (Cfssl::new(), Cfssl::new());
    let first = Manager::found().await;
    let mut agent = Agent::beside(&first).await;
    agent.start(&[&first]);
    cfssl.start(&root(&first).await).await;
    rotate_to(&first, &cfssl).await.unwrap();
    until_over(&first).await;

    // A server of another root.
    other.start(&cfssl.root_pem).await;
    name(&first, vec![other.named()]).await.unwrap();
    let text = refusal(&first).await;
    assert!(text.contains("invalid peer certificate"), "{text}");
    // The right server signs with another root.
    name(&first, vec![cfssl.named()]).await.unwrap();
    cfssl.serve(Some(""), other.directory.path()).await;
    let text = refusal(&first).await;
    assert!(
        text.contains("is not signed by the swarm's root itself"),
        "{text}"
    );
    // With another profile.
    cfssl.write("signing.json", &SIGNING.replace(", \"client auth\"", ""));
    cfssl.start("").await;
    let text = refusal(&first).await;
    assert!(text.contains("its certificate lacks a usage"), "{text}");
    cfssl.write("signing.json", &SIGNING.replace("2160h", "1h"));
    cfssl.start("").await;
    let text = refusal(&first).await;
    assert!(text.contains("its certificate must be valid now"), "{text}");
    cfssl.write("signing.json", SIGNING);
    cfssl.start("").await;
    // At another path there is its root, or nothing.
    for (path, why) in [
        ("/info", "its certificate has another key"),
        ("/nothing", "HTTP status 404, is not CFSSL's"),
    ] {
        let mut elsewhere = cfssl.named();
        elsewhere.url = elsewhere.url.replace("/sign", path);
        name(&first, vec![elsewhere]).await.unwrap();
        let text = refusal(&first).await;
        assert!(text.contains(why), "{text}");
    }

    // The first that signs.
    let nowhere = v1::ExternalCa {
        url: format!("https://{}/api/v1/cfssl/sign", free_address()),
        root_ca_pem: cfssl.root_pem.clone(),
    };
    name(&first, vec![nowhere, other.named(), cfssl.named()])
        .await
        .unwrap();
    is_of(&join(&first).await.unwrap(), &cfssl.root_pem);
    assert_eq!(urls(&first).await.len(), 3);

    // There is nobody else.
    let refused = name(&first, Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let mut foreign = cfssl.named();
    foreign.root_ca_pem = other.root_pem.clone();
    let refused = name(&first, vec![foreign]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let refused = rotate_to(&first, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    // Back to a root of the swarm's own, which the external one signs.
    for node in first.nodes().await.unwrap().nodes {
        if node.id != first.id() {
            remove(&first, &node.id).await;
        }
    }
    let own = rotate(&first).await;
    until_over(&first).await;
    cfssl.stop();
    assert_eq!(root(&first).await, own);
    assert_eq!(urls(&first).await, [""; 0]);
    is_of(&join(&first).await.unwrap(), &own);
    assert_eq!(progress(&first).await.unwrap().problem, "");
}
