//! Resumable uploads: tus 1.0 (<https://tus.io/protocols/resumable-upload>), as far as it is not HTTP.
//!
//! What arrives becomes durable in parts: objects of their own, noted before and counted in one transaction. So an upload goes on
//! after any crash where the last part ended, at whichever instance.

use std::time::Duration;

use bytes::Bytes;
use domain::{
    Conflict, Dependency, Document, Error, Filename, MimeType, MultipartUpload, Noun, Result, Role, TenantId, UploadId, UploadPart,
    UploadProtocol, UploadState, failpoint,
};
use models::{multipart_uploads, uploads};
use sha1::{Digest, Sha1};

use crate::{
    Caller, Core, UserServices,
    access::{TenantCaller, authorize, begin, reauthorize_and_begin},
    documents::{
        disposal::abort_upload,
        multipart_uploads::{complete_and_wait, find_own, reserve, store_part},
        targets::upload_deadline,
    },
    storage::spool,
};

/// The bytes after which what arrives is made durable, at the latest: more where that would make too many parts.
const PART: u64 = 8 * 1024 * 1024;
/// The most parts of an upload: a client that sends less at a time than it should is stopped before it costs too much.
const MAX_PARTS: u64 = 10_000;
/// How long the last request of an upload waits for the document.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a client says the bytes of a request have for a checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-1 (FIPS 180-4), which every server has to know.
    Sha1([u8; 20]),
    /// MD5 (RFC 1321).
    Md5([u8; 16]),
    /// SHA-256 (FIPS 180-4).
    Sha256([u8; 32]),
}

/// Bytes on their way to the end of an upload.
pub struct Append {
    core: Core,
    tenant: TenantCaller,
    upload: MultipartUpload,
    /// Where the next part goes.
    offset: u64,
    piece: spool::Upload,
    held: u64,
    checksum: Option<(Checksum, Sha1)>,
}

