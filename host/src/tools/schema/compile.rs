//! Turning the JSON of a schema into a graph.
//!
//! Invariant: what compiles is within the numbers and sizes that the parent module names, and does not refer to anything
//! outside of it. Compiling takes time proportional to the schema, without recursion: what is found is put in a queue.

use std::collections::HashMap;

use jsonschema::{Draft, PatternOptions};
use serde_json::{Map, Value};

use super::graph::{Assertions, Contains, Graph, Id, Subschema};
use super::{MESSAGE_CHARS_MAX, PATTERN_BYTES_MAX, PATTERNS_BYTES_MAX, SUBSCHEMAS_MAX, SchemaError, bounded};

/// The smallest program that a pattern is tried with; then it is doubled up to `PATTERN_BYTES_MAX`.
const PATTERN_BYTES_MIN: usize = 4 << 10;
/// The transitions that are cached for one pattern.
const PATTERN_CACHE_BYTES_MAX: usize = 256 << 10;
/// How much of a program runs over one byte of a string in one step.
const PATTERN_BYTES_PER_STEP: usize = 1 << 10;
/// How much of an `enum` or `required` is compared in one step.
const ASSERTION_BYTES_PER_STEP: usize = 64;
/// Dividing by a fraction is done exactly, with long numbers.
const FRACTION_STEPS: u64 = 32;

/// The keywords that are about one value and leave its parts alone.
const ASSERTIONS: [&str; 17] = [
    "type",
    "const",
    "enum",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "required",
    "dependentRequired",
];

pub(super) fn compile(schema: &Value) -> Result<Graph, SchemaError> {
    let mut compiler = Compiler::new(schema)?;
    let mut subschemas: Vec<Subschema> = Vec::new();
    while let Some(&schema) = compiler.queue.get(subschemas.len()) {
        let subschema = compiler.subschema(subschemas.len(), schema)?;
        subschemas.push(subschema);
    }
    for id in compiler.shared {
        if let Some(subschema) = subschemas.get_mut(id) {
            subschema.shared = true;
        }
    }
    let graph = Graph::new(subschemas);
    match graph.endless() {
        Some(id) => Err(SchemaError::Endless { place: render(&compiler.places, id) }),
        None => Ok(graph),
    }
}

/// Where a subschema stands: inside of which, and the rest of the pointer.
struct Place {
    parent: Option<Id>,
    segments: String,
}

struct Compiler<'a> {
    root: &'a Value,
    draft: Draft,
    /// The subschemas that were found, in the order of their ids; and where.
    queue: Vec<&'a Value>,
    places: Vec<Place>,
    /// By address: a schema that is referred to from several places is compiled once.
    ids: HashMap<*const Value, Id>,
    shared: Vec<Id>,
    pattern_bytes: usize,
}

impl<'a> Compiler<'a> {
    fn new(root: &'a Value) -> Result<Self, SchemaError> {
        let mut compiler = Compiler {
            root,
            draft: draft(root)?,
            queue: Vec::new(),
            places: Vec::new(),
            ids: HashMap::new(),
            shared: Vec::new(),
            pattern_bytes: 0,
        };
        compiler.enqueue(root, None, String::new())?;
        Ok(compiler)
    }

    fn enqueue(&mut self, schema: &'a Value, parent: Option<Id>, segments: String) -> Result<Id, SchemaError> {
        if let Some(id) = self.ids.get(&std::ptr::from_ref(schema)) {
            return Ok(*id);
        }
        let id = self.queue.len();
        if id >= SUBSCHEMAS_MAX {
            return Err(SchemaError::TooMany { what: "subschemas", found: id.saturating_add(1), max: SUBSCHEMAS_MAX });
        }
        self.ids.insert(std::ptr::from_ref(schema), id);
        self.queue.push(schema);
        self.places.push(Place { parent, segments });
        Ok(id)
    }

