//! Tokens: the right to stop one call.
//!
//! Invariant: a token is a MAC of the call's id and of the user who made it, by a key that no one but this host has, and that
//! ends with it. Nothing is kept for a call, nobody guesses 256 bits, and another user's token is worth nothing.

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

    /// With this, that user may stop the call.
    pub(super) fn of(&self, call: CallId, uid: u32) -> String {
        URL_SAFE_NO_PAD.encode(self.mac_of(call, uid).finalize().into_bytes())
    }

    /// In constant time.
    pub(super) fn fits(&self, call: CallId, uid: u32, token: &str) -> bool {
        let decoded = (token.len() <= TOKEN_BYTES_MAX).then(|| URL_SAFE_NO_PAD.decode(token));
        decoded.and_then(Result::ok).is_some_and(|token| self.mac_of(call, uid).verify_slice(&token).is_ok())
    }

    fn mac_of(&self, call: CallId, uid: u32) -> Hmac<Sha256> {
        self.mac.clone().chain_update(uid.to_le_bytes()).chain_update(call.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_its_own_call_user_and_host_only() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let (call, other) = (CallId::generate(), CallId::generate());
        let token = tokens.of(call, 7);
        assert_eq!(token.len(), 43);
        assert!(tokens.fits(call, 7, &token));
        assert!(!tokens.fits(other, 7, &token));
        assert!(!tokens.fits(call, 8, &token));
        assert!(!others.fits(call, 7, &token));
        let mut wrong = token.clone().into_bytes();
        wrong[7] ^= 1;
        let wrong = String::from_utf8(wrong).unwrap();
        for wrong in ["", "A", &token[1..], &format!("{token}A"), &wrong, &"A".repeat(1 << 20)] {
            assert!(!tokens.fits(call, 7, wrong), "{wrong}");
        }
    }
}
