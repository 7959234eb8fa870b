estop_tool::export!();
estop_tool::export!("transfer");

fn main() {}
