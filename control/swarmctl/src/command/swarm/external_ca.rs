//! `--external-ca`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use swarm_api::v1;

/// What the flag is given, in Docker's words: `protocol=cfssl,url=URL[,cacert=FILE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExternalCa {
    /// Nothing: an empty text.
    Nobody,
    /// One authority.
    Named {
        /// Where it signs.
        url: String,
        /// File with its root certificate, PEM.
        ca_cert: Option<PathBuf>,
    },
}

impl FromStr for ExternalCa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::Nobody);
        }
        let (mut protocol, mut url, mut ca_cert) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
            let place = match key {
                "protocol" => &mut protocol,
                "url" => &mut url,
                "cacert" => &mut ca_cert,
                _ => return Err(format!("{key:?} is none of protocol, url and cacert")),
            };
            if place.replace(value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        match protocol {
            Some("cfssl") => {}
            Some(other) => return Err(format!("protocol {other:?} is not cfssl, the only one")),
            None => return Err("the protocol is missing: protocol=cfssl".to_owned()),
        }
        Ok(Self::Named {
            url: url
                .ok_or("the url is missing: url=https://HOST:8888/api/v1/cfssl/sign")?
                .to_owned(),
            ca_cert: ca_cert.map(PathBuf::from),
        })
    }
}

/// What the flags say, with the files that they name. Without a file the root certificate is empty.
pub(super) fn read(flags: &[ExternalCa]) -> anyhow::Result<Vec<v1::ExternalCa>> {
    let named = flags.iter().filter_map(|flag| match flag {
        ExternalCa::Nobody => None,
        ExternalCa::Named { url, ca_cert } => Some((url, ca_cert)),
    });
    let read = named.map(|(url, ca_cert)| {
        let root_ca_pem = match ca_cert {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
        };
        let url = url.clone();
        Ok(v1::ExternalCa { url, root_ca_pem })
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_named_in_dockers_words() {
        let named = |url: &str, ca_cert: Option<&str>| ExternalCa::Named {
            url: url.to_owned(),
            ca_cert: ca_cert.map(PathBuf::from),
        };
        for (text, expected) in [
            ("", ExternalCa::Nobody),
            (
                "protocol=cfssl,url=https://ca/sign?a=b",
                named("https://ca/sign?a=b", None),
            ),
            (
                "url=https://ca,cacert=a.pem,protocol=cfssl",
                named("https://ca", Some("a.pem")),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("https://ca", "\"https://ca\" is not KEY=VALUE"),
            ("url=https://ca", "the protocol is missing: protocol=cfssl"),
            (
                "protocol=acme,url=https://ca",
                "protocol \"acme\" is not cfssl, the only one",
            ),
            (
                "protocol=cfssl",
                "the url is missing: url=https://HOST:8888/api/v1/cfssl/sign",
            ),
            ("protocol=cfssl,url=a,url=b", "url is given twice"),
            (
                "protocol=cfssl,token=a",
                "\"token\" is none of protocol, url and cacert",
            ),
        ] {
            assert_eq!(text.parse::<ExternalCa>(), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_root_is_read_from_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.pem");
        std::fs::write(&path, "root").unwrap();
        let flag = |ca_cert| ExternalCa::Named {
            url: "u".to_owned(),
            ca_cert,
        };
        let found = read(&[ExternalCa::Nobody, flag(Some(path.clone())), flag(None)]).unwrap();
        let roots: Vec<_> = found.iter().map(|ca| ca.root_ca_pem.as_str()).collect();
        assert_eq!(roots, ["root", ""]);
        let error = read(&[flag(Some(path.with_extension("x")))]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read "), "{error}");
    }
}
