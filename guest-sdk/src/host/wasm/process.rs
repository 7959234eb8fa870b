//! `estop:tool/process`.

use crate::bindings::estop::tool::process;
use crate::process::{Error, Exit, Source};

#[derive(Debug)]
pub(crate) struct Child(process::Child);

pub(crate) fn start_program(program: &str, arguments: &[String], stdin: &[u8]) -> Result<Child, Error> {
    let command = process::Command { program: program.into(), arguments: arguments.to_vec(), stdin: stdin.to_vec() };
    Ok(Child(process::start(&command)?))
}

impl Child {
    pub(crate) fn read(&mut self) -> Result<Option<(Source, Vec<u8>)>, Error> {
        let chunk = self.0.read()?;
        Ok(chunk.map(|chunk| match chunk.source {
            process::Source::Stdout => (Source::Stdout, chunk.data),
            process::Source::Stderr => (Source::Stderr, chunk.data),
        }))
    }

    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        Ok(match self.0.wait()? {
            process::Exit::Code(code) => Exit::Code(code),
            process::Exit::Signal(signal) => Exit::Signal(signal),
        })
    }

    pub(crate) fn terminate(&mut self) {
        self.0.terminate();
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }
}

impl From<process::Error> for Error {
    fn from(error: process::Error) -> Self {
        match error {
            process::Error::Denied(why) => Self::Denied(why),
            process::Error::Limit(why) => Self::Limit(why),
            process::Error::Failed(why) => Self::Failed(why),
        }
    }
}
