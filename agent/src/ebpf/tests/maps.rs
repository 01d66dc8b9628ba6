//! Pinned maps: taken over, compared, replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use aya::maps::MapInfo;

use super::sandbox::{run, sandboxed};
use crate::ebpf::layout::LAYOUTS;
use crate::ebpf::reconcile::Changed;
use crate::ebpf::{Config, Mesh, MeshError, Protocol, PublishedKey, PublishedValue};

fn published(ports: impl IntoIterator<Item = u16>) -> BTreeMap<PublishedKey, PublishedValue> {
    let key = |port| PublishedKey::new(Ipv4Addr::new(192, 0, 2, 10).into(), port, Protocol::Tcp);
    ports
        .into_iter()
        .map(|port| {
            (
                key(port),
                PublishedValue {
                    service: 1,
                    flags: 0,
                },
            )
        })
        .collect()
}

fn map_id(sandbox: &super::sandbox::Sandbox, map: &str) -> u32 {
    MapInfo::from_pin(sandbox.pin(map)).unwrap().id()
}

#[test]
fn the_object_declares_the_layouts_that_the_agent_expects() {
    sandboxed(|sandbox| {
        let _mesh = sandbox.load();
        for layout in LAYOUTS {
            let info = MapInfo::from_pin(sandbox.pin(layout.name)).unwrap();
            assert!(layout.fits(&info), "{layout:?}\n{info:?}");
            assert_eq!(info.name_as_str(), Some(layout.name));
        }
        let pinned = fs::read_dir(sandbox.bpffs_dir().join("maps"))
            .unwrap()
            .count();
        assert_eq!(pinned, LAYOUTS.len());
    });
}

#[test]
fn the_next_agent_takes_the_maps_over() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        mesh.set_published(&published([80, 443])).unwrap();
        let flow = map_id(sandbox, "flow");
        drop(mesh);
        let mut mesh = sandbox.load();
        assert_eq!(
            mesh.set_published(&published([80, 443])).unwrap(),
            Changed::default()
        );
        assert_eq!(map_id(sandbox, "flow"), flow);
    });
}

#[test]
fn a_map_of_another_shape_is_replaced_and_the_others_are_kept() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        mesh.set_published(&published([80])).unwrap();
        let flow = map_id(sandbox, "flow");
        drop(mesh);
        let path = sandbox.pin("flow");
        fs::remove_file(&path).unwrap();
        let shape = "type lru_hash key 8 value 8 entries 16 name flow";
        run("bpftool", &format!("map create {} {shape}", path.display()));

        let mut mesh = sandbox.load();
        let info = MapInfo::from_pin(&path).unwrap();
        assert_eq!((info.key_size(), info.value_size()), (40, 32));
        assert_ne!(info.id(), flow);
        assert_eq!(
            mesh.set_published(&published([80])).unwrap(),
            Changed::default(),
            "was kept"
        );
    });
}

#[test]
fn published_ports_change_by_the_difference() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let changed = mesh.set_published(&published(1..=100)).unwrap();
        assert_eq!(
            changed,
            Changed {
                written: 100,
                removed: 0
            }
        );
        let mut desired = published(3..=101);
        desired.values_mut().next().unwrap().service = 2;
        let changed = mesh.set_published(&desired).unwrap();
        assert_eq!(
            changed,
            Changed {
                written: 2,
                removed: 2
            }
        );
        assert_eq!(mesh.set_published(&desired).unwrap(), Changed::default());

        // Somebody empties it by hand.
        let path = sandbox.pin("published");
        let dump = run("bpftool", &format!("-j map dump pinned {}", path.display()));
        let entries: serde_json::Value = serde_json::from_str(&dump).unwrap();
        for entry in entries.as_array().unwrap().iter().take(5) {
            let bytes: Vec<&str> = entry["key"]
                .as_array()
                .unwrap()
                .iter()
                .map(|byte| byte.as_str().unwrap())
                .collect();
            let key = bytes.join(" ");
            run(
                "bpftool",
                &format!("map delete pinned {} key hex {key}", path.display()),
            );
        }
        assert_eq!(
            mesh.set_published(&desired).unwrap(),
            Changed {
                written: 5,
                removed: 0
            }
        );
    });
}

#[test]
fn addresses_macs_and_links_change_by_the_difference() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let addresses = |last: &[u8]| -> BTreeSet<IpAddr> {
            last.iter()
                .map(|octet| Ipv4Addr::new(192, 0, 2, *octet).into())
                .collect()
        };
        let changed = mesh.set_node_addresses(&addresses(&[1, 2])).unwrap();
        assert_eq!(
            changed,
            Changed {
                written: 2,
                removed: 0
            }
        );
        let changed = mesh.set_node_addresses(&addresses(&[2, 3])).unwrap();
        assert_eq!(
            changed,
            Changed {
                written: 1,
                removed: 1
            }
        );

        let macs = BTreeMap::from([([2, 0, 0, 0, 0, 1], 1), ([2, 0, 0, 0, 0, 2], 2)]);
        let changed = mesh.set_ingress_macs(&macs).unwrap();
        assert_eq!(
            changed,
            Changed {
                written: 2,
                removed: 0
            }
        );
        assert_eq!(mesh.set_ingress_macs(&macs).unwrap(), Changed::default());

        let config = Config {
            e1h_ifindex: 3,
            uplink_ifindex: 2,
            ..Config::default()
        };
        assert!(mesh.set_config(config).unwrap());
        assert!(!mesh.set_config(config).unwrap());
    });
}

#[test]
fn a_full_map_is_an_error_that_names_it() {
    sandboxed(|sandbox| {
        let mut mesh = sandbox.load();
        let many = (0..1025_u32).map(|number| Ipv4Addr::from(0x0a00_0000 + number).into());
        let error = mesh.set_node_addresses(&many.collect()).unwrap_err();
        assert!(
            matches!(
                error,
                MeshError::UseMap {
                    map: "node_addrs",
                    ..
                }
            ),
            "{error:?}"
        );
    });
}

#[test]
fn pins_can_be_removed_and_only_there() {
    sandboxed(|sandbox| {
        drop(sandbox.load());
        Mesh::remove_pins(&sandbox.bpffs_dir()).unwrap();
        assert!(!sandbox.bpffs_dir().join("maps").exists());
        Mesh::remove_pins(&sandbox.bpffs_dir()).unwrap();

        let elsewhere = tempfile::tempdir().unwrap();
        let error = Mesh::load(elsewhere.path()).err().unwrap();
        assert!(matches!(error, MeshError::NotBpffs { .. }), "{error:?}");
    });
}
