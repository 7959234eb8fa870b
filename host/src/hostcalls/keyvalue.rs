//! `wasi:keyvalue` at 0.2.0-draft2: `store`, `atomics` and `batch`, all inside the call's transaction.
//!
//! Invariant: nothing here touches the store but the transaction's validated reads. An increment and a compare-and-swap
//! are a read and a write of the transaction, so they are as atomic as its commit.

use std::sync::Arc;

use wasmtime::component::Resource;

use super::bindings::wasi::keyvalue::atomics::{self, CasError};
use super::bindings::wasi::keyvalue::batch;
use super::bindings::wasi::keyvalue::store::{self, Error, KeyResponse};
use crate::sandbox::CallCtx;
use crate::transaction::StateError;

/// Keys in one page of a listing.
const PAGE_KEYS_MAX: usize = 1000;

/// An open bucket.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Bucket {
    name: Arc<str>,
}

/// A value that was looked at, to be swapped if it is still so.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Cas {
    bucket: Arc<str>,
    key: String,
    seen: Option<Arc<[u8]>>,
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Error::Other(error.to_string())
    }
}

impl CallCtx {
    fn bucket(&self, bucket: &Resource<Bucket>) -> wasmtime::Result<Arc<str>> {
        Ok(Arc::clone(&self.table.get(bucket)?.name))
    }

    async fn kv_get(&mut self, bucket: &Arc<str>, key: &str) -> Result<Option<Arc<[u8]>>, StateError> {
        self.transaction.get(&*self.core.store, bucket, key).await
    }
}

impl store::Host for CallCtx {
    async fn open(&mut self, identifier: String) -> wasmtime::Result<Result<Resource<Bucket>, Error>> {
        if self.describing {
            return Ok(Err(Error::AccessDenied));
        }
        match self.transaction.bucket(&identifier) {
            Ok(name) => Ok(Ok(self.table.push(Bucket { name })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl store::HostBucket for CallCtx {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        let bucket = self.bucket(&bucket)?;
        let value = self.kv_get(&bucket, &key).await;
        Ok(value.map(|value| value.map(|value| value.to_vec())).map_err(Into::into))
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.transaction.set(&bucket, &key, Some(value)).map_err(Into::into))
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.transaction.set(&bucket, &key, None).map_err(Into::into))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<bool, Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.kv_get(&bucket, &key).await.map(|value| value.is_some()).map_err(Into::into))
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<KeyResponse, Error>> {
        let bucket = self.bucket(&bucket)?;
        let store = Arc::clone(&self.core.store);
        let page = self.transaction.list(&*store, &bucket, cursor.as_deref(), PAGE_KEYS_MAX).await;
        Ok(page.map_err(Into::into).map(|(keys, more)| {
            // The cursor is the last key of the page: it stays right when keys come and go.
            let cursor = keys.last().filter(|_| more).cloned();
            KeyResponse { keys, cursor }
        }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for CallCtx {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, Error>> {
        let bucket = self.bucket(&bucket)?;
        let old = match self.kv_get(&bucket, &key).await {
            Ok(old) => old,
            Err(error) => return Ok(Err(error.into())),
        };
        let Some(new) = number(old.as_deref()).and_then(|old| old.checked_add(delta)) else {
            let why = format!("`{key}` does not hold a decimal number to which {delta} can be added");
            return Ok(Err(Error::Other(why)));
        };
        let set = self.transaction.set(&bucket, &key, Some(new.to_string().into_bytes()));
        Ok(set.map(|()| new).map_err(Into::into))
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), CasError>> {
        let Cas { bucket, key, seen } = self.table.delete(cas)?;
        let now = match self.kv_get(&bucket, &key).await {
            Ok(now) => now,
            Err(error) => return Ok(Err(CasError::StoreError(error.into()))),
        };
        if now != seen {
            let cas = self.table.push(Cas { bucket, key, seen: now })?;
            return Ok(Err(CasError::CasFailed(cas)));
        }
        let set = self.transaction.set(&bucket, &key, Some(value));
        Ok(set.map_err(|error| CasError::StoreError(error.into())))
    }
}

/// What `increment` counts: a decimal number as text, as other hosts of this interface keep it; nothing counts as zero.
fn number(value: Option<&[u8]>) -> Option<i64> {
    let Some(value) = value else { return Some(0) };
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl atomics::HostCas for CallCtx {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Resource<Cas>, Error>> {
        let bucket = self.bucket(&bucket)?;
        match self.kv_get(&bucket, &key).await {
            Ok(seen) => Ok(Ok(self.table.push(Cas { bucket, key, seen })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn current(&mut self, cas: Resource<Cas>) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        let Cas { bucket, key, .. } = self.table.get(&cas)?;
        let (bucket, key) = (Arc::clone(bucket), key.clone());
        match self.kv_get(&bucket, &key).await {
            Ok(now) => {
                self.table.get_mut(&cas)?.seen.clone_from(&now);
                Ok(Ok(now.map(|now| now.to_vec())))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl batch::Host for CallCtx {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<(String, Option<Vec<u8>>)>, Error>> {
        let bucket = self.bucket(&bucket)?;
        let bytes_max = self.transfer_bytes_max;
        let mut bytes = 0;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let value = match self.kv_get(&bucket, &key).await {
                Ok(value) => value,
                Err(error) => return Ok(Err(error.into())),
            };
            // The same key may be asked for many times, and each answer is a copy.
            bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            if bytes > bytes_max {
                let why = format!("the values are larger than {bytes_max} bytes together; ask for fewer keys at once");
                return Ok(Err(Error::Other(why)));
            }
            values.push((key, value.map(|value| value.to_vec())));
        }
        Ok(Ok(values))
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        let set = |(key, value): (String, Vec<u8>)| self.transaction.set(&bucket, &key, Some(value));
        Ok(key_values.into_iter().try_for_each(set).map_err(Into::into))
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        let delete = |key: String| self.transaction.set(&bucket, &key, None);
        Ok(keys.into_iter().try_for_each(delete).map_err(Into::into))
    }
}
