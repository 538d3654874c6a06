//! Documents: their contents, versions, trash and files, and how uploads become documents.

pub(crate) mod content;
pub(crate) mod direct_uploads;
pub(crate) mod disposal;
pub(crate) mod documents;
pub(crate) mod files;
pub(crate) mod garbage;
pub(crate) mod multipart_uploads;
pub(crate) mod processing;
pub(crate) mod search_keys;
pub(crate) mod targets;
pub(crate) mod trash;
pub(crate) mod tus;
pub(crate) mod uploads;
pub(crate) mod verification;
pub(crate) mod versions;
