//! Accounts and profiles.

use std::net::IpAddr;

use domain::{
    Conflict, Email, Error, ForbiddenReason, Member, NewPassword, Page, PageRequest, PersonName, ResourceKind, Result, Tenant, User, UserId,
};
use models::{members, sessions, users};
use serde_json::json;

use crate::{
    Caller, Core, OperatorServices, RegistrationPolicy, UserServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    accounts::{login_throttle::source, passwords::Source},
    events::events::{audit_event, begin_main},
};

/// The data of a new account.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Unique among all users.
    pub email: Email,
    /// The password to log in with.
    pub password: NewPassword,
    /// First name.
    pub first_name: PersonName,
    /// Last name.
    pub last_name: PersonName,
}

impl UserServices {
    /// Registers an account.
    ///
    /// # Errors
    /// [`ForbiddenReason::RegistrationClosed`]; [`Conflict::EmailTaken`] when another account has the address.
    pub async fn register_user(&self, registration: Registration, client: IpAddr) -> Result<User> {
        if self.core.settings().registration == RegistrationPolicy::Closed {
            return Err(Error::Forbidden(ForbiddenReason::RegistrationClosed));
        }
        let source = source(client, registration.email.as_str());
        register(&self.core, registration, source).await
    }

    /// The caller's profile.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn get_profile(&self, caller: &Caller) -> Result<User> {
        let found = users::find(&mut self.core.main().read().await?, caller.user_id()).await?;
        found.ok_or(Error::NotFound(ResourceKind::User))
    }

    /// Changes the given names in the caller's profile.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn update_profile(&self, caller: &Caller, first_name: Option<PersonName>, last_name: Option<PersonName>) -> Result<User> {
        let mut tx = self.core.main().begin().await?;
        let changed = users::rename(&mut tx, caller.user_id(), first_name.as_ref(), last_name.as_ref(), self.core.clock().now()).await?;
        let user = changed.ok_or(Error::NotFound(ResourceKind::User))?;
        tx.commit().await?;
        Ok(user)
    }

    /// The caller's active tenants, newest membership first.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_active_tenants(&self, caller: &Caller, request: PageRequest) -> Result<Page<Member<Tenant>>> {
        Ok(members::list_active_tenants(&mut self.core.main().read().await?, caller.user_id(), request).await?)
    }
}

impl OperatorServices {
    /// Creates an account, even where registration is closed.
    ///
    /// # Errors
    /// [`Conflict::EmailTaken`] when another account has the address.
    pub async fn create_user(&self, registration: Registration) -> Result<User> {
        register(&self.core, registration, Source::operator()).await
    }

    /// The user with this address, for the command line.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_user_by_email(&self, email: &Email) -> Result<Option<User>> {
        Ok(users::find_by_email(&mut self.core.main().read().await?, email).await?)
    }

    /// Activates or deactivates a user. The change is effective in every instance when this returns. Deactivation ends all the
    /// user's sessions.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such user.
    pub async fn set_user_active(&self, user_id: UserId, is_active: bool) -> Result<()> {
        let now = self.core.clock().now();
        let mut tx = begin_main(&self.core).await?;
        if !users::set_active(&mut tx, user_id, is_active, now).await? {
            return Err(Error::NotFound(ResourceKind::User));
        }
        let action = if is_active { "user.activated" } else { "user.deactivated" };
        tx.emit(&audit_event(&self.core, action, None, None, json!({ "target_user_id": user_id.to_string() })));
        if !is_active {
            sessions::end_all_of(&mut tx, user_id, now).await?;
        }
        commit_access_change(&self.core, tx, user_id).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        Ok(())
    }
}

async fn register(core: &Core, registration: Registration, source: Source) -> Result<User> {
    if users::find_by_email(&mut core.main().read().await?, &registration.email).await?.is_some() {
        // A taken address costs no password hash. The unique index below decides between two concurrent registrations.
        return Err(Error::Conflict(Conflict::EmailTaken));
    }
    let password = core.parts.passwords.hash(source, &registration.password).await?;
    let now = core.clock().now();
    let user = User {
        id: UserId::generate(core.clock()),
        first_name: registration.first_name.into_string(),
        last_name: registration.last_name.into_string(),
        email: registration.email.into_string(),
        is_active: true,
        created_at: now,
        updated_at: now,
        created_by: None,
    };
    let mut tx = begin_main(core).await?;
    users::insert(&mut tx, &user, &password)
        .await
        .map_err(|error| if error.violates(users::EMAIL_KEY) { Error::Conflict(Conflict::EmailTaken) } else { error.into() })?;
    tx.emit(&audit_event(core, "user.registered", None, Some(user.id), json!({})));
    tx.commit().await?;
    Ok(user)
}
