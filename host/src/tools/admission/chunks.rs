//! The helper functions that go through a range of memory in chunks.
//!
//! Invariant: a helper does what its operation does for every operand. Small and out-of-bounds operands are left to
//! the original instruction, which then copies at most a chunk, or traps before it writes.

use wasm_encoder::{BlockType, Function, InstructionSink};

/// The most that is written between two epoch checks.
pub(super) const CHUNK_BYTES: i32 = 64 << 10;

/// What a helper does. The order is the order of the helpers in a module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Fill,
    Copy,
    /// From a data segment of this length; those of at most a chunk need no helper.
    Init {
        segment: u32,
        segment_bytes: u32,
    },
}

/// (func (param i32 i32 i32)), encoded.
pub(super) const HELPER_TYPE: [u8; 6] = [0x60, 3, 0x7f, 0x7f, 0x7f, 0];

/// No helper is longer: a longer function cannot be one.
pub(super) const HELPER_BYTES_MAX: usize = 256;

/// The parameters, in the order of the operands of all three instructions.
const TARGET: u32 = 0;
/// An offset, or the value to fill with.
const SOURCE: u32 = 1;
const LENGTH: u32 = 2;

const MEMORY: u32 = 0;

pub(super) fn is_chunk(bytes: u32) -> bool {
    bytes <= CHUNK_BYTES.cast_unsigned()
}

/// The body of the helper for `operation`, as it stands in the code section.
pub(super) fn helper(operation: Operation) -> Vec<u8> {
    let mut function = Function::new([]);
    let mut code = function.instructions();

    // Small, or past an end (reckoned in 64 bits, where it cannot wrap): what the instruction does is right as it is.
    code.local_get(LENGTH).i32_const(CHUNK_BYTES).i32_le_u();
    range_end(&mut code, TARGET);
    memory_bytes(&mut code);
    code.i64_gt_u().i32_or();
    match operation {
        Operation::Fill => {}
        Operation::Copy => {
            range_end(&mut code, SOURCE);
            memory_bytes(&mut code);
            code.i64_gt_u().i32_or();
        }
        Operation::Init { segment_bytes, .. } => {
            range_end(&mut code, SOURCE);
            code.i64_const(segment_bytes.into()).i64_gt_u().i32_or();
        }
    }
    code.if_(BlockType::Empty);
    operands(&mut code);
    instruction(&mut code, operation).return_().end();

    match operation {
        Operation::Fill => {
            forward(&mut code, operation, &[TARGET]);
        }
        // A segment that was dropped has length 0: then the first chunk traps, before anything is written.
        Operation::Init { .. } => {
            forward(&mut code, operation, &[TARGET, SOURCE]);
        }
        // The ranges may overlap: no chunk may overwrite what a later one reads.
        Operation::Copy => {
            code.local_get(TARGET).local_get(SOURCE).i32_le_u().if_(BlockType::Empty);
            forward(&mut code, operation, &[TARGET, SOURCE]);
            code.else_();
            backward(&mut code, operation);
            code.end();
        }
    }
    // What is left: at most a chunk, and never nothing.
    operands(&mut code);
    instruction(&mut code, operation).end();
    function.into_raw_body()
}

/// Chunks from the front, while more than one is left.
fn forward(code: &mut InstructionSink<'_>, operation: Operation, cursors: &[u32]) {
    code.loop_(BlockType::Empty);
    code.local_get(TARGET).local_get(SOURCE).i32_const(CHUNK_BYTES);
    instruction(code, operation);
    for cursor in cursors {
        code.local_get(*cursor).i32_const(CHUNK_BYTES).i32_add().local_set(*cursor);
    }
    code.local_get(LENGTH).i32_const(CHUNK_BYTES).i32_sub().local_tee(LENGTH);
    code.i32_const(CHUNK_BYTES).i32_gt_u().br_if(0).end();
}

/// Chunks from the back, while more than one is left.
fn backward(code: &mut InstructionSink<'_>, operation: Operation) {
    code.loop_(BlockType::Empty);
    code.local_get(LENGTH).i32_const(CHUNK_BYTES).i32_sub().local_set(LENGTH);
    for cursor in [TARGET, SOURCE] {
        code.local_get(cursor).local_get(LENGTH).i32_add();
    }
    code.i32_const(CHUNK_BYTES);
    instruction(code, operation);
    code.local_get(LENGTH).i32_const(CHUNK_BYTES).i32_gt_u().br_if(0).end();
}

fn operands(code: &mut InstructionSink<'_>) {
    code.local_get(TARGET).local_get(SOURCE).local_get(LENGTH);
}

fn instruction<'a, 'b>(code: &'b mut InstructionSink<'a>, operation: Operation) -> &'b mut InstructionSink<'a> {
    match operation {
        Operation::Fill => code.memory_fill(MEMORY),
        Operation::Copy => code.memory_copy(MEMORY, MEMORY),
        Operation::Init { segment, .. } => code.memory_init(MEMORY, segment),
    }
}

/// Pushes where the range of `LENGTH` bytes from `start` ends, in 64 bits.
fn range_end(code: &mut InstructionSink<'_>, start: u32) {
    code.local_get(start).i64_extend_i32_u().local_get(LENGTH).i64_extend_i32_u().i64_add();
}

fn memory_bytes(code: &mut InstructionSink<'_>) {
    const PAGE_BITS: i64 = 16;
    code.memory_size(MEMORY).i64_extend_i32_u().i64_const(PAGE_BITS).i64_shl();
}
