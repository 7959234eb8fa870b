//! A nested transaction that is not kept has written nothing, and one that is kept is as if its writes were its parent's.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Keys;
use crate::store::{Key, Space, Write};
use crate::transaction::{Size, StateLimits};

fn space(component: &str) -> Space {
    Space { agent: "agent".into(), component: component.into() }
}

fn key(name: u64) -> Key {
    Key { bucket: "bucket".into(), key: format!("key-{name}").into() }
}

fn keys() -> Keys {
    Keys::new(Arc::new(StateLimits::default()))
}

fn set(keys: &mut Keys, component: &str, name: u64, value: Option<&str>) {
    keys.set(&space(component), key(name), value.map(|value| value.as_bytes().into())).unwrap();
}

type All = BTreeMap<(String, String), Option<Vec<u8>>>;

fn all(keys: &mut Keys) -> All {
    let parts = keys.take();
    let each = parts.into_iter().flat_map(|part| {
        let component = part.space.component.to_string();
        part.writes.into_iter().map(move |Write { key, value }| {
            ((component.clone(), key.key.to_string()), value.map(|value| value.to_vec()))
        })
    });
    each.collect()
}

/// What was written since the one before it, by the plainest rule: the whole state is copied.
#[derive(Clone, Default)]
struct Plain {
    now: All,
    touched: BTreeMap<(String, String), ()>,
}

impl Plain {
    fn size(&self) -> Size {
        let each = self.touched.keys().map(|place| (place.1.len(), self.now[place].as_ref().map_or(0, Vec::len)));
        each.fold(Size::default(), |size, (key, value)| Size {
            writes: size.writes + 1,
            bytes: size.bytes + (key + value) as u64,
            ..size
        })
    }
}

#[test]
fn random_nesting_is_as_copying_everything() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..500 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let (mut keys, mut plain) = (keys(), vec![Plain::default()]);
        for _ in 0..60 {
            match random.random_range(0..10) {
                0 | 1 if plain.len() < 5 => {
                    keys.begin();
                    let now = plain.last().unwrap().now.clone();
                    plain.push(Plain { now, ..Plain::default() });
                }
                2 if plain.len() > 1 => {
                    keys.end(false);
                    plain.pop();
                }
                3 if plain.len() > 1 => {
                    keys.end(true);
                    let Plain { now, touched } = plain.pop().unwrap();
                    let outer = plain.last_mut().unwrap();
                    outer.now = now;
                    outer.touched.extend(touched);
                }
                _ => {
                    let component = if random.random() { "one" } else { "other" };
                    let (name, bytes) = (random.random_range(0..6), random.random_range(0..200));
                    let value: Option<String> = random.random_bool(0.7).then(|| "x".repeat(bytes));
                    set(&mut keys, component, name, value.as_deref());
                    let level = plain.last_mut().unwrap();
                    let place = (component.to_owned(), key(name).key.to_string());
                    level.touched.insert(place.clone(), ());
                    level.now.insert(place, value.map(String::into_bytes));
                }
            }
            assert_eq!(keys.size(), plain.last().unwrap().size(), "seed {seed}");
        }
        while plain.len() > 1 {
            keys.end(false);
            plain.pop();
        }
        assert_eq!(keys.size(), plain[0].size(), "seed {seed}");
        assert_eq!(all(&mut keys), plain[0].now, "seed {seed}");
        assert_eq!(keys.charged_bytes, 0);
    }
}

#[test]
fn limits_count_over_levels_and_spaces() {
    let limits = StateLimits { keys_max: 3, write_bytes_max: 1000, ..StateLimits::default() };
    let mut keys = Keys::new(Arc::new(limits));
    set(&mut keys, "one", 1, None);
    keys.begin();
    set(&mut keys, "other", 1, None);
    keys.begin();
    set(&mut keys, "third", 1, None);
    assert!(keys.set(&space("third"), key(2), None).is_err(), "a fourth key");
    keys.end(false);
    set(&mut keys, "third", 2, None);
    let long: Arc<[u8]> = vec![0; 800].into();
    assert!(keys.set(&space("third"), key(2), Some(Arc::clone(&long))).is_err(), "with the others it is too much");
    keys.end(false);
    keys.set(&space("one"), key(1), Some(long)).unwrap();
}
