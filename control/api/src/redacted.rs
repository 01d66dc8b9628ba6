//! Messages that hold secrets are not printed, whoever logs them: the generated code leaves their
//! `Debug` out (`build.rs`), and this is it.

use std::fmt;

use crate::v1;

macro_rules! redacted {
    ($($message:ident),* $(,)?) => {$(
        impl fmt::Debug for v1::$message {
            /// Leaves everything out.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}

redacted!(
    Cluster,
    GetJoinTokenResponse,
    GetLocalUnlockKeyResponse,
    GetUnlockKeyResponse,
    InitResponse,
    IssueNodeCertificateRequest,
    JoinRequest,
    RootRotation,
    RotateRootRequest,
    UnlockRequest,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let precious = || "precious".to_owned();
        let rotation = v1::RootRotation {
            root_key_pem: precious(),
            worker_secret: precious(),
            manager_secret: precious(),
            ..v1::RootRotation::default()
        };
        let cluster = v1::Cluster {
            root_key_pem: precious(),
            worker_secret: precious(),
            manager_secret: precious(),
            unlock_key: precious(),
            rotation: Some(rotation.clone()),
            ..v1::Cluster::default()
        };
        let rotate = v1::RotateRootRequest {
            root_key_pem: precious(),
            ..v1::RotateRootRequest::default()
        };
        let object = v1::Object {
            object: Some(v1::object::Object::Cluster(cluster.clone())),
        };
        let batch = v1::ChangeBatch {
            changes: vec![v1::Change {
                change: Some(v1::change::Change::Put(object)),
            }],
        };
        let token = v1::GetJoinTokenResponse {
            token: precious(),
            ..v1::GetJoinTokenResponse::default()
        };
        let init = v1::InitResponse {
            worker_token: precious(),
            unlock_key: precious(),
            ..v1::InitResponse::default()
        };
        let join = v1::JoinRequest {
            token: precious(),
            ..v1::JoinRequest::default()
        };
        let issue = v1::IssueNodeCertificateRequest {
            token: precious(),
            csr: Vec::new(),
        };
        let unlock_key = precious();
        let unlock = v1::UnlockRequest { unlock_key };
        let unlock_key = precious();
        let key = v1::GetUnlockKeyResponse { unlock_key };
        let unlock_key = precious();
        let local = v1::GetLocalUnlockKeyResponse { unlock_key };
        let printed = format!(
            "{cluster:?} {batch:?} {token:?} {init:?} {join:?} {issue:?} {unlock:?} {key:?} {local:?} \
             {rotation:?} {rotate:?}"
        );
        assert!(!printed.contains("precious"), "{printed}");
    }
}
