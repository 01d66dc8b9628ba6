//! What containerd's and runc's messages mean.
//!
//! containerd hands most failures on as text. The patterns are those of containerd 1.7 and 2.x,
//! runc 1.1 and later, and Go's network library; a text that matches none stays as it is, only
//! shorter.

use std::path::Path;

use swarm_model::TaskId;

use super::image::Platform;
use crate::runtime::{Cause, ImageName, RuntimeError};

/// Wrappings that tell where in containerd or runc something failed, which helps nobody who made
/// a service.
const WRAPPINGS: [&str; 6] = [
    "failed to create shim task: ",
    "OCI runtime create failed: ",
    "OCI runtime start failed: ",
    "runc create failed: ",
    "unable to start container process: ",
    "error during container init: ",
];
/// Appended by containerd to errors without a class.
const UNCLASSIFIED: &str = ": unknown";

/// The part of a message that says what is wrong.
pub(super) fn essence(message: &str) -> &str {
    let mut rest = message.strip_suffix(UNCLASSIFIED).unwrap_or(message);
    while let Some(inner) = WRAPPINGS
        .iter()
        .find_map(|wrapping| rest.strip_prefix(wrapping))
    {
        rest = inner;
    }
    rest
}

/// What a failed pull means, when its message is known. The directory is the one with the
/// registries' `hosts.toml`, when this containerd reads it.
pub(super) fn pull_failure(
    message: &str,
    image: &ImageName,
    platform: &Platform,
    registry_hosts_dir: Option<&Path>,
) -> Option<RuntimeError> {
    let has = |patterns: &[&str]| patterns.iter().any(|pattern| message.contains(pattern));
    let registry = image.registry().to_owned();
    let name = image.to_string();
    let cause = || Cause::new(innermost(essence(message)));
    if has(&["server gave HTTP response to HTTPS client"]) {
        let hosts_toml = registry_hosts_dir
            .map(|dir| dir.join(&registry).join("hosts.toml").display().to_string());
        return Some(RuntimeError::RegistryInsecure {
            registry,
            image: name,
            hosts_toml,
        });
    }
    if has(&["no space left on device"]) {
        return Some(RuntimeError::DiskFull {
            action: "pull image",
            subject: name,
        });
    }
    if has(&[
        "no match for platform",
        "does not support platform",
        "failed to find any manifest for platform",
        "could not find matching manifest",
    ]) {
        return Some(RuntimeError::WrongPlatform {
            image: name,
            platform: platform.to_string(),
        });
    }
    if has(&[
        "no such host",
        "connection refused",
        "connection reset",
        "network is unreachable",
        "no route to host",
        "i/o timeout",
        "TLS handshake",
        "x509:",
        "tls:",
        "server misbehaving",
        "dial tcp",
        ": EOF",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway",
    ]) {
        return Some(RuntimeError::RegistryUnreachable {
            registry,
            image: name,
            cause: cause(),
        });
    }
    if has(&[
        ": not found",
        "pull access denied",
        "repository does not exist",
        "401 Unauthorized",
        "403 Forbidden",
        "insufficient_scope",
        "authorization failed",
        "no basic auth credentials",
        "manifest unknown",
    ]) {
        return Some(RuntimeError::ImageNotFound {
            image: name,
            cause: cause(),
        });
    }
    None
}

/// What a failed start means, when it is the command's fault.
pub(super) fn start_failure(message: &str, task_id: &TaskId) -> Option<RuntimeError> {
    // Go's exec.Error and PathError within runc: `exec: "nginy": executable file not found in
    // $PATH`, `exec /run.sh: permission denied`, `exec: "/etc": is a directory`.
    let about_exec = ["exec: \"", "exec /"]
        .iter()
        .find_map(|pattern| message.find(pattern));
    let cause = match about_exec {
        Some(start) => essence(&message[start..]),
        None if message.contains("chdir to cwd") => essence(message),
        None => return None,
    };
    let task_id = task_id.clone();
    Some(RuntimeError::CommandNotRunnable {
        task_id,
        cause: Cause::new(cause),
    })
}

