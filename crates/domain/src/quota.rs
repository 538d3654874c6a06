//! How much a tenant may store, and how much it does.

/// How much a tenant may store. An absent limit is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of different content.
    pub bytes: Option<u64>,
    /// Documents, those in the trash included.
    pub documents: Option<u64>,
}

impl Quota {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(self) -> bool {
        self.bytes.is_none() && self.documents.is_none()
    }
}

/// One limit, as the operator set it for one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// What the settings say for every tenant.
    #[default]
    Usual,
    /// None.
    Unlimited,
    /// At most so much.
    AtMost(u64),
}

impl Limit {
    /// The limit in force.
    #[must_use]
    pub fn or(self, usual: Option<u64>) -> Option<u64> {
        match self {
            Self::Usual => usual,
            Self::Unlimited => None,
            Self::AtMost(limit) => Some(limit),
        }
    }

    /// The limit as it is stored: absent for the usual one, negative for none.
    #[must_use]
    pub fn stored(self) -> Option<i64> {
        match self {
            Self::Usual => None,
            Self::Unlimited => Some(-1),
            Self::AtMost(limit) => Some(crate::saturating_i64(limit)),
        }
    }

    /// The limit that was stored like this.
    #[must_use]
    pub fn from_stored(stored: Option<i64>) -> Self {
        stored.map_or(Self::Usual, |limit| u64::try_from(limit).map_or(Self::Unlimited, Self::AtMost))
    }
}

/// The limits that the operator set for one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes.
    pub bytes: Limit,
    /// Documents.
    pub documents: Limit,
}

impl QuotaLimits {
    /// The quota in force.
    #[must_use]
    pub fn or(self, usual: Quota) -> Quota {
        Quota { bytes: self.bytes.or(usual.bytes), documents: self.documents.or(usual.documents) }
    }
}

/// What a tenant stores altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageUse {
    /// Files: different contents.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Documents, those in the trash included.
    pub documents: u64,
    /// Of them, those in the trash.
    pub trashed_documents: u64,
    /// What uploads under way may come to add, in bytes.
    pub reserved_bytes: u64,
    /// What uploads under way may come to add, in documents.
    pub reserved_documents: u64,
}

impl StorageUse {
    /// What is short when so much more is to be stored.
    #[must_use]
    pub fn shortage(&self, quota: Quota, bytes: u64, documents: u64) -> Option<Shortage> {
        let short = |unit, quota: Option<u64>, used: u64, reserved: u64, needed: u64| {
            let quota = quota?;
            let total = used.saturating_add(reserved).saturating_add(needed);
            (needed > 0 && total > quota).then_some(Shortage { unit, quota, used, reserved, needed })
        };
        short("bytes", quota.bytes, self.bytes, self.reserved_bytes, bytes)
            .or_else(|| short("documents", quota.documents, self.documents, self.reserved_documents, documents))
    }
}

/// How a quota does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// `bytes` or `documents`.
    pub unit: &'static str,
    /// What may be stored.
    pub quota: u64,
    /// What is stored.
    pub used: u64,
    /// What uploads under way may come to add.
    pub reserved: u64,
    /// What was to be added.
    pub needed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_counts_what_is_reserved() {
        let used = StorageUse { bytes: 60, documents: 3, reserved_bytes: 30, reserved_documents: 1, ..StorageUse::default() };
        let quota = Quota { bytes: Some(100), documents: Some(4) };
        assert_eq!(used.shortage(quota, 10, 0), None);
        assert_eq!(used.shortage(quota, 11, 0), Some(Shortage { unit: "bytes", quota: 100, used: 60, reserved: 30, needed: 11 }));
        assert_eq!(used.shortage(quota, 0, 1), Some(Shortage { unit: "documents", quota: 4, used: 3, reserved: 1, needed: 1 }));
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
