//! What an image says about itself: index, manifest and configuration (OCI image specification
//! 1.0 and Docker's schema 2, which agree on every field used here).

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Most bytes of an index, manifest or configuration; containerd and registries refuse manifests
/// above 4 MiB.
pub(super) const DOCUMENT_LEN_MAX: usize = 4 << 20;
/// An index may list an index. Images have one level; more than this is a loop or a prank.
pub(super) const INDEX_DEPTH_MAX: usize = 3;

/// Operating system and processor an image is made for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: String,
}

impl Platform {
    /// This node's.
    pub(super) fn host() -> Self {
        // Go's names, which images use, for Rust's.
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Whether something made for this platform runs on a `host`: an image that names no variant
    /// runs on all.
    fn runs_on(&self, host: &Self) -> bool {
        self.os == host.os
            && self.architecture == host.architecture
            && (self.variant.is_empty() || self.variant == host.variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// Pointer to a document or blob.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

/// An index or a manifest: told apart by what they hold, as media types are often missing.
#[derive(Clone, Debug, Deserialize)]
struct IndexOrManifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
}

/// Where to go from an index or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A document of the same kind, for this platform.
    Document(Descriptor),
    /// The configuration.
    Config(Descriptor),
    /// Nothing for this platform.
    OtherPlatform,
}

/// Reads an index or a manifest.
pub(super) fn next(document: &[u8], host: &Platform) -> Result<Next, serde_json::Error> {
    let document: IndexOrManifest = serde_json::from_slice(document)?;
    if let Some(config) = document.config {
        return Ok(Next::Config(config));
    }
    let runs = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_none_or(|platform| platform.runs_on(host))
    };
    Ok(match document.manifests.iter().find(runs) {
        Some(descriptor) => Next::Document(descriptor.clone()),
        None => Next::OtherPlatform,
    })
}

/// What a container takes from its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageConfig {
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) working_dir: String,
    pub(super) user: String,
    pub(super) stop_signal: Option<String>,
    /// Name of the snapshot that holds all layers, empty for an image without layers.
    pub(super) chain_id: String,
}

/// Why a configuration is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// Not JSON, or of another shape.
    #[error("its configuration cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// For another kind of machine.
    #[error("it is made for {0}")]
    OtherPlatform(Platform),
}

/// Reads a configuration.
pub(super) fn parse_config(document: &[u8], host: &Platform) -> Result<ImageConfig, ConfigError> {
    /// Go writes an empty list as `null`.
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Config {
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        env: Option<Vec<String>>,
        working_dir: Option<String>,
        user: Option<String>,
        stop_signal: Option<String>,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Option<Vec<String>>,
    }
    #[derive(Deserialize)]
    struct Document {
        #[serde(flatten)]
        platform: Platform,
        config: Option<Config>,
        rootfs: RootFs,
    }
    let document: Document = serde_json::from_slice(document)?;
    if !document.platform.runs_on(host) {
        return Err(ConfigError::OtherPlatform(document.platform));
    }
    let config = document.config.unwrap_or_default();
    Ok(ImageConfig {
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
        chain_id: chain_id(&document.rootfs.diff_ids.unwrap_or_default()),
    })
}

/// Name of a stack of layers: each step hashes the name so far and the next layer's digest (OCI
/// image specification, "Layer ChainID").
fn chain_id(diff_ids: &[String]) -> String {
    let mut chain = String::new();
    for diff_id in diff_ids {
        chain = if chain.is_empty() {
            diff_id.clone()
        } else {
            let digest = Sha256::digest(format!("{chain} {diff_id}"));
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{hex}")
        };
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next().unwrap_or_default(),
        }
    }

    #[test]
    fn the_index_gives_this_platforms_manifest() {
        let index = br#"{"schemaVersion": 2, "manifests": [
            {"digest": "sha256:att", "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": "sha256:amd", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "sha256:a6", "platform":
                {"os": "linux", "architecture": "arm", "variant": "v6"}},
            {"digest": "sha256:a7", "platform":
                {"os": "linux", "architecture": "arm", "variant": "v7"}}]}"#;
        let digest = |host: &str| match next(index, &platform(host)).unwrap() {
            Next::Document(descriptor) => descriptor.digest,
            other => format!("{other:?}"),
        };
        assert_eq!(digest("linux/amd64"), "sha256:amd");
        assert_eq!(digest("linux/arm/v7"), "sha256:a7");
        assert_eq!(digest("linux/riscv64"), "OtherPlatform");
        assert_eq!(digest("windows/amd64"), "OtherPlatform");
    }

    #[test]
    fn the_manifest_gives_the_configuration() {
        let manifest = br#"{"config": {"digest": "sha256:c", "size": 3}, "layers": []}"#;
        let Next::Config(config) = next(manifest, &platform("linux/amd64")).unwrap() else {
            panic!("not taken for a manifest");
        };
        assert_eq!(config.digest, "sha256:c");
        assert!(next(b"nonsense", &platform("linux/amd64")).is_err());
    }

    #[test]
    fn configurations_are_read() {
        let document = br#"{"architecture": "amd64", "os": "linux", "config": {
            "Entrypoint": ["/e"], "Cmd": null, "Env": ["A=b"], "WorkingDir": "/w", "User": "u",
            "StopSignal": "SIGQUIT", "Labels": {"x": "y"}},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:one"]}, "history": []}"#;
        let expected = ImageConfig {
            entrypoint: vec!["/e".to_owned()],
            cmd: Vec::new(),
            env: vec!["A=b".to_owned()],
            working_dir: "/w".to_owned(),
            user: "u".to_owned(),
            stop_signal: Some("SIGQUIT".to_owned()),
            chain_id: "sha256:one".to_owned(),
        };
        assert_eq!(
            parse_config(document, &platform("linux/amd64")).unwrap(),
            expected
        );
        let error = parse_config(document, &platform("linux/arm64/v8")).expect_err("wrong machine");
        assert_eq!(error.to_string(), "it is made for linux/amd64");
        assert!(parse_config(b"{}", &platform("linux/amd64")).is_err());
    }

    /// Expected value computed with sha256sum over "sha256:one sha256:two".
    #[test]
    fn chains_hash_pairwise() {
        let ids = ["sha256:one".to_owned(), "sha256:two".to_owned()];
        assert_eq!(
            chain_id(&ids),
            "sha256:3a5439ca836ab36056ee07b434b26004a1764231b4d9ba85a6c21f5d3c4f35e5"
        );
        assert_eq!(chain_id(&[]), "");
    }
}
