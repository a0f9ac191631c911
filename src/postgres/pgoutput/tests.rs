//! The encoder here is written from the documentation's tables, independently of the decoder.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::*;

fn put_name(out: &mut BytesMut, name: &str) {
    out.put_slice(name.as_bytes());
    out.put_u8(0);
}

/// The plugin leaves `pg_catalog` out.
fn put_schema(out: &mut BytesMut, schema: &str) {
    put_name(out, if schema == "pg_catalog" { "" } else { schema });
}

fn put_tuple(out: &mut BytesMut, tuple: &Tuple) {
    out.put_i16(i16::try_from(tuple.len()).unwrap());
    for value in tuple {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(text) => {
                out.put_u8(b't');
                out.put_i32(i32::try_from(text.len()).unwrap());
                out.put_slice(text);
            }
        }
    }
}

fn put_old(out: &mut BytesMut, old: &OldTuple) {
    out.put_u8(if matches!(old, OldTuple::Key(_)) { b'K' } else { b'O' });
    put_tuple(out, old.tuple());
}

fn put_row(out: &mut BytesMut, relation: u32, change: &RowChange) {
    out.put_u32(relation);
    match change {
        RowChange::Insert { new } => {
            out.put_u8(b'N');
            put_tuple(out, new);
        }
        RowChange::Update { old, new } => {
            if let Some(old) = old {
                put_old(out, old);
            }
            out.put_u8(b'N');
            put_tuple(out, new);
        }
        RowChange::Delete { old } => put_old(out, old),
    }
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u32(relation.oid);
    put_schema(out, &relation.schema);
    put_name(out, &relation.name);
    out.put_u8(relation.replica_identity);
    out.put_i16(i16::try_from(relation.columns.len()).unwrap());
    for column in &relation.columns {
        out.put_u8(u8::from(column.key));
        put_name(out, &column.name);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

fn put_commit(out: &mut BytesMut, commit_lsn: Lsn, end_lsn: Lsn, commit_time_us: i64) {
    out.put_u8(0);
    out.put_u64(commit_lsn.0);
    out.put_u64(end_lsn.0);
    out.put_i64(commit_time_us);
}

fn tag(message: &Message) -> u8 {
    match message {
        Message::Begin(_) => b'B',
        Message::Commit { .. } => b'C',
        Message::Origin { .. } => b'O',
        Message::Relation(_) => b'R',
        Message::Type { .. } => b'Y',
        Message::Row { change: RowChange::Insert { .. }, .. } => b'I',
        Message::Row { change: RowChange::Update { .. }, .. } => b'U',
        Message::Row { change: RowChange::Delete { .. }, .. } => b'D',
        Message::Truncate { .. } => b'T',
        Message::Logical { .. } => b'M',
        Message::StreamStart { .. } => b'S',
        Message::StreamStop => b'E',
        Message::StreamCommit { .. } => b'c',
        Message::StreamAbort { .. } => b'A',
    }
}

fn encode(decoded: &Decoded) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(tag(&decoded.message));
    if let Some(xid) = decoded.xid {
        out.put_u32(xid);
    }
    match &decoded.message {
        Message::Begin(frame) => {
            out.put_u64(frame.commit_lsn.0);
            out.put_i64(frame.commit_time_us);
            out.put_u32(frame.xid);
        }
        Message::Commit { commit_lsn, end_lsn, commit_time_us } => {
            put_commit(&mut out, *commit_lsn, *end_lsn, *commit_time_us);
        }
        Message::Origin { lsn, name } => {
            out.put_u64(lsn.0);
            put_name(&mut out, name);
        }
        Message::Relation(relation) => put_relation(&mut out, relation),
        Message::Type { oid, schema, name } => {
            out.put_u32(*oid);
            put_schema(&mut out, schema);
            put_name(&mut out, name);
        }
        Message::Row { relation, change } => put_row(&mut out, *relation, change),
        Message::Truncate { relations, cascade, restart_identity } => {
            out.put_i32(i32::try_from(relations.len()).unwrap());
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|oid| out.put_u32(*oid));
        }
        Message::Logical { transactional, lsn, prefix, content } => {
            out.put_u8(u8::from(*transactional));
            out.put_u64(lsn.0);
            put_name(&mut out, prefix);
            out.put_i32(i32::try_from(content.len()).unwrap());
            out.put_slice(content);
        }
        Message::StreamStart { xid, first } => {
            out.put_u32(*xid);
            out.put_u8(u8::from(*first));
        }
        Message::StreamStop => {}
        Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time_us } => {
            out.put_u32(*xid);
            put_commit(&mut out, *commit_lsn, *end_lsn, *commit_time_us);
        }
        Message::StreamAbort { xid, subxid } => {
            out.put_u32(*xid);
            out.put_u32(*subxid);
        }
    }
    out.freeze()
}

fn any_name() -> impl Strategy<Value = String> {
    "[^\\x00]{1,12}"
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let text = prop::collection::vec(any::<u8>(), 0..20);
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        text.prop_map(|text| Value::Text(Bytes::from(text))),
    ];
    prop::collection::vec(value, 0..8)
}

fn any_old() -> impl Strategy<Value = OldTuple> {
    prop_oneof![any_tuple().prop_map(OldTuple::Key), any_tuple().prop_map(OldTuple::Full)]
}

