//! Documents: their contents, versions, trash and files, and how uploads become documents.

pub(crate) mod direct_uploads;
pub(crate) mod documents;
pub(crate) mod files;
pub(crate) mod objects;
pub(crate) mod range;
pub(crate) mod trash;
pub(crate) mod tus;
pub(crate) mod versions;
