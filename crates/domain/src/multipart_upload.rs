//! Uploads that come in parts, over more than one request.

use crate::{DocumentId, Timestamp, UploadId, UserId};

/// An upload in parts. What it may come to store is reserved from the tenant's quota until it ends or expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipartUpload {
    /// Its identifier.
    pub id: UploadId,
    /// How its parts come.
    pub protocol: UploadProtocol,
    /// How far it is.
    pub state: UploadState,
    /// Who uploads, and will own the document.
    pub user_id: UserId,
    /// The document's name to be.
    pub filename: String,
    /// Its media type to be.
    pub mime_type: String,
    /// What the client said of it, as it said it (`Upload-Metadata` of tus).
    pub metadata: String,
    /// The bytes of the whole content, more than 0.
    pub size: u64,
    /// The SHA-256 that the content is said to have.
    pub sha256: Option<[u8; 32]>,
    /// The MD5 that it is said to have.
    pub md5: Option<[u8; 16]>,
    /// How many of its first bytes are here and durable; only tus counts them.
    pub received: u64,
    /// Where the storage gathers the parts, if it does so by itself.
    pub gathered: Option<Gathered>,
    /// The bytes of each part but the last; 0 where parts are of any size.
    pub part_size: u64,
    /// The document that it became, and whether its content was already there.
    pub document: Option<(DocumentId, bool)>,
    /// Why it became none.
    pub failure: Option<String>,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When something last happened to it.
    pub updated_at: Timestamp,
    /// From when on it is given up, or forgotten when it has ended.
    pub expires_at: Timestamp,
}

impl MultipartUpload {
    /// The sizes of its parts, in order, where they are laid down.
    pub fn part_sizes(&self) -> impl Iterator<Item = u64> {
        let (size, part) = (self.size, self.part_size.max(1));
        (0..size.div_ceil(part)).map(move |n| part.min(size - n * part))
    }
}

/// Where the storage gathers the parts of an upload by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathered {
    /// The key of the object that they become. Used for this upload only.
    pub key: String,
    /// What the storage calls the upload.
    pub storage_upload_id: String,
}

/// A part that is an object of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadPart {
    /// Its first byte's place in the content.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// Its object's key.
    pub key: String,
}

/// How the parts of an upload come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadProtocol {
    /// Each by a URL of its own, in any order.
    Direct,
    /// One after the other: tus 1.0.
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

/// How far an upload in parts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// It takes parts.
    Open,
    /// All parts are here; the content is being checked and becomes a document.
    Completing,
    /// It became a document.
    Completed,
    /// It became none, and will not.
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
