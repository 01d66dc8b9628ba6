//! Whether the IPVS table is as it was, without reading it.
//!
//! IPVS tells nobody of changes, and to read a service's destinations takes an exchange of its own:
//! with thousands of services most of what a look costs. The kernel also prints the table
//! (`ip_vs_info_seq_show`), at a small part of that: as a number, it tells whether anything changed.
//! It does not print the flags of schedulers and the limits of destinations; a change in those alone
//! is seen when the table is read.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead, BufReader};

use crate::network::kernel::Kernel;
use crate::network::model::Place;

/// The calling thread's network namespace.
const TABLE: &str = "/proc/thread-self/net/ip_vs";

/// Longest line that is read; the kernel's are at most some 150 bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// What the kernel prints of the ingress namespace's table, as a number; nothing where there is no
/// table.
pub(in crate::network) fn printed(kernel: &mut Kernel) -> Option<u64> {
    let netns = &kernel.at(&Place::Ingress).ok()?.netns;
    let number = netns.run(|| number(BufReader::new(File::open(TABLE)?)));
    number.ok()?.ok()
}

/// A number for the services and destinations of a table, whatever their connections.
fn number(mut table: impl BufRead) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = io::Read::take(&mut table, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(hasher.finish());
        }
        let fields = line.split(u8::is_ascii_whitespace);
        let fields: Vec<_> = fields.filter(|field| !field.is_empty()).collect();
        // Of a destination the last two are how many connections it has.
        let lasting = match fields.as_slice() {
            [b"->", fields @ .., _, _] => fields,
            fields => fields,
        };
        lasting.hash(&mut hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C0000201:2710 rr 
  -> 0A800101:0050      Masq    1      0          0         
  -> 0A800100:0050      Masq    1      3          12        
UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:2710 mh persistent 300 FFFFFFFF
  -> [fd00:000a:0000:0000:0000:0000:0a80:0100]:0050      Masq    0      0          0         
";

    #[test]
    fn it_changes_with_the_table_and_not_with_its_connections() {
        let of = |table: &str| number(table.as_bytes()).unwrap();
        let busier = TABLE.replace("3          12", "17         0");
        assert_eq!(of(TABLE), of(&busier));
        let lines: Vec<_> = TABLE.lines().collect();
        for gone in 3..lines.len() {
            let rest = [&lines[..gone], &lines[gone + 1..]].concat().join("\n");
            assert_ne!(of(TABLE), of(&rest), "without {}", lines[gone]);
        }
        for (from, to) in [
            ("rr", "wrr"),
            ("0A800101:0050", "0A800102:0050"),
            ("Masq    0", "Masq    1"),
            ("Masq    0", "Route   0"),
            ("persistent 300", "persistent 60"),
        ] {
            let other = TABLE.replacen(from, to, 1);
            assert_ne!(of(TABLE), of(&other), "{from} as {to}");
        }
        let mut swapped = lines.clone();
        swapped.swap(4, 5);
        assert_ne!(of(TABLE), of(&swapped.join("\n")));
    }
}
