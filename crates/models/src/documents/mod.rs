//! Documents: their files, versions, trash, quotas and uploads.

mod documents;
pub mod files;
pub mod multipart_uploads;
pub mod quotas;
pub mod search_keys;
pub mod trash;
pub mod uploads;
pub mod versions;

pub use self::documents::*;