impl UserServices {
    /// Begins an upload of so many bytes, and reserves them.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers and when the quota does not reach; [`Error::TooLarge`].
    pub async fn begin_tus(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        filename: &Filename,
        mime_type: &MimeType,
        size: u64,
        metadata: &str,
    ) -> Result<MultipartUpload> {
        let limit = self.core.settings().max_upload_bytes;
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::User).await?;
        if size > limit {
            return Err(Error::TooLarge { limit });
        }
        reserve(&self.core, &mut tx, tenant.quota(), size).await?;
        let now = self.core.clock().now();
        let upload = MultipartUpload {
            id: UploadId::generate(self.core.clock()),
            protocol: UploadProtocol::Tus,
            state: UploadState::Open,
            user_id: caller.user_id(),
            filename: filename.as_str().to_owned(),
            mime_type: mime_type.as_str().to_owned(),
            metadata: metadata.to_owned(),
            size,
            sha256: None,
            md5: None,
            received: 0,
            gathered: None,
            part_size: 0,
            document: None,
            failure: None,
            created_at: now,
            updated_at: now,
            expires_at: upload_deadline(&self.core),
        };
        multipart_uploads::insert(&mut tx, &upload).await?;
        failpoint!("staged.beginning");
        tx.commit().await?;
        failpoint!("staged.begun");
        Ok(upload)
    }

    /// Begins to take bytes from this place of an upload on.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the caller has no such upload; [`Conflict::UploadOffset`] when it is at another place.
    pub async fn append_tus(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: UploadId,
        offset: u64,
        checksum: Option<Checksum>,
    ) -> Result<Append> {
        let upload = find_own(&self.core, caller, tenant_id, id).await?;
        if upload.protocol != UploadProtocol::Tus {
            return Err(Error::NotFound(Noun::Upload));
        }
        if upload.received != offset {
            return Err(Error::Conflict(Conflict::UploadOffset { received: upload.received }));
        }
        let tenant = authorize(&self.core, caller, tenant_id, Role::User).await?;
        if multipart_uploads::count_parts(&mut tenant.read().await?, id).await? >= MAX_PARTS {
            return Err(Error::invalid("Upload-Length", format!("came in more than {MAX_PARTS} parts; send more at a time")));
        }
        let piece = self.core.parts.spool.begin(upload.size - offset);
        let checksum = checksum.map(|checksum| (checksum, Sha1::new()));
        Ok(Append { core: self.core.clone(), tenant, upload, offset, piece, held: 0, checksum })
    }

    /// Ends the request that brought the last bytes of an upload: waits for the document. When something that it needs is down, the
    /// document comes later.
    ///
    /// # Errors
    /// [`Conflict::UploadFailed`] when it can't become one.
    pub async fn finish_tus(&self, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<Option<Document>> {
        match complete_and_wait(&self.core, caller, tenant_id, id, PATIENCE).await {
            Ok((_, document)) => Ok(document),
            Err(Error::Unavailable { .. } | Error::Closed(_) | Error::Overloaded { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Makes a stored object the next part of an upload, if that is still at this place.
async fn count_part(core: &Core, tenant: &TenantCaller, id: UploadId, part: &UploadPart) -> Result<()> {
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    let upload = multipart_uploads::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::Upload))?;
    if upload.received != part.offset || upload.state != UploadState::Open {
        return Err(Error::Conflict(Conflict::UploadOffset { received: upload.received }));
    }
    if !uploads::complete(&mut tx, &part.key).await? {
        return Err(Error::Unavailable { dependency: Dependency::ObjectStorage, source: "a part took too long to store".into() });
    }
    multipart_uploads::replace_part(&mut tx, id, part).await?;
    let (received, now, until) = (part.offset + part.size, core.clock().now(), upload_deadline(core));
    multipart_uploads::set_received(&mut tx, id, received, now, until).await?;
    if received == upload.size {
        multipart_uploads::set_state(&mut tx, id, UploadState::Completing, None, None, now, until).await?;
    }
    failpoint!("tus.part_counting");
    Ok(tx.commit().await?)
}

impl Append {
    /// Takes the next bytes. What makes a part is durable when this returns, unless there is a checksum to be checked at the end.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when they are more than the upload's size; as [`Append::finish`].
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        if self.offset + self.held + bytes.len() as u64 > self.upload.size {
            return Err(Error::TooLarge { limit: self.upload.size });
        }
        let most = if let Some((checksum, sha1)) = &mut self.checksum {
            if matches!(checksum, Checksum::Sha1(_)) {
                sha1.update(&bytes);
            }
            u64::MAX
        } else {
            // Half of the parts are for what breaks off.
            PART.max(self.upload.size.div_ceil(MAX_PARTS / 2))
        };
        while !bytes.is_empty() {
            let fitting = usize::try_from(most - self.held).unwrap_or(usize::MAX).min(bytes.len());
            self.piece.write(bytes.split_to(fitting)).await?;
            self.held += fitting as u64;
            if self.held == most {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Ends the request's bytes, as many as came, and makes them durable. Answers where the upload is then.
    ///
    /// # Errors
    /// [`Error::ChecksumMismatch`] when they are not what was sent, and then none is kept; [`Conflict::UploadOffset`] when somebody
    /// else was faster.
    pub async fn finish(mut self) -> Result<u64> {
        if self.held > 0 || self.checksum.is_some() {
            self.flush().await?;
        }
        Ok(self.offset)
    }

    /// Ends bytes that broke off: keeps what came, unless it can't be checked.
    ///
    /// # Errors
    /// As [`Append::finish`].
    pub async fn break_off(mut self) -> Result<()> {
        if self.held > 0 && self.checksum.is_none() { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        let rest = self.upload.size - self.offset - self.held;
        let content = std::mem::replace(&mut self.piece, self.core.parts.spool.begin(rest)).finish().await?;
        if let Some((checksum, sha1)) = self.checksum.take() {
            let holds = match checksum {
                Checksum::Sha1(said) => sha1.finalize()[..] == said,
                Checksum::Md5(said) => content.hash.md5 == said,
                Checksum::Sha256(said) => content.hash.sha256 == said,
            };
            if !holds {
                return Err(Error::ChecksumMismatch);
            }
        }
        if self.held == 0 {
            return Ok(());
        }
        let (core, id) = (self.core.clone(), self.upload.id);
        let key = store_part(&core, &self.tenant, id, content).await?;
        let part = UploadPart { offset: self.offset, size: self.held, key };
        if let Err(error) = count_part(&core, &self.tenant, id, &part).await {
            abort_upload(&core, &self.tenant, &part.key).await;
            return Err(error);
        }
        failpoint!("tus.part_counted");
        self.offset += self.held;
        self.held = 0;
        Ok(())
    }
}
