//! The test image, made of what the lab's own root file system has and pushed to its registry:
//! real layers, real pulls, no network outside.
//!
//! A task of `web` answers on
//! * 80/tcp (nginx): `/` one line of text, see [`WebAnswer`]; `/big` 1 GB of zeros as fast as it
//!   goes; `/slow` the same at 256 kB/s;
//! * 5353/udp: every datagram with a line as `/` has it, filled up to the datagram's length;
//! * 5201/tcp and udp: iperf3.
//!
//! Its stop signal is SIGQUIT: nginx then ends when the last request is answered.
//!
//! Tags `latest` and `1` are one image, `2` differs in the release that its answers name. An image
//! `broken` exits with code 7 at once.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::SHARE_DIR;
use crate::command::must;
use crate::services::{REGISTRY_DATA_DIR, registry};

/// Raised whenever what goes into the images changes, so that no cached one is used.
const REVISION: u32 = 3;

const BUSYBOX: &str = "/usr/bin/busybox";
const NGINX: &str = "/usr/sbin/nginx";
const IPERF3: &str = "/usr/bin/iperf3";
const ECHO: &str = "/lab/bin/lab-guest";

/// Port of the UDP echo in a task of `web`.
pub const ECHO_PORT: u16 = 5353;

const START: &str = r#"#!/bin/sh
# Ends as soon as it is told to: the default for a signal does not apply to the first process.
trap 'kill $(jobs -p) 2>/dev/null; exit 0' TERM INT
# The image's stop signal: whoever is being answered is answered to the end.
trap 'kill -QUIT $nginx; wait $nginx; kill $(jobs -p) 2>/dev/null; exit 0' QUIT
sed "s/@RELEASE@/${RELEASE:-1}/" /etc/nginx.conf.in > /etc/nginx.conf
truncate -s 1G /srv/big
/usr/sbin/nginx -c /etc/nginx.conf &
nginx=$!
/usr/bin/udp-echo udp-echo &
iperf3 -s > /dev/null 2>&1 &
wait $nginx
"#;

const NGINX_CONFIG: &str = r#"daemon off;
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off;
    default_type text/plain;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000;
    server {
        listen 80 default_server reuseport backlog=4096;
        listen [::]:80 default_server reuseport backlog=4096;
        location / {
            set $peer "client=$remote_addr:$remote_port";
            return 200 "task=$hostname server=$server_addr $peer release=@RELEASE@\n";
        }
        location = /big { alias /srv/big; }
        location = /slow { alias /srv/big; limit_rate 256k; }
    }
}
"#;

/// What a task of `web` says about itself and about who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebAnswer {
    /// Host name of the container.
    pub task: String,
    /// Address the request arrived at, as the task sees it.
    pub server: String,
    /// Address and port of the client, as the task sees it.
    pub client: SocketAddr,
    /// `1`, or `2` for the tag of that name.
    pub release: String,
}

impl FromStr for WebAnswer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let found = text
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            found.with_context(|| format!("no {name} in the answer {text:?}"))
        };
        let client = field("client=")?;
        // nginx writes IPv6 addresses without brackets.
        let (address, port) = client.rsplit_once(':').context("client without a port")?;
        let address: IpAddr = address
            .trim_matches(['[', ']'])
            .parse()
            .context("client's address in the answer")?;
        Ok(Self {
            task: field("task=")?.into(),
            server: field("server=")?.into(),
            client: SocketAddr::new(address, port.parse().context("client's port")?),
            release: field("release=")?.into(),
        })
    }
}

/// Fills the registry's directory, unless it has something, with the test images that an earlier
/// boot left in the shared directory. `false` when there are none: they have to be built then.
///
/// # Errors
/// When the cache cannot be unpacked.
pub fn restore() -> Result<bool> {
    if fs::read_dir(REGISTRY_DATA_DIR)?.next().is_some() {
        return Ok(true);
    }
    let cache = cache_file();
    if !cache.exists() {
        return Ok(false);
    }
    must(
        "tar",
        &["-xf", &cache.to_string_lossy(), "-C", REGISTRY_DATA_DIR],
    )?;
    Ok(true)
}

fn cache_file() -> PathBuf {
    Path::new(SHARE_DIR).join(format!("cache/registry-{REVISION}.tar"))
}

