//! What compiles and what it means (against `jsonschema`, which knows no bounds); what is refused; and that nothing
//! takes long.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

/// Generous for a debug build on a loaded machine; what it guards against would take years.
const AT_MOST: Duration = Duration::from_secs(10);

fn compile(schema: &Value) -> InputSchema {
    InputSchema::compile(&schema.to_string()).unwrap_or_else(|error| panic!("{schema:.200}: {error}"))
}

fn refusal(schema: &Value) -> SchemaError {
    InputSchema::compile(&schema.to_string()).err().unwrap_or_else(|| panic!("{schema:.200} compiled"))
}

/// The violations, each as one line.
fn violations(schema: &Value, input: &Value) -> Vec<String> {
    let violations = compile(schema).check(input).err().unwrap_or_default();
    violations.iter().map(ToString::to_string).collect()
}

fn takes_little_time<T>(run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < AT_MOST, "took {:?}", start.elapsed());
    result
}

/// A recursive type whose variants share their properties, as `#[serde(tag = "op")]` makes it.
fn expression() -> Value {
    let variant = |op: &str, parts: &[&str]| {
        let mut properties: Map<String, Value> =
            parts.iter().map(|part| ((*part).to_owned(), json!({"$ref": "#/$defs/Expr"}))).collect();
        properties.insert("op".into(), json!({"type": "string", "const": op}));
        let required: Vec<_> = properties.keys().cloned().collect();
        json!({"type": "object", "properties": properties, "required": required})
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Input",
        "type": "object",
        "properties": {"expr": {"$ref": "#/$defs/Expr"}},
        "required": ["expr"],
        "$defs": {"Expr": {"oneOf": [
            variant("add", &["left", "right"]), variant("sub", &["left", "right"]), variant("mul", &["left", "right"]),
            variant("neg", &["left"]), variant("abs", &["left"]),
            {"type": "object", "properties": {"op": {"const": "lit"}, "value": {"type": "integer", "format": "int64"}},
             "required": ["op", "value"]},
        ]}},
    })
}

fn nested_expression(levels: usize, leaf: Value) -> Value {
    let expr = (0..levels).fold(leaf, |inner, level| {
        let op = if level % 2 == 0 { "neg" } else { "abs" };
        json!({"op": op, "left": inner})
    });
    json!({"expr": expr})
}

