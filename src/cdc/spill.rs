//! Streamed transactions on disk until their commit: one private file each, already unlinked, so that nothing is
//! left when the process dies.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;

/// Bytes of one message that a spill file takes: PostgreSQL can't send a longer one (`MaxAllocSize`, 1 GB).
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Buffer of a file's reader and writer: large enough to make writes of rows cheap, small beside the batch limit.
const BUFFER_BYTES: usize = 64 * 1024;

/// The messages of one streamed transaction, in order.
#[derive(Debug)]
pub struct Spill {
    file: BufWriter<File>,
    aborted: HashSet<u32>,
}

/// Reads a spilled transaction back.
#[derive(Debug)]
pub struct Replay {
    file: BufReader<File>,
    aborted: HashSet<u32>,
}

/// One message of a spilled transaction.
#[derive(Debug)]
pub struct SpilledMessage {
    /// Subtransaction it belongs to; the top-level id where there is none.
    pub xid: u32,
    /// That subtransaction was rolled back.
    pub aborted: bool,
    /// The message as pgoutput sent it inside the stream block.
    pub body: Bytes,
}

impl Spill {
    /// A new file in `folder`.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER_BYTES, file), aborted: HashSet::new() })
    }

    /// Adds a message of subtransaction `xid`.
    ///
    /// # Errors
    /// What the file system answered, e.g. that the disk is full.
    pub fn push(&mut self, xid: u32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.file.write_all(&length.to_be_bytes())?;
        self.file.write_all(&xid.to_be_bytes())?;
        self.file.write_all(body)?;
        Ok(())
    }

    /// A subtransaction was rolled back: its messages so far don't count.
    pub fn abort(&mut self, subxid: u32) {
        self.aborted.insert(subxid);
    }

    /// The transaction committed: read it back.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn replay(self) -> io::Result<Replay> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Replay { file: BufReader::with_capacity(BUFFER_BYTES, file), aborted: self.aborted })
    }
}

impl Replay {
    /// The next message, `None` at the end.
    ///
    /// # Errors
    /// What the file system answered, or that the file is not what was written.
    pub fn next_message(&mut self) -> io::Result<Option<SpilledMessage>> {
        let mut head = [0u8; 8];
        match self.file.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [l0, l1, l2, l3, x0, x1, x2, x3] = head;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let xid = u32::from_be_bytes([x0, x1, x2, x3]);
        if length > MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.file.read_exact(&mut body)?;
        Ok(Some(SpilledMessage { xid, aborted: self.aborted.contains(&xid), body: Bytes::from(body) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spilled_transaction_is_read_back_with_its_rolled_back_parts_marked() {
        let mut spill = Spill::create(&std::env::temp_dir()).unwrap();
        for number in 0..10_000u32 {
            spill.push(700 + number % 3, number.to_string().as_bytes()).unwrap();
        }
        spill.abort(701);
        let mut replay = spill.replay().unwrap();
        let mut count = 0u32;
        while let Some(message) = replay.next_message().unwrap() {
            assert_eq!(&message.body[..], count.to_string().as_bytes());
            assert_eq!(message.aborted, count % 3 == 1);
            count += 1;
        }
        assert_eq!(count, 10_000);
    }
}