/// Builds the images, pushes them to the running registry, keeps its directory for the next boot.
///
/// # Errors
/// When a tool fails; the message has its output.
pub fn build() -> Result<()> {
    let work = Path::new("/tmp/image");
    let root = work.join("root");
    fill(&root)?;
    let layout = work.join("layout");
    let layout = layout.to_string_lossy();
    let release_1 = format!("{layout}:1");
    must("umoci", &["init", "--layout", &layout])?;
    must("umoci", &["new", "--image", &release_1])?;
    must(
        "umoci",
        &[
            "insert",
            "--image",
            &release_1,
            &root.to_string_lossy(),
            "/",
        ],
    )?;
    let ports = ["80/tcp", "5353/udp", "5201/tcp", "5201/udp"];
    let mut config = vec![
        "config",
        "--image",
        &release_1,
        "--config.entrypoint",
        "/start.sh",
        "--config.stopsignal",
        "SIGQUIT",
    ];
    config.extend([
        "--config.env",
        "PATH=/usr/sbin:/usr/bin:/bin",
        "--config.env",
        "RELEASE=1",
    ]);
    config.extend(
        ports
            .iter()
            .flat_map(|port| ["--config.exposedports", port]),
    );
    must("umoci", &config)?;
    let release_2 = [
        "config",
        "--image",
        &release_1,
        "--tag",
        "2",
        "--config.env",
        "RELEASE=2",
    ];
    must("umoci", &release_2)?;
    let mut broken = vec!["config", "--image", &release_1, "--tag", "broken"];
    for word in ["/bin/sh", "-c", "echo this image exits >&2; exit 7"] {
        broken.extend(["--config.entrypoint", word]);
    }
    must("umoci", &broken)?;
    for (tag, name) in [
        ("1", "web:latest"),
        ("1", "web:1"),
        ("2", "web:2"),
        ("broken", "broken:latest"),
    ] {
        let source = format!("oci:{layout}:{tag}");
        let destination = format!("docker://{}/{name}", registry());
        let copy = [
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            &source,
            &destination,
        ];
        must("skopeo", &copy)?;
    }
    fs::remove_dir_all(work)?;
    let cache = cache_file();
    let partial = cache.with_extension("partial");
    fs::create_dir_all(cache.parent().context("cache without a directory")?)?;
    must(
        "tar",
        &[
            "-cf",
            &partial.to_string_lossy(),
            "-C",
            REGISTRY_DATA_DIR,
            ".",
        ],
    )?;
    fs::rename(&partial, &cache)?;
    Ok(())
}

/// Lays out the image's root file system.
fn fill(root: &Path) -> Result<()> {
    fs::remove_dir_all(root).ok();
    for directory in [
        "bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr/bin", "usr/sbin",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::create_dir_all(root.join("var/lib/nginx"))?;
    fs::create_dir_all(root.join("var/log/nginx"))?;
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    for applet in must(BUSYBOX, &["--list"])?.lines() {
        symlink("busybox", root.join("bin").join(applet)).ok();
    }
    for (program, target) in [
        (NGINX, "usr/sbin/nginx"),
        (IPERF3, "usr/bin/iperf3"),
        (ECHO, "usr/bin/udp-echo"),
    ] {
        fs::copy(program, root.join(target))?;
        for library in libraries(&must("ldd", &[program])?) {
            let to = root.join(&library[1..]);
            fs::create_dir_all(to.parent().context("library without a directory")?)?;
            fs::copy(library, to)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("etc/nginx.conf.in"), NGINX_CONFIG)?;
    fs::write(root.join("start.sh"), START)?;
    fs::set_permissions(root.join("start.sh"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The paths in what `ldd` prints, the loader among them.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// The UDP echo of the image: answers every datagram with a line as nginx has it, until killed.
///
/// # Errors
/// When the port cannot be bound.
pub fn udp_echo() -> Result<()> {
    // Both IP versions, where the kernel has both.
    let socket =
        UdpSocket::bind(("::", ECHO_PORT)).or_else(|_| UdpSocket::bind(("0.0.0.0", ECHO_PORT)))?;
    let task = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let release = std::env::var("RELEASE").unwrap_or_else(|_| "1".into());
    let mut buffer = vec![0; 0x1_0000];
    loop {
        // An ICMP error for an earlier answer surfaces here; it concerns nobody any more.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let (task, seen) = (task.trim(), client.ip().to_canonical());
        let seen = SocketAddr::new(seen, client.port());
        let answer = format!("task={task} server=any client={seen} release={release}");
        let answer = format!("{answer:<fill$}\n", fill = length.saturating_sub(1));
        socket.send_to(answer.as_bytes(), client).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_field_by_field() {
        let text = "task=ab server=10.255.0.5 client=10.99.0.100:4242 release=2\n";
        let answer: WebAnswer = text.parse().unwrap();
        assert_eq!(answer.task, "ab");
        assert_eq!(answer.client, "10.99.0.100:4242".parse().unwrap());
        assert_eq!(answer.release, "2");
        assert!("502 Bad Gateway".parse::<WebAnswer>().is_err());
        for client in ["fd00:99::64:4242", "[fd00:99::64]:4242"] {
            let text = format!("task=ab server=any client={client} release=1   \n");
            let answer: WebAnswer = text.parse().unwrap();
            assert_eq!(answer.client, "[fd00:99::64]:4242".parse().unwrap());
        }
    }

    #[test]
    fn libraries_are_found_with_and_without_an_arrow() {
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                   \t/lib64/ld.so (0x7f)\n";
        assert_eq!(
            libraries(ldd).collect::<Vec<_>>(),
            ["/lib/libc.so.6", "/lib64/ld.so"]
        );
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
    }
}
