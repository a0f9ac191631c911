//! Walks over one message. Every read is checked against what is left.

use bytes::{Buf, Bytes};

use super::DecodeError;
use crate::lsn::Lsn;

pub(super) struct Cursor {
    rest: Bytes,
    tag: char,
    len: usize,
}

impl Cursor {
    pub(super) fn new(body: Bytes) -> Self {
        let tag = body.first().copied().map_or('\0', char::from);
        Self { len: body.len(), rest: body, tag }
    }

    /// An error at the place that was just read.
    pub(super) fn error(&self, fact: &'static str) -> DecodeError {
        DecodeError { tag: self.tag, fact, offset: self.len - self.rest.len() }
    }

    fn needs(&self, bytes: usize) -> Result<(), DecodeError> {
        if self.rest.len() >= bytes { Ok(()) } else { Err(self.error("it ends too early")) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.needs(1)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.needs(4)?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.needs(4)?;
        Ok(self.rest.get_i32())
    }

    pub(super) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.needs(8)?;
        Ok(self.rest.get_i64())
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.needs(8)?;
        Ok(Lsn(self.rest.get_u64()))
    }

    /// A number of columns, 16 bits.
    pub(super) fn count(&mut self) -> Result<usize, DecodeError> {
        self.needs(2)?;
        usize::try_from(self.rest.get_i16()).map_err(|_| self.error("a negative count"))
    }

    /// A number of tables, 32 bits.
    pub(super) fn long_count(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.i32()?).map_err(|_| self.error("a negative count"))
    }

    /// `count`, but no more than the bytes that are left can hold: room is never made on the word of a message.
    pub(super) fn at_most(&self, count: usize, bytes_each: usize) -> usize {
        count.min(self.rest.len() / bytes_each.max(1))
    }

    pub(super) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.error("a flag that is neither 0 nor 1")),
        }
    }

    /// The documentation says "currently unused"; a value would mean something that we do not understand.
    pub(super) fn unused_flags(&mut self) -> Result<(), DecodeError> {
        if self.u8()? == 0 { Ok(()) } else { Err(self.error("flags that have no meaning yet")) }
    }

    /// Text that a zero byte ends.
    pub(super) fn name(&mut self) -> Result<String, DecodeError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| self.error("a name that does not end"))?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        String::from_utf8(text.into()).map_err(|_| self.error("a name that is not UTF-8"))
    }

    /// A length of 32 bits and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::try_from(self.i32()?).map_err(|_| self.error("a negative length"))?;
        self.needs(len)?;
        Ok(self.rest.split_to(len))
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("bytes are left over")) }
    }
}
