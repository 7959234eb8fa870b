//! What is refused, with which words; that the rest is rewritten without changing what it does; and that no bytes
//! make it panic.

use proptest::prelude::*;
use wasmi::{Engine, Extern, Instance, Linker, Module, Store, Val};
use wasmparser::Operator;

use super::*;

const EMPTY_TOOL: &str = r#"(instance $tool) (export "estop:tool/tool@0.1.0" (instance $tool))"#;

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {text})")).expect("a component's text")
}

fn tool(text: &str) -> Vec<u8> {
    component(&format!("{text} {EMPTY_TOOL}"))
}

fn refusal(bytes: &[u8]) -> AdmissionError {
    admit(bytes).expect_err("a refusal")
}

/// The core modules of a component, also of the nested ones.
fn modules(component: &[u8]) -> Vec<&[u8]> {
    let payloads = Parser::new(0).parse_all(component).map(|payload| payload.expect("a valid component"));
    let ranges = payloads.filter_map(|payload| match payload {
        Payload::ModuleSection { unchecked_range, .. } => Some(unchecked_range),
        _ => None,
    });
    ranges.map(|range| &component[range]).collect()
}

/// How many operations of each function in `module` can run for longer than a chunk.
fn bulk_operations(module: &[u8]) -> Vec<usize> {
    let mut counts = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::CodeSectionEntry(body) = payload.expect("a valid module") {
            let operators = body.get_operators_reader().expect("operators").into_iter();
            let is_bulk = |operator: &Operator<'_>| {
                matches!(
                    operator,
                    Operator::MemoryFill { .. } | Operator::MemoryCopy { .. } | Operator::MemoryInit { .. }
                )
            };
            counts.push(operators.filter(|operator| is_bulk(operator.as_ref().expect("an operator"))).count());
        }
    }
    counts
}

#[test]
fn says_what_the_bytes_are_instead() {
    assert!(matches!(refusal(b""), AdmissionError::Empty));
    assert!(matches!(refusal(b" \n(component)"), AdmissionError::Text));
    assert!(matches!(refusal(b";; a comment\n(module)"), AdmissionError::Text));
    assert!(matches!(refusal(b"\0as"), AdmissionError::Truncated { bytes: 3 }));
    let elf = refusal(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0");
    assert!(elf.to_string().contains(r#"begins with "\x7fELF\x02\x01"#), "{elf}");
    let module = wat::parse_str("(module)").expect("a module");
    assert!(refusal(&module).to_string().contains("build for wasm32-wasip2"));
}

#[test]
fn tells_cut_off_from_wrong() {
    let whole = tool("(core module (memory 1) (func (drop (i32.const 7))))");
    assert!(admit(&whole).is_ok());
    let shorter = refusal(&whole[..whole.len() - 1]);
    assert!(matches!(shorter, AdmissionError::Truncated { bytes } if bytes == whole.len() - 1), "{shorter}");
    let wrong = refusal(&component("(core module (func (result i32)))"));
    assert!(matches!(wrong, AdmissionError::Invalid { offset: 9.., .. }), "{wrong}");
    let mut unknown_version = whole;
    unknown_version[4] = 0x7f;
    assert!(matches!(refusal(&unknown_version), AdmissionError::Invalid { offset: 4, .. }));
}

#[test]
fn refuses_threads_as_such() {
    let shared_memory = tool("(core module (memory 1 1 shared))");
    let atomics = tool("(core module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))");
    let waiting = tool(
        "(core module (memory 1)
           (func (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))))",
    );
    for component in [shared_memory, atomics, waiting] {
        let refusal = refusal(&component);
        assert!(matches!(refusal, AdmissionError::Threads { .. }), "{refusal}");
        assert!(refusal.to_string().contains("this component needs threads (shared memory"));
    }
}

#[test]
fn names_the_feature_that_is_off() {
    for (text, feature) in [
        ("(core module (memory i64 1))", "memory64"),
        ("(core module (type (struct)))", "gc"),
        ("(core module (tag))", "exceptions"),
        ("(core module (table 1 externref))", "gc-types"),
        ("(core module (func (param (ref func))))", "function-references"),
        ("(type (stream u8))", "cm-async"),
    ] {
        match refusal(&tool(text)) {
            AdmissionError::Feature { feature: named, .. } => assert_eq!(named, feature, "{text}"),
            other => panic!("{text}: {other}"),
        }
    }
}

#[test]
fn takes_what_toolchains_emit() {
    let component = tool(
        "(core module
           (memory 1) (table 1 funcref) (global $base i32 (i32.add (i32.const 1) (i32.const 2)))
           (func (result i32 i32) (i32.extend8_s (i32.const 1)) (i32.trunc_sat_f32_s (f32.const 1)))
           (func (result v128)
             (i32x4.relaxed_trunc_f32x4_s (v128.const f32x4 0 0 0 0)))
           (func $tail (return_call $tail)))",
    );
    let admitted = admit(&component).expect("admitted");
    assert_eq!((admitted.component, admitted.rewritten_operations), (component, 0));
}

