//! Saying why an input does not match.
//!
//! Invariant: at most `VIOLATIONS_MAX` violations, each of bounded length, and at least one for an input that does not
//! match. They cost what is left of the steps after finding out that it does not, and nothing more. Every subschema is
//! explained at most once at each place.

use std::cmp::Ordering;
use std::collections::HashSet;

use serde_json::Value;

use super::graph::{Assertions, Graph, Id, Subschema};
use super::walk::{Evaluated, Exhausted, Memory, ROOT, Walk, to_u64};
use super::{MESSAGE_CHARS_MAX, PATH_CHARS_MAX, VIOLATIONS_MAX, Violation, bounded};

/// A longer value is not repeated in a message.
const VALUE_CHARS_SHOWN_MAX: usize = 60;
const NAMES_SHOWN_MAX: usize = 8;
const REASONS_SHOWN_MAX: usize = 4;

pub(super) fn check(graph: &Graph, input: &Value) -> Result<(), Vec<Violation>> {
    let mut walk = Walk::new(graph);
    let message = match walk.valid(ROOT, input, Memory::Use) {
        Ok(true) => return Ok(()),
        Ok(false) => "does not match the schema",
        Err(Exhausted::Steps) => "takes too many steps to check: make it smaller, or the tool's schema simpler",
        Err(Exhausted::Levels) => "is nested too deeply to be checked",
    };
    let mut explanation = Explanation { walk, violations: Vec::new(), explained: HashSet::new() };
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

/// How well a value looks like one of several alternatives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    None,
    /// The type is right, and which properties there are.
    Shape,
    /// A property has the constant that stands for the alternative.
    Tag,
}

struct Explanation<'a> {
    walk: Walk<'a>,
    violations: Vec<Violation>,
    /// What was explained already, at the value with this address.
    explained: HashSet<(Id, *const Value)>,
}

