//! One number for the rows of a table, whatever their order, and whatever server printed them.
//!
//! Each row is hashed as the line of text that `COPY … TO STDOUT` gives of it (PostgreSQL documentation, `COPY`, "Text Format"), and
//! the hashes are added up as numbers of 256 bits. Neither a type's own hash function is asked for, which not every type has and which
//! may be another one in the next version, nor is anything sorted. Against chance the sum is as good as a hash; against somebody who
//! makes up rows so that the sum fits it is not, and there the hashes of the files stand, which the manifest has too.

use sha2::{Digest, Sha256};

use super::hex;

/// Rows and the sum of their hashes, as lines come.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    count: u64,
    sum: [u64; 4],
    line: Sha256,
    /// A line has begun and not ended.
    open: bool,
}

impl Rows {
    /// Takes the next bytes, which may end within a line. A line break inside a value is written with a backslash, so every one here
    /// ends a row.
    pub fn update(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(rest) = piece.strip_suffix(b"\n") else {
                self.line.update(piece);
                self.open = true;
                continue;
            };
            self.line.update(rest);
            let hash = self.line.finalize_reset().into();
            self.add(hash);
            self.open = false;
        }
    }

    /// Rows so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last line was not ended, so that the text was cut off.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.open
    }

    /// The sum in hex.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&self.sum.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect::<Vec<u8>>())
    }

    fn add(&mut self, hash: [u8; 32]) {
        self.count += 1;
        let limbs = hash
            .rchunks_exact(8)
            .map(|limb| limb.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)));
        let mut carry = false;
        for (sum, limb) in self.sum.iter_mut().zip(limbs) {
            let (added, over) = sum.overflowing_add(limb);
            let (added, over_again) = added.overflowing_add(u64::from(carry));
            (*sum, carry) = (added, over || over_again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pieces: &[&str]) -> Rows {
        let mut rows = Rows::default();
        pieces.iter().for_each(|piece| rows.update(piece.as_bytes()));
        rows
    }

    #[test]
    fn neither_the_order_of_rows_nor_where_the_text_is_cut_matters() {
        let whole = of(&["1\ta\n2\tb\n\n"]);
        let other = of(&["2", "\tb\n", "\n1\ta", "\n"]);
        assert_eq!((whole.count(), whole.digest()), (3, other.digest()));
        assert_ne!(whole.digest(), of(&["1\ta\n2\tc\n\n"]).digest());
        assert_ne!(whole.digest(), of(&["1\ta\n1\ta\n2\tb\n\n"]).digest(), "twice is not once");
        assert_eq!(of(&[]).digest(), "0".repeat(64));
    }

    #[test]
    fn one_row_has_its_own_hash_and_sums_carry_over() {
        let hash = Sha256::digest(b"1");
        assert_eq!(of(&["1\n"]).digest(), hex(&hash));
        let mut rows = Rows::default();
        rows.add([0xff; 32]);
        rows.add([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        ]);
        assert_eq!(rows.digest(), format!("{}1", "0".repeat(63)));
    }

    #[test]
    fn a_text_without_its_end_is_noticed() {
        assert!(of(&["1\n2"]).is_cut_off());
        assert!(!of(&["1\n2", "\n"]).is_cut_off());
    }
}
