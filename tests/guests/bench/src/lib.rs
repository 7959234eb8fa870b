//! Only computes: what being interruptible costs.

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much to compute.
#[derive(Deserialize, JsonSchema)]
pub struct Size {
    size: usize,
}

/// What came out.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Sum {
    sum: u64,
}

/// Count the primes below `size` by the sieve of Eratosthenes: a tiny inner loop.
#[estop_tool::tool(read_only, idempotent)]
pub fn sieve(input: Size) -> Result<Sum, ToolError> {
    let mut is_composite = vec![false; input.size];
    let mut primes = 0;
    for number in 2..input.size {
        if is_composite[number] {
            continue;
        }
        primes += 1;
        let mut multiple = number.saturating_mul(number);
        while multiple < input.size {
            is_composite[multiple] = true;
            multiple += number;
        }
    }
    Ok(Sum { sum: primes })
}

/// Mix a number `size` times by xorshift and FNV: a long chain of dependencies.
#[estop_tool::tool(read_only, idempotent)]
pub fn hash(input: Size) -> Result<Sum, ToolError> {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for _ in 0..input.size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state = state.wrapping_mul(0x0000_0100_0000_01b3);
    }
    Ok(Sum { sum: state })
}

estop_tool::export!(sieve, hash);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_primes() {
        assert_eq!(sieve(Size { size: 100 }), Ok(Sum { sum: 25 }));
        assert_eq!(sieve(Size { size: 0 }), Ok(Sum { sum: 0 }));
    }

    #[test]
    fn hashes_the_same_every_time() {
        assert_eq!(hash(Size { size: 1000 }), hash(Size { size: 1000 }));
    }
}