    fn subschema(&mut self, id: Id, schema: &'a Value) -> Result<Subschema, SchemaError> {
        let keywords = match schema {
            Value::Bool(always) => return Ok(Subschema { never: !always, ..Subschema::default() }),
            Value::Object(keywords) => keywords,
            _ => return Err(self.invalid(id, "a schema is an object or a boolean")),
        };
        self.refuse_other_bases(id, keywords)?;
        let legacy = matches!(self.draft, Draft::Draft6 | Draft::Draft7);
        if let Some(reference) = keywords.get("$ref") {
            let reference = Some(self.resolve(id, reference)?);
            // Before 2019-09 a reference stands for itself, whatever is beside it.
            if legacy {
                self.definitions(id, keywords)?;
                return Ok(Subschema { reference, ..Subschema::default() });
            }
            return Ok(Subschema { reference, ..self.keywords(id, keywords)? });
        }
        self.keywords(id, keywords)
    }

    fn keywords(&mut self, id: Id, keywords: &'a Map<String, Value>) -> Result<Subschema, SchemaError> {
        self.definitions(id, keywords)?;
        let mut subschema = Subschema {
            assertions: self.assertions(id, keywords)?,
            unique_items: self.boolean(id, keywords, "uniqueItems")?,
            all_of: self.list(id, keywords, "allOf")?,
            any_of: self.list(id, keywords, "anyOf")?,
            one_of: self.list(id, keywords, "oneOf")?,
            not: self.single(id, keywords, "not")?,
            if_: self.single(id, keywords, "if")?,
            then: self.single(id, keywords, "then")?,
            else_: self.single(id, keywords, "else")?,
            dependent_schemas: self.named(id, keywords, "dependentSchemas")?,
            properties: self.named(id, keywords, "properties")?.into_iter().collect(),
            additional_properties: self.single(id, keywords, "additionalProperties")?,
            unevaluated_properties: self.single(id, keywords, "unevaluatedProperties")?,
            property_names: self.single(id, keywords, "propertyNames")?,
            prefix_items: self.list(id, keywords, "prefixItems")?,
            unevaluated_items: self.single(id, keywords, "unevaluatedItems")?,
            ..Subschema::default()
        };
        // Until 2019-09 `items` can be the list that is `prefixItems` now.
        if self.draft != Draft::Draft202012 && keywords.get("items").is_some_and(Value::is_array) {
            subschema.prefix_items = self.list(id, keywords, "items")?;
            subschema.items = self.single(id, keywords, "additionalItems")?;
        } else {
            subschema.items = self.single(id, keywords, "items")?;
        }
        for (pattern, schema) in self.named(id, keywords, "patternProperties")? {
            let assertions = Map::from_iter([("pattern".to_owned(), Value::String(pattern))]);
            if let Some(assertions) = self.assertions(id, &assertions)? {
                subschema.pattern_properties.push((assertions, schema));
            }
        }
        if let Some(schema) = self.single(id, keywords, "contains")? {
            let min = self.count(id, keywords, "minContains")?.unwrap_or(1);
            subschema.contains = Some(Contains { schema, min, max: self.count(id, keywords, "maxContains")? });
        }
        if matches!(self.draft, Draft::Draft6 | Draft::Draft7)
            && let Some(Value::Object(dependencies)) = keywords.get("dependencies")
        {
            for (name, schema) in dependencies.iter().filter(|(_, dependency)| !dependency.is_array()) {
                let schema = self.enqueue(schema, Some(id), pointer(["dependencies", name]))?;
                subschema.dependent_schemas.push((name.clone(), schema));
            }
        }
        Ok(subschema)
    }

    /// Compiles what is there to be referred to, so that what is wrong in it is said now.
    fn definitions(&mut self, id: Id, keywords: &'a Map<String, Value>) -> Result<(), SchemaError> {
        self.named(id, keywords, "$defs")?;
        self.named(id, keywords, "definitions")?;
        Ok(())
    }

