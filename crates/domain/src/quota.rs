//! Storage quotas of tenants, and their usage.

/// A tenant's storage quota. An absent limit means unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of content, each distinct content counted once.
    pub bytes: Option<u64>,
    /// Documents, those in the trash included.
    pub documents: Option<u64>,
}

impl Quota {
    /// Whether neither bytes nor documents are limited.
    #[must_use]
    pub fn is_unlimited(self) -> bool {
        self.bytes.is_none() && self.documents.is_none()
    }
}

/// One limit of one tenant, as the operator set it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// The default from the settings.
    #[default]
    Usual,
    /// No limit.
    Unlimited,
    /// At most this much.
    AtMost(u64),
}

impl Limit {
    /// The effective limit, with `usual` as the default.
    #[must_use]
    pub fn or(self, usual: Option<u64>) -> Option<u64> {
        match self {
            Self::Usual => usual,
            Self::Unlimited => None,
            Self::AtMost(limit) => Some(limit),
        }
    }

    /// The stored form: absent for the default, negative for unlimited.
    #[must_use]
    pub fn stored(self) -> Option<i64> {
        match self {
            Self::Usual => None,
            Self::Unlimited => Some(-1),
            Self::AtMost(limit) => Some(crate::saturating_i64(limit)),
        }
    }

    /// Reads the stored form.
    #[must_use]
    pub fn from_stored(stored: Option<i64>) -> Self {
        stored.map_or(Self::Usual, |limit| u64::try_from(limit).map_or(Self::Unlimited, Self::AtMost))
    }
}

/// The limits of one tenant, as the operator set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes.
    pub bytes: Limit,
    /// Documents.
    pub documents: Limit,
}

impl QuotaLimits {
    /// The effective quota, with `usual` as the default.
    #[must_use]
    pub fn or(self, usual: Quota) -> Quota {
        Quota { bytes: self.bytes.or(usual.bytes), documents: self.documents.or(usual.documents) }
    }
}

/// A tenant's storage usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageUse {
    /// Files: distinct contents.
    pub files: u64,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// Documents, those in the trash included.
    pub documents: u64,
    /// Documents in the trash.
    pub trashed_documents: u64,
    /// Bytes reserved for uploads in progress.
    pub reserved_bytes: u64,
    /// Documents reserved for uploads in progress.
    pub reserved_documents: u64,
}

impl StorageUse {
    /// Which limit, if any, these additional bytes and documents would exceed.
    #[must_use]
    pub fn shortage(&self, quota: Quota, bytes: u64, documents: u64) -> Option<QuotaExceeded> {
        let short = |unit, quota: Option<u64>, used: u64, reserved: u64, needed: u64| {
            let quota = quota?;
            let total = used.saturating_add(reserved).saturating_add(needed);
            (needed > 0 && total > quota).then_some(QuotaExceeded { unit, quota, used, reserved, needed })
        };
        short("bytes", quota.bytes, self.bytes, self.reserved_bytes, bytes)
            .or_else(|| short("documents", quota.documents, self.documents, self.reserved_documents, documents))
    }
}

/// How a request exceeds the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// `bytes` or `documents`.
    pub unit: &'static str,
    /// The limit.
    pub quota: u64,
    /// The current usage.
    pub used: u64,
    /// The amount reserved for uploads in progress.
    pub reserved: u64,
    /// The requested addition.
    pub needed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_counts_reservations() {
        let used = StorageUse { bytes: 60, documents: 3, reserved_bytes: 30, reserved_documents: 1, ..StorageUse::default() };
        let quota = Quota { bytes: Some(100), documents: Some(4) };
        assert_eq!(used.shortage(quota, 10, 0), None);
        assert_eq!(used.shortage(quota, 11, 0), Some(QuotaExceeded { unit: "bytes", quota: 100, used: 60, reserved: 30, needed: 11 }));
        assert_eq!(used.shortage(quota, 0, 1), Some(QuotaExceeded { unit: "documents", quota: 4, used: 3, reserved: 1, needed: 1 }));
        assert_eq!(used.shortage(Quota::default(), u64::MAX, u64::MAX), None);
    }

    #[test]
    fn limits_are_stored_and_read_back() {
        for limit in [Limit::Usual, Limit::Unlimited, Limit::AtMost(0), Limit::AtMost(7)] {
            assert_eq!(Limit::from_stored(limit.stored()), limit);
        }
        assert_eq!((Limit::Usual.or(Some(1)), Limit::Unlimited.or(Some(1)), Limit::AtMost(2).or(Some(1))), (Some(1), None, Some(2)));
    }
}
