//! Places for calls that somebody waits for through the agents' socket.
//!
//! Invariant: fewer are taken than the socket has connections, so that whoever wants to stop a call is always heard; and in
//! service mode no user takes them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::place::Mode;

/// Connections that calls do not take: for stops, and for whoever asks what there is.
const KEPT_MAX: usize = 16;
/// No user of service mode has more than one in so many of the places.
const USERS_SHARE: usize = 4;

/// See the module's documentation.
pub(super) struct Places {
    taken: Mutex<HashMap<u32, usize>>,
    all_max: usize,
    of_user_max: usize,
}

impl Places {
    pub(super) fn new(connections_max: usize, mode: Mode) -> Arc<Self> {
        let all_max = connections_max.saturating_sub(KEPT_MAX);
        let of_user_max = match mode {
            Mode::Personal => all_max,
            Mode::Service => all_max / USERS_SHARE,
        };
        Arc::new(Self { taken: Mutex::default(), all_max, of_user_max })
    }

    /// One for a call of this user. An error says why there is none.
    pub(super) fn take(self: &Arc<Self>, user: u32) -> Result<Place, String> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= self.all_max {
            return Err(format!("{} calls are waited for through this socket already; try again", self.all_max));
        }
        let of_user = taken.entry(user).or_default();
        if *of_user >= self.of_user_max {
            return Err(format!(
                "this user waits for {} calls already, and may for no more; try again",
                self.of_user_max
            ));
        }
        *of_user += 1;
        Ok(Place { places: Arc::clone(self), user })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Given back when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    user: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(of_user) = taken.get_mut(&self.user) {
            *of_user -= 1;
            if *of_user == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_the_place_of_another_and_none_takes_those_for_stops() {
        let places = Places::new(256, Mode::Service);
        let mut held: Vec<Place> = (0..60).map(|_| places.take(1).unwrap()).collect();
        assert!(places.take(1).is_err_and(|why| why.contains("this user")));
        held.extend((2..5).flat_map(|user| (0..60).map(move |_| user)).map(|user| places.take(user).unwrap()));
        assert!(places.take(5).is_err_and(|why| why.contains("240 calls")));
        held.remove(0);
        held.push(places.take(5).unwrap());
        drop(held);
        assert!(places.taken().is_empty());
        let personal = Places::new(256, Mode::Personal);
        let held: Vec<Place> = (0..240).map(|_| personal.take(1).unwrap()).collect();
        assert!(personal.take(1).is_err());
        drop(held);
    }
}
