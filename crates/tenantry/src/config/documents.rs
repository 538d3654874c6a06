//! The limits of uploads and downloads.

use std::time::Duration;

use super::{ConfigError, Settings, values, variables};

/// The longest that a signed download URL may be valid: what Amazon's Signature Version 4 allows, so that every object
/// store can keep it.
const LONGEST_DOWNLOAD: u64 = 7 * 24 * 60 * 60;

/// The longest that an upload in parts may be waited for: a month.
const LONGEST_UPLOAD: u64 = 31 * 24 * 60 * 60;

/// The most versions that may be kept of a document.
const MOST_VERSIONS: u64 = 10_000;

/// The most documents that a limit may allow: more than any database takes.
const MOST_DOCUMENTS: u64 = 1 << 40;

/// The longest that garbage may be kept: ten years.
const LONGEST_GRACE: u64 = 10 * 365 * 24 * 60 * 60;

/// The limits of uploads and downloads.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
    /// How long a signed download URL is valid.
    pub download_url_expires: Duration,
    /// How long an upload in parts is waited for.
    pub upload_expires: Duration,
    /// How long a deleted document can be brought back.
    pub trash_retention: Duration,
    /// How many versions of a document are kept.
    pub versions_kept: u64,
    /// How many bytes a tenant may store.
    pub tenant_max_bytes: Option<u64>,
    /// How many documents a tenant may have.
    pub tenant_max_documents: Option<u64>,
    /// How long a file is kept that no document refers to.
    pub garbage_grace: Duration,
    /// How often garbage is collected in the background; zero for never.
    pub garbage_interval: Duration,
}

impl Documents {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let grace = |text: &str| values::number(0..=LONGEST_GRACE)(text).map(Duration::from_secs);
        Ok(Self {
            max_upload_bytes: settings.get(&variables::MAX_UPLOAD_BYTES, values::bytes)?,
            download_url_expires: settings.get(&variables::DOWNLOAD_URL_EXPIRES, values::seconds(LONGEST_DOWNLOAD))?,
            upload_expires: settings.get(&variables::UPLOAD_EXPIRES, values::seconds(LONGEST_UPLOAD))?,
            trash_retention: settings.get(&variables::TRASH_RETENTION, grace)?,
            versions_kept: settings.get(&variables::DOCUMENT_VERSIONS_KEPT, values::number(1..=MOST_VERSIONS))?,
            tenant_max_bytes: settings.find(&variables::TENANT_MAX_BYTES, values::bytes)?,
            tenant_max_documents: settings.find(&variables::TENANT_MAX_DOCUMENTS, values::number(1..=MOST_DOCUMENTS))?,
            garbage_grace: settings.get(&variables::GARBAGE_GRACE, grace)?,
            garbage_interval: settings.get(&variables::GARBAGE_INTERVAL, grace)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};

    #[test]
    fn sizes_may_have_units() {
        for (text, bytes) in [("1", 1), ("100MB", 100_000_000), ("100MiB", 104_857_600), ("2 kib", 2_048), ("1GB", 1_000_000_000)] {
            assert_eq!(Workplace::new().load(&[("MAX_UPLOAD_BYTES", text)]).unwrap().documents.max_upload_bytes, bytes, "{text}");
        }
        for text in ["", "0", "-1", "1.5MB", "MB", "100 apples", "18446744073709551615kB"] {
            assert!(problem(&[("MAX_UPLOAD_BYTES", text)]).starts_with("MAX_UPLOAD_BYTES must be a number of bytes"), "{text}");
        }
    }

    #[test]
    fn no_url_outlives_seven_days() {
        assert!(problem(&[("DOWNLOAD_URL_EXPIRES", "604801")]).contains("from 1 to 604800 (seconds)"));
    }
}
