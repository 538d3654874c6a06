//! Deletes everything, for an operator who starts over.

use domain::Result;

use crate::{
    OperatorServices,
    tenants::{deletion::delete_objects, moves::drop_databases_of},
};

impl OperatorServices {
    /// Drops every tenant's database and deletes every tenant's objects. Returns the number of tenants. The objects of another
    /// installation's tenants in the same bucket stay.
    ///
    /// # Errors
    /// When a server or the storage is down. What was dropped before that stays dropped.
    pub async fn drop_everything(&self) -> Result<usize> {
        let tenants = self.list_all_tenants().await?;
        for tenant in &tenants {
            drop_databases_of(&self.core, tenant).await?;
            delete_objects(&self.core, tenant.id).await?;
        }
        self.collect_late_objects().await?;
        Ok(tenants.len())
    }
}
