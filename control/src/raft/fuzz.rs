//! Any bytes as records of the log and as messages of other managers, for `crate::fuzz`.

use prost::Message as _;
use swarm_api::v1;

use super::record::{
    EntryRecord, HardStateRecord, IdentityRecord, MemberChangeRecord, SnapshotRecord, read_clear,
};
use super::sealer::Sealer;
use super::wire::{from_wire, to_wire};

/// A record, sealed, in the clear as the first version kept it, and without what is around it.
pub(crate) fn any_record(bytes: &[u8]) {
    let sealer = Sealer::without_secret();
    let _ = sealer.open::<EntryRecord>(b"name", bytes);
    let _ = read_clear::<EntryRecord>(b"name", bytes);
    let _ = IdentityRecord::decode(bytes);
    let _ = HardStateRecord::decode(bytes);
    if let Ok(record) = EntryRecord::decode(bytes)
        && let Ok(entry) = record.clone().at(3)
    {
        assert_eq!(EntryRecord::from(&entry), record, "an entry is its record");
    }
    if let Ok(record) = SnapshotRecord::decode(bytes) {
        let metadata = record.metadata();
        assert_eq!((metadata.index, metadata.term), (record.index, record.term));
    }
    if let Ok(record) = MemberChangeRecord::decode(bytes) {
        let _ = record.action();
    }
}

/// A message: one that is believed is the same once it has travelled again.
pub(crate) fn any_message(message: v1::RaftMessage) {
    let Ok(read) = from_wire(message) else {
        return;
    };
    let sent = to_wire(read.clone()).expect("what came can be sent");
    assert_eq!(from_wire(sent), Ok(read), "a message stays what it is");
}