#[test]
fn recursive_types_are_ordinary() {
    let schema = compile(&expression());
    for levels in [0, 1, 10, 40] {
        let good = nested_expression(levels, json!({"op": "lit", "value": 7}));
        assert_eq!(takes_little_time(|| schema.check(&good)), Ok(()), "{levels}");
        let bad = nested_expression(levels, json!({"op": "lit", "value": "x"}));
        assert!(takes_little_time(|| schema.check(&bad)).is_err(), "{levels}");
    }
    let bad = nested_expression(1, json!({"op": "lit", "value": "seven"}));
    let shown: Vec<_> = schema.check(&bad).expect_err("a violation").iter().map(ToString::to_string).collect();
    assert_eq!(shown, [r#"/expr/left/value: "seven" is not of type "integer""#]);
}

#[test]
fn schemas_of_other_generators_are_ordinary() {
    // Externally tagged, untagged with shared properties, a linked list, any JSON value.
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "expr": {"$ref": "#/$defs/Expr"}, "tree": {"$ref": "#/$defs/Tree"}, "list": {"$ref": "#/$defs/List"},
            "any": true,
        },
        "$defs": {
            "Expr": {"oneOf": [
                {"type": "object", "properties": {"Not": {"$ref": "#/$defs/Expr"}}, "required": ["Not"],
                 "additionalProperties": false},
                {"type": "object", "properties": {"And": {"type": "array", "items": {"$ref": "#/$defs/Expr"}}},
                 "required": ["And"], "additionalProperties": false},
                {"type": "object", "properties": {"Lit": {"type": "integer", "format": "int64"}}, "required": ["Lit"],
                 "additionalProperties": false},
            ]},
            "Tree": {"anyOf": [
                {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}, "right": {"$ref": "#/$defs/Tree"}},
                 "required": ["left", "right"]},
                {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}, "required": ["left"]},
                {"type": "null"},
            ]},
            "List": {"type": "object", "properties": {
                "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/List"}, {"type": "null"}]},
            }, "required": ["value"]},
        },
    });
    let schema = compile(&schema);
    let tree = (0..60).fold(json!(null), |inner, _| json!({"left": inner}));
    let list = (0..60).fold(json!(null), |inner, value| json!({"value": value, "next": inner}));
    let input = json!({"expr": {"And": [{"Not": {"Lit": 1}}, {"Lit": 2}]}, "tree": tree, "list": list, "any": [{}]});
    assert_eq!(takes_little_time(|| schema.check(&input)), Ok(()));
    assert!(takes_little_time(|| schema.check(&json!({"expr": {"Not": {"Lit": "1"}}}))).is_err());

    // As zod-to-json-schema writes it, with references to wherever a type was first seen.
    let draft_7 = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/tool.json",
        "type": "object", "additionalProperties": false,
        "properties": {
            "from": {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}}, "required": ["id"]},
            "to": {"$ref": "#/properties/from"},
            "pair": {"type": "array", "items": [{"type": "string"}, {"type": "number"}], "additionalItems": false},
        },
        "dependencies": {"to": ["from"]},
    });
    assert_eq!(violations(&draft_7, &json!({"from": {"id": "a"}, "to": {"id": "b"}, "pair": ["x", 1]})), [""; 0]);
    assert_eq!(
        violations(&draft_7, &json!({"from": {"id": "a"}, "to": {}, "pair": ["x", 1, 2]})),
        ["/pair/2: is not allowed", r#"/to: "id" is a required property"#]
    );
    assert_eq!(violations(&draft_7, &json!({"to": {"id": "a"}})), [r#"input: "from" is a required property"#]);
}

#[test]
fn violations_name_the_place_and_are_bounded() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 3}, "a/b~c": {"type": "array", "items": {"minimum": 1}},
            "kind": {"enum": ["x", "y"]},
        },
    });
    assert_eq!(
        violations(&schema, &json!({"nam": 1, "a/b~c": [1, 0], "kind": "z"})),
        [
            r#"input: "name" is a required property"#,
            "/a~1b~0c/1: 0 is less than the minimum of 1",
            r#"/kind: "z" is not one of "x" or "y""#,
            "/nam: is not a known property: known are a/b~c, kind, name",
        ]
    );
    assert_eq!(violations(&schema, &json!([])), [r#"input: this is not of type "object""#]);

    let many = json!({"items": {"type": "integer"}});
    let strings = Value::Array(vec![json!("\u{1b}[31m"); 1000]);
    let shown = violations(&many, &strings);
    assert_eq!(shown.len(), VIOLATIONS_MAX);
    assert_eq!(shown[1], r#"/1: "\u001b[31m" is not of type "integer""#);
    let long_name = "n\u{7}".repeat(100_000);
    let shown = violations(&json!({"additionalProperties": {"type": "null"}}), &json!({long_name.as_str(): long_name}));
    assert!(shown.iter().all(|line| line.chars().count() < 2_000 && !line.contains('\u{7}')), "{shown:?}");
}

#[test]
fn goes_on_with_the_alternative_that_was_meant() {
    let schema = json!({"oneOf": [
        {"type": "object", "properties": {"Circle": {"properties": {"radius": {"type": "number"}}}},
         "required": ["Circle"], "additionalProperties": false},
        {"type": "object", "properties": {"Square": {"properties": {"side": {"type": "number"}}}},
         "required": ["Square"], "additionalProperties": false},
        {"const": "Point"},
    ]});
    assert_eq!(
        violations(&schema, &json!({"Square": {"side": "2"}})),
        [r#"/Square/side: "2" is not of type "number""#]
    );
    assert_eq!(
        violations(&expression(), &json!({"expr": {"op": "pow"}})),
        [concat!(
            "/expr: matches none of the 6 alternatives; op: \"add\" was expected; op: \"sub\" was expected; ",
            "op: \"mul\" was expected; op: \"neg\" was expected"
        )]
    );
    let optional = json!({"properties": {"at": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}});
    assert_eq!(
        violations(&optional, &json!({"at": "x"})),
        [r#"/at: matches none of the 2 alternatives; "x" is not of type "integer"; "x" is not of type "null""#]
    );
    assert_eq!(
        violations(&json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), &json!(3)),
        ["input: matches more than one of the alternatives, of which exactly one is allowed"]
    );
}

#[test]
fn references_stay_in_the_document() {
    let outside = |schema: Value| match refusal(&schema) {
        SchemaError::OutsideReference { reference, place } => (reference, place),
        other => panic!("{other}"),
    };
    for reference in
        ["https://example.com/a.json", "other.json#/a", "file:///etc/passwd", "#anchor", "http://169.254.169.254/"]
    {
        let schema = json!({"properties": {"a": {"items": {"$ref": reference}}}});
        assert_eq!(outside(schema), (reference.to_owned(), "/properties/a/items".to_owned()));
    }
    let meta = "https://json-schema.org/draft/2020-12/schema";
    assert_eq!(outside(json!({"$defs": {"never used": {"$ref": meta}}})).0, meta);
    assert_eq!(outside(json!({"allOf": [{"$id": "https://example.com/b"}]})).1, "/allOf/0");
    let missing = refusal(&json!({"not": {"$ref": "#/$defs/a"}}));
    assert_eq!(missing.to_string(), "the schema refers to `#/$defs/a` at /not, which it does not have");
    let dynamic = refusal(&json!({"items": {"$dynamicRef": "#a"}}));
    assert!(matches!(dynamic, SchemaError::Unsupported { keyword: "$dynamicRef", .. }));
    let draft = refusal(&json!({"$schema": "https://example.com/my-draft"}));
    assert!(draft.to_string().contains("names `https://example.com/my-draft` as its `$schema`"), "{draft}");
    // Names that need escaping, in both ways.
    let escaped = json!({"$ref": "#/$defs/Box%3Ca~1b%3E", "$defs": {"Box<a/b>": {"type": "null"}}});
    assert_eq!(violations(&escaped, &json!(1)), [r#"input: 1 is not of type "null""#]);
}

#[test]
fn says_what_is_wrong_with_a_schema() {
    let say = |schema: Value| refusal(&schema).to_string();
    assert!(
        say(json!({"properties": {"a": {"type": "strin"}}}))
            .starts_with("the schema is not valid at /properties/a: type")
    );
    assert!(say(json!({"items": 3})).contains("at /items: a schema is an object or a boolean"));
    assert!(say(json!({"anyOf": {}})).contains("`anyOf` is an array of schemas"));
    assert!(say(json!({"items": [true]})).contains("at /items: a schema is an object or a boolean"));
    assert!(say(json!({"contains": true, "minContains": -1})).contains("non-negative integer"));
    assert!(matches!(InputSchema::compile("{"), Err(SchemaError::NotJson(_))));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(matches!(InputSchema::compile(&deep), Err(SchemaError::NotJson(_))));
    let large = " ".repeat(SCHEMA_BYTES_MAX) + "{}";
    assert!(matches!(InputSchema::compile(&large), Err(SchemaError::TooLarge { .. })));
    let many = json!({"allOf": vec![json!({}); SUBSCHEMAS_MAX]});
    assert!(matches!(refusal(&many), SchemaError::TooMany { what: "subschemas", .. }));
}

#[test]
fn schemas_that_go_round_in_place_are_refused() {
    for schema in [
        json!({"$ref": "#"}),
        json!({"anyOf": [{"type": "null"}, {"$ref": "#"}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"if": {"$ref": "#/$defs/a"}}}}),
    ] {
        assert!(matches!(refusal(&schema), SchemaError::Endless { .. }), "{schema}");
    }
    let place = refusal(&json!({"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}}));
    assert!(place.to_string().contains("refers to itself at /properties/a"), "{place}");
}

/// `levels` definitions, each of which applies the next one several times to the same place.
fn doubling(keyword: &str, levels: usize, last: Value) -> Value {
    let mut definitions = Map::new();
    for level in 0..levels {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        definitions.insert(format!("d{level}"), json!({keyword: [next, next, next]}));
    }
    definitions.insert(format!("d{levels}"), last);
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

#[test]
fn doubling_schemas_take_little_time() {
    for keyword in ["anyOf", "allOf", "oneOf"] {
        for last in [json!({"type": "null"}), json!({"type": "object", "unevaluatedProperties": false})] {
            let mut schema = doubling(keyword, 60, last);
            for input in [json!(null), json!({}), json!({"a": [1]}), json!("x")] {
                takes_little_time(|| compile(&schema).check(&input).is_ok());
            }
            schema["unevaluatedProperties"] = json!(false);
            schema["propertyNames"] = json!({"$ref": "#/$defs/d1"});
            takes_little_time(|| compile(&schema).check(&json!({"a": 1, "b": 2})).is_ok());
        }
    }
}

#[test]
fn branching_recursion_takes_little_time() {
    let same = json!({"$ref": "#"});
    for schema in [
        json!({"anyOf": [{"properties": {"a": same}}, {"properties": {"a": same}}, {"type": "null"}]}),
        json!({"oneOf": [{"items": same}, {"items": same}, {"contains": same}, {"prefixItems": [same]}]}),
        json!({"properties": {"a": same}, "patternProperties": {"a": same, ".": same}, "additionalProperties": same,
               "items": same, "contains": same, "if": {"properties": {"a": same}, "items": same},
               "else": {"properties": {"a": same}}, "unevaluatedProperties": same, "unevaluatedItems": same}),
        json!({"not": {"properties": {"a": {"not": {"anyOf": [{"properties": {"a": same}}, {"items": same}]}}}}}),
    ] {
        let schema = compile(&schema);
        for leaf in [json!(null), json!(1), json!([1])] {
            let objects = (0..100).fold(leaf.clone(), |inner, _| json!({"a": inner}));
            takes_little_time(|| schema.check(&objects).is_ok());
            let arrays = (0..100).fold(leaf.clone(), |inner, _| json!([inner, inner_or_null(&inner)]));
            takes_little_time(|| schema.check(&arrays).is_ok());
        }
    }
}

/// A small sibling, so that the input does not double with each level.
fn inner_or_null(inner: &Value) -> Value {
    if inner.is_array() { json!(null) } else { inner.clone() }
}

#[test]
fn large_products_are_cut_off() {
    let schema = compile(&json!({"items": {"allOf": vec![json!({"type": "integer"}); 3_000]}}));
    let input = Value::Array(vec![json!(1); 100_000]);
    let violations = takes_little_time(|| schema.check(&input)).expect_err("too much");
    assert!(violations[0].to_string().starts_with("input: takes too many steps to check"), "{violations:?}");
}

#[test]
fn looking_at_nothing_takes_no_time() {
    let input = json!([vec![1; 1_000_000], (0..100_000).map(|n| (n.to_string(), n)).collect::<HashMap<_, _>>()]);
    for keywords in [json!({}), json!({"maxItems": 1, "maxProperties": 1}), json!({"prefixItems": [true]})] {
        let schema = compile(&json!({"items": {"allOf": vec![keywords; 1_500]}}));
        let _ = takes_little_time(|| schema.check(&input));
    }
}

#[test]
fn deep_inputs_do_not_overflow_the_stack() {
    let run = || {
        let schema = compile(&expression());
        let chain = compile(&doubling("allOf", 600, json!({})));
        let unique = compile(&json!({"uniqueItems": true, "unevaluatedItems": {"$ref": "#"}}));
        for levels in [100, 500, 2_000] {
            let _ = schema.check(&nested_expression(levels, json!(1)));
            let arrays = (0..levels).fold(json!([]), |inner, _| json!([inner]));
            let _ = unique.check(&arrays);
            let _ = chain.check(&arrays);
        }
        let too_deep = (0..2_000).fold(json!([]), |inner, _| json!([inner]));
        unique.check(&too_deep).expect_err("too deep")[0].to_string()
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let message = thread.spawn(run).expect("a thread").join().expect("no overflow");
    assert_eq!(message, "input: is nested too deeply to be checked");
}

#[test]
fn unique_items_cannot_be_made_slow() {
    let schema = compile(&json!({"uniqueItems": true}));
    // Different nestings of the same: hashes that forget the nesting collide.
    let nestings = |count: usize| {
        let item = |mut number: usize| {
            let mut item = json!([0]);
            while number > 0 {
                item = if number.is_multiple_of(2) { json!([item]) } else { json!([[], item]) };
                number /= 2;
            }
            item
        };
        Value::Array((1..count).map(item).collect())
    };
    assert_eq!(takes_little_time(|| schema.check(&nestings(50_000))), Ok(()));
    let equal = |a: Value, b: Value| schema.check(&json!([[null], a, [false], b])).is_err();
    assert!(equal(json!({"a": 1, "b": [2.0]}), json!({"b": [2], "a": 1.0})));
    assert!(equal(json!(0), json!(-0.0)));
    assert!(equal(json!(1e19), json!(10_000_000_000_000_000_000u64)));
    assert!(!equal(json!("1"), json!(1)));
    assert!(!equal(json!(1.5), json!(1)));
    assert!(!equal(json!(["a,b"]), json!(["a", "b"])));
    assert!(!equal(json!(9_007_199_254_740_993u64), json!(9_007_199_254_740_992u64)));
}

#[test]
fn patterns_are_linear_and_charged() {
    let string = |length: usize| Value::String("ab".repeat(length / 2));
    let email = compile(&json!({"pattern": r"^[\w.+-]+@[\w-]+\.[a-z]{2,}$"}));
    assert_eq!(email.check(&json!("a.b@example.org")), Ok(()));
    assert_eq!(
        email.check(&json!("a.b")).expect_err("no match")[0].to_string(),
        r#"input: "a.b" does not match "^[\w.+-]+@[\w-]+\.[a-z]{2,}$""#
    );
    let nested = compile(&json!({"pattern": "^(([ab]+)+)+c$"}));
    assert!(takes_little_time(|| nested.check(&string(1_000_000))).is_err());
    let large = compile(&json!({"pattern": "[ab]*a[ab]{4000}[^ab]"}));
    let violation = &takes_little_time(|| large.check(&string(1_000_000))).expect_err("too much")[0];
    assert!(violation.message.starts_with("takes too many steps"), "{violation}");
    assert!(large.check(&string(1_000)).is_err());
    // Many short strings cost as much as one that is long.
    let items = compile(&json!({"items": {"pattern": "[ab]*a[ab]{1000}[^ab]"}}));
    let strings = Value::Array(vec![string(1_000); 1_000]);
    assert!(takes_little_time(|| items.check(&strings)).is_err());
    for pattern in ["(?=a)b", r"(a)\1", "(((a{100}){100}){100})", "(", ".{100000}"] {
        let refused = refusal(&json!({"patternProperties": {pattern: true}}));
        assert!(matches!(refused, SchemaError::Pattern { .. }), "{pattern}: {refused}");
    }
    assert!(matches!(
        refusal(
            &json!({"allOf": (0..20).map(|n| json!({"pattern": format!(".{{{}}}", 900 + n)})).collect::<Vec<_>>()})
        ),
        SchemaError::TooMany { what: "bytes of compiled patterns", .. }
    ));
    compile(&json!({"patternProperties": {r"^\p{L}+$": {"pattern": "^.{0,1000}$"}, r"^[\s\S]{0,100}$": true}}));
}

/// Values small enough to meet: the same names and numbers turn up in schemas and inputs.
fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-2..5i64).prop_map(Value::from),
        (-2..5i64).prop_map(|number| json!(number as f64 / 2.0)),
        "[ab]{0,3}".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[ab]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn assertion() -> impl Strategy<Value = (String, Value)> {
    let kinds = ["null", "boolean", "integer", "number", "string", "array", "object"];
    let count = |name: &'static str| (0..4u64).prop_map(move |count| (name.to_owned(), json!(count)));
    prop_oneof![
        prop::sample::select(kinds.to_vec()).prop_map(|kind| ("type".to_owned(), json!(kind))),
        prop::sample::subsequence(kinds.to_vec(), 1..4).prop_map(|kinds| ("type".to_owned(), json!(kinds))),
        prop::collection::vec(value(), 1..4).prop_map(|values| ("enum".to_owned(), json!(values))),
        value().prop_map(|value| ("const".to_owned(), value)),
        count("minItems"),
        count("maxLength"),
        count("maxProperties"),
        count("minimum"),
        Just(("uniqueItems".to_owned(), json!(true))),
        Just(("pattern".to_owned(), json!("^a|b$"))),
        prop::collection::btree_set("[ab]{1,2}", 1..3).prop_map(|names| ("required".to_owned(), json!(names))),
        ("[ab]", "[ab]{1,2}").prop_map(|(name, other)| ("dependentRequired".to_owned(), json!({name: [other]}))),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    let reference = prop_oneof![Just(json!({"$ref": "#/$defs/x"})), Just(json!({"$ref": "#/$defs/y"}))];
    let leaf = prop_oneof![
        1 => any::<bool>().prop_map(Value::from),
        6 => prop::collection::vec(assertion(), 0..2).prop_map(|keywords| Value::Object(keywords.into_iter().collect())),
        2 => reference,
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let single = prop::sample::select(vec![
            "not",
            "if",
            "then",
            "else",
            "additionalProperties",
            "unevaluatedProperties",
            "propertyNames",
            "items",
            "unevaluatedItems",
            "contains",
        ]);
        let list = prop::sample::select(vec!["allOf", "anyOf", "oneOf", "prefixItems"]);
        let named = prop::sample::select(vec!["properties", "dependentSchemas"]);
        let keyword = prop_oneof![
            2 => assertion(),
            4 => (single, inner.clone()).prop_map(|(name, schema)| (name.to_owned(), schema)),
            4 => (list, prop::collection::vec(inner.clone(), 1..4))
                .prop_map(|(name, schemas)| (name.to_owned(), json!(schemas))),
            3 => (named, prop::collection::btree_map("[ab]{1,2}", inner.clone(), 1..3))
                .prop_map(|(name, schemas)| (name.to_owned(), json!(schemas))),
            1 => inner.clone().prop_map(|schema| ("patternProperties".to_owned(), json!({"^a": schema}))),
            1 => (0..3u64).prop_map(|count| ("minContains".to_owned(), json!(count))),
            1 => (0..3u64).prop_map(|count| ("maxContains".to_owned(), json!(count))),
        ];
        prop::collection::vec(keyword, 1..5).prop_map(|keywords| Value::Object(keywords.into_iter().collect()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// `jsonschema` passes the official suite: what it says of schemas without bounds is right.
    #[test]
    fn says_what_jsonschema_says(
        root in schema(),
        // What is referred to does not refer to anything in place: that could go round.
        x in schema(),
        y in schema(),
        inputs in prop::collection::vec(value(), 1..12),
    ) {
        let schema = json!({
            "allOf": [root],
            "$defs": {"x": {"properties": {"a": x}, "items": x}, "y": {"type": ["array", "string"], "contains": y}},
        });
        let ours = InputSchema::compile(&schema.to_string());
        let theirs = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&schema);
        let (Ok(ours), Ok(theirs)) = (&ours, &theirs) else {
            return Err(TestCaseError::fail(format!("{schema}: {:?} {:?}", ours.err(), theirs.err())));
        };
        for input in inputs {
            let checked = ours.check(&input);
            prop_assert_eq!(checked.is_ok(), theirs.is_valid(&input), "{} {} {:?}", schema, input, checked);
            prop_assert!(checked.err().is_none_or(|violations| !violations.is_empty()));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in r##"(\{"\$?(ref|defs|items|type|not|id|schema|pattern)":|"#?/?[a-z%/~]*"|[\[\]{},:1])*"##) {
        let _ = InputSchema::compile(&text);
    }
}
