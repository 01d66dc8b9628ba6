//! Attaching, replacing and detaching, compared with what `tc` shows.

use super::sandbox::{ifindex, run, sandboxed};
use crate::ebpf::{Attached, Mesh, Program};

fn shown(direction: &str) -> String {
    run("tc", &format!("filter show dev veth0 {direction}"))
}

fn veth() -> u32 {
    run("ip", "link add veth0 type veth peer name veth1");
    run("ip", "link set veth0 up");
    ifindex("veth0")
}

#[test]
fn every_program_loads_and_attaches_at_its_own_hook() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let veth0 = veth();
        for program in Program::ALL {
            let name = program.name();
            let direction = match program {
                Program::FlowLearn | Program::ShortcutLearn => "egress",
                _ => "ingress",
            };
            assert!(!mesh.is_attached(program, veth0).unwrap());
            assert_eq!(mesh.attach(program, veth0).unwrap(), Attached::Created);
            assert!(mesh.is_attached(program, veth0).unwrap());
            let id = mesh.program_id(program).unwrap();
            let filters = shown(direction);
            assert!(
                filters.contains(&format!("{name} direct-action")),
                "{filters}"
            );
            assert_eq!(filters.matches("direct-action").count(), 1, "{filters}");
            assert!(filters.contains(&format!("id {id} ")), "{filters}");
            assert!(Mesh::detach(program, veth0).unwrap());
            assert_eq!(shown(direction), "");
        }
    });
}

#[test]
fn attaching_twice_changes_nothing() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let veth0 = veth();
        mesh.attach(Program::FlowReturn, veth0).unwrap();
        let before = shown("ingress");
        assert_eq!(
            mesh.attach(Program::FlowReturn, veth0).unwrap(),
            Attached::Unchanged
        );
        assert_eq!(shown("ingress"), before);
    });
}

#[test]
fn filters_outlive_the_agent_and_the_next_one_replaces_them() {
    sandboxed(|sandbox| {
        let veth0 = veth();
        let first = sandbox.load();
        first.attach(Program::FlowLearn, veth0).unwrap();
        let old = first.program_id(Program::FlowLearn).unwrap();
        drop(first);
        let attached = Mesh::attached_program_id(Program::FlowLearn, veth0).unwrap();
        assert_eq!(attached, Some(old));

        let second = sandbox.load();
        assert!(!second.is_attached(Program::FlowLearn, veth0).unwrap());
        let outcome = second.attach(Program::FlowLearn, veth0).unwrap();
        assert_eq!(outcome, Attached::Replaced(old));
        assert!(second.is_attached(Program::FlowLearn, veth0).unwrap());
        assert_eq!(shown("egress").matches("direct-action").count(), 1);
    });
}

#[test]
fn what_a_person_breaks_is_noticed_and_mended() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let veth0 = veth();
        let breakages = [
            ("tc", "filter del dev veth0 ingress"),
            ("tc", "qdisc del dev veth0 clsact"),
        ];
        for (program, arguments) in breakages {
            mesh.attach(Program::MeshUplink, veth0).unwrap();
            run(program, arguments);
            assert!(
                !mesh.is_attached(Program::MeshUplink, veth0).unwrap(),
                "{arguments}"
            );
            assert_eq!(
                mesh.attach(Program::MeshUplink, veth0).unwrap(),
                Attached::Created
            );
        }
    });
}

#[test]
fn other_peoples_filters_are_left_alone() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let veth0 = veth();
        let program = sandbox.bpffs_dir().join("theirs");
        let id = mesh.program_id(Program::MeshOut).unwrap();
        run(
            "bpftool",
            &format!("prog pin id {id} {}", program.display()),
        );
        run("tc", "qdisc add dev veth0 clsact");
        // Before ours, at our own priority, and after.
        for place in [
            "ingress prio 7",
            "ingress prio 50",
            "egress prio 50",
            "egress prio 90",
        ] {
            let what = format!("bpf direct-action object-pinned {}", program.display());
            run("tc", &format!("filter add dev veth0 {place} {what}"));
        }
        let theirs = (shown("ingress"), shown("egress"));
        mesh.attach(Program::MeshUplink, veth0).unwrap();
        mesh.attach(Program::FlowLearn, veth0).unwrap();
        assert!(mesh.is_attached(Program::MeshUplink, veth0).unwrap());
        assert!(Mesh::detach(Program::MeshUplink, veth0).unwrap());
        assert!(Mesh::detach(Program::FlowLearn, veth0).unwrap());
        assert_eq!((shown("ingress"), shown("egress")), theirs);
    });
}

#[test]
fn detaching_nothing_is_no_error() {
    sandboxed(|_| {
        let veth0 = veth();
        assert!(!Mesh::detach(Program::MeshOut, veth0).unwrap());
        run("tc", "qdisc add dev veth0 clsact");
        assert!(!Mesh::detach(Program::MeshOut, veth0).unwrap());
    });
}

#[test]
fn an_absent_interface_is_an_error_that_names_it() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let error = mesh.attach(Program::MeshOut, 4_000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot attach mesh_out to interface 4000"
        );
    });
}

/// `swarm-agent ebpf ...` as the command line gives it.
fn command(arguments: &str) -> anyhow::Result<()> {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        ebpf: crate::ebpf::command::EbpfArgs,
    }
    let arguments = format!("ebpf {arguments}");
    crate::ebpf::command::run(&CommandLine::parse_from(arguments.split(' ')).ebpf)
}

#[test]
fn loading_by_hand_can_be_undone() {
    sandboxed(|sandbox| {
        let veth0 = veth();
        let directory = sandbox.bpffs_dir();
        let pins = directory.display();
        command(&format!("verify --pin-dir {pins}")).unwrap();
        assert!(!directory.exists());
        for _ in 0..2 {
            command(&format!("load --iface veth0 --pin-dir {pins}")).unwrap();
            assert!(
                Mesh::attached_program_id(Program::MeshUplink, veth0)
                    .unwrap()
                    .is_some()
            );
            assert!(directory.exists());
        }
        for _ in 0..2 {
            command(&format!("unload --iface veth0 --pin-dir {pins}")).unwrap();
            assert_eq!(
                Mesh::attached_program_id(Program::MeshUplink, veth0).unwrap(),
                None
            );
            assert!(!directory.exists());
        }
        let error = command(&format!("load --iface absent --pin-dir {pins}")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no interface absent in this network namespace"
        );
    });
}