/// What follows the last address in Go's chain of errors, which names the request that failed; or
/// the whole message without the action.
fn innermost(message: &str) -> &str {
    match message.rsplit_once("\": ") {
        Some((_, cause)) => cause,
        None => message
            .strip_prefix("failed to resolve image: ")
            .unwrap_or(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "https://registry.test:5000/v2/app/manifests/1";

    fn classify(message: &str) -> Option<RuntimeError> {
        let image: ImageName = "registry.test:5000/app:1".parse().unwrap();
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
        };
        pull_failure(message, &image, &platform, Some(Path::new("/etc/hosts.d")))
    }

    /// The error and its cause, as a person reads them.
    fn text(error: &RuntimeError) -> String {
        match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    }

    /// Messages of containerd 1.7.24.
    #[test]
    fn failed_pulls_are_understood() {
        let request = format!("failed to resolve image: failed to do request: Head \"{HOST}\": ");
        let table = [
            (
                "failed to resolve image: registry.test:5000/app:1: not found".to_owned(),
                "no such image registry.test:5000/app:1, or pulling it is denied: \
                 registry.test:5000/app:1: not found",
            ),
            (
                "failed to resolve image: pull access denied, repository does not exist or may \
                 require authorization: server message: insufficient_scope: authorization failed"
                    .to_owned(),
                "no such image registry.test:5000/app:1, or pulling it is denied: pull access \
                 denied, repository does not exist or may require authorization: server message: \
                 insufficient_scope: authorization failed",
            ),
            (
                format!("{request}dial tcp 192.0.2.1:5000: connect: connection refused"),
                "registry registry.test:5000 of image registry.test:5000/app:1 is not reachable \
                 from this node: dial tcp 192.0.2.1:5000: connect: connection refused",
            ),
            (
                format!("{request}dial tcp: lookup registry.test: no such host"),
                "registry registry.test:5000 of image registry.test:5000/app:1 is not reachable \
                 from this node: dial tcp: lookup registry.test: no such host",
            ),
            (
                format!("{request}http: server gave HTTP response to HTTPS client"),
                "registry registry.test:5000 of image registry.test:5000/app:1 speaks plain HTTP, \
                 not HTTPS; if that is meant, allow it in \
                 /etc/hosts.d/registry.test:5000/hosts.toml on this node",
            ),
            (
                format!(
                    "{request}tls: failed to verify certificate: x509: certificate signed by \
                         unknown authority"
                ),
                "registry registry.test:5000 of image registry.test:5000/app:1 is not reachable \
                 from this node: tls: failed to verify certificate: x509: certificate signed by \
                 unknown authority",
            ),
            (
                "no match for platform in manifest sha256:0: not found".to_owned(),
                "image registry.test:5000/app:1 is not made for this node's platform linux/amd64",
            ),
            (
                "failed to extract layer sha256:0: write /x: no space left on device: unknown"
                    .to_owned(),
                "cannot pull image registry.test:5000/app:1: no space left on this node's disk",
            ),
        ];
        for (message, expected) in table {
            let error = classify(&message).unwrap_or_else(|| panic!("unknown: {message}"));
            assert_eq!(text(&error), expected);
        }
        assert_eq!(classify("something new"), None);
    }

    /// Messages of containerd 1.7.24 with runc 1.1 and 1.2.
    #[test]
    fn failed_starts_are_understood() {
        let task_id: TaskId = "a".repeat(25).parse().unwrap();
        let prefix = "failed to create shim task: OCI runtime create failed: runc create failed: \
                      unable to start container process: ";
        let causes = [
            "exec: \"nginy\": executable file not found in $PATH",
            "exec: \"/run.sh\": permission denied",
            "exec: \"/no/such\": stat /no/such: no such file or directory",
        ];
        for cause in causes {
            for wrapping in ["", "error during container init: "] {
                let message = format!("{prefix}{wrapping}{cause}: unknown");
                let error = start_failure(&message, &task_id).expect("it is the command");
                assert!(matches!(error, RuntimeError::CommandNotRunnable { .. }));
                assert_eq!(
                    text(&error),
                    format!("task {task_id} cannot run its command: {cause}")
                );
            }
        }
        let other = format!("{prefix}error setting cgroup config: unknown");
        assert_eq!(start_failure(&other, &task_id), None);
        assert_eq!(essence(&other), "error setting cgroup config");
    }
}
