//! Reusable buffers, because the allocator retains freed memory for a while and large buffers would accumulate in it.

use std::{mem, sync::Arc};

use parking_lot::Mutex;

/// A pool of buffers.
#[derive(Default)]
pub(crate) struct BufferPool(Mutex<Vec<Vec<u8>>>);

/// A buffer that returns to its pool on drop.
pub(crate) struct PooledBuffer {
    pub(crate) bytes: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// A buffer of this length with arbitrary content.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> PooledBuffer {
        let mut bytes = self.0.lock().pop().unwrap_or_default();
        bytes.resize(length, 0);
        PooledBuffer { bytes, pool: Arc::clone(self) }
    }

    /// Frees the buffers that are in the pool.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.0.lock().push(mem::take(&mut self.bytes));
    }
}
