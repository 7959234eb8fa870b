//! Components that say of their tools what a test wants, and import what a test wants.

use super::Hostile;

/// Where the description begins: behind the page that the drill's victim uses.
const DESCRIPTION_START: usize = 64 << 10;
const PAGE_BYTES: usize = 64 << 10;
/// Of `list<spec>`, and of one `spec`.
const HEADER_BYTES: usize = 8;
const SPEC_BYTES: usize = 48;

/// One tool, as `list-tools` describes it: bytes, not text, because a guest may answer anything.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The tool's name.
    pub name: Vec<u8>,
    /// Its version.
    pub version: Vec<u8>,
    /// What it says of itself.
    pub description: Vec<u8>,
    /// The JSON Schema of its input.
    pub input_schema: Vec<u8>,
    /// The JSON Schema of its output.
    pub output_schema: Option<Vec<u8>>,
}

impl Spec {
    /// A tool that is described well enough, and takes any input.
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            version: b"0".to_vec(),
            description: b"made by a test".to_vec(),
            input_schema: b"{}".to_vec(),
            output_schema: None,
        }
    }

    /// The same with another schema of its input.
    #[must_use]
    pub fn input_schema(self, schema: impl Into<Vec<u8>>) -> Self {
        Self { input_schema: schema.into(), ..self }
    }

    /// The same with another description.
    #[must_use]
    pub fn description(self, description: impl Into<Vec<u8>>) -> Self {
        Self { description: description.into(), ..self }
    }
}

/// What a component imports instead of the interface of [`probe`](crate::probe).
#[derive(Clone, Copy, Debug, Default)]
pub struct Imports<'a> {
    /// In the component: imports, aliases and lowered functions.
    pub component: &'a str,
    /// In the component: the exports of the core instance `host`, for example `(export "exit" (func $exit))`.
    pub host: &'a str,
    /// In the module: imports from `host`.
    pub module: &'a str,
}

/// The drill's victim with another description of itself.
#[derive(Clone, Copy)]
pub struct Described<'a> {
    /// What `list-tools` says.
    pub tools: &'a [Spec],
    /// Instructions at the beginning of `list-tools`; it has no locals and returns where the list is.
    pub list: &'a str,
    /// What is put into its functions.
    pub guest: Hostile<'a>,
    /// Pages that its memory may grow to, and declares as its maximum.
    pub pages_max: usize,
    /// More definitions of the component, before the guest's instance: other modules, say.
    pub beside: &'a str,
    /// `None`: the interface of the probe, as [`Hostile`] has it.
    pub imports: Option<Imports<'a>>,
}

impl Default for Described<'_> {
    fn default() -> Self {
        Self { tools: &[], list: "", guest: Hostile::default(), pages_max: 1024, beside: "", imports: None }
    }
}

impl Described<'_> {
    /// The component.
    ///
    /// # Panics
    /// If the text is not WebAssembly, or if the drill's texts have become others.
    pub fn component(&self) -> Vec<u8> {
        let data = description(self.tools);
        let pages = (DESCRIPTION_START + data.len()).div_ceil(PAGE_BYTES);
        let guest = include_str!("../../../host/src/drill/guest.wat");
        let guest = replaced(
            guest,
            r#"(memory (export "memory") 1 256)"#,
            &format!(
                r#"(memory (export "memory") {pages} {}) (data (i32.const {DESCRIPTION_START}) "{}")"#,
                self.pages_max.max(pages),
                escaped(&data)
            ),
        );
        let list = "(func (export \"list-tools\") (result i32)\n    (i32.const 0))";
        let guest = replaced(
            &guest,
            list,
            &format!("(func (export \"list-tools\") (result i32) {} (i32.const {DESCRIPTION_START}))", self.list),
        );
        let (guest, wrapper) = match self.imports {
            None => (guest, include_str!("../../../host/src/drill/wrapper.wat").to_owned()),
            Some(imports) => with_imports(&guest, imports),
        };
        let guest = format!("{}{}", self.guest.put_into(&guest), self.beside);
        match wat::parse_str(replaced(&wrapper, ";;GUEST;;", &guest)) {
            Ok(bytes) => bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

fn with_imports(guest: &str, imports: Imports<'_>) -> (String, String) {
    let guest = cut_out(guest, r#"(import "host" "wait""#, r#"(func $describing (result i32)))"#, imports.module);
    let wrapper = include_str!("../../../host/src/drill/wrapper.wat");
    let begins = r#"(import "estop:drill/probe@0.1.0""#;
    let ends = r#"(export "describing" (func $describing)))"#;
    let Imports { component, host, .. } = imports;
    (guest, cut_out(wrapper, begins, ends, &format!("{component}\n(core instance $host {host})")))
}

/// `list<spec>` as the canonical ABI has it, from `DESCRIPTION_START`.
fn description(tools: &[Spec]) -> Vec<u8> {
    let mut texts_start = DESCRIPTION_START + HEADER_BYTES + SPEC_BYTES * tools.len();
    let mut texts = Vec::new();
    let mut data = [number(DESCRIPTION_START + HEADER_BYTES), number(tools.len())].concat();
    for tool in tools {
        let mut place = |text: &[u8]| {
            let at = [number(texts_start), number(text.len())].concat();
            texts.extend_from_slice(text);
            texts_start += text.len();
            at
        };
        let required = [&tool.name, &tool.version, &tool.description, &tool.input_schema];
        data.extend(required.into_iter().flat_map(|text| place(text)));
        data.extend(number(usize::from(tool.output_schema.is_some())));
        data.extend(tool.output_schema.as_ref().map_or_else(|| vec![0; 8], |schema| place(schema)));
        // No hints.
        data.extend(number(0));
    }
    data.extend(texts);
    data
}

fn number(number: usize) -> Vec<u8> {
    match u32::try_from(number) {
        Ok(number) => number.to_le_bytes().to_vec(),
        Err(error) => panic!("{number}: {error}"),
    }
}

fn escaped(data: &[u8]) -> String {
    data.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "the drill's texts have changed: {from}");
    text.replacen(from, to, 1)
}

fn cut_out(text: &str, begins: &str, ends: &str, instead: &str) -> String {
    let begin = text.find(begins).unwrap_or_else(|| panic!("the drill's texts have changed: {begins}"));
    let end = text.find(ends).unwrap_or_else(|| panic!("the drill's texts have changed: {ends}")) + ends.len();
    format!("{}{instead}{}", &text[..begin], &text[end..])
}
