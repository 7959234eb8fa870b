//! Saying why an input does not match.
//!
//! Invariant: at most `VIOLATIONS_MAX` violations, each of bounded length, and at least one for an input that does not
//! match. They cost what is left of the steps after finding out that it does not, and nothing more.

use serde_json::Value;

use super::graph::{Graph, Id, Subschema};
use super::walk::{Evaluated, Exhausted, Memory, ROOT, Walk, item_schema};
use super::{MESSAGE_CHARS_MAX, PATH_CHARS_MAX, VIOLATIONS_MAX, Violation, bounded};

/// A longer value is not repeated in a message.
const VALUE_CHARS_SHOWN_MAX: usize = 60;
const NAMES_SHOWN_MAX: usize = 8;

pub(super) fn check(graph: &Graph, input: &Value) -> Result<(), Vec<Violation>> {
    let mut walk = Walk::new(graph);
    let message = match walk.valid(ROOT, input, Memory::Use) {
        Ok(true) => return Ok(()),
        Ok(false) => "does not match the schema",
        Err(Exhausted::Steps) => "takes too many steps to check: make it smaller, or the tool's schema simpler",
        Err(Exhausted::Levels) => "is nested too deeply to be checked",
    };
    let mut explanation = Explanation { walk, violations: Vec::new() };
    // Not being able to go on leaves what was found so far.
    let _ = explanation.explain(ROOT, input, &Path::Root);
    if explanation.violations.is_empty() {
        explanation.report(&Path::Root, message);
    }
    Err(explanation.violations)
}

/// Where a value stands in the input.
enum Path<'a> {
    Root,
    Property(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

struct Explanation<'a> {
    walk: Walk<'a>,
    violations: Vec<Violation>,
}

