//! Names of images, as people type them and as registries need them.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The registry of names that give none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Another name of the same registry, from its first years.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where the default registry keeps images whose name has no slash.
const OFFICIAL_REPOSITORY_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Most bytes of `registry/repository` (distribution reference grammar, `NameTotalLengthMax`).
const NAME_LEN_MAX: usize = 255;
/// Most bytes of a tag (same grammar).
const TAG_LEN_MAX: usize = 128;
/// Hexadecimal digits of a sha256 digest.
const SHA256_HEX_LEN: usize = 64;

/// A full image name: registry, repository, and a tag, a digest or both.
///
/// Parsing follows Docker's rules (the distribution project's reference grammar): the first part
/// is a registry when it has a dot, a colon or an upper-case letter or is `localhost`; without one
/// it is `docker.io`, whose names without a slash are in `library/`; without tag and digest it is
/// `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image name: {reason}")]
pub(crate) struct InvalidImageName {
    text: String,
    reason: &'static str,
}

impl ImageName {
    /// Host of the registry, with its port if it has one.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        parse(text).map_err(|reason| InvalidImageName {
            // The text may come from outside and be of any length: the message stays bounded.
            text: text.chars().take(NAME_LEN_MAX).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<ImageName, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(check_digest(digest)?)),
        None => (text, None),
    };
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (check_registry(first)?, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(check_tag(tag)?)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    if !path.split('/').all(is_path_component) {
        return Err("the repository has a character or separator where none may be");
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{OFFICIAL_REPOSITORY_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > NAME_LEN_MAX {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(ImageName {
        registry: registry.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<&str, &'static str> {
    if registry == LEGACY_DEFAULT_REGISTRY {
        return Ok(DEFAULT_REGISTRY);
    }
    // A colon within brackets belongs to an IPv6 address.
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let host_valid = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_host_label),
    };
    let port_valid = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    if host_valid && port_valid {
        Ok(registry)
    } else {
        Err("the registry is no host or host:port")
    }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn check_tag(tag: &str) -> Result<&str, &'static str> {
    let valid = !tag.is_empty()
        && tag.len() <= TAG_LEN_MAX
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        Ok(tag)
    } else {
        Err("the tag is not up to 128 letters, digits, _, . and -")
    }
}

fn check_digest(digest: &str) -> Result<&str, &'static str> {
    let valid = digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == SHA256_HEX_LEN
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    if valid {
        Ok(digest)
    } else {
        Err("the digest is not sha256: and 64 hexadecimal digits")
    }
}

/// Runs of a-z and 0-9, between them one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |run: &str| run == "." || run == "_" || run == "__" || run.bytes().all(|b| b == b'-');
    component.starts_with(is_alphanumeric)
        && component.ends_with(is_alphanumeric)
        && component.split(is_alphanumeric).all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_become_full() {
        let digest = DIGEST;
        let table = [
            (
                "nginx",
                "docker.io",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "nginx:1.27",
                "docker.io",
                "docker.io/library/nginx:1.27".to_owned(),
            ),
            (
                "bitnami/redis",
                "docker.io",
                "docker.io/bitnami/redis:latest".to_owned(),
            ),
            (
                "docker.io/nginx",
                "docker.io",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "index.docker.io/a/b:c",
                "docker.io",
                "docker.io/a/b:c".to_owned(),
            ),
            (
                "localhost/app",
                "localhost",
                "localhost/app:latest".to_owned(),
            ),
            (
                "localhost:5000/app:v1",
                "localhost:5000",
                "localhost:5000/app:v1".to_owned(),
            ),
            (
                "registry:5000/app",
                "registry:5000",
                "registry:5000/app:latest".to_owned(),
            ),
            (
                "10.0.0.1:5000/a/b/c",
                "10.0.0.1:5000",
                "10.0.0.1:5000/a/b/c:latest".to_owned(),
            ),
            (
                "[::1]:5000/app",
                "[::1]:5000",
                "[::1]:5000/app:latest".to_owned(),
            ),
            (
                "[2001:db8::1]/app",
                "[2001:db8::1]",
                "[2001:db8::1]/app:latest".to_owned(),
            ),
            ("Registry/app", "Registry", "Registry/app:latest".to_owned()),
            (
                "quay.io/x/y-z__w.v",
                "quay.io",
                "quay.io/x/y-z__w.v:latest".to_owned(),
            ),
            (
                "team/app",
                "docker.io",
                "docker.io/team/app:latest".to_owned(),
            ),
            (
                "a---b",
                "docker.io",
                "docker.io/library/a---b:latest".to_owned(),
            ),
            (
                &format!("nginx@{digest}"),
                "docker.io",
                format!("docker.io/library/nginx@{digest}"),
            ),
            (
                &format!("h:1/a/nginx:1.2@{digest}"),
                "h:1",
                format!("h:1/a/nginx:1.2@{digest}"),
            ),
        ];
        for (text, registry, full) in table {
            let name: ImageName = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(name.registry(), registry, "{text}");
            assert_eq!(name.to_string(), full, "{text}");
            assert_eq!(
                full.parse::<ImageName>(),
                Ok(name),
                "{full} is not its own full name"
            );
        }
    }

    #[test]
    fn other_text_is_refused() {
        let long_tag = format!("nginx:{}", "a".repeat(TAG_LEN_MAX + 1));
        let long_name = "a".repeat(NAME_LEN_MAX);
        for text in [
            "",
            ":",
            ":latest",
            "nginx:",
            "nginx:a b",
            "nginx:-a",
            "Nginx",
            "team/App",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a___b",
            "a..b",
            "a:b:c",
            "../etc/passwd",
            "host:port/app",
            "host:99999/app",
            "host:/app",
            "h_st.x/app",
            "[::1/app",
            "[zz]:1/app",
            "[::1]x/app",
            "nginx@sha256:abc",
            "nginx@md5:0123",
            "@",
            &format!("@{DIGEST}"),
            &format!("nginx@{}", DIGEST.to_uppercase()),
            "n\u{e9}",
            "a\nb",
            &long_tag,
            &long_name,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?} was accepted");
        }
        let error = "Nginx".parse::<ImageName>().expect_err("upper case");
        assert_eq!(
            error.to_string(),
            "\"Nginx\" is no image name: the repository must be lower case"
        );
    }
}
