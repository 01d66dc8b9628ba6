//! Changes and states as bytes: what log entries and snapshots hold (`swarm/v1/store.proto`).

use prost::Message as _;
use swarm_api::convert::ConvertError;
use swarm_api::v1;
use swarm_model::{ClusterId, InvalidId, NetworkId, NodeId, ServiceId, TaskId};

use super::handle::ProposeError;
use super::{Change, Object, ObjectKey, State};

/// Largest batch of changes, encoded. It is sent to other managers in one message, which gRPC by
/// default allows 4 MiB, and it is small enough that one update holds up no other for long; about
/// two thousand tasks fit.
pub(crate) const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// Bytes that are no changes or no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// No message at all.
    #[error("cannot decode the bytes of the store")]
    Bytes(#[source] prost::DecodeError),
    /// A change or an object of a kind that this version does not know.
    #[error("a change is of a kind that this version does not know: upgrade this manager")]
    UnknownKind,
    /// A message that is no object.
    #[error("cannot convert an object of the store")]
    Object(#[source] ConvertError),
    /// A key that is no id.
    #[error("cannot read the key of an object to remove")]
    Key(#[source] InvalidId),
}

/// The bytes of one log entry, and the changes as every manager will read them from these. They are
/// read here, before they enter the log, where a batch that nobody can read would stop every manager.
pub(crate) fn encode_batch(changes: &[Change]) -> Result<(Vec<u8>, Vec<Change>), ProposeError> {
    let batch = v1::ChangeBatch {
        changes: changes.iter().map(v1::Change::from).collect(),
    };
    let size = batch.encoded_len();
    if size > MAX_BATCH_BYTES {
        let limit = MAX_BATCH_BYTES;
        return Err(ProposeError::TooLarge { size, limit });
    }
    let bytes = batch.encode_to_vec();
    let read = decode_batch(&bytes).map_err(ProposeError::Invalid)?;
    Ok((bytes, read))
}

/// The changes of one log entry.
pub(crate) fn decode_batch(bytes: &[u8]) -> Result<Vec<Change>, CodecError> {
    let v1::ChangeBatch { changes } = v1::ChangeBatch::decode(bytes).map_err(CodecError::Bytes)?;
    changes.into_iter().map(Change::try_from).collect()
}

/// The bytes of a whole state; its index is not among them.
pub(crate) fn encode_snapshot(state: &State) -> Vec<u8> {
    use v1::object::Object;
    let objects = (state
        .cluster()
        .map(|it| Object::Cluster((&**it).into()))
        .into_iter())
    .chain(state.nodes().map(|it| Object::Node((&**it).into())))
    .chain(state.services().map(|it| Object::Service((&**it).into())))
    .chain(state.tasks().map(|it| Object::Task((&**it).into())))
    .chain(state.networks().map(|it| Object::Network((&**it).into())))
    .map(|object| v1::Object {
        object: Some(object),
    });
    v1::StoreSnapshot {
        objects: objects.collect(),
    }
    .encode_to_vec()
}

/// The state that `bytes` hold, as it was at `index`.
pub(crate) fn decode_snapshot(index: u64, bytes: &[u8]) -> Result<State, CodecError> {
    let v1::StoreSnapshot { objects } =
        v1::StoreSnapshot::decode(bytes).map_err(CodecError::Bytes)?;
    let objects = objects.into_iter().map(Object::try_from);
    Ok(State::restore(
        index,
        objects.collect::<Result<Vec<_>, _>>()?,
    ))
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        let change = match change {
            Change::Put(object) => v1::change::Change::Put(object.into()),
            Change::Remove(key) => v1::change::Change::Remove(key.into()),
        };
        Self {
            change: Some(change),
        }
    }
}

impl TryFrom<v1::Change> for Change {
    type Error = CodecError;

    fn try_from(message: v1::Change) -> Result<Self, CodecError> {
        match message.change.ok_or(CodecError::UnknownKind)? {
            v1::change::Change::Put(object) => object.try_into().map(Self::Put),
            v1::change::Change::Remove(key) => key.try_into().map(Self::Remove),
        }
    }
}

impl From<&Object> for v1::Object {
    fn from(object: &Object) -> Self {
        let object = match object {
            Object::Cluster(cluster) => v1::object::Object::Cluster(cluster.into()),
            Object::Node(node) => v1::object::Object::Node(node.into()),
            Object::Service(service) => v1::object::Object::Service(service.into()),
            Object::Task(task) => v1::object::Object::Task(task.into()),
            Object::Network(network) => v1::object::Object::Network(network.into()),
        };
        Self {
            object: Some(object),
        }
    }
}

impl TryFrom<v1::Object> for Object {
    type Error = CodecError;

    fn try_from(message: v1::Object) -> Result<Self, CodecError> {
        match message.object.ok_or(CodecError::UnknownKind)? {
            v1::object::Object::Cluster(cluster) => cluster.try_into().map(Self::Cluster),
            v1::object::Object::Node(node) => node.try_into().map(Self::Node),
            v1::object::Object::Service(service) => service.try_into().map(Self::Service),
            v1::object::Object::Task(task) => task.try_into().map(Self::Task),
            v1::object::Object::Network(network) => network.try_into().map(Self::Network),
        }
        .map_err(CodecError::Object)
    }
}

impl From<&ObjectKey> for v1::ObjectKey {
    fn from(key: &ObjectKey) -> Self {
        use v1::object_key::Key;
        let key = match key {
            ObjectKey::Cluster(id) => Key::ClusterId(id.to_string()),
            ObjectKey::Node(id) => Key::NodeId(id.to_string()),
            ObjectKey::Service(id) => Key::ServiceId(id.to_string()),
            ObjectKey::Task(id) => Key::TaskId(id.to_string()),
            ObjectKey::Network(id) => Key::NetworkId(id.to_string()),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<v1::ObjectKey> for ObjectKey {
    type Error = CodecError;

    fn try_from(message: v1::ObjectKey) -> Result<Self, CodecError> {
        use v1::object_key::Key;
        match message.key.ok_or(CodecError::UnknownKind)? {
            Key::ClusterId(id) => ClusterId::try_from(id).map(Self::Cluster),
            Key::NodeId(id) => NodeId::try_from(id).map(Self::Node),
            Key::ServiceId(id) => ServiceId::try_from(id).map(Self::Service),
            Key::TaskId(id) => TaskId::try_from(id).map(Self::Task),
            Key::NetworkId(id) => NetworkId::try_from(id).map(Self::Network),
        }
        .map_err(CodecError::Key)
    }
}
