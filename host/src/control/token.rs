//! Tokens: the right to stop one call.
//!
//! Invariant: a token is a MAC of the call's id by a key that no one but this host has, and that ends with it. Nothing is
//! kept for a call, and nobody guesses 256 bits.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::CallId;
use crate::secret;

/// A token's text is never longer (bytes).
const TOKEN_BYTES_MAX: usize = 64;

/// Makes tokens, and knows them again.
pub(super) struct Tokens {
    mac: Hmac<Sha256>,
}

impl Tokens {
    pub(super) fn new() -> std::io::Result<Self> {
        let mac = Hmac::new_from_slice(&secret::random()?).map_err(std::io::Error::other)?;
        Ok(Self { mac })
    }

    /// Whoever has this may stop the call.
    pub(super) fn of(&self, call: CallId) -> String {
        URL_SAFE_NO_PAD.encode(self.mac_of(call).finalize().into_bytes())
    }

    /// In constant time.
    pub(super) fn fits(&self, call: CallId, token: &str) -> bool {
        let decoded = (token.len() <= TOKEN_BYTES_MAX).then(|| URL_SAFE_NO_PAD.decode(token));
        decoded.and_then(Result::ok).is_some_and(|token| self.mac_of(call).verify_slice(&token).is_ok())
    }

    fn mac_of(&self, call: CallId) -> Hmac<Sha256> {
        self.mac.clone().chain_update(call.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_its_own_call_and_host_only() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let (call, other) = (CallId::generate(), CallId::generate());
        let token = tokens.of(call);
        assert_eq!(token.len(), 43);
        assert!(tokens.fits(call, &token));
        assert!(!tokens.fits(other, &token));
        assert!(!others.fits(call, &token));
        let mut wrong = token.clone().into_bytes();
        wrong[7] ^= 1;
        let wrong = String::from_utf8(wrong).unwrap();
        for wrong in ["", "A", &token[1..], &format!("{token}A"), &wrong, &"A".repeat(1 << 20)] {
            assert!(!tokens.fits(call, wrong), "{wrong}");
        }
    }
}
