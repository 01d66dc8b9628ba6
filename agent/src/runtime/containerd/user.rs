//! Who a container's first process runs as: `user[:group]` looked up in the image's own files.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Most bytes read of an image's passwd or group file: ten thousand entries are below it, and the
/// image may be hostile.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Numbers a process runs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// User id.
    pub(super) uid: u32,
    /// Group id.
    pub(super) gid: u32,
    /// Supplementary groups with the group itself, ascending.
    pub(super) additional_gids: Vec<u32>,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    /// Neither a number nor an entry of passwd.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    /// Neither a number nor an entry of group.
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    /// The file cannot be read.
    #[error("reading /etc/{name} of the image")]
    Read {
        /// Name of the file.
        name: &'static str,
        /// What reading gave.
        #[source]
        source: std::io::Error,
    },
}

/// Finds `text` (`user[:group]`; empty is root) in the root file system that `mounts` describe.
///
/// Blocking: reads files.
pub(super) fn find_user(text: &str, mounts: &[Mount]) -> Result<User, UserError> {
    let layers = layers(mounts);
    let read = |name| read_file(&layers, name).map_err(|source| UserError::Read { name, source });
    resolve(text, &read("passwd")?, &read("group")?)
}

/// Docker's rules: a name must be in the file; a number need not be, and then has group 0. Without
/// a group of its own the user gets the one of its entry, and all groups that list it.
fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, given_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        (name == user || Ok(uid) == user.parse()).then_some((name, uid, gid))
    });
    let (name, uid, entry_gid) = match (entry, user.parse::<u32>()) {
        (Some(entry), _) => entry,
        (None, Ok(uid)) => (user, uid, 0),
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid: u32 = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    });
    let (gid, mut additional_gids) = match given_group {
        Some(given) => {
            let known = groups.into_iter().find(|(name, ..)| *name == given);
            let gid = known.map(|(_, gid, _)| gid).or_else(|| given.parse().ok());
            (
                gid.ok_or_else(|| UserError::NoGroup(given.to_owned()))?,
                Vec::new(),
            )
        }
        None => {
            let lists_user = |members: &str| members.split(',').any(|member| member == name);
            let gids = groups
                .filter(|(_, _, members)| lists_user(members))
                .map(|(_, gid, _)| gid);
            (entry_gid, gids.collect())
        }
    };
    // Without it a program could drop the group and so escape permissions that deny it something
    // (CVE-2022-36109).
    additional_gids.push(gid);
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(User {
        uid,
        gid,
        additional_gids,
    })
}

/// Directories of the layers, the uppermost first. Reading them needs no mount, which could be
/// left behind, and has no limit on the number of layers as mount options have.
fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let mut layers = Vec::new();
    for mount in mounts {
        if mount.r#type == "overlay" {
            let option = |key: &str| mount.options.iter().find_map(|o| o.strip_prefix(key));
            layers.extend(option("upperdir=").map(PathBuf::from));
            let lower = option("lowerdir=").unwrap_or_default();
            layers.extend(
                lower
                    .split(':')
                    .filter(|dir| !dir.is_empty())
                    .map(PathBuf::from),
            );
        } else {
            layers.push(PathBuf::from(&mount.source));
        }
    }
    layers
}

/// `/etc/NAME` of the uppermost layer that has or deletes it; empty when there is none.
fn read_file(layers: &[PathBuf], name: &str) -> std::io::Result<String> {
    for layer in layers {
        match open_within(layer, &Path::new("etc").join(name)) {
            Ok(file) => {
                // A character device in a layer says that the file is deleted (overlayfs.rst).
                if file.metadata()?.file_type().is_char_device() {
                    break;
                }
                let mut bytes = Vec::new();
                file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::new())
}

/// Opens a path as if `root` were the root directory: a link in a hostile image cannot make the
/// agent read the host's files, and a FIFO or device cannot make it wait.
fn open_within(root: &Path, path: &Path) -> std::io::Result<File> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(&root, path, how)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:101:102::/:/bin/false\n\
                          7:x:8:9::/:/bin/false\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:root,web\nweb:x:102:\nlog:x:4:web\n\nbad:x:y:web\nlog2:x:4:web\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> User {
        User {
            uid,
            gid,
            additional_gids: additional_gids.to_vec(),
        }
    }

    #[test]
    fn users_are_found() {
        let table = [
            ("", user(0, 0, &[0, 10])),
            ("root", user(0, 0, &[0, 10])),
            ("0", user(0, 0, &[0, 10])),
            ("web", user(101, 102, &[4, 10, 102])),
            ("101", user(101, 102, &[4, 10, 102])),
            ("web:", user(101, 102, &[4, 10, 102])),
            ("web:wheel", user(101, 10, &[10])),
            ("web:55", user(101, 55, &[55])),
            ("12345", user(12345, 0, &[0])),
            ("12345:log", user(12345, 4, &[4])),
            (":log", user(0, 4, &[4])),
        ];
        for (text, expected) in table {
            assert_eq!(
                resolve(text, PASSWD, GROUP).expect(text),
                expected,
                "{text:?}"
            );
        }
        assert_eq!(resolve("", "", "").unwrap(), user(0, 0, &[0]));
        assert!(matches!(
            resolve("nobody", PASSWD, GROUP),
            Err(UserError::NoUser(_))
        ));
        assert!(matches!(
            resolve("web:none", PASSWD, GROUP),
            Err(UserError::NoGroup(_))
        ));
        assert!(matches!(
            resolve("-1", PASSWD, GROUP),
            Err(UserError::NoUser(_))
        ));
    }

    #[test]
    fn layers_come_uppermost_first() {
        let overlay = Mount {
            r#type: "overlay".to_owned(),
            options: vec![
                "index=off".to_owned(),
                "upperdir=/u".into(),
                "lowerdir=/b:/a".into(),
            ],
            ..Mount::default()
        };
        assert_eq!(layers(&[overlay]), ["/u", "/b", "/a"].map(PathBuf::from));
        let bind = Mount {
            r#type: "bind".into(),
            source: "/only".into(),
            ..Mount::default()
        };
        assert_eq!(layers(&[bind]), [PathBuf::from("/only")]);
    }

    #[test]
    fn links_stay_within_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let [upper, lower] = ["upper", "lower"].map(|name| dir.path().join(name));
        for layer in [&upper, &lower] {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        let layers = [upper.clone(), lower.clone()];
        assert_eq!(read_file(&layers, "passwd").unwrap(), "");
        std::fs::write(lower.join("etc/passwd"), "low").unwrap();
        assert_eq!(read_file(&layers, "passwd").unwrap(), "low");

        // Absolute and climbing links lead to the same file of the image, never of this machine.
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(upper.join("secret"), "inside").unwrap();
        for target in [Path::new("/secret"), Path::new("../../../../secret")] {
            let link = upper.join("etc/passwd");
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(read_file(&layers, "passwd").unwrap(), "inside");
            std::fs::remove_file(link).unwrap();
        }
        let outside = upper.join("etc/passwd");
        std::os::unix::fs::symlink(dir.path().join("secret"), &outside).unwrap();
        assert_eq!(read_file(&layers, "passwd").unwrap(), "low");
    }
}
