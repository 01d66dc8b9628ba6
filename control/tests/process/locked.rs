//! A manager that waits for its key.

use std::net::TcpStream;
use std::time::Instant;

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use tonic::{Code, Status};

use super::host::{GLANCE, Host, NODE_ID, PATIENCE};

async fn unlock_key(host: &Host) -> Result<String, Status> {
    let get = v1::GetUnlockKeyRequest { rotate: false };
    let mut control = ControlClient::new(host.local().await);
    let got = control.get_unlock_key(get).await?;
    Ok(got.into_inner().unlock_key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_ends_with_its_agent_and_runs_once_it_is_unlocked() {
    let host = Host::new();
    let mut process = host.start(&["--bootstrap", "--autolock", "--node-id", NODE_ID]);
    let key = unlock_key(&host).await.unwrap();
    assert!(key.starts_with("SWMKEY-1-"));
    process.says("this manager's keys have a new lock");
    assert!(process.close_stdin().0.success());

    let mut process = host.start(&[]);
    process.says("it waits for `swarmctl swarm unlock`");
    assert!(TcpStream::connect(host.address).is_err());
    let (status, log) = process.close_stdin();
    assert!(status.success(), "{log}");
    assert!(!log.contains(&key));

    let mut process = host.start(&[]);
    process.says("it waits for `swarmctl swarm unlock`");
    let refused = unlock_key(&host).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let unlock = v1::UnlockRequest {
        unlock_key: key.clone(),
    };
    let mut manager = LocalControlClient::new(host.local().await);
    manager.unlock(unlock).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match unlock_key(&host).await {
            Ok(found) => break assert_eq!(found, key),
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(GLANCE).await;
    }
    let (status, log) = process.close_stdin();
    assert!(status.success(), "{log}");
    assert!(!log.contains(&key));
}
