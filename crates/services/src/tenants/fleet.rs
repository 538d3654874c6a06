//! All tenants, as the operator sees and changes them.

use std::collections::HashMap;

use domain::{Dependency, Error, Member, Move, Noun, Provisioning, QuotaLimits, Result, StorageUse, Tenant, TenantId, User};
use models::{TenantDatabase, members, moves, quotas, tenant_schema_version, tenants};
use serde_json::json;

use crate::{
    Core, OperatorServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::{audit_event, begin_main},
    tenants::tenants::change_tenant,
};

/// A tenant in the operator's list.
#[derive(Clone, Debug)]
pub struct TenantSummary {
    /// The tenant.
    pub tenant: Tenant,
    /// How many members it has.
    pub member_count: u64,
}

/// A tenant as the operator sees it.
#[derive(Debug)]
pub struct TenantReport {
    /// All members, in the order in which they joined.
    pub members: Vec<Member<User>>,
    /// What its database holds, or what is wrong with that.
    pub contents: Result<StorageUse>,
    /// A move of its database that is under way or has left a former one behind.
    pub on_the_move: Option<Move>,
}

impl OperatorServices {
    /// Makes a tenant inactive, or active again, for the operator: everywhere, when this returns. Answers whether it was not so
    /// already.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone or being deleted.
    pub async fn set_tenant_active(&self, tenant_id: TenantId, is_active: bool) -> Result<bool> {
        let known = tenants::find(&mut self.core.main().read().await?, tenant_id).await?;
        let known = known.filter(|tenant| tenant.provisioning != Provisioning::Deleting).ok_or(Error::NotFound(Noun::Tenant))?;
        if known.is_active == is_active {
            return Ok(false);
        }
        change_tenant(&self.core, tenant_id, None, None, Some(is_active)).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        Ok(true)
    }

    /// All tenants, for the operator.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_all_tenants(&self) -> Result<Vec<Tenant>> {
        Ok(tenants::list(&mut self.core.main().read().await?).await?)
    }

    /// All tenants but those that are being deleted, for what is done in every tenant's database.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_kept_tenants(&self) -> Result<Vec<Tenant>> {
        let mut tenants = self.list_all_tenants().await?;
        tenants.retain(|tenant| tenant.provisioning != Provisioning::Deleting);
        Ok(tenants)
    }

    /// All tenants with the numbers of their members, in the order of their making, for the operator.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn summarize_tenants(&self) -> Result<Vec<TenantSummary>> {
        let mut connection = self.core.main().read().await?;
        let tenants = tenants::list(&mut connection).await?;
        let counts: HashMap<_, _> = members::count_by_tenant(&mut connection).await?.into_iter().collect();
        let summary = |tenant: Tenant| TenantSummary { member_count: counts.get(&tenant.id).copied().unwrap_or(0), tenant };
        Ok(tenants.into_iter().map(summary).collect())
    }

    /// The tenants that an operator may mean: the one with this id, else the one whose database has this name, else all that
    /// are called so.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_tenants(&self, wanted: &str) -> Result<Vec<Tenant>> {
        let mut connection = self.core.main().read().await?;
        if let Ok(id) = wanted.parse()
            && let Some(tenant) = tenants::find(&mut connection, id).await?
        {
            return Ok(vec![tenant]);
        }
        match tenants::find_by_database(&mut connection, wanted).await? {
            Some(tenant) => Ok(vec![tenant]),
            None => Ok(tenants::list_by_name(&mut connection, wanted).await?),
        }
    }

    /// A tenant's members and what its database holds, for the operator.
    ///
    /// # Errors
    /// When the main database is down. A tenant's database that is down is part of the answer.
    pub async fn report_tenant(&self, tenant: &Tenant) -> Result<TenantReport> {
        let mut connection = self.core.main().read().await?;
        let members = members::list_users(&mut connection, tenant.id).await?;
        let on_the_move = moves::find(&mut connection, tenant.id).await?;
        drop(connection);
        Ok(TenantReport { members, contents: count_contents(&self.core, tenant).await, on_the_move })
    }

    /// Sets how much a tenant may store, for the operator: in force everywhere when this returns. What is stored stays, even if it
    /// is more.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone or being deleted.
    pub async fn set_limits(&self, tenant_id: TenantId, limits: QuotaLimits) -> Result<Tenant> {
        let mut tx = begin_main(&self.core).await?;
        let tenant =
            tenants::set_limits(&mut tx, tenant_id, limits, self.core.clock().now()).await?.ok_or(Error::NotFound(Noun::Tenant))?;
        let data = json!({ "name": tenant.name, "max_bytes": limits.bytes.stored(), "max_documents": limits.documents.stored() });
        tx.emit(&audit_event(&self.core, "tenant.quota_set", Some(tenant_id), None, data));
        commit_access_change(&self.core, tx, tenant_id).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        Ok(tenant)
    }
}

pub(crate) async fn count_contents(core: &Core, tenant: &Tenant) -> Result<StorageUse> {
    let mut connection = open_for_operator(core, tenant)?.read().await?;
    Ok(quotas::find_use(&mut connection, core.clock().now()).await?)
}

/// A tenant's database, for what an operator does with it, if it has a schema that this program understands.
pub(crate) fn open_for_operator(core: &Core, tenant: &Tenant) -> Result<TenantDatabase> {
    if tenant.schema_version < tenant_schema_version() - 1 {
        return Err(Error::Unavailable {
            dependency: Dependency::TenantDatabase,
            source: format!("its schema is of version {}; run tenantry migrate first", tenant.schema_version).into(),
        });
    }
    Ok(core.parts.tenant_databases.open(&tenant.place)?)
}