fn any_row() -> impl Strategy<Value = RowChange> {
    prop_oneof![
        any_tuple().prop_map(|new| RowChange::Insert { new }),
        (prop::option::of(any_old()), any_tuple()).prop_map(|(old, new)| RowChange::Update { old, new }),
        any_old().prop_map(|old| RowChange::Delete { old }),
    ]
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let column = (any::<bool>(), any_name(), any::<u32>(), any::<i32>()).prop_map(
        |(key, name, type_oid, type_modifier)| RelationColumn { key, name, type_oid, type_modifier },
    );
    let schema = prop_oneof![Just("pg_catalog".to_owned()), any_name()];
    let identity = prop::sample::select(b"dnfi".to_vec());
    (any::<u32>(), schema, any_name(), identity, prop::collection::vec(column, 0..6)).prop_map(
        |(oid, schema, name, replica_identity, columns)| Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let lsn = || any::<u64>().prop_map(Lsn);
    let commit = move || (lsn(), lsn(), any::<i64>());
    prop_oneof![
        (lsn(), any::<i64>(), any::<u32>()).prop_map(|(commit_lsn, commit_time_us, xid)| Message::Begin(
            TransactionFrame { xid, commit_lsn, commit_time_us }
        )),
        commit().prop_map(|(commit_lsn, end_lsn, commit_time_us)| Message::Commit {
            commit_lsn,
            end_lsn,
            commit_time_us
        }),
        (lsn(), any_name()).prop_map(|(lsn, name)| Message::Origin { lsn, name }),
        any_relation().prop_map(Message::Relation),
        (any::<u32>(), any_name(), any_name()).prop_map(|(oid, schema, name)| Message::Type {
            oid,
            schema,
            name
        }),
        (any::<u32>(), any_row()).prop_map(|(relation, change)| Message::Row { relation, change }),
        (prop::collection::vec(any::<u32>(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| Message::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
        (any::<bool>(), lsn(), any_name(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(
            |(transactional, lsn, prefix, content)| Message::Logical {
                transactional,
                lsn,
                prefix,
                content: Bytes::from(content)
            }
        ),
        (any::<u32>(), any::<bool>()).prop_map(|(xid, first)| Message::StreamStart { xid, first }),
        Just(Message::StreamStop),
        (any::<u32>(), commit()).prop_map(|(xid, (commit_lsn, end_lsn, commit_time_us))| {
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time_us }
        }),
        (any::<u32>(), any::<u32>()).prop_map(|(xid, subxid)| Message::StreamAbort { xid, subxid }),
    ]
}

fn any_decoded() -> impl Strategy<Value = (Decoded, bool)> {
    (any_message(), any::<u32>(), any::<bool>()).prop_map(|(message, xid, in_stream_block)| {
        let carries = b"RYIUDTM".contains(&tag(&message)) && in_stream_block;
        (Decoded { xid: carries.then_some(xid), message }, in_stream_block)
    })
}

proptest! {
    #[test]
    fn every_message_comes_back((decoded, in_stream_block) in any_decoded()) {
        prop_assert_eq!(decode(encode(&decoded), in_stream_block), Ok(decoded));
    }

    #[test]
    fn a_truncated_message_is_refused((decoded, in_stream_block) in any_decoded(), at in any::<prop::sample::Index>()) {
        let whole = encode(&decoded);
        let cut = at.index(whole.len());
        prop_assert!(decode(whole.slice(..cut), in_stream_block).is_err());
    }

    #[test]
    fn left_over_bytes_are_refused((decoded, in_stream_block) in any_decoded(), extra in 0_u8..) {
        let longer = [encode(&decoded).as_ref(), &[extra]].concat();
        prop_assert!(decode(Bytes::from(longer), in_stream_block).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        tag in prop::sample::select(b"BCORYIUDTMSEcAx".to_vec()),
        rest in prop::collection::vec(any::<u8>(), 0..60),
        in_stream_block: bool,
    ) {
        let body = Bytes::from([&[tag], rest.as_slice()].concat());
        if let Ok(decoded) = decode(body.clone(), in_stream_block) {
            // What is accepted means exactly these bytes, unused option bits and the empty schema aside.
            prop_assert_eq!(encode(&decoded).len(), body.len());
        }
    }
}

#[test]
fn values_are_slices_of_the_message() {
    let new = vec![Value::text("abc"), Value::Null];
    let message = Message::Row { relation: 7, change: RowChange::Insert { new } };
    let body = encode(&Decoded { xid: None, message });
    let range = body.as_ptr_range();
    let Ok(Decoded { message: Message::Row { change: RowChange::Insert { new }, .. }, .. }) =
        decode(body, false)
    else {
        panic!("an insert");
    };
    assert!(range.contains(&new[0].as_bytes().unwrap().as_ptr()));
}

#[test]
fn a_huge_count_makes_no_huge_allocation() {
    let body = [&b"T"[..], &i32::MAX.to_be_bytes(), &[0], &[0; 8]].concat();
    let error = decode(Bytes::from(body), false).unwrap_err();
    assert_eq!(error.fact, "it ends too early");
}

#[test]
fn an_error_says_where_and_shows_no_value() {
    let body =
        [&b"I"[..], &7_u32.to_be_bytes(), b"N", &[0, 1], b"t", &99_i32.to_be_bytes(), b"secret"].concat();
    let error = decode(Bytes::from(body), false).unwrap_err().to_string();
    assert_eq!(
        error,
        "a pgoutput message of type 'I' is not as the protocol says: it ends too early, at byte 13"
    );
}
