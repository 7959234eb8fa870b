estop_tool::export!(nowhere, crate::nothing::at_all);

fn main() {}
