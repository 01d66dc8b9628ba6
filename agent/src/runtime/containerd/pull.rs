//! Images: fetched by containerd's Transfer service, read from its content store.

use std::time::Duration;

use containerd_client::services::v1 as containerd;
use containerd_client::to_any;
use containerd_client::types;
use containerd_client::types::transfer;
use tonic::Code;

use super::classify::pull_failure;
use super::image::{
    ConfigError, DOCUMENT_LEN_MAX, INDEX_DEPTH_MAX, ImageConfig, Next, Platform, next, parse_config,
};
use super::rpc::{CallError, done_if};
use super::{ContainerdRuntime, QUICK, SNAPSHOTTER};
use crate::runtime::{Cause, ImageName, PulledImage, RuntimeError};

/// Bound of a pull with its unpacking: 5 GB at 70 Mbit/s. A registry that stalls for good would
/// otherwise hold a task in preparation for ever.
const PULL: Duration = Duration::from_secs(600);

/// An image on this node.
pub(super) struct LocalImage {
    /// Of its index or manifest.
    pub(super) digest: String,
    pub(super) config: ImageConfig,
}

impl ContainerdRuntime {
    /// See [`crate::runtime::Runtime::pull`].
    pub(super) async fn pull_image(&self, image: &str) -> Result<PulledImage, RuntimeError> {
        let name: ImageName = image.parse()?;
        let pull_error = self.transfer(&name).await.err();
        match (self.local_image(&name).await, pull_error) {
            (Ok(Some(LocalImage { digest, .. })), stale) => {
                if let Some(error) = &stale {
                    tracing::warn!(image = %name, %error, "using this node's copy of the image");
                }
                Ok(PulledImage {
                    name,
                    digest,
                    stale,
                })
            }
            (Ok(None), Some(error)) => Err(error),
            (Ok(None), None) => Err(not_on_this_node(&name)),
            (Err(error), _) => {
                // containerd takes a single image, unlike an index, without a look at its platform.
                let unfit = matches!(
                    error,
                    RuntimeError::WrongPlatform { .. } | RuntimeError::ImageUnusable { .. }
                );
                if unfit {
                    self.forget_image(&name).await?;
                }
                Err(error)
            }
        }
    }

    async fn transfer(&self, name: &ImageName) -> Result<(), RuntimeError> {
        let source = transfer::OciRegistry {
            reference: name.to_string(),
            resolver: Some(transfer::RegistryResolver {
                // The `config_path` of containerd's own configuration is not used for such pulls.
                host_dir: self.registry_hosts_dir.display().to_string(),
                ..Default::default()
            }),
        };
        let platform = types::Platform::from(&self.platform);
        let destination = transfer::ImageStore {
            name: name.to_string(),
            platforms: vec![platform.clone()],
            // One manifest of an index; without this limit an index that has none for this
            // platform is stored as if it were complete.
            manifest_limit: 1,
            unpacks: vec![transfer::UnpackConfiguration {
                platform: Some(platform),
                snapshotter: SNAPSHOTTER.to_owned(),
            }],
            ..Default::default()
        };
        let request = containerd::TransferRequest {
            source: Some(to_any(&source)),
            destination: Some(to_any(&destination)),
            options: None,
        };
        let result = self
            .connection
            .call(PULL, request, |request| {
                let mut client = self.connection.transfer();
                async move { client.transfer(request).await }
            })
            .await;
        result.map_err(|error| {
            error
                .status()
                .and_then(|status| {
                    let hosts_dir = Some(self.registry_hosts_dir.as_path());
                    let hosts_dir = hosts_dir.filter(|_| self.reads_registry_hosts);
                    pull_failure(status.message(), name, &self.platform, hosts_dir)
                })
                .unwrap_or_else(|| self.connection.failure("pull image", name, error))
        })
    }

