//! Programs of a test: functions that give what the program would say.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Formatter};
use std::rc::Rc;

use super::with;
use crate::process::{Error, Exit, Output, Source};

type Program = Rc<dyn Fn(&[String], &[u8]) -> Output>;

/// By their names.
#[derive(Clone, Default)]
pub(crate) struct Programs(BTreeMap<String, Program>);

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Programs {
    pub(crate) fn add(&mut self, name: &str, program: impl Fn(&[String], &[u8]) -> Output + 'static) {
        self.0.insert(name.to_owned(), Rc::new(program));
    }
}

#[derive(Debug)]
pub(crate) struct Child {
    said: VecDeque<(Source, Vec<u8>)>,
    exit: Exit,
    is_killed: bool,
}

pub(crate) fn start_program(program: &str, arguments: &[String], stdin: &[u8]) -> Result<Child, Error> {
    // Not called while the world is borrowed: it may look at it.
    let found = with(|world| world.programs.0.get(program).cloned());
    let found = found.ok_or_else(|| Error::Denied(format!("the call is granted no program `{program}`")))?;
    let Output { exit, stdout, stderr } = found(arguments, stdin);
    let said = [(Source::Stdout, stdout), (Source::Stderr, stderr)];
    Ok(Child { said: said.into_iter().filter(|(_, said)| !said.is_empty()).collect(), exit, is_killed: false })
}

#[expect(clippy::unnecessary_wraps, reason = "as in a host, where each can fail")]
impl Child {
    pub(crate) fn read(&mut self) -> Result<Option<(Source, Vec<u8>)>, Error> {
        Ok(self.said.pop_front())
    }

    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        match self.is_killed {
            true => Err(Error::Failed("the program was killed, and nobody has seen how it ended".to_owned())),
            false => Ok(self.exit),
        }
    }

    pub(crate) fn terminate(&mut self) {
        self.said.clear();
        self.exit = Exit::Signal(15);
    }

    pub(crate) fn kill(&mut self) {
        self.said.clear();
        self.is_killed = true;
    }
}
