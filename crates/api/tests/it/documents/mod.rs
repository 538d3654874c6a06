//! Documents, from upload to trash.

mod documents;
mod files;
mod races;
mod storage_faults;
mod uploads;
mod versions;
