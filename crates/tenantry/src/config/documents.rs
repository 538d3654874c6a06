//! Limits of uploads, downloads and storage.

use std::time::Duration;

use super::{ConfigError, Settings, values, variables};

/// The maximum lifetime of a signed download URL: that of Amazon's Signature Version 4, so that every object store accepts it.
const MAX_DOWNLOAD_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The maximum lifetime of an unfinished multipart upload: a month.
const MAX_UPLOAD_SECONDS: u64 = 31 * 24 * 60 * 60;

/// The maximum number of versions of a document.
const MAX_VERSIONS: u64 = 10_000;

/// The maximum document quota: more than any database can store.
const MAX_DOCUMENTS: u64 = 1 << 40;

/// Ten years.
const MAX_GRACE_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// Limits of uploads, downloads and storage.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The maximum size of an upload in bytes.
    pub max_upload_bytes: u64,
    /// How long a signed download URL is valid.
    pub download_url_expires: Duration,
    /// How long an unfinished multipart upload is kept after its last part.
    pub upload_expires: Duration,
    /// How long a deleted document can be restored.
    pub trash_retention: Duration,
    /// The number of versions kept of each document.
    pub versions_kept: u64,
    /// The maximum number of bytes of a tenant.
    pub tenant_max_bytes: Option<u64>,
    /// The maximum number of documents of a tenant.
    pub tenant_max_documents: Option<u64>,
    /// How long to keep a file that no document refers to.
    pub garbage_grace: Duration,
    /// The interval of garbage collections in the background; zero for none.
    pub garbage_interval: Duration,
}

impl Documents {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let grace = |text: &str| values::number(0..=MAX_GRACE_SECONDS)(text).map(Duration::from_secs);
        Ok(Self {
            max_upload_bytes: settings.get(&variables::MAX_UPLOAD_BYTES, values::bytes)?,
            download_url_expires: settings.get(&variables::DOWNLOAD_URL_EXPIRES, values::seconds(MAX_DOWNLOAD_SECONDS))?,
            upload_expires: settings.get(&variables::UPLOAD_EXPIRES, values::seconds(MAX_UPLOAD_SECONDS))?,
            trash_retention: settings.get(&variables::TRASH_RETENTION, grace)?,
            versions_kept: settings.get(&variables::DOCUMENT_VERSIONS_KEPT, values::number(1..=MAX_VERSIONS))?,
            tenant_max_bytes: settings.find(&variables::TENANT_MAX_BYTES, values::bytes)?,
            tenant_max_documents: settings.find(&variables::TENANT_MAX_DOCUMENTS, values::number(1..=MAX_DOCUMENTS))?,
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
    fn a_download_url_is_valid_for_seven_days_at_most() {
        assert!(problem(&[("DOWNLOAD_URL_EXPIRES", "604801")]).contains("from 1 to 604800 (seconds)"));
    }
}
