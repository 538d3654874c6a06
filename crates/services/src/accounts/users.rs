//! Accounts and profiles.

use domain::{Conflict, Email, Error, Member, NewPassword, Noun, Page, PageRequest, PersonName, Result, Tenant, User, UserId};
use models::{members, sessions, users};
use serde_json::json;

use crate::{
    Caller, Core, OperatorServices, UserServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::{audit_event, begin_main},
};

/// What it takes to have an account.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Unique among all users.
    pub email: Email,
    /// What the user logs in with.
    pub password: NewPassword,
    /// First name.
    pub first_name: PersonName,
    /// Last name.
    pub last_name: PersonName,
}

impl UserServices {
    /// Makes an account.
    ///
    /// # Errors
    /// [`Conflict::EmailTaken`] when somebody has the address.
    pub async fn register_user(&self, registration: Registration) -> Result<User> {
        register(&self.core, registration).await
    }

    /// The caller's profile.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn get_profile(&self, caller: &Caller) -> Result<User> {
        let found = users::find(&mut self.core.main().read().await?, caller.user_id()).await?;
        found.ok_or(Error::NotFound(Noun::User))
    }

    /// Changes the names that are given in the caller's profile.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn update_profile(&self, caller: &Caller, first_name: Option<PersonName>, last_name: Option<PersonName>) -> Result<User> {
        let mut tx = self.core.main().begin().await?;
        let changed = users::rename(&mut tx, caller.user_id(), first_name.as_ref(), last_name.as_ref(), self.core.clock().now()).await?;
        let user = changed.ok_or(Error::NotFound(Noun::User))?;
        tx.commit().await?;
        Ok(user)
    }

    /// The active tenants that the caller belongs to, newest membership first.
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
        register(&self.core, registration).await
    }

    /// The user with this address, for the command line.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_user_by_email(&self, email: &Email) -> Result<Option<User>> {
        Ok(users::find_by_email(&mut self.core.main().read().await?, email).await?)
    }

    /// Lets a user log in again, or no longer: everywhere, when this returns. All the user's sessions end then.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such user.
    pub async fn set_user_active(&self, user_id: UserId, is_active: bool) -> Result<()> {
        let now = self.core.clock().now();
        let mut tx = begin_main(&self.core).await?;
        if !users::set_active(&mut tx, user_id, is_active, now).await? {
            return Err(Error::NotFound(Noun::User));
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

async fn register(core: &Core, registration: Registration) -> Result<User> {
    if users::find_by_email(&mut core.main().read().await?, &registration.email).await?.is_some() {
        // Not worth a hash. Two at once are told apart by the unique index below.
        return Err(Error::Conflict(Conflict::EmailTaken));
    }
    let password = core.parts.passwords.hash(&registration.password).await?;
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