    /// What would make a reference mean something else than a pointer into this document.
    fn refuse_other_bases(&self, id: Id, keywords: &Map<String, Value>) -> Result<(), SchemaError> {
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if keywords.contains_key(keyword) {
                return Err(SchemaError::Unsupported { place: self.place(id), keyword });
            }
        }
        // At the root they name the document and its draft, which harms nothing.
        for keyword in ["$id", "$schema"] {
            if let Some(Value::String(reference)) = keywords.get(keyword)
                && id != 0
            {
                let reference = bounded(reference, MESSAGE_CHARS_MAX);
                return Err(SchemaError::OutsideReference { place: self.place(id), reference });
            }
        }
        Ok(())
    }

    fn resolve(&mut self, id: Id, reference: &Value) -> Result<Id, SchemaError> {
        let Value::String(reference) = reference else {
            return Err(self.invalid(id, "`$ref` is a string"));
        };
        let shown = || bounded(reference, MESSAGE_CHARS_MAX);
        let target = match reference.strip_prefix('#').map(percent_decoded) {
            Some(Some(target)) if target.is_empty() || target.starts_with('/') => target,
            _ => return Err(SchemaError::OutsideReference { place: self.place(id), reference: shown() }),
        };
        let Some(schema) = self.root.pointer(&target) else {
            return Err(SchemaError::MissingReference { place: self.place(id), reference: shown() });
        };
        let target = self.enqueue(schema, None, target)?;
        self.shared.push(target);
        Ok(target)
    }

    fn single(&mut self, id: Id, keywords: &'a Map<String, Value>, keyword: &str) -> Result<Option<Id>, SchemaError> {
        let schema = keywords.get(keyword);
        schema.map(|schema| self.enqueue(schema, Some(id), pointer([keyword]))).transpose()
    }

    fn list(&mut self, id: Id, keywords: &'a Map<String, Value>, keyword: &str) -> Result<Vec<Id>, SchemaError> {
        match keywords.get(keyword) {
            None => Ok(Vec::new()),
            Some(Value::Array(schemas)) => {
                let enqueue = |(index, schema): (usize, _)| {
                    self.enqueue(schema, Some(id), pointer([keyword, &index.to_string()]))
                };
                schemas.iter().enumerate().map(enqueue).collect()
            }
            Some(_) => Err(self.invalid(id, &format!("`{keyword}` is an array of schemas"))),
        }
    }

    fn named(
        &mut self,
        id: Id,
        keywords: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Vec<(String, Id)>, SchemaError> {
        match keywords.get(keyword) {
            None => Ok(Vec::new()),
            Some(Value::Object(schemas)) => {
                let enqueue = |(name, schema): (&String, _)| {
                    Ok((name.clone(), self.enqueue(schema, Some(id), pointer([keyword, name]))?))
                };
                schemas.iter().map(enqueue).collect()
            }
            Some(_) => Err(self.invalid(id, &format!("`{keyword}` is an object of schemas"))),
        }
    }

    fn boolean(&self, id: Id, keywords: &Map<String, Value>, keyword: &str) -> Result<bool, SchemaError> {
        match keywords.get(keyword) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.invalid(id, &format!("`{keyword}` is a boolean"))),
        }
    }

    fn count(&self, id: Id, keywords: &Map<String, Value>, keyword: &str) -> Result<Option<u64>, SchemaError> {
        match keywords.get(keyword) {
            Some(value) if !matches!(self.draft, Draft::Draft6 | Draft::Draft7) => match value.as_u64() {
                Some(count) => Ok(Some(count)),
                None => Err(self.invalid(id, &format!("`{keyword}` is a non-negative integer"))),
            },
            _ => Ok(None),
        }
    }

    /// What `jsonschema` checks of these keywords, if anything.
    fn assertions(&mut self, id: Id, keywords: &Map<String, Value>) -> Result<Option<Assertions>, SchemaError> {
        let mut own = Map::new();
        for keyword in ASSERTIONS {
            if let Some(value) = keywords.get(keyword) {
                own.insert(keyword.to_owned(), value.clone());
            }
        }
        if matches!(self.draft, Draft::Draft6 | Draft::Draft7)
            && let Some(Value::Object(dependencies)) = keywords.get("dependencies")
        {
            let lists = dependencies.iter().filter(|(_, dependency)| dependency.is_array());
            let lists: Map<_, _> = lists.map(|(name, list)| (name.clone(), list.clone())).collect();
            own.insert("dependencies".to_owned(), Value::Object(lists));
        }
        if own.is_empty() {
            return Ok(None);
        }
        let pattern_bytes = match own.get("pattern") {
            Some(Value::String(pattern)) => self.pattern_bytes(id, pattern)?,
            _ => 0,
        };
        let own = Value::Object(own);
        let validator = self.options(pattern_bytes).build(&own).map_err(|error| {
            let keyword = error.instance_path().to_string();
            self.invalid(id, &format!("{} {}", keyword.trim_start_matches('/'), error.masked()))
        })?;
        let own_bytes = own.to_string().len();
        let fraction = own.get("multipleOf").is_some_and(Value::is_f64);
        let one_value = own.get("enum").and_then(Value::as_array).is_some_and(|values| values.len() == 1);
        Ok(Some(Assertions {
            validator,
            constant: one_value || own.get("const").is_some(),
            steps: steps(own_bytes, ASSERTION_BYTES_PER_STEP).saturating_add(if fraction { FRACTION_STEPS } else { 0 }),
            steps_per_string_byte: steps(pattern_bytes, PATTERN_BYTES_PER_STEP),
        }))
    }

    /// The size of the smallest program that runs `pattern`, found by trying.
    fn pattern_bytes(&mut self, id: Id, pattern: &str) -> Result<usize, SchemaError> {
        let schema = Value::Object(Map::from_iter([("pattern".to_owned(), Value::String(pattern.to_owned()))]));
        let sizes = std::iter::successors(Some(PATTERN_BYTES_MIN), |bytes| bytes.checked_mul(2));
        let mut sizes = sizes.take_while(|bytes| *bytes <= PATTERN_BYTES_MAX);
        let Some(bytes) = sizes.find(|bytes| self.options(*bytes).build(&schema).is_ok()) else {
            let pattern = bounded(pattern, MESSAGE_CHARS_MAX);
            return Err(SchemaError::Pattern { place: self.place(id), pattern });
        };
        self.pattern_bytes = self.pattern_bytes.saturating_add(bytes);
        if self.pattern_bytes > PATTERNS_BYTES_MAX {
            let what = "bytes of compiled patterns";
            return Err(SchemaError::TooMany { what, found: self.pattern_bytes, max: PATTERNS_BYTES_MAX });
        }
        Ok(bytes)
    }

    fn options(&self, pattern_bytes: usize) -> jsonschema::ValidationOptions<'static> {
        let patterns = PatternOptions::regex().size_limit(pattern_bytes).dfa_size_limit(PATTERN_CACHE_BYTES_MAX);
        jsonschema::options().with_draft(self.draft).with_pattern_options(patterns).should_validate_formats(false)
    }

    fn invalid(&self, id: Id, message: &str) -> SchemaError {
        SchemaError::Invalid { place: self.place(id), message: bounded(message, MESSAGE_CHARS_MAX) }
    }

    fn place(&self, id: Id) -> String {
        render(&self.places, id)
    }
}

