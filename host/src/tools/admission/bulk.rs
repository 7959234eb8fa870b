//! Cutting bulk memory operations into chunks, so that none of them keeps an interrupt waiting.
//!
//! Invariant: the rewritten component does exactly what the original does (the same bytes written, the same traps, and
//! nothing written before a trap), and at most [`super::chunks::CHUNK_BYTES`] are filled, copied or initialised between two epoch
//! checks. Everything that is not such an operation is copied byte for byte.
//!
//! Wasmtime checks the epoch once, before a bulk operation; 60 MiB take 40 ms. So each `memory.fill`, `memory.copy`
//! and `memory.init` becomes a call of a helper at the end of its module, where it shifts no index. The helper runs
//! the original instruction if the operands are small or out of bounds (then it traps as it always did), and otherwise
//! goes through the range in a loop, whose header is an epoch check. Only sizes that are known to be small stay.
//!
//! Bulk operations on tables stay too: the limits of the store keep tables so small that they take microseconds.

use std::collections::BTreeSet;
use std::ops::Range;

use wasm_encoder::{Encode, InstructionSink};
use wasmparser::{Chunk, FunctionBody, Operator, Parser, Payload, TypeRef};

use super::FEATURES;
use super::chunks::{HELPER_BYTES_MAX, HELPER_TYPE, Operation, helper, is_chunk};

/// Custom sections that speak of offsets in the code, which move.
const STALE_SECTIONS: [&str; 5] = [".debug_", "metadata.code.", "reloc.", "sourceMappingURL", "external_debug_info"];

/// A component that had bulk operations.
pub(super) struct Rewritten {
    pub(super) component: Vec<u8>,
    pub(super) operations: usize,
}

/// Replaces the bulk memory operations of a *valid* component; `None` if there are none to replace. In particular, a
/// component that was rewritten before is left as it is.
pub(super) fn rewrite(component: &[u8]) -> Result<Option<Rewritten>, Error> {
    let mut operations = 0;
    let component = rewrite_component(component, &mut operations)?;
    Ok(component.map(|component| Rewritten { component, operations }))
}

/// Cannot happen to a component that was validated.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Parse(#[from] wasmparser::Error),
    #[error("the component is not laid out as it was validated")]
    Layout,
}

/// Copies `source` with some ranges replaced, in ascending order.
struct Splice<'a> {
    source: &'a [u8],
    copied: usize,
    target: Vec<u8>,
}

impl<'a> Splice<'a> {
    fn new(source: &'a [u8]) -> Self {
        Splice { source, copied: 0, target: Vec::new() }
    }

    /// Copies up to `range` and steps over it; what replaces it is appended to the returned target.
    fn replace(&mut self, range: Range<usize>) -> Result<&mut Vec<u8>, Error> {
        let unchanged = self.source.get(self.copied..range.start).ok_or(Error::Layout)?;
        self.target.extend_from_slice(unchanged);
        self.copied = range.end;
        Ok(&mut self.target)
    }

    fn replace_section(&mut self, range: Range<usize>, id: u8, contents: &[u8]) -> Result<(), Error> {
        let target = self.replace(range)?;
        target.push(id);
        contents.encode(target);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, Error> {
        self.replace(self.source.len()..self.source.len())?;
        Ok(self.target)
    }
}

/// Calls `visit` with each section of a module or component and where it lies, with the byte for its kind; modules and
/// components inside are one section.
fn each_section<'a>(
    bytes: &'a [u8],
    mut visit: impl FnMut(Payload<'a>, Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).ok_or(Error::Layout)?;
        let Chunk::Parsed { consumed, payload } = parser.parse(rest, true)? else {
            return Err(Error::Layout);
        };
        let start = at;
        at = match &payload {
            Payload::End(_) => return Ok(()),
            Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } => {
                unchecked_range.end
            }
            _ => start.checked_add(consumed).ok_or(Error::Layout)?,
        };
        visit(payload, start..at)?;
    }
}

