//! A registry and an image for the tests, made of nothing but busybox.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_BLOCK: usize = 512;
const DIRECTORY: u8 = b'5';
const SYMLINK: u8 = b'2';
const FILE: u8 = b'0';
/// First byte a TLS client sends. It must get an answer in HTTP, as from every plain HTTP server:
/// that is how it notices.
const TLS_HANDSHAKE: u8 = 22;

/// What a registry serves: path below `/v2/` to media type and content.
#[derive(Default)]
pub(super) struct Content(HashMap<String, (&'static str, Vec<u8>)>);

pub(super) struct Registry {
    pub(super) address: String,
    server: tokio::task::JoinHandle<()>,
}

impl Content {
    fn blob(&mut self, media_type: &'static str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let size = content.len();
        self.0
            .insert(format!("app/blobs/{digest}"), (media_type, content));
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn document(&mut self, tag: &str, media_type: &'static str, document: &Value) -> Value {
        let content = document.to_string().into_bytes();
        let digest = digest(&content);
        let size = content.len();
        for reference in [tag, &digest] {
            let path = format!("app/manifests/{reference}");
            self.0.insert(path, (media_type, content.clone()));
        }
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Adds image `app:TAG` for a processor, with the given layers and configuration.
    pub(super) fn image(&mut self, tag: &str, arch: &str, layers: &[&Tar], config: Value) -> Value {
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.finish()).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": arch,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        let layers: Vec<Value> = layers
            .into_iter()
            .map(|layer| self.blob(LAYER, layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
        });
        let mut descriptor = self.document(tag, MANIFEST, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": arch});
        descriptor
    }

    /// Adds index `app:TAG` of images.
    pub(super) fn index(&mut self, tag: &str, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.document(tag, INDEX, &index);
    }

    /// Serves it at an address of this machine until the registry is dropped: with TLS by a
    /// certificate of `authority`, else plain HTTP.
    pub(super) async fn serve(self, address: IpAddr, authority: Option<&Path>) -> Registry {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let tls = authority.map(|dir| acceptor(dir, address));
        let address = listener.local_addr().unwrap().to_string();
        let content = Arc::new(self.0);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, content) = (tls.clone(), Arc::clone(&content));
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, content).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(stream, content).await;
                            }
                        }
                    }
                });
            }
        });
        Registry { address, server }
    }
}

/// TLS for an address, by the authority in `dir`: `ca.pem` and `ca-key.pem`.
fn acceptor(dir: &Path, address: IpAddr) -> TlsAcceptor {
    let read = |name| std::fs::read_to_string(dir.join(name)).expect(name);
    let issuer_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([address.to_string()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One request of the registry API (OCI distribution specification 1.0), one connection.
async fn answer<S>(mut stream: S, content: Arc<HashMap<String, (&'static str, Vec<u8>)>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.first() != Some(&TLS_HANDSHAKE) {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let mut words = request.split([' ', '?']);
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let found = path.strip_prefix("/v2/").and_then(|path| content.get(path));
    let (status, media_type, body) = match found {
        Some((media_type, body)) => ("200 OK", *media_type, body.as_slice()),
        None if path.starts_with("/v2/denied/") => ("401 Unauthorized", "text/plain", &[][..]),
        None => ("404 Not Found", "text/plain", &[][..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
         Docker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(body),
    );
    // The other side may hang up any time: that is its affair.
    let _ = stream.write_all(head.as_bytes()).await;
    if method == "GET" {
        let _ = stream.write_all(body).await;
    }
    let _ = stream.shutdown().await;
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A layer: a tar archive (POSIX ustar).
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// A root file system of busybox with links for the commands the tests use.
    pub(super) fn busybox(binary: &Path) -> Self {
        let mut tar = Self::default();
        for dir in ["bin", "etc", "tmp", "srv"] {
            tar.entry(dir, DIRECTORY, 0o755, "", &[]);
        }
        tar.entry(
            "bin/busybox",
            FILE,
            0o755,
            "",
            &std::fs::read(binary).unwrap(),
        );
        for command in [
            "sh", "sleep", "cat", "id", "env", "pwd", "hostname", "grep", "tail",
        ] {
            tar.entry(&format!("bin/{command}"), SYMLINK, 0o777, "busybox", &[]);
        }
        tar.file(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n",
        );
        tar.file("etc/group", "root:x:0:\nweb:x:102:\nlog:x:4:web\n");
        tar
    }

    pub(super) fn file(&mut self, name: &str, content: &str) {
        self.entry(name, FILE, 0o644, "", content.as_bytes());
    }

    fn entry(&mut self, name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) {
        let mut header = [0u8; TAR_BLOCK];
        let mut put = |offset: usize, text: &str| {
            header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(TAR_BLOCK), 0);
    }

    fn finish(&self) -> Vec<u8> {
        let mut archive = self.0.clone();
        archive.resize(archive.len() + 2 * TAR_BLOCK, 0);
        archive
    }
}
