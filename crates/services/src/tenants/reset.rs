//! Dropping everything, for an operator who begins anew.

use domain::Result;

use crate::{
    OperatorServices,
    tenants::{deletion::delete_objects, moves::drop_databases_of},
};

impl OperatorServices {
    /// Drops every tenant's database and objects, for an operator who wants to begin anew. Answers how many tenants there were.
    /// Objects of others, who have their tenants in the same bucket, are not touched.
    ///
    /// # Errors
    /// When a server or the storage is down. What was dropped until then is gone.
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
