//! `http-error-code`, in the place of Wasmtime's own: that one knows no error of a response's body, so that a guest would
//! not learn whether a body was too large, too late or cut off.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, IoError, TlsAlertReceivedPayload};

use crate::sandbox::CallCtx;

/// The version of Wasmtime's own.
const INTERFACE: &str = "wasi:http/types@0.2.12";

pub(super) fn add_to_linker(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let linked = linker.instance(INTERFACE)?.func_wrap(
        "http-error-code",
        |cx: StoreContextMut<'_, CallCtx>, (error,): (Resource<IoError>,)| {
            let error = cx.data().table.get(&error)?;
            let own = error.downcast_ref::<ErrorCode>().cloned();
            Ok((own.or_else(|| error.downcast_ref::<Error>().and_then(code)),))
        },
    );
    linker.allow_shadowing(false);
    linked
}

/// What a response's body can end with: see `body.rs`.
fn code(error: &Error) -> Option<ErrorCode> {
    Some(match error {
        Error::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        Error::ConnectionTerminated => ErrorCode::ConnectionTerminated,
        Error::HttpProtocolError => ErrorCode::HttpProtocolError,
        Error::HttpResponseBodySize(bytes) => ErrorCode::HttpResponseBodySize(*bytes),
        Error::HttpResponseHeaderSectionSize(bytes) => ErrorCode::HttpResponseHeaderSectionSize(*bytes),
        Error::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        Error::TlsCertificateError => ErrorCode::TlsCertificateError,
        Error::TlsProtocolError => ErrorCode::TlsProtocolError,
        Error::TlsAlertReceived { alert_id, alert_message } => ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload {
            alert_id: *alert_id,
            alert_message: alert_message.clone(),
        }),
        _ => return None,
    })
}
