//! Multipart uploads, which span several requests.

use crate::{DocumentId, Timestamp, UploadId, UserId};

/// A multipart upload. Its size is reserved from the tenant's quota until it ends or expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipartUpload {
    /// Its identifier.
    pub id: UploadId,
    /// The protocol of its parts.
    pub protocol: UploadProtocol,
    /// Its progress.
    pub state: UploadState,
    /// The uploading user, who will own the document.
    pub user_id: UserId,
    /// The name of the future document.
    pub filename: String,
    /// The media type of the future document.
    pub mime_type: String,
    /// The client's metadata, verbatim (`Upload-Metadata` of tus).
    pub metadata: String,
    /// The size of the whole content in bytes, greater than 0.
    pub size: u64,
    /// The declared SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// The declared MD5 of the content.
    pub md5: Option<[u8; 16]>,
    /// The number of contiguous bytes received and durable. Only tus counts them.
    pub received: u64,
    /// The storage's own multipart upload, if the storage assembles the parts.
    pub gathered: Option<StorageUpload>,
    /// The size in bytes of each part but the last; 0 if parts may have any size.
    pub part_size: u64,
    /// The document that it created, and whether its content was deduplicated.
    pub document: Option<(DocumentId, bool)>,
    /// Why it failed.
    pub failure: Option<String>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it is discarded or, if it has ended, purged.
    pub expires_at: Timestamp,
}

impl MultipartUpload {
    /// The sizes of its parts, in order, if `part_size` is fixed.
    pub fn part_sizes(&self) -> impl Iterator<Item = u64> {
        let (size, part) = (self.size, self.part_size.max(1));
        (0..size.div_ceil(part)).map(move |n| part.min(size - n * part))
    }
}

/// A multipart upload of the storage, which assembles the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageUpload {
    /// The key of the resulting object. No other upload uses it.
    pub key: String,
    /// The storage's id of the upload.
    pub storage_upload_id: String,
}

/// A part that is stored as an object of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadPart {
    /// The offset of its first byte in the content.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The key of its object.
    pub key: String,
}

/// How a client sends the parts of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadProtocol {
    /// To one URL per part, in any order.
    Direct,
    /// Sequentially, by tus 1.0.
    Tus,
}

impl UploadProtocol {
    /// The protocol's stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tus => "tus",
        }
    }

    /// The protocol with this stored name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Direct, Self::Tus].into_iter().find(|protocol| protocol.as_str() == text)
    }
}

/// The progress of a multipart upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// It accepts parts.
    Open,
    /// All parts are received; the content is being verified before it becomes a document.
    Completing,
    /// It created a document.
    Completed,
    /// It failed permanently.
    Failed,
}

impl UploadState {
    /// The state's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Completing => "completing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Completing, Self::Completed, Self::Failed].into_iter().find(|state| state.as_str() == text)
    }
}
