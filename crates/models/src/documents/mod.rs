//! Documents: their contents, versions, trash and files, and how uploads become documents.

mod documents;
pub mod files;
pub mod multipart_uploads;
pub mod quotas;
pub mod trash;
pub mod uploads;
pub mod versions;

pub use self::documents::*;