impl Explanation<'_> {
    /// Reports what does not match, if anything.
    fn explain(&mut self, id: Id, value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        if self.violations.len() >= VIOLATIONS_MAX || self.walk.valid(id, value, Memory::Use)? {
            return Ok(());
        }
        if !self.explained.insert((id, std::ptr::from_ref(value))) {
            return Ok(());
        }
        self.walk.enter()?;
        let result = self.explain_subschema(id, value, path);
        self.walk.leave();
        result
    }

    fn explain_subschema(&mut self, id: Id, value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        let Some(subschema) = self.walk.graph.get(id) else { return Ok(()) };
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
            for message in messages(assertions, value) {
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

    /// Where no alternative matches, goes on with the one that was meant, if that is clear. To explain them all would
    /// be exponential in the depth of the input.
    fn explain_alternatives(&mut self, ids: &[Id], value: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
        if self.walk.count_valid(ids, value, Memory::Use, 1)? > 0 {
            return Ok(());
        }
        let mut meant = (Fit::None, None);
        for id in ids {
            let fit = self.fit(*id, value)?;
            match fit.cmp(&meant.0) {
                Ordering::Greater => meant = (fit, Some(*id)),
                // Two that fit as well: not clear.
                Ordering::Equal => meant.1 = None,
                Ordering::Less => {}
            }
        }
        if let Some(id) = meant.1 {
            let violations = self.violations.len();
            self.explain(id, value, path)?;
            if self.violations.len() > violations {
                return Ok(());
            }
        }
        let mut message = format!("matches none of the {} alternatives", ids.len());
        if meant.0 == Fit::None {
            let reasons = ids.iter().take(REASONS_SHOWN_MAX).filter_map(|id| self.reason(*id, value).transpose());
            let mut reasons = reasons.collect::<Result<Vec<_>, _>>()?;
            reasons.dedup();
            message.extend(reasons.iter().flat_map(|reason| ["; ", reason]));
        }
        self.report(path, &message);
        Ok(())
    }

    /// How well a value looks like what a subschema describes, without going into its parts.
    fn fit(&mut self, id: Id, value: &Value) -> Result<Fit, Exhausted> {
        self.walk.enter()?;
        let result = self.subschema_fit(id, value);
        self.walk.leave();
        result
    }

    fn subschema_fit(&mut self, id: Id, value: &Value) -> Result<Fit, Exhausted> {
        let Some(subschema) = self.walk.graph.get(id) else { return Ok(Fit::None) };
        let mut shape = !subschema.never;
        let mut tag = false;
        if let Some(assertions) = &subschema.assertions {
            shape &= self.walk.holds(assertions, value)?;
        }
        for id in subschema.reference.iter().chain(&subschema.all_of) {
            let fit = self.fit(*id, value)?;
            shape &= fit != Fit::None;
            tag |= fit == Fit::Tag;
        }
        if let Value::Object(object) = value
            && subschema.has_property_schemas()
        {
            for (name, part) in object {
                for id in self.walk.property_schemas(subschema, name)? {
                    let Some(property) = self.walk.graph.get(id) else { continue };
                    shape &= !property.never;
                    if let Some(constant) = property.assertions.as_ref().filter(|assertions| assertions.constant) {
                        if !self.walk.holds(constant, part)? {
                            return Ok(Fit::None);
                        }
                        tag = true;
                    }
                }
            }
        }
        Ok(match (tag, shape) {
            (true, _) => Fit::Tag,
            (false, true) => Fit::Shape,
            (false, false) => Fit::None,
        })
    }

    /// What is wrong with the constant that stands for an alternative, or with the value itself.
    fn reason(&mut self, id: Id, value: &Value) -> Result<Option<String>, Exhausted> {
        let mut subschema = self.walk.graph.get(id);
        while let Some(id) = subschema.and_then(|subschema| subschema.reference) {
            self.walk.charge(1)?;
            subschema = self.walk.graph.get(id);
        }
        let Some(subschema) = subschema else { return Ok(None) };
        for (name, part) in value.as_object().into_iter().flatten() {
            for id in self.walk.property_schemas(subschema, name)? {
                let assertions = self.walk.graph.get(id).and_then(|property| property.assertions.as_ref());
                if let Some(constant) = assertions.filter(|assertions| assertions.constant)
                    && !self.walk.holds(constant, part)?
                {
                    let name = bounded(name, VALUE_CHARS_SHOWN_MAX);
                    return Ok(messages(constant, part).next().map(|message| format!("{name}: {message}")));
                }
            }
        }
        match &subschema.assertions {
            Some(assertions) if !self.walk.holds(assertions, value)? => Ok(messages(assertions, value).next()),
            _ => Ok(None),
        }
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
        if subschema.has_property_schemas() {
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
        }
        if let Some(unevaluated) = subschema.unevaluated_properties {
            let mut evaluated = Evaluated::default();
            self.walk.evaluate(id, value, Memory::Use, &mut evaluated)?;
            self.walk.charge(to_u64(object.len()))?;
            for (name, part) in object.iter().filter(|(name, _)| !evaluated.has_property(name)) {
                self.explain_part(unevaluated, subschema, part, &Path::Property(path, name))?;
            }
        }
        Ok(())
    }

    /// Explains a property; one that is unknown gets to hear the known ones.
    fn explain_part(&mut self, id: Id, parent: &Subschema, part: &Value, path: &Path<'_>) -> Result<(), Exhausted> {
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
        for (index, item, id) in subschema.item_schemas(array) {
            self.explain(id, item, &Path::Item(path, index))?;
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
            self.walk.charge(to_u64(array.len()))?;
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

/// What `jsonschema` says is wrong with a value, which is repeated only if it is short.
fn messages<'a>(assertions: &'a Assertions, value: &'a Value) -> impl Iterator<Item = String> + 'a {
    let short = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(string) => string.chars().nth(VALUE_CHARS_SHOWN_MAX).is_none(),
        Value::Array(_) | Value::Object(_) => false,
    };
    let errors = assertions.validator.iter_errors(value).take(VIOLATIONS_MAX);
    errors.map(move |error| if short { error.to_string() } else { error.masked_with("this").to_string() })
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