/// Goes into nested components: they are at most `COMPONENT_NESTING_LEVELS_MAX` deep.
fn rewrite_component(component: &[u8], operations: &mut usize) -> Result<Option<Vec<u8>>, Error> {
    const MODULE_SECTION: u8 = 1;
    const COMPONENT_SECTION: u8 = 4;
    let mut splice = Splice::new(component);
    each_section(component, |payload, place| {
        let (id, inner) = match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                let module = component.get(unchecked_range).ok_or(Error::Layout)?;
                (MODULE_SECTION, rewrite_module(module, operations)?)
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                let component = component.get(unchecked_range).ok_or(Error::Layout)?;
                (COMPONENT_SECTION, rewrite_component(component, operations)?)
            }
            _ => return Ok(()),
        };
        inner.map_or(Ok(()), |inner| splice.replace_section(place, id, &inner))
    })?;
    if splice.copied == 0 { Ok(None) } else { splice.finish().map(Some) }
}

/// One operation in a body, and where it lies in it.
struct Site {
    operation: Operation,
    place: Range<usize>,
}

/// The parts of a core module that the rewriting looks at. Places are relative to the module.
#[derive(Default)]
struct Module<'a> {
    types: Option<Section>,
    functions: Option<Section>,
    code: Range<usize>,
    imported_functions: u32,
    bodies: Vec<FunctionBody<'a>>,
    segment_bytes: Vec<u32>,
    stale: Vec<Range<usize>>,
}

/// A section that is a counted list.
struct Section {
    place: Range<usize>,
    items: Range<usize>,
    count: u32,
}