impl Explanation<'_> {
    /// Reports what does not match, if anything.
    fn explain(&mut self, id: Id, value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        if self.violations.len() >= VIOLATIONS_MAX || self.walk.valid(id, value, Memory::Use)? {
            return Ok(());
        }
        let Some(subschema) = self.walk.graph.get(id) else { return Ok(()) };
        // Valid subschemas end above; the levels of the others are those that `valid` came down.
        self.explain_here(subschema, value, path)?;
        self.explain_in_place(subschema, value, path)?;
        match value {
            Value::Object(_) => self.explain_properties(id, subschema, value, path),
            Value::Array(_) => self.explain_items(id, subschema, value, path),
            _ => Ok(()),
        }
    }

    fn explain_here(&mut self, subschema: &Subschema, value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        if subschema.never {
            self.report(path, "is not allowed");
        }
        if let Some(assertions) = &subschema.assertions
            && !self.walk.holds(assertions, value)?
        {
            let short = match value {
                Value::Null | Value::Bool(_) | Value::Number(_) => true,
                Value::String(string) => string.chars().nth(VALUE_CHARS_SHOWN_MAX).is_none(),
                Value::Array(_) | Value::Object(_) => false,
            };
            for error in assertions.validator.iter_errors(value).take(VIOLATIONS_MAX) {
                let message = if short { error.to_string() } else { error.masked_with("this").to_string() };
                self.report(path, &message);
            }
        }
        if let Value::Array(array) = value
            && subschema.unique_items
            && let Some((first, second)) = self.walk.equal_items(array)?
        {
            self.report(path, &format!("has equal items at {first} and {second}"));
        }
        Ok(())
    }

    fn explain_in_place(&mut self, subschema: &Subschema, value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        for id in subschema.reference.iter().chain(&subschema.all_of) {
            self.explain(*id, value, path)?;
        }
        if !subschema.any_of.is_empty() {
            self.explain_alternatives(&subschema.any_of, value, path)?;
        }
        if !subschema.one_of.is_empty() {
            if self.walk.count_valid(&subschema.one_of, value, Memory::Use, 2)? == 2 {
                self.report(path, "matches more than one of the alternatives, of which exactly one is allowed");
            }
            self.explain_alternatives(&subschema.one_of, value, path)?;
        }
        if let Some(not) = subschema.not
            && self.walk.valid(not, value, Memory::Use)?
        {
            self.report(path, "matches what is excluded");
        }
        match self.walk.branch(subschema, value, Memory::Use)? {
            Some(id) => self.explain(id, value, path),
            None => Ok(()),
        }
    }

    /// Where no alternative matches, also says what is wrong with the one that was most likely meant: the one whose
    /// violations are furthest down the input, and the fewest.
    fn explain_alternatives(&mut self, ids: &[Id], value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        if self.walk.count_valid(ids, value, Memory::Use, 1)? > 0 {
            return Ok(());
        }
        self.report(path, &format!("matches none of the {} alternatives", ids.len()));
        let mut closest: Option<(usize, Vec<Violation>)> = None;
        let mut several = false;
        for id in ids {
            let found = std::mem::take(&mut self.violations);
            let explained = self.explain(*id, value, path);
            let alternative = std::mem::replace(&mut self.violations, found);
            explained?;
            let depth = alternative.iter().map(|violation| violation.path.matches('/').count()).max().unwrap_or(0);
            let rank = |depth: usize, violations: &[Violation]| (depth, std::cmp::Reverse(violations.len()));
            let order = closest.as_ref().map(|(depth, violations)| rank(*depth, violations));
            several = order == Some(rank(depth, &alternative)) || (several && order > Some(rank(depth, &alternative)));
            if order < Some(rank(depth, &alternative)) {
                closest = Some((depth, alternative));
            }
        }
        if let Some((_, violations)) = closest
            && !several
        {
            self.violations.extend(violations);
            self.violations.truncate(VIOLATIONS_MAX);
        }
        Ok(())
    }

    fn explain_properties(
        &mut self,
        id: Id,
        subschema: &Subschema,
        value: &Value,
        path: &Path<'_>,
    ) -> Result<(), Exhausted> {
        let Value::Object(object) = value else { return Ok(()) };
        for (name, id) in &subschema.dependent_schemas {
            if object.contains_key(name) {
                self.explain(*id, value, path)?;
            }
        }
        for (name, part) in object {
            let path = Path::Property(path, name);
            if let Some(id) = subschema.property_names
                && !self.walk.valid(id, &Value::String(name.clone()), Memory::Avoid)?
            {
                self.report(&path, "has a name that is not allowed");
            }
            for id in self.walk.property_schemas(subschema, name)? {
                self.explain_part(id, subschema, part, &path)?;
            }
        }
        if let Some(unevaluated) = subschema.unevaluated_properties {
            let mut evaluated = Evaluated::default();
            self.walk.evaluate(id, value, Memory::Use, &mut evaluated)?;
            for (name, part) in object.iter().filter(|(name, _)| !evaluated.has_property(name)) {
                self.explain_part(unevaluated, subschema, part, &Path::Property(path, name))?;
            }
        }
        Ok(())
    }

    /// Explains a property; one that is unknown gets to hear the known ones.
    fn explain_part(
        &mut self,
        id: Id,
        parent: &Subschema,
        part: &Value,
        path: &Path<'_>,
    ) -> Result<(), Exhausted> {
        if !self.walk.graph.get(id).is_some_and(|schema| schema.never) {
            return self.explain(id, part, path);
        }
        let mut known: Vec<&str> = parent.properties.keys().map(String::as_str).collect();
        known.sort_unstable();
        if known.len() > NAMES_SHOWN_MAX {
            known.truncate(NAMES_SHOWN_MAX);
            known.push("…");
        }
        let known = if known.is_empty() { String::new() } else { format!(": known are {}", known.join(", ")) };
        self.report(path, &format!("is not a known property{known}"));
        Ok(())
    }

    fn explain_items(
        &mut self,
        id: Id,
        subschema: &Subschema,
        value: &Value,
        path: &Path<'_>,
    ) -> Result<(), Exhausted> {
        let Value::Array(array) = value else { return Ok(()) };
        for (index, item) in array.iter().enumerate() {
            if let Some(id) = item_schema(subschema, index) {
                self.explain(id, item, &Path::Item(path, index))?;
            }
        }
        if let Some(contains) = &subschema.contains {
            let count = self.walk.count_contained(contains, array, Memory::Use)?;
            if !contains.allows(count) {
                let max = contains.max.map_or("any number".to_owned(), |max| max.to_string());
                let message = format!("has {count} items that match `contains`, {} to {max} are allowed", contains.min);
                self.report(path, &message);
            }
        }
        if let Some(unevaluated) = subschema.unevaluated_items {
            let mut evaluated = Evaluated::default();
            self.walk.evaluate(id, value, Memory::Use, &mut evaluated)?;
            for (index, item) in array.iter().enumerate().filter(|(index, _)| !evaluated.has_item(*index)) {
                self.explain(unevaluated, item, &Path::Item(path, index))?;
            }
        }
        Ok(())
    }

    fn report(&mut self, path: &Path<'_>, message: &str) {
        let violation = Violation { path: path.to_pointer(), message: bounded(message, MESSAGE_CHARS_MAX) };
        if self.violations.len() < VIOLATIONS_MAX && !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }
}

impl Path<'_> {
    fn to_pointer(&self) -> String {
        let mut outward = Vec::new();
        let mut path = self;
        loop {
            let (parent, segment) = match path {
                Path::Root => break,
                Path::Property(parent, name) => {
                    (parent, bounded(name, PATH_CHARS_MAX).replace('~', "~0").replace('/', "~1"))
                }
                Path::Item(parent, index) => (parent, index.to_string()),
            };
            outward.push(segment);
            path = parent;
        }
        let pointer: String = outward.iter().rev().flat_map(|segment| ["/", segment]).collect();
        bounded(&pointer, PATH_CHARS_MAX)
    }
}
