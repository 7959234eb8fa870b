//! The `estop` command: one file for each subcommand.
//!
//! Invariant: standard output carries what was asked for and nothing else; everything said to people goes to standard
//! error. Every way out has an exit code of `ExitCode`.

pub mod build;
mod call;
mod changes_shown;
mod drill;
mod exec;
mod exit_code;
mod grants;
mod halt;
mod home;
mod hosts;
mod inspect;
mod kill;
mod log;
mod new;
mod outcome_shown;
mod policy;
mod ps;
pub(crate) mod quantity;
mod retire;
mod run;
mod serve;
mod setup;
mod show;
mod signals;
mod state;
mod stop;
mod systemd;
mod watchdog;

use std::io::{IsTerminal, Write};
use std::process::ExitCode as ProcessExitCode;

use clap::{Parser, Subcommand};

pub use self::exit_code::ExitCode;

/// Runs AI-agent tools compiled to WebAssembly components, and can stop any of them at any moment.
///
/// In a crisis:  estop halt --all   stops everything that runs, and keeps it stopped until that halt is lifted.
/// Without arguments, estop shows what runs and what is halted.
///
/// To stop the call that this terminal runs, press Ctrl-C: it is stopped at once, what it had not committed is
/// discarded, and the command says so and exits with 10 (`estop run`) or 18 (`estop call`). Press it a second time to end
/// the process without waiting. Under `estop exec` Ctrl-C goes to the program: use `estop halt`.
#[derive(Parser)]
#[command(name = "estop", version, after_help = exit_code::HELP, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Halt(halt::Args),
    Stop(stop::Args),
    Ps(ps::Args),
    Halts(halt::ListArgs),
    #[command(alias = "reset")]
    Lift(halt::LiftArgs),
    Retire(retire::Args),
    Drill(drill::Args),
    Show(show::Args),
    Log(log::Args),
    Run(run::Args),
    Call(call::Args),
    Serve(serve::Args),
    Setup(setup::Args),
    Exec(exec::Args),
    State(state::Args),
    Inspect(inspect::Args),
    Policy(policy::Args),
    New(new::Args),
    Build(build::Args),
    #[command(hide = true)]
    ExecShim(exec::ShimArgs),
}

/// Runs the command with the arguments of this process.
pub fn main() -> ProcessExitCode {
    // First of all: this process may be one that compiles for another one.
    crate::compile_child();
    crate::process_supervisor();
    start_tracing();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // What cannot be printed cannot be told either.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Completed }.into();
        }
    };
    let Some(command) = cli.command else {
        return ps::status().unwrap_or_else(|error| exit_code::report(&error)).into();
    };
    let done = match command {
        Command::Halt(args) => halt::main(&args),
        Command::Stop(args) => stop::main(&args),
        Command::Ps(args) => ps::main(&args),
        Command::Halts(args) => halt::list(&args),
        Command::Lift(args) => halt::lift(&args),
        Command::Retire(args) => retire::main(&args),
        Command::Drill(args) => drill::main(args),
        Command::Show(args) => show::main(args),
        Command::Log(args) => log::main(args),
        Command::Run(args) => run::main(args),
        Command::Setup(args) => setup::main(&args),
        Command::Exec(args) => exec::main(&args),
        Command::ExecShim(args) => exec::shim(&args),
        Command::State(args) => state::main(args),
        Command::Inspect(args) => inspect::main(args),
        Command::Policy(args) => policy::main(&args),
        Command::Call(args) => call::main(args),
        Command::Serve(args) => serve::main(&args),
        Command::New(args) => new::main(args),
        Command::Build(args) => build::main(args),
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => exit_code::report(&error).into(),
    }
}

/// What a tool logs, and the entries of the host's log, for whoever sets `ESTOP_LOG`.
fn start_tracing() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("ESTOP_LOG").unwrap_or_else(|_| EnvFilter::new("error,estop::tool=off"));
    // Fails only if there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would panic where nobody reads what is said.
        .log_internal_errors(false)
        .try_init();
}

/// Prints what was asked for. A reader that has gone away is not an error of ours.
fn print(text: &str) -> anyhow::Result<()> {
    is_read(text).map(drop)
}

/// Prints, and answers whether there is still a reader.
fn is_read(text: &str) -> anyhow::Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::from(error).context("cannot write to standard output")),
        Ok(()) => Ok(true),
    }
}

/// JSON on one line. What drives a terminal is escaped where JSON itself would let it pass.
fn json_text(value: &serde_json::Value) -> String {
    escaped(&value.to_string())
}

/// The same for JSON that is text already.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if drives_a_terminal(character) {
            // Only within strings: JSON has none of these elsewhere, and all are in the basic plane.
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            text.push(character);
        }
    }
    text
}

/// Control characters, and those that reorder or hide what stands beside them.
fn drives_a_terminal(character: char) -> bool {
    let hides = matches!(
        character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    );
    character.is_control() || hides
}

/// Says something to people. That nobody listens is no reason to fail.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What a component says may not drive the terminal: control characters become blanks. Lines after the first are
/// indented, so that none can pass for one of ours.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\n    "),
            character if drives_a_terminal(character) => shown.push(' '),
            character => shown.push(character),
        }
    }
    shown
}

/// The same where there is room for one line.
fn printable_line(text: &str) -> String {
    printable(text).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
