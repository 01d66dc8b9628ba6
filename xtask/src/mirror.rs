//! Which Debian mirror this machine uses, from its own apt sources: the repository names none.

use std::fs;
use std::path::{Path, PathBuf};

/// The first mirror of Debian's main archive in the machine's apt sources; `None` on anything but
/// Debian.
pub(crate) fn of_this_machine() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let codename = debian_codename(&release)?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
    more.sort();
    files.extend(more);
    files.iter().find_map(|file| in_file(file, codename))
}

fn in_file(file: &Path, codename: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    match file.extension()?.to_str()? {
        "list" => in_one_line_format(&text, codename),
        "sources" => in_deb822(&text, codename),
        _ => None,
    }
}

/// Debian's code name, from os-release(5).
fn debian_codename(release: &str) -> Option<&str> {
    let value = |key: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"'))
    };
    (value("ID")? == "debian")
        .then(|| value("VERSION_CODENAME"))
        .flatten()
}

/// `deb [options] URI suite component...`, sources.list(5). Another archive than Debian's own does
/// not call a suite by Debian's code name and its component `main` at once.
fn in_one_line_format(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
        let line = match line.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?.1,
            None => line,
        };
        let mut words = line.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        is_main_archive(uri, suite, words, codename).then(|| uri.to_string())
    })
}

/// Stanzas of `Field: value`, sources.list(5); continued lines begin with white space.
fn in_deb822(text: &str, codename: &str) -> Option<String> {
    let text: String = text.lines().filter(|line| !line.starts_with('#')).fold(
        String::new(),
        |mut joined, line| {
            joined.push_str(if line.starts_with([' ', '\t']) {
                " "
            } else {
                "\n"
            });
            joined.push_str(line.trim_end());
            joined
        },
    );
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let is_off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        let has_binaries = field("Types")?.split_whitespace().any(|kind| kind == "deb");
        if is_off || !has_binaries {
            return None;
        }
        let components = field("Components")?;
        field("Suites")?.split_whitespace().find_map(|suite| {
            let mut uris = field("URIs")?.split_whitespace();
            uris.find(|uri| is_main_archive(uri, suite, components.split_whitespace(), codename))
                .map(str::to_string)
        })
    })
}

fn is_main_archive<'a>(
    uri: &str,
    suite: &str,
    mut components: impl Iterator<Item = &'a str>,
    codename: &str,
) -> bool {
    (uri.starts_with("http://") || uri.starts_with("https://"))
        && suite == codename
        && components.any(|component| component == "main")
}

#[cfg(test)]
mod tests {
    use super::*;

    const URI: &str = "http://mirror.example/debian";

    #[test]
    fn one_line_sources_with_and_without_options() {
        let text = format!(
            "# deb http://old.example/debian bookworm main\n\
             deb-src {URI} bookworm main\n\
             deb https://tools.example/apt stable main\n\
             deb http://security.example/debian-security bookworm-security main\n\
             deb [arch=amd64 signed-by=/k] {URI} bookworm main contrib\n"
        );
        assert_eq!(in_one_line_format(&text, "bookworm").as_deref(), Some(URI));
        assert_eq!(in_one_line_format(&text, "trixie"), None);
    }

    #[test]
    fn deb822_sources() {
        let text = format!(
            "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\
             Enabled: no\n\n\
             Types: deb deb-src\n# a comment within\nURIs: {URI}\n\
             Suites: bookworm-updates\n bookworm\nComponents: main\nSigned-By:\n key\n"
        );
        assert_eq!(in_deb822(&text, "bookworm").as_deref(), Some(URI));
        assert_eq!(in_deb822("Types: deb\nURIs: x\n", "bookworm"), None);
    }

    #[test]
    fn only_debian_counts() {
        let debian = "NAME=\"x\"\nVERSION_CODENAME=trixie\nID=debian\n";
        assert_eq!(debian_codename(debian), Some("trixie"));
        assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
    }
}
