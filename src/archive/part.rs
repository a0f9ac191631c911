//! A file of rows: the text of `COPY`, compressed. Written row by row, read chunk by chunk.

use std::io::{self, Read, Write as _};

use sha2::{Digest, Sha256};
use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use super::hex;
use super::manifest::Part;
use super::rows::Rows;

/// Text of that many bytes ends a file, so that a whole file can be held in memory, sent again where a store did not answer, and
/// told from others where it is damaged. The row that crosses it is the file's last.
pub(super) const PLAIN_BYTES: u64 = 64 << 20;
/// zstd's own default: beyond it time grows faster than files shrink.
const LEVEL: i32 = 3;
/// What is given on at once when a file is read.
const CHUNK_BYTES: usize = 64 << 10;

/// A file that is being made.
pub(super) struct Making {
    encoder: Encoder<'static, Vec<u8>>,
    plain: Sha256,
    plain_bytes: u64,
    rows: Rows,
}

impl Making {
    pub(super) fn begin() -> io::Result<Self> {
        let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
        // So that `zstd -t` finds a damaged file too.
        encoder.include_checksum(true)?;
        Ok(Self { encoder, plain: Sha256::new(), plain_bytes: 0, rows: Rows::default() })
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoder.write_all(bytes)?;
        self.plain.update(bytes);
        self.plain_bytes += bytes.len() as u64;
        self.rows.update(bytes);
        Ok(())
    }

    /// Long enough, and at the end of a row.
    pub(super) fn is_full(&self) -> bool {
        self.plain_bytes >= PLAIN_BYTES && !self.rows.is_cut_off()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain_bytes == 0
    }

    /// The file, and what the manifest says of it under this name.
    pub(super) fn finish(self, file: String) -> io::Result<(Vec<u8>, Part)> {
        let bytes = self.encoder.finish()?;
        let part = Part {
            file,
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(&bytes)),
            rows: self.rows.count(),
            plain_bytes: self.plain_bytes,
            plain_sha256: hex(&self.plain.finalize()),
        };
        Ok((bytes, part))
    }
}

/// What is wrong with a file, in words that follow its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage(pub(super) String);

/// Whether a file is what the manifest says of it, by its bytes alone.
pub(super) fn same_bytes(bytes: &[u8], (length, sha256): (u64, &str)) -> Result<(), Damage> {
    if bytes.len() as u64 != length {
        return Err(Damage(format!("has {} bytes, and the manifest says {length}", bytes.len())));
    }
    if hex(&Sha256::digest(bytes)) != sha256 {
        return Err(Damage("does not have the SHA-256 that the manifest says".to_owned()));
    }
    Ok(())
}

/// Reads the text of a file, chunk by chunk, and proves it behind the last: `each` may have had bytes of a text that then turns out to
/// be wrong. The file's own bytes are proven before the first.
pub(super) struct Text<'a> {
    part: &'a Part,
    decoder: Decoder<'static, io::BufReader<&'a [u8]>>,
    plain: Sha256,
    plain_bytes: u64,
    rows: u64,
}

impl<'a> Text<'a> {
    pub(super) fn open(bytes: &'a [u8], part: &'a Part) -> Result<Self, Damage> {
        same_bytes(bytes, (part.bytes, &part.sha256))?;
        let decoder = Decoder::new(bytes).map_err(|error| unreadable(&error))?;
        Ok(Self { part, decoder, plain: Sha256::new(), plain_bytes: 0, rows: 0 })
    }

    /// The next chunk; `None` behind the last, when the text is proven. `rows` counts and digests on.
    pub(super) fn next(&mut self, rows: &mut Rows) -> Result<Option<Vec<u8>>, Damage> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = self.decoder.read(&mut chunk).map_err(|error| unreadable(&error))?;
        chunk.truncate(length);
        if chunk.is_empty() {
            return self.end(rows).map(|()| None);
        }
        self.plain_bytes += length as u64;
        // A file can be made of which a few bytes stand for very many.
        if self.plain_bytes > self.part.plain_bytes {
            return Err(Damage("holds more than the manifest says".to_owned()));
        }
        self.plain.update(&chunk);
        let before = rows.count();
        rows.update(&chunk);
        self.rows += rows.count() - before;
        Ok(Some(chunk))
    }

    fn end(&mut self, rows: &Rows) -> Result<(), Damage> {
        let Part { plain_bytes, plain_sha256, rows: counted, .. } = self.part;
        if rows.is_cut_off() {
            return Err(Damage("ends within a row".to_owned()));
        }
        if self.plain_bytes != *plain_bytes || hex(&self.plain.finalize_reset()) != *plain_sha256 {
            return Err(Damage("does not hold the text that the manifest says".to_owned()));
        }
        if self.rows != *counted {
            return Err(Damage(format!("holds {} rows, and the manifest says {counted}", self.rows)));
        }
        Ok(())
    }
}

fn unreadable(error: &io::Error) -> Damage {
    Damage(format!("can't be decompressed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> (Vec<u8>, Part) {
        let mut making = Making::begin().unwrap();
        making.add(text.as_bytes()).unwrap();
        making.finish("data/1".to_owned()).unwrap()
    }

    fn read(bytes: &[u8], part: &Part) -> Result<(Vec<u8>, Rows), Damage> {
        let (mut text, mut rows, mut whole) = (Text::open(bytes, part)?, Rows::default(), Vec::new());
        while let Some(chunk) = text.next(&mut rows)? {
            whole.extend(chunk);
        }
        Ok((whole, rows))
    }

    #[test]
    fn what_was_written_is_read_and_proven() {
        let text = "1\ta\n2\t\\N\n".repeat(50_000);
        let (bytes, part) = made(&text);
        assert!(part.bytes < part.plain_bytes && part.rows == 100_000);
        let (whole, rows) = read(&bytes, &part).unwrap();
        assert_eq!((whole, rows.count()), (text.into_bytes(), 100_000));
    }

    #[test]
    fn every_flipped_bit_is_found_and_so_is_a_missing_byte() {
        let (bytes, part) = made("1\ta\n2\tb\n");
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << bit;
                assert!(read(&flipped, &part).is_err(), "byte {place}, bit {bit}");
            }
        }
        assert!(read(&bytes[1..], &part).is_err());
    }

    #[test]
    fn a_manifest_that_says_something_else_of_the_text_is_not_believed() {
        let (bytes, part) = made("1\ta\n2\tb\n");
        for other in [
            Part { plain_bytes: 1, ..part.clone() },
            Part { plain_bytes: 9, ..part.clone() },
            Part { rows: 3, ..part.clone() },
            Part { plain_sha256: "0".repeat(64), ..part.clone() },
        ] {
            assert!(read(&bytes, &other).is_err(), "{other:?}");
        }
        let (bytes, part) = made("1\ta\n2");
        assert_eq!(read(&bytes, &part).unwrap_err(), Damage("ends within a row".to_owned()));
    }
}
