//! The ground the other tests stand on: hosts reach each other, links can be cut, the registry
//! serves the test image. No agent is involved.

use std::time::Duration;

use anyhow::{Result, ensure};
use swarm_lab::{Lab, services, wait_until};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn every_host_is_reachable_from_the_client_and_has_its_own_name() -> Result<()> {
    let lab = Lab::attach()?;
    for host in lab.hosts() {
        let name = host.exec(&["hostname"])?.success()?;
        assert_eq!(name.trim(), host.name());
        let addresses = host
            .exec(&["ip", "-4", "-brief", "address", "show", "eth0"])?
            .success()?;
        assert!(
            addresses.contains(&host.address().to_string()),
            "{addresses}"
        );
        // A host that answers has no listener on this port: refused at once, not timed out.
        let url = format!("http://{}:9/", host.address());
        let refusal = lab
            .client()
            .exec(&["curl", "-sS", "--max-time", "5", &url])?;
        assert_eq!(refusal.code, 7, "{}", refusal.stderr);
    }
    Ok(())
}

#[test]
fn a_pulled_cable_cuts_a_host_off_until_it_is_plugged_in_again() -> Result<()> {
    let lab = Lab::attach()?;
    let host = lab.host(1);
    let url = format!("https://{}/v2/", services::registry());
    let reach = || {
        host.exec(&[
            "curl",
            "-sSf",
            "--cacert",
            services::REGISTRY_CERTIFICATE,
            "--max-time",
            "5",
            &url,
        ])?
        .success()
    };
    wait_until(SOON, "registry from h1", reach)?;
    host.set_link(false)?;
    let is_cut_off = reach().is_err();
    host.set_link(true)?;
    ensure!(
        is_cut_off,
        "h1 still reached the registry without its cable"
    );
    wait_until(SOON, "registry from h1", reach)?;
    Ok(())
}

#[test]
fn the_registry_serves_both_releases_of_the_test_image() -> Result<()> {
    let lab = Lab::attach()?;
    let digest = |tag: &str| {
        let url = format!("https://{}/v2/web/manifests/{tag}", services::registry());
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        lab.client()
            .exec(&[
                "curl",
                "-sSf",
                "--cacert",
                services::REGISTRY_CERTIFICATE,
                "-H",
                accept,
                &url,
            ])?
            .success()
    };
    assert_eq!(digest("latest")?, digest("1")?);
    assert_ne!(digest("1")?, digest("2")?);
    assert!(digest("3").is_err());
    Ok(())
}

#[test]
fn a_command_left_running_is_gone_when_dropped() -> Result<()> {
    let lab = Lab::attach()?;
    let word = "31415.926";
    let count = || -> Result<usize> {
        let processes = lab.host(1).exec(&["ps", "-eo", "args"])?.success()?;
        Ok(processes
            .lines()
            .filter(|line| line.starts_with("sleep") && line.contains(word))
            .count())
    };
    let mut running = lab.host(1).spawn(&["sleep", word])?;
    wait_until(SOON, "the command", || {
        ensure!(count()? == 1, "not there yet");
        Ok(())
    })?;
    assert!(running.is_running()?);
    drop(running);
    assert_eq!(count()?, 0);
    Ok(())
}
