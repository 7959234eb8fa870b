//! A schema as a graph: subschemas, and how they apply to each other.
//!
//! Invariant (of what `compile.rs` hands out): every reference leads to a subschema of the same graph, and no subschema
//! applies to a place by way of itself.

use std::collections::HashMap;

use jsonschema::Validator;
use serde_json::Value;

/// The index of a subschema in its graph.
pub(super) type Id = usize;

/// A compiled schema; the root is the first subschema.
#[derive(Debug)]
pub(super) struct Graph {
    subschemas: Vec<Subschema>,
}

/// A schema, compiled but for the schemas in it.
#[derive(Debug, Default)]
pub(super) struct Subschema {
    /// The schema `false`.
    pub(super) never: bool,
    /// Several places in the schema refer to it: its results are worth remembering.
    pub(super) shared: bool,
    pub(super) assertions: Option<Assertions>,
    pub(super) unique_items: bool,

    // Applied to the same place.
    pub(super) reference: Option<Id>,
    pub(super) all_of: Vec<Id>,
    pub(super) any_of: Vec<Id>,
    pub(super) one_of: Vec<Id>,
    pub(super) not: Option<Id>,
    pub(super) if_: Option<Id>,
    pub(super) then: Option<Id>,
    pub(super) else_: Option<Id>,
    pub(super) dependent_schemas: Vec<(String, Id)>,

    // Applied to its parts.
    pub(super) properties: HashMap<String, Id>,
    pub(super) pattern_properties: Vec<(Assertions, Id)>,
    pub(super) additional_properties: Option<Id>,
    pub(super) unevaluated_properties: Option<Id>,
    pub(super) property_names: Option<Id>,
    pub(super) prefix_items: Vec<Id>,
    pub(super) items: Option<Id>,
    pub(super) unevaluated_items: Option<Id>,
    pub(super) contains: Option<Contains>,
}

#[derive(Debug)]
pub(super) struct Contains {
    pub(super) schema: Id,
    pub(super) min: u64,
    pub(super) max: Option<u64>,
}

/// What is left to `jsonschema`, and what it costs.
#[derive(Debug)]
pub(super) struct Assertions {
    pub(super) validator: Validator,
    /// There is one value that it allows: such a property tells the variants of a type apart.
    pub(super) constant: bool,
    pub(super) steps: u64,
    pub(super) steps_per_string_byte: u64,
}

impl Graph {
    pub(super) fn new(subschemas: Vec<Subschema>) -> Self {
        Graph { subschemas }
    }

    pub(super) fn get(&self, id: Id) -> Option<&Subschema> {
        self.subschemas.get(id)
    }

    /// A subschema that applies itself to the same place, if there is one: what is left when those that nobody left
    /// applies are taken away again and again.
    pub(super) fn endless(&self) -> Option<Id> {
        let mut appliers = vec![0usize; self.subschemas.len()];
        for id in self.subschemas.iter().flat_map(Subschema::in_place) {
            if let Some(appliers) = appliers.get_mut(id) {
                *appliers = appliers.saturating_add(1);
            }
        }
        let mut free: Vec<Id> = (0..appliers.len()).filter(|id| appliers.get(*id) == Some(&0)).collect();
        while let Some(subschema) = free.pop().and_then(|id| self.get(id)) {
            for id in subschema.in_place() {
                if let Some(appliers) = appliers.get_mut(id) {
                    *appliers = appliers.saturating_sub(1);
                    if *appliers == 0 {
                        free.push(id);
                    }
                }
            }
        }
        appliers.iter().position(|appliers| *appliers > 0)
    }
}

impl Subschema {
    /// Whether it says anything about the properties of an object, one by one.
    pub(super) fn has_property_schemas(&self) -> bool {
        let single = [self.additional_properties, self.property_names];
        !self.properties.is_empty() || !self.pattern_properties.is_empty() || single.iter().any(Option::is_some)
    }

    /// The items of an array that it says something about by their position, each with its schema.
    pub(super) fn item_schemas<'v>(&self, array: &'v [Value]) -> impl Iterator<Item = (usize, &'v Value, Id)> {
        let schemas = self.prefix_items.iter().copied().chain(self.items.into_iter().flat_map(std::iter::repeat));
        array.iter().enumerate().zip(schemas).map(|((index, item), schema)| (index, item, schema))
    }

    /// The subschemas that this one applies to the same place.
    fn in_place(&self) -> impl Iterator<Item = Id> {
        let lists = [&self.all_of, &self.any_of, &self.one_of].into_iter().flatten().copied();
        let single = [self.reference, self.not, self.if_, self.then, self.else_].into_iter().flatten();
        lists.chain(single).chain(self.dependent_schemas.iter().map(|(_, id)| *id))
    }
}
