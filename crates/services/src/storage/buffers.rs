//! Buffers that are used again, so that large ones don't pile up in the allocator, which keeps for a while what was freed.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

/// A stock of buffers.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer that goes back to its stock when nobody needs it any more.
pub(crate) struct Lent {
    pub(crate) bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer of this length, with anything in it.
    pub(crate) fn lend(self: &Arc<Self>, length: usize) -> Lent {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.resize(length, 0);
        Lent { bytes, home: Arc::clone(self) }
    }

    /// Frees those that are not lent.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(mem::take(&mut self.bytes));
    }
}
