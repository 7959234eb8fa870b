//! The `estop` command.

fn main() -> std::process::ExitCode {
    estop::cli::main()
}
