//! Documents: content, versions, trash, files and uploads.

pub(crate) mod direct_uploads;
pub(crate) mod documents;
pub(crate) mod files;
pub(crate) mod form;
pub(crate) mod objects;
pub(crate) mod range;
pub(crate) mod trash;
pub(crate) mod tus;
pub(crate) mod versions;