#[test]
fn wants_the_tool_interface() {
    let other = component(r#"(instance $i) (export "estop:tool/tool@0.2.0" (instance $i))"#);
    let message = refusal(&other).to_string();
    assert!(message.contains("exports estop:tool/tool@0.2.0, this estop runs estop:tool/tool@0.1.0"), "{message}");
    let none = refusal(&component("")).to_string();
    assert!(none.ends_with("it exports nothing"), "{none}");
    let command = refusal(&component(r#"(instance $i) (export "wasi:cli/run@0.2.6" (instance $i))"#)).to_string();
    assert!(command.ends_with("it exports wasi:cli/run@0.2.6"), "{command}");
}

#[test]
fn lists_imports_of_the_top_level_only() {
    let admitted = admit(&tool(
        r#"(import "wasi:io/poll@0.2.6" (instance)) (import "estop:tool/call@0.1.0" (instance))
           (component (import "inner" (func)))"#,
    ));
    assert_eq!(admitted.expect("admitted").imports, ["wasi:io/poll@0.2.6", "estop:tool/call@0.1.0"]);
}

#[test]
fn bounds_numbers_sizes_and_nesting() {
    let too_many = |text: &str| match refusal(&component(text)) {
        AdmissionError::TooMany { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(too_many(&"(core module)".repeat(MODULES_MAX + 1)), "core modules");
    assert_eq!(too_many(&"(component)".repeat(COMPONENTS_MAX + 1)), "nested components");
    let nested = format!("{}{}", "(component ".repeat(9), ")".repeat(9));
    assert_eq!(too_many(&nested), "levels of nested components");
    let functions = format!("(core module {})", "(func)".repeat(FUNCTIONS_MAX + 1));
    assert_eq!(too_many(&functions), "functions");
    let long = format!("(core module (func {}))", "nop ".repeat(FUNCTION_BODY_BYTES_MAX));
    assert_eq!(too_many(&long), "bytes in one function");
    let types = format!("(core module {})", "(type (func))".repeat(TYPES_MAX + 1));
    assert_eq!(too_many(&types), "types");
    let imports: String = (0..=TOP_LEVEL_NAMES_MAX).map(|n| format!("(import \"i{n}\" (func))")).collect();
    assert_eq!(too_many(&imports), "imports");
    let name = format!("(import \"{}\" (func))", "a".repeat(NAME_BYTES_MAX + 1));
    assert_eq!(too_many(&name), "bytes in the name of an import or export");
}

/// A component type section of one type that is nested `levels` deep.
fn nested_types(levels: usize) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0\x07".to_vec();
    let mut contents = vec![1u8];
    contents.extend([0x41, 1, 1].repeat(levels - 1));
    contents.extend([0x41, 0]);
    wasm_encoder::Encode::encode(contents.as_slice(), &mut bytes);
    bytes
}

#[test]
fn nested_types_do_not_overflow_the_stack() {
    let on_a_small_stack = |bytes: Vec<u8>| {
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        thread.spawn(move || refusal(&bytes)).expect("a thread").join().expect("no overflow")
    };
    let deep = on_a_small_stack(nested_types(1_000_000));
    assert!(matches!(deep, AdmissionError::TooMany { what: "levels of nested types", found: 1_000_000, .. }), "{deep}");
    let deepest = on_a_small_stack(nested_types(TYPE_NESTING_LEVELS_MAX));
    assert!(matches!(deepest, AdmissionError::NotATool { .. }), "{deepest}");
}

#[test]
fn messages_are_bounded_and_printable() {
    let shown = bounded(&format!("\x1b[31m{}", "é".repeat(1000)));
    assert!(shown.starts_with("\\u{1b}[31mé"));
    assert_eq!(shown.chars().last(), Some('…'));
    assert!(shown.chars().count() <= MESSAGE_CHARS_MAX + "\\u{1b}".len());
}

#[test]
fn rewrites_modules_at_every_depth() {
    let bulk = "(core module (memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (memory.size))))";
    let given = tool(&format!("{bulk} (core module) (component {bulk} (component {bulk}))"));
    let admitted = admit(&given).expect("admitted");
    assert_eq!(admitted.rewritten_operations, 3);
    let counts: Vec<_> = modules(&admitted.component).into_iter().map(bulk_operations).collect();
    // The function that was there, and the helper: small or out of bounds, in the loop, the rest.
    assert_eq!(counts, [vec![0, 3], vec![], vec![0, 3], vec![0, 3]]);
    let again = admit(&admitted.component).expect("admitted again");
    assert_eq!((again.component, again.rewritten_operations), (admitted.component, 0));
}

#[test]
fn leaves_small_operations_alone() {
    let given = tool(
        r#"(core module (memory 3) (data $small "abc")
             (func (param i32)
               (memory.fill (local.get 0) (i32.const 0) (i32.const 65536))
               (memory.copy (local.get 0) (i32.const 0) (i32.const 0))
               (memory.init $small (local.get 0) (i32.const 0) (local.get 0))
               (data.drop $small)))"#,
    );
    assert_eq!(admit(&given).expect("admitted").component, given);
    let larger = tool("(core module (memory 3) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 65537))))");
    assert_eq!(admit(&larger).expect("admitted").rewritten_operations, 1);
    // A constant that is as large as it can be, read as an unsigned number.
    let negative = tool("(core module (memory 3) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const -1))))");
    assert_eq!(admit(&negative).expect("admitted").rewritten_operations, 1);
}

#[test]
fn keeps_names_and_drops_what_speaks_of_offsets() {
    let admitted = admit(&tool(
        r#"(core module $m (memory 1) (@custom ".debug_info" "x") (@custom "producers" "\00")
             (func $work (param i32) (memory.fill (i32.const 0) (i32.const 0) (local.get 0)))
             (@custom ".debug_line" "y") (@custom "sourceMappingURL" "z"))"#,
    ));
    let component = admitted.expect("admitted").component;
    let names = Parser::new(0).parse_all(modules(&component)[0]).filter_map(|payload| match payload {
        Ok(Payload::CustomSection(section)) => Some(section.name().to_owned()),
        _ => None,
    });
    assert_eq!(names.collect::<Vec<_>>(), ["producers", "name"]);
}

const SEGMENT_BYTES: usize = 150_000;

/// One bulk operation per function, and what changes what they may do.
fn bulk_module() -> String {
    let segment: String = (0..SEGMENT_BYTES).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    format!(
        r#"(core module
             (import "host" "tick" (func $tick))
             (memory (export "memory") 4 6)
             (data $active (i32.const 100) "active") (data $large "{segment}") (data $small "small")
             (func (export "fill") (param i32 i32 i32)
               (call $tick) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
             (func (export "copy") (param i32 i32 i32)
               (memory.copy (local.get 0) (local.get 1) (local.get 2)))
             (func (export "init") (param i32 i32 i32)
               (memory.init $large (local.get 0) (local.get 1) (local.get 2)))
             (func (export "init-small") (param i32 i32 i32)
               (memory.init $small (local.get 0) (local.get 1) (local.get 2)))
             (func (export "drop") (param i32 i32 i32) (data.drop $large))
             (func (export "grow") (param i32 i32 i32) (drop (memory.grow (i32.const 1)))))"#
    )
}

struct Running {
    store: Store<()>,
    instance: Instance,
}

impl Running {
    fn new(module: &[u8]) -> Self {
        let engine = Engine::default();
        let module = Module::new(&engine, module).expect("a valid module");
        let mut store = Store::new(&engine, ());
        let mut linker = Linker::new(&engine);
        linker.func_wrap("host", "tick", || {}).expect("a new name");
        let instance = linker.instantiate_and_start(&mut store, &module).expect("an instance");
        Running { store, instance }
    }

    /// How the call ended: the trap, if there was one.
    fn call(&mut self, name: &str, operands: [u32; 3]) -> Option<String> {
        let function = self.instance.get_func(&self.store, name).expect("an exported function");
        let operands = operands.map(|operand| Val::I32(operand.cast_signed()));
        function.call(&mut self.store, &operands, &mut []).err().map(|trap| trap.to_string())
    }

    fn memory(&self) -> &[u8] {
        match self.instance.get_export(&self.store, "memory") {
            Some(Extern::Memory(memory)) => memory.data(&self.store),
            other => panic!("no memory: {other:?}"),
        }
    }
}

/// Offsets and lengths where something changes: chunks, pages, the ends of memory and segment, 2³².
fn operand() -> impl Strategy<Value = u32> {
    let near = |point: u32| (-3i32..=3).prop_map(move |distance| point.wrapping_add_signed(distance));
    prop_oneof![
        4 => 0..400_000u32,
        1 => 0..10u32,
        2 => near(65_536),
        1 => near(131_072),
        1 => near(SEGMENT_BYTES as u32),
        1 => near(4 * 65_536),
        1 => near(5 * 65_536),
        1 => near(0),
        1 => any::<u32>(),
    ]
}

fn operation() -> impl Strategy<Value = (&'static str, [u32; 3])> {
    let names = prop_oneof![
        4 => Just("fill"),
        6 => Just("copy"),
        4 => Just("init"),
        1 => Just("init-small"),
        1 => Just("drop"),
        1 => Just("grow"),
    ];
    // Ranges that overlap by a little are where a direction shows.
    let operands = prop_oneof![
        prop::array::uniform3(operand()),
        (0..100_000u32, -70_000i32..70_000, 60_000..200_000u32).prop_map(|(from, distance, length)| [
            from.saturating_add_signed(distance),
            from,
            length
        ]),
    ];
    (names, operands)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn rewritten_operations_do_the_same(operations in prop::collection::vec(operation(), 1..16)) {
        let given = component(&bulk_module());
        let rewritten = bulk::rewrite(&given).expect("rewritten").expect("something to rewrite");
        prop_assert_eq!(rewritten.operations, 3);
        let mut original = Running::new(modules(&given)[0]);
        let mut chunked = Running::new(modules(&rewritten.component)[0]);
        for (name, operands) in operations {
            let trap = original.call(name, operands);
            prop_assert_eq!(chunked.call(name, operands), trap, "{} {:?}", name, operands);
            prop_assert!(chunked.memory() == original.memory(), "{} {:?}: memory differs", name, operands);
        }
    }
}

/// The calls of `(target, source, length)` that the helper for `operation` makes instead of its instruction.
fn chunks(operation: chunks::Operation, pages: u64, operands: [u32; 3]) -> Vec<[u32; 3]> {
    use wasm_encoder::{
        CodeSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection, MemorySection, MemoryType,
        RawSection, SectionId,
    };
    // A call of the import, padded with `nop`, in place of each instruction.
    let mut body = chunks::helper(operation);
    let instruction: &[u8] = match operation {
        chunks::Operation::Fill => &[0xfc, 11, 0],
        chunks::Operation::Copy => &[0xfc, 10, 0, 0],
        chunks::Operation::Init { .. } => &[0xfc, 8, 0, 0],
    };
    while let Some(at) = body.windows(instruction.len()).position(|window| window == instruction) {
        body[at..at + instruction.len()].fill(0x01);
        body[at..at + 2].copy_from_slice(&[0x10, 0]);
    }
    let types: Vec<u8> = [&[1], chunks::HELPER_TYPE.as_slice()].concat();
    let memory = MemoryType { minimum: pages, maximum: None, memory64: false, shared: false, page_size_log2: None };
    let mut module = wasm_encoder::Module::new();
    module.section(&RawSection { id: SectionId::Type.into(), data: &types });
    module.section(ImportSection::new().import("host", "record", EntityType::Function(0)));
    module.section(FunctionSection::new().function(0));
    module.section(MemorySection::new().memory(memory));
    module.section(ExportSection::new().export("helper", ExportKind::Func, 1));
    module.section(CodeSection::new().raw(&body));

    let engine = Engine::default();
    let module = Module::new(&engine, module.finish()).expect("a valid module");
    let mut store = Store::new(&engine, Vec::new());
    let mut linker = Linker::new(&engine);
    let record = |mut caller: wasmi::Caller<'_, Vec<[u32; 3]>>, target: u32, source: u32, length: u32| {
        caller.data_mut().push([target, source, length]);
    };
    linker.func_wrap("host", "record", record).expect("a new name");
    let instance = linker.instantiate_and_start(&mut store, &module).expect("an instance");
    let helper = instance.get_typed_func::<(u32, u32, u32), ()>(&store, "helper").expect("the helper");
    helper.call(&mut store, operands.into()).expect("no trap");
    store.into_data()
}

#[test]
fn no_chunk_is_larger_than_it_may_be() {
    const CHUNK: u32 = chunks::CHUNK_BYTES as u32;
    const MEMORY: u32 = 64 << 16;
    let init = chunks::Operation::Init { segment: 0, segment_bytes: MEMORY };
    for operation in [chunks::Operation::Fill, chunks::Operation::Copy, init] {
        let fill = operation == chunks::Operation::Fill;
        for length in [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 10 * CHUNK + 7, MEMORY - 5, MEMORY] {
            // Both ends of memory, so that being in bounds only just is covered as well.
            for (target, source) in [(0, MEMORY - length), (MEMORY - length, 0)] {
                let mut done = chunks(operation, 64, [target, source, length]);
                assert!(done.iter().all(|[_, _, length]| *length <= CHUNK), "{done:?}");
                done.sort_unstable();
                let mut offset = 0;
                for [at, from, length] in done {
                    let from_expected = if fill { source } else { source + offset };
                    assert_eq!((at, from), (target + offset, from_expected));
                    offset += length;
                }
                assert_eq!(offset, length);
            }
        }
        // Out of bounds: the instruction itself decides.
        let outside = [MEMORY - CHUNK, 0, CHUNK + 1];
        assert_eq!(chunks(operation, 64, outside), [outside]);
    }
}

fn sample() -> Vec<u8> {
    component(
        r#"(import "wasi:io/poll@0.2.6" (instance (export "pollable" (type (sub resource)))))
           (core module (memory 1) (data "abc") (type (func)) (table 2 funcref) (elem (i32.const 0) func 0)
             (func (export "f") (param i32) (memory.copy (i32.const 0) (i32.const 1) (local.get 0)))
             (func (br_table 0 0 (i32.const 1)) (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 1))))
           (component (type (component (type (instance (type (record (field "a" string)))))))
             (core module (memory 1) (func (memory.fill (i32.const 0) (i32.const 1) (memory.size)))))
           (instance) (export "estop:tool/tool@0.1.0" (instance 1))"#,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), component: bool) {
        let mut bytes = bytes;
        if component {
            bytes.splice(0..0, *b"\0asm\x0d\0\x01\0");
        }
        let _ = admit(&bytes);
    }

    #[test]
    fn damaged_components_do_not_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.2),
    ) {
        let mut bytes = sample();
        for (place, value) in flips {
            *place.get_mut(&mut bytes) = value;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(admitted) = admit(&bytes) {
            prop_assert!(admit(&admitted.component).is_ok_and(|again| again.rewritten_operations == 0));
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample();
    assert!(admit(&whole).is_ok());
    for length in 0..whole.len() {
        // A cut between two sections leaves a component, but one without the tool interface: it comes last.
        let refusal = refusal(&whole[..length]);
        assert!(
            matches!(
                refusal,
                AdmissionError::Empty | AdmissionError::Truncated { .. } | AdmissionError::NotATool { .. }
            ),
            "{length}: {refusal}"
        );
    }
}
