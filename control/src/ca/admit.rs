//! Whom a join token lets in, and as what.

use swarm_model::{Cluster, InvalidToken, JoinToken, Role};

/// Why a token lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is no token at all.
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// Its digest is of another root certificate.
    #[error(
        "the join token belongs to another swarm; take the one that `swarmctl swarm join-token \
         worker` prints on a manager of this swarm"
    )]
    OtherSwarm,
    /// Neither of the two secrets.
    #[error(
        "the join token was refused: it is wrong or was rotated; take the one that `swarmctl swarm \
         join-token worker` prints now"
    )]
    Secret,
}

/// The role that `token` gives in `cluster`. Both secrets are compared in constant time, the
/// manager's first (swarmkit `ca/server.go`).
pub(crate) fn admit(cluster: &Cluster, token: &str) -> Result<Role, Refused> {
    let token: JoinToken = token.parse()?;
    if !token.matches_root(&cluster.root_ca_pem) {
        return Err(Refused::OtherSwarm);
    }
    let manager = token.has_secret(&cluster.manager_secret);
    let worker = token.has_secret(&cluster.worker_secret);
    match (manager, worker) {
        (true, _) => Ok(Role::Manager),
        (false, true) => Ok(Role::Worker),
        (false, false) => Err(Refused::Secret),
    }
}

#[cfg(test)]
mod tests {
    use swarm_model::{ClusterId, ClusterSpec, Meta};

    use super::*;

    #[test]
    fn table() {
        let cluster = Cluster {
            id: ClusterId::random(&mut rand::rng()),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca_pem: "root".to_owned(),
            root_key_pem: String::new().into(),
            worker_secret: "w".repeat(25).into(),
            manager_secret: "m".repeat(25).into(),
            networks_made: swarm_model::NetworkCursor::default(),
            epoch: 0,
            lock: swarm_model::ManagerLock::default(),
            rotation: None,
        };
        let token = |root: &str, secret: &str| JoinToken::new(root, secret).to_string();
        for (text, expected) in [
            (token("root", &"w".repeat(25)), Ok(Role::Worker)),
            (token("root", &"m".repeat(25)), Ok(Role::Manager)),
            (token("root", &"x".repeat(25)), Err(Refused::Secret)),
            (token("other", &"w".repeat(25)), Err(Refused::OtherSwarm)),
        ] {
            assert_eq!(admit(&cluster, &text), expected, "{text}");
        }
        assert!(matches!(admit(&cluster, "x"), Err(Refused::Invalid(_))));
    }
}
