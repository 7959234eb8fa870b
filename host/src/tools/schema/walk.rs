//! Walking a schema and an input together: does it match?
//!
//! Invariant: nothing here does more work than it has charged for before, and no subschema is evaluated deeper than
//! `EVALUATION_LEVELS_MAX` levels inside others.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::graph::{Assertions, Contains, Graph, Id, Subschema};
use super::{EVALUATION_LEVELS_MAX, STEPS_MAX};

/// A string's bytes that are looked at in one step.
pub(super) const STRING_BYTES_PER_STEP: usize = 64;

/// Results that are remembered: some 10 MB. Without room for more, what is asked again is evaluated again.
const RESULTS_REMEMBERED_MAX: usize = 1 << 18;

pub(super) const ROOT: Id = 0;

/// Why a walk cannot go on.
pub(super) enum Exhausted {
    Steps,
    Levels,
}

/// Whether the value stays where it is as long as the walk: only then its address says which it is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Memory {
    Use,
    Avoid,
}

pub(super) struct Walk<'a> {
    pub(super) graph: &'a Graph,
    steps_left: u64,
    levels: usize,
    /// Whether a shared subschema matches the value at an address.
    known: HashMap<(Id, *const Value), bool>,
}

/// The parts of a value that the schema so far has said something about.
#[derive(Default)]
pub(super) struct Evaluated<'a> {
    all: bool,
    properties: HashSet<&'a str>,
    items: HashSet<usize>,
    first_items: usize,
    visited: HashSet<Id>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        Walk { graph, steps_left: STEPS_MAX, levels: 0, known: HashMap::new() }
    }

    pub(super) fn charge(&mut self, steps: u64) -> Result<(), Exhausted> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Exhausted::Steps)
    }

    /// Goes one level further down the stack, until [`Walk::leave`].
    pub(super) fn enter(&mut self) -> Result<(), Exhausted> {
        self.charge(1)?;
        if self.levels >= EVALUATION_LEVELS_MAX {
            return Err(Exhausted::Levels);
        }
        self.levels += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.levels -= 1;
    }

    /// Runs `inner` one level further down.
    pub(super) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Exhausted>) -> Result<T, Exhausted> {
        self.enter()?;
        let result = inner(self);
        self.leave();
        result
    }

    /// Whether `value` matches a subschema. Stops at the first thing that does not.
    pub(super) fn valid(&mut self, id: Id, value: &Value, memory: Memory) -> Result<bool, Exhausted> {
        let Some(subschema) = self.graph.get(id) else { return Ok(false) };
        let remember = subschema.shared && memory == Memory::Use;
        let key = (id, std::ptr::from_ref(value));
        if remember && let Some(known) = self.known.get(&key) {
            let known = *known;
            self.charge(1)?;
            return Ok(known);
        }
        let valid = self.deeper(|walk| walk.matches(id, subschema, value, memory))?;
        if remember && self.known.len() < RESULTS_REMEMBERED_MAX {
            self.known.insert(key, valid);
        }
        Ok(valid)
    }

    fn matches(&mut self, id: Id, subschema: &'a Subschema, value: &Value, memory: Memory) -> Result<bool, Exhausted> {
        if subschema.never || !self.assertions_hold(subschema, value)? {
            return Ok(false);
        }
        for id in subschema.reference.iter().chain(&subschema.all_of) {
            if !self.valid(*id, value, memory)? {
                return Ok(false);
            }
        }
        if !subschema.any_of.is_empty() && self.count_valid(&subschema.any_of, value, memory, 1)? == 0 {
            return Ok(false);
        }
        if !subschema.one_of.is_empty() && self.count_valid(&subschema.one_of, value, memory, 2)? != 1 {
            return Ok(false);
        }
        if let Some(not) = subschema.not
            && self.valid(not, value, memory)?
        {
            return Ok(false);
        }
        if let Some(id) = self.branch(subschema, value, memory)?
            && !self.valid(id, value, memory)?
        {
            return Ok(false);
        }
        match value {
            Value::Object(object) => self.object_matches(id, subschema, value, object, memory),
            Value::Array(array) => self.array_matches(id, subschema, value, array, memory),
            _ => Ok(true),
        }
    }

    pub(super) fn assertions_hold(&mut self, subschema: &Subschema, value: &Value) -> Result<bool, Exhausted> {
        if let Some(assertions) = &subschema.assertions
            && !self.holds(assertions, value)?
        {
            return Ok(false);
        }
        match value {
            Value::Array(array) if subschema.unique_items => Ok(self.equal_items(array)?.is_none()),
            _ => Ok(true),
        }
    }

    pub(super) fn holds(&mut self, assertions: &Assertions, value: &Value) -> Result<bool, Exhausted> {
        self.charge(assertions.steps)?;
        if let Value::String(string) = value {
            let bytes = string.len();
            self.charge(to_u64(bytes).saturating_mul(assertions.steps_per_string_byte))?;
            self.charge(to_u64(bytes / STRING_BYTES_PER_STEP))?;
        }
        Ok(assertions.validator.is_valid(value))
    }

    /// How many of the alternatives match; counts no further than `enough`.
    pub(super) fn count_valid(
        &mut self,
        ids: &[Id],
        value: &Value,
        memory: Memory,
        enough: usize,
    ) -> Result<usize, Exhausted> {
        let mut count = 0;
        for id in ids {
            count += usize::from(self.valid(*id, value, memory)?);
            if count == enough {
                break;
            }
        }
        Ok(count)
    }

    /// The one of `then` and `else` that applies.
    pub(super) fn branch(
        &mut self,
        subschema: &Subschema,
        value: &Value,
        memory: Memory,
    ) -> Result<Option<Id>, Exhausted> {
        let Some(condition) = subschema.if_ else { return Ok(None) };
        Ok(if self.valid(condition, value, memory)? { subschema.then } else { subschema.else_ })
    }

    fn object_matches(
        &mut self,
        id: Id,
        subschema: &'a Subschema,
        value: &Value,
        object: &Map<String, Value>,
        memory: Memory,
    ) -> Result<bool, Exhausted> {
        for (name, id) in &subschema.dependent_schemas {
            self.charge(1)?;
            if object.contains_key(name) && !self.valid(*id, value, memory)? {
                return Ok(false);
            }
        }
        if subschema.has_property_schemas() {
            for (name, part) in object {
                if let Some(id) = subschema.property_names
                    && !self.valid(id, &Value::String(name.clone()), Memory::Avoid)?
                {
                    return Ok(false);
                }
                for id in self.property_schemas(subschema, name)? {
                    if !self.valid(id, part, memory)? {
                        return Ok(false);
                    }
                }
            }
        }
        if let Some(unevaluated) = subschema.unevaluated_properties {
            let mut evaluated = Evaluated::default();
            self.evaluate(id, value, memory, &mut evaluated)?;
            self.charge(to_u64(object.len()))?;
            for (name, part) in object {
                if !evaluated.has_property(name) && !self.valid(unevaluated, part, memory)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The schemas for a property, `additionalProperties` where there is no other.
    pub(super) fn property_schemas(&mut self, subschema: &Subschema, name: &String) -> Result<Vec<Id>, Exhausted> {
        self.charge(1)?;
        let mut schemas: Vec<Id> = subschema.properties.get(name).copied().into_iter().collect();
        if !subschema.pattern_properties.is_empty() {
            self.charge(to_u64(name.len() / STRING_BYTES_PER_STEP))?;
            let name = Value::String(name.clone());
            for (pattern, id) in &subschema.pattern_properties {
                if self.holds(pattern, &name)? {
                    schemas.push(*id);
                }
            }
        }
        if schemas.is_empty() {
            schemas.extend(subschema.additional_properties);
        }
        Ok(schemas)
    }

    fn array_matches(
        &mut self,
        id: Id,
        subschema: &'a Subschema,
        value: &Value,
        array: &[Value],
        memory: Memory,
    ) -> Result<bool, Exhausted> {
        for (_, item, id) in subschema.item_schemas(array) {
            if !self.valid(id, item, memory)? {
                return Ok(false);
            }
        }
        if let Some(contains) = &subschema.contains
            && !contains.allows(self.count_contained(contains, array, memory)?)
        {
            return Ok(false);
        }
        if let Some(unevaluated) = subschema.unevaluated_items {
            let mut evaluated = Evaluated::default();
            self.evaluate(id, value, memory, &mut evaluated)?;
            self.charge(to_u64(array.len()))?;
            for (index, item) in array.iter().enumerate() {
                if !evaluated.has_item(index) && !self.valid(unevaluated, item, memory)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    pub(super) fn count_contained(
        &mut self,
        contains: &Contains,
        array: &[Value],
        memory: Memory,
    ) -> Result<u64, Exhausted> {
        let mut count = 0u64;
        for item in array {
            count = count.saturating_add(u64::from(self.valid(contains.schema, item, memory)?));
        }
        Ok(count)
    }

    /// Collects which parts of `value` are evaluated by a subschema and those it applies to the same place.
    pub(super) fn evaluate<'v>(
        &mut self,
        id: Id,
        value: &'v Value,
        memory: Memory,
        evaluated: &mut Evaluated<'v>,
    ) -> Result<(), Exhausted> {
        let is_root = evaluated.visited.is_empty();
        match self.graph.get(id) {
            Some(subschema) if evaluated.visited.insert(id) => {
                self.deeper(|walk| walk.evaluate_subschema(subschema, is_root, value, memory, evaluated))
            }
            _ => Ok(()),
        }
    }

    fn evaluate_subschema<'v>(
        &mut self,
        subschema: &Subschema,
        is_root: bool,
        value: &'v Value,
        memory: Memory,
        evaluated: &mut Evaluated<'v>,
    ) -> Result<(), Exhausted> {
        for id in subschema.reference.iter().chain(&subschema.all_of) {
            self.evaluate(*id, value, memory, evaluated)?;
        }
        for id in subschema.any_of.iter().chain(&subschema.one_of).chain(&subschema.if_) {
            if self.valid(*id, value, memory)? {
                self.evaluate(*id, value, memory, evaluated)?;
            }
        }
        if let Some(id) = self.branch(subschema, value, memory)? {
            self.evaluate(id, value, memory, evaluated)?;
        }
        match value {
            Value::Object(object) => {
                for (name, id) in &subschema.dependent_schemas {
                    self.charge(1)?;
                    if object.contains_key(name) {
                        self.evaluate(*id, value, memory, evaluated)?;
                    }
                }
                evaluated.all |= subschema.unevaluated_properties.is_some() && !is_root;
                if subschema.has_property_schemas() {
                    for name in object.keys() {
                        if !self.property_schemas(subschema, name)?.is_empty() {
                            evaluated.properties.insert(name);
                        }
                    }
                }
            }
            Value::Array(array) => {
                let first = if subschema.items.is_some() { array.len() } else { subschema.prefix_items.len() };
                evaluated.first_items = evaluated.first_items.max(first);
                evaluated.all |= subschema.unevaluated_items.is_some() && !is_root;
                if let Some(contains) = &subschema.contains {
                    for (index, item) in array.iter().enumerate() {
                        if self.valid(contains.schema, item, memory)? {
                            evaluated.items.insert(index);
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Contains {
    pub(super) fn allows(&self, count: u64) -> bool {
        count >= self.min && self.max.is_none_or(|max| count <= max)
    }
}

impl Evaluated<'_> {
    pub(super) fn has_property(&self, name: &str) -> bool {
        self.all || self.properties.contains(name)
    }

    pub(super) fn has_item(&self, index: usize) -> bool {
        self.all || index < self.first_items || self.items.contains(&index)
    }
}

pub(super) fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