/// A place as a JSON pointer, `/` for the root.
fn render(places: &[Place], id: Id) -> String {
    let inner_to_outer = std::iter::successors(places.get(id), |place| places.get(place.parent?));
    let mut segments: Vec<&str> = inner_to_outer.map(|place| place.segments.as_str()).collect();
    segments.reverse();
    let pointer = segments.concat();
    if pointer.is_empty() { "/".to_owned() } else { bounded(&pointer, MESSAGE_CHARS_MAX) }
}

fn pointer<const N: usize>(segments: [&str; N]) -> String {
    segments.iter().flat_map(|segment| ["/".to_owned(), segment.replace('~', "~0").replace('/', "~1")]).collect()
}

/// The fragment of a URI as text; `None` if it is not one.
fn percent_decoded(fragment: &str) -> Option<String> {
    let mut parts = fragment.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn draft(root: &Value) -> Result<Draft, SchemaError> {
    let uri = match root.get("$schema") {
        None => return Ok(Draft::Draft202012),
        Some(Value::String(uri)) => uri.as_str(),
        Some(_) => "",
    };
    let plain = uri.trim_end_matches('#').trim_start_matches("http://").trim_start_matches("https://");
    match plain {
        "json-schema.org/draft/2020-12/schema" => Ok(Draft::Draft202012),
        "json-schema.org/draft/2019-09/schema" => Ok(Draft::Draft201909),
        "json-schema.org/draft-07/schema" => Ok(Draft::Draft7),
        "json-schema.org/draft-06/schema" => Ok(Draft::Draft6),
        _ => Err(SchemaError::UnknownDraft { uri: bounded(uri, MESSAGE_CHARS_MAX) }),
    }
}

fn steps(bytes: usize, bytes_per_step: usize) -> u64 {
    u64::try_from(bytes.div_ceil(bytes_per_step)).unwrap_or(u64::MAX)
}