    async fn local_digest(&self, name: &ImageName) -> Result<Option<String>, CallError> {
        let request = containerd::GetImageRequest {
            name: name.to_string(),
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.images();
                async move { client.get(request).await }
            })
            .await;
        let image = done_if(result, Code::NotFound)?.image;
        Ok(image
            .and_then(|image| image.target)
            .map(|target| target.digest))
    }

    /// Removes the name; the garbage collection removes what only it kept.
    async fn forget_image(&self, name: &ImageName) -> Result<(), RuntimeError> {
        let request = containerd::DeleteImageRequest {
            name: name.to_string(),
            ..Default::default()
        };
        let result = self
            .connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.images();
                async move { client.delete(request).await }
            })
            .await;
        done_if(result, Code::NotFound)
            .map_err(|error| self.connection.failure("remove image", name, error))
    }

    /// An image on this node, if it is there, with what it says about containers made from it.
    pub(super) async fn local_image(
        &self,
        name: &ImageName,
    ) -> Result<Option<LocalImage>, RuntimeError> {
        let failure = |error| self.connection.failure("read image", name, error);
        match self.local_digest(name).await.map_err(failure)? {
            Some(digest) => {
                let config = self.image_config(name, &digest).await?;
                Ok(Some(LocalImage { digest, config }))
            }
            None => Ok(None),
        }
    }

    async fn image_config(
        &self,
        name: &ImageName,
        digest: &str,
    ) -> Result<ImageConfig, RuntimeError> {
        let failure = |error| self.connection.failure("read image", name, error);
        let unusable = |cause: &str| RuntimeError::ImageUnusable {
            image: name.to_string(),
            cause: Cause::new(cause),
        };
        let wrong_platform = || RuntimeError::WrongPlatform {
            image: name.to_string(),
            platform: self.platform.to_string(),
        };
        let mut digest = digest.to_owned();
        for _ in 0..INDEX_DEPTH_MAX {
            let document = self.document(&digest).await.map_err(failure)?;
            let step = next(&document, &self.platform)
                .map_err(|error| unusable(&format!("its manifest cannot be read: {error}")))?;
            match step {
                Next::Document(descriptor) => digest = descriptor.digest,
                Next::OtherPlatform => return Err(wrong_platform()),
                Next::Config(descriptor) => {
                    let document = self.document(&descriptor.digest).await.map_err(failure)?;
                    return parse_config(&document, &self.platform).map_err(|error| match error {
                        ConfigError::OtherPlatform(_) => wrong_platform(),
                        ConfigError::Malformed(source) => {
                            unusable(&format!("its configuration cannot be read: {source}"))
                        }
                    });
                }
            }
        }
        Err(unusable(
            "its index lists an index that lists an index, and so on",
        ))
    }

    /// A small blob of the content store.
    async fn document(&self, digest: &str) -> Result<Vec<u8>, CallError> {
        let request = containerd::ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        };
        self.connection
            .call(QUICK, request, |request| {
                let mut client = self.connection.content();
                async move {
                    let mut chunks = client.read(request).await?.into_inner();
                    let mut document = Vec::new();
                    while let Some(chunk) = chunks.message().await? {
                        document.extend_from_slice(&chunk.data);
                        if document.len() > DOCUMENT_LEN_MAX {
                            let message = "a manifest or configuration is larger than 4 MiB";
                            return Err(tonic::Status::out_of_range(message));
                        }
                    }
                    Ok(tonic::Response::new(document))
                }
            })
            .await
    }
}

impl From<&Platform> for types::Platform {
    fn from(platform: &Platform) -> Self {
        let Platform {
            os,
            architecture,
            variant,
        } = platform;
        Self {
            os: os.clone(),
            architecture: architecture.clone(),
            variant: variant.clone(),
            os_version: String::new(),
        }
    }
}

pub(super) fn not_on_this_node(name: &ImageName) -> RuntimeError {
    RuntimeError::ImageNotFound {
        image: name.to_string(),
        cause: Cause::new("it is not on this node"),
    }
}