impl<'a> Module<'a> {
    fn read(module: &'a [u8]) -> Result<Self, Error> {
        let mut read = Module::default();
        each_section(module, |payload, place| {
            match payload {
                Payload::TypeSection(section) => {
                    let items = section.original_position()..section.range().end;
                    read.types = Some(Section { place, items, count: section.count() });
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        if let TypeRef::Func(_) = import?.ty {
                            read.imported_functions = add(read.imported_functions, 1)?;
                        }
                    }
                }
                Payload::FunctionSection(section) => {
                    let items = section.original_position()..section.range().end;
                    read.functions = Some(Section { place, items, count: section.count() });
                }
                Payload::CodeSectionStart { range, .. } => read.code = place.start..range.end,
                Payload::CodeSectionEntry(body) => read.bodies.push(body),
                Payload::DataSection(section) => {
                    for data in section {
                        let bytes = u32::try_from(data?.data.len()).map_err(|_| Error::Layout)?;
                        read.segment_bytes.push(bytes);
                    }
                }
                Payload::CustomSection(section) if is_stale(section.name()) => read.stale.push(place),
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }

    /// The operations in one body that have to go, in their order.
    fn sites(&self, body: &FunctionBody<'_>) -> Result<Vec<Site>, Error> {
        /// The first byte of every bulk operation, and of few other instructions.
        const PREFIX: u8 = 0xfc;
        let mut sites = Vec::new();
        if !body.as_bytes().contains(&PREFIX) {
            return Ok(sites);
        }
        let mut reader = body.get_operators_reader()?;
        // The length, where the instruction before pushed a constant.
        let mut constant_bytes = None;
        while !reader.eof() {
            let start = reader.original_position();
            let operator = reader.read()?;
            let operation = match operator {
                Operator::MemoryFill { .. } => Some(Operation::Fill),
                Operator::MemoryCopy { .. } => Some(Operation::Copy),
                Operator::MemoryInit { data_index: segment, .. } => {
                    let index = usize::try_from(segment).map_err(|_| Error::Layout)?;
                    let segment_bytes = *self.segment_bytes.get(index).ok_or(Error::Layout)?;
                    (!is_chunk(segment_bytes)).then_some(Operation::Init { segment, segment_bytes })
                }
                _ => None,
            };
            if let Some(operation) = operation
                && !constant_bytes.is_some_and(is_chunk)
            {
                let base = body.range().start;
                let place = start.checked_sub(base).zip(reader.original_position().checked_sub(base));
                let place = place.map(|(start, end)| start..end).ok_or(Error::Layout)?;
                sites.push(Site { operation, place });
            }
            constant_bytes = match operator {
                Operator::I32Const { value } => Some(value.cast_unsigned()),
                _ => None,
            };
        }
        // A helper holds the original instruction: it is the one place where that is safe.
        let is_helper = body.as_bytes().len() <= HELPER_BYTES_MAX
            && sites.first().is_some_and(|site| helper(site.operation) == body.as_bytes());
        if is_helper {
            sites.clear();
        }
        Ok(sites)
    }
}

fn is_stale(custom_section: &str) -> bool {
    STALE_SECTIONS.iter().any(|stale| custom_section.starts_with(stale))
}

fn add(a: u32, b: u32) -> Result<u32, Error> {
    a.checked_add(b).ok_or(Error::Layout)
}

fn rewrite_module(module: &[u8], operations: &mut usize) -> Result<Option<Vec<u8>>, Error> {
    const TYPE_SECTION: u8 = 1;
    const FUNCTION_SECTION: u8 = 3;
    const CODE_SECTION: u8 = 10;

    let read = Module::read(module)?;
    let sites = read.bodies.iter().map(|body| read.sites(body)).collect::<Result<Vec<_>, _>>()?;
    let helpers: BTreeSet<_> = sites.iter().flatten().map(|site| site.operation).collect();
    if helpers.is_empty() {
        return Ok(None);
    }
    let (Some(types), Some(functions)) = (&read.types, &read.functions) else {
        return Err(Error::Layout);
    };
    let helper_count = u32::try_from(helpers.len()).map_err(|_| Error::Layout)?;
    let first_helper = add(read.imported_functions, functions.count)?;

    let mut code = Vec::new();
    add(functions.count, helper_count)?.encode(&mut code);
    for (body, sites) in read.bodies.iter().zip(&sites) {
        let mut splice = Splice::new(body.as_bytes());
        for site in sites {
            let position = helpers.range(..site.operation).count();
            let helper = add(first_helper, u32::try_from(position).map_err(|_| Error::Layout)?)?;
            InstructionSink::new(splice.replace(site.place.clone())?).call(helper);
            *operations = operations.saturating_add(1);
        }
        splice.finish()?.encode(&mut code);
    }
    for operation in &helpers {
        helper(*operation).encode(&mut code);
    }

    let mut type_indices = Vec::new();
    for _ in &helpers {
        types.count.encode(&mut type_indices);
    }
    let mut replacements = vec![
        (types.place.clone(), Some((TYPE_SECTION, types.extended(module, 1, &HELPER_TYPE)?))),
        (functions.place.clone(), Some((FUNCTION_SECTION, functions.extended(module, helper_count, &type_indices)?))),
        (read.code.clone(), Some((CODE_SECTION, code))),
    ];
    replacements.extend(read.stale.into_iter().map(|place| (place, None)));
    replacements.sort_by_key(|(place, _)| place.start);
    let mut splice = Splice::new(module);
    for (place, section) in replacements {
        match section {
            Some((id, contents)) => splice.replace_section(place, id, &contents)?,
            None => splice.replace(place).map(|_| ())?,
        }
    }
    splice.finish().map(Some)
}

impl Section {
    /// The contents of this section with `more` items at its end.
    fn extended(&self, module: &[u8], more: u32, items: &[u8]) -> Result<Vec<u8>, Error> {
        let mut contents = Vec::new();
        add(self.count, more)?.encode(&mut contents);
        contents.extend_from_slice(module.get(self.items.clone()).ok_or(Error::Layout)?);
        contents.extend_from_slice(items);
        Ok(contents)
    }
}
