//! What a plan finds to do, told as differences.

use super::super::super::check::{Checked, Difference, check};
use super::convergence::desires;
use super::damage::{damage, damages};
use super::*;

#[test]
fn a_difference_says_what_is_and_not_what_follows_from_it() {
    let desired = desired(2, &[1, 2], &[(8080, vec![0, 1], false)]);
    let whole = {
        let mut observed = host();
        settle(&mut observed, &desired);
        observed
    };
    let told = |observed: &Observed| {
        let ops = plan(observed, &desired).ops;
        let lines = check(observed, &ops, &[]).differences;
        let line = |Difference { place, text }| format!("{place}: {text}");
        lines.into_iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(told(&whole), Vec::<String>::new());

    let mut broken = whole.clone();
    broken.apply(&Op::DeleteLink((Place::Ingress, "vx0".to_owned())));
    assert_eq!(
        told(&broken),
        ["ingress: vxlan device vx0 is missing, with all that is on it"]
    );

    let mut broken = whole.clone();
    broken.apply(&Op::DeleteNetns(Place::Ingress));
    let lines = told(&broken);
    assert_eq!(
        lines[..2],
        [
            "ingress: network namespace ingress is missing, with all that is in it".to_owned(),
            "host: veth link sw-e1h is missing, with all that is on it (its other end is e1 in \
             ingress)"
                .to_owned(),
        ],
        "{lines:#?}"
    );

    let mut broken = whole.clone();
    let maps = broken.mesh.as_mut().unwrap();
    maps.published.as_mut().unwrap().clear();
    let (service, _) = broken.ipvs.as_ref().unwrap().iter().next().unwrap();
    broken.apply(&Op::Ipvs(swarm_ipvs::Op::DeleteService(*service)));
    let namespace = broken.namespaces.get_mut(&Place::Ingress).unwrap();
    let routed = namespace.tunnels.values_mut().next().unwrap();
    *routed = ip(9, 9);
    assert_eq!(
        told(&broken),
        [
            "ingress: vx0 sends 02:42:0a:ff:00:02 to node 10.255.9.9, planned is 192.168.1.2",
            "ingress: ipvs service tcp 172.17.0.1:8080 is missing",
            "host: published port 8080/tcp at 172.17.0.1 is missing",
            "host: published port 8080/tcp at 192.168.1.1 is missing",
        ]
    );
}

proptest! {
    #[test]
    fn whatever_is_to_be_done_is_told_as_a_difference(
        desired in desires(),
        damages in vec(damages(), 1..6),
        ipv6 in any::<bool>(),
    ) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        prop_assert_eq!(check(&observed, &plan(&observed, &desired).ops, &[]), Checked::default());
        for item in &damages {
            damage(&mut observed, item);
        }
        let ops = plan(&observed, &desired).ops;
        let told = check(&observed, &ops, &[]).differences;
        prop_assert_eq!(told.is_empty(), ops.is_empty(), "{:?}", texts(&ops));
        for difference in &told {
            prop_assert!(!difference.text.starts_with("to be done"), "{:?}", difference);
        }
    }
}
