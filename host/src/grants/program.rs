//! Programs of the machine that a tool may start.
//!
//! Invariant: what is started is a file that was granted, with arguments that one of its patterns admits, and with no
//! environment but the grant's.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use super::GrantError;
use super::ambient::wrong_variable;

/// Stands for any number of further arguments, at the end of a pattern.
const REST: &str = "**";
/// Processor time cannot be bounded to less.
const CPU_MIN: Duration = Duration::from_secs(1);

/// A program of the machine, for a guest that uses `estop:tool/process`. What it does cannot be taken back: it is outside of
/// the call's transaction, and an effect of the call.
#[derive(Clone, PartialEq, Eq)]
pub struct ProgramGrant {
    path: PathBuf,
    arguments: Vec<Vec<String>>,
    environment: BTreeMap<String, String>,
    limits: ProgramLimits,
    accepts_unverified: bool,
}

/// Bounds on one program that a tool has started, with everything that it starts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramLimits {
    /// From its start to its end; then it is killed.
    pub time: Duration,
    /// Processor time of each process, in whole seconds; then the kernel kills it.
    pub cpu: Duration,
    /// Address space of each process (bytes). A program that asks for more gets none.
    pub memory_bytes_max: u64,
    /// Processes at one time; also threads, where the kernel counts (see `docs/programs.md`).
    pub processes_max: u32,
    /// Length of a file that it writes (bytes).
    pub file_bytes_max: u64,
    /// What it may write to its standard output and error together (bytes); then it is killed.
    pub output_bytes_max: u64,
}

impl Default for ProgramLimits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            cpu: Duration::from_secs(60),
            memory_bytes_max: 2 << 30,
            processes_max: 64,
            file_bytes_max: 256 << 20,
            output_bytes_max: 16 << 20,
        }
    }
}

impl ProgramGrant {
    /// A program by its absolute path, with any arguments.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            limits: ProgramLimits::default(),
            accepts_unverified: false,
        }
    }

    /// Admits arguments like these: a glob pattern for each one, of which the last may be `**` for any number of further
    /// ones. May be called several times; arguments are admitted that fit one of the patterns. A pattern such as `*` also
    /// fits what the program takes for an option.
    #[must_use]
    pub fn arguments<T: Into<String>>(mut self, patterns: impl IntoIterator<Item = T>) -> Self {
        self.arguments.push(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// A variable of its environment, which is otherwise `PATH`, and `HOME` and `TMPDIR` for its private folder.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// How much one run of it may use.
    #[must_use]
    pub fn limits(mut self, limits: ProgramLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts it also where nobody could verify that everything it has started is gone. It is refused there otherwise.
    #[must_use]
    pub fn accept_unverified(mut self) -> Self {
        self.accepts_unverified = true;
        self
    }
}

/// The values of variables may be secrets.
impl fmt::Debug for ProgramGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, arguments, environment, limits, accepts_unverified } = self;
        let names: Vec<_> = environment.keys().collect();
        f.debug_struct("ProgramGrant")
            .field("path", path)
            .field("arguments", arguments)
            .field("environment", &names)
            .field("limits", limits)
            .field("accepts_unverified", accepts_unverified)
            .finish()
    }
}

/// A granted program that was there when the host was built.
#[derive(Debug)]
pub(crate) struct Program {
    grant: ProgramGrant,
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    each: Vec<GlobMatcher>,
    has_rest: bool,
}

impl Program {
    pub(crate) fn open(grant: ProgramGrant) -> Result<Self, GrantError> {
        let wrong = |why: String| GrantError::Program { path: grant.path.clone(), why };
        if !grant.path.is_absolute() {
            return Err(wrong("a program is granted by its absolute path".into()));
        }
        let found = std::fs::metadata(&grant.path).map_err(|error| wrong(error.to_string()))?;
        if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
            return Err(wrong("it is no file that can be executed".into()));
        }
        let limits = &grant.limits;
        let too_little = [
            ("time", limits.time.is_zero()),
            ("cpu (whole seconds)", limits.cpu < CPU_MIN),
            ("memory", limits.memory_bytes_max == 0),
            ("processes_max", limits.processes_max == 0),
        ];
        if let Some((limit, _)) = too_little.into_iter().find(|(_, is_too_little)| *is_too_little) {
            return Err(wrong(format!("it could not run with so little {limit}")));
        }
        if let Some(name) = wrong_variable(&grant.environment) {
            return Err(wrong(GrantError::Variable(name.to_owned()).to_string()));
        }
        let patterns = grant.arguments.iter().map(|patterns| Pattern::new(patterns)).collect::<Result<_, _>>();
        let patterns = patterns.map_err(wrong)?;
        Ok(Self { grant, patterns })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.grant.path
    }

    pub(crate) fn name(&self) -> String {
        self.grant.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn limits(&self) -> &ProgramLimits {
        &self.grant.limits
    }

    pub(crate) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.grant.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn accepts_unverified(&self) -> bool {
        self.grant.accepts_unverified
    }

    /// Whether both were granted in the same words.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.grant == other.grant
    }

    /// Whether a guest means this one: by its path, or by the last part of that.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.grant.path == Path::new(name) || self.grant.path.file_name().is_some_and(|last| *last == *name)
    }

    pub(crate) fn admits(&self, arguments: &[String]) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.fits(arguments))
    }

    /// For whoever looks at a call.
    pub(crate) fn in_words(&self) -> String {
        let all: Vec<String> = self.grant.arguments.iter().map(|patterns| patterns.join(" ")).collect();
        let arguments = if all.is_empty() { "any arguments".into() } else { all.join(" | ") };
        format!("run {} with {arguments}", self.grant.path.display())
    }
}

impl Pattern {
    fn new(patterns: &[String]) -> Result<Self, String> {
        let has_rest = patterns.last().is_some_and(|last| last == REST);
        let each = &patterns[..patterns.len() - usize::from(has_rest)];
        if each.iter().any(|pattern| pattern == REST) {
            return Err(format!("`{REST}` stands for all further arguments, so nothing comes after it"));
        }
        let compiled = each.iter().map(|pattern| {
            let glob = GlobBuilder::new(pattern).literal_separator(false).backslash_escape(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| format!("the pattern of an argument: {error}"))
        });
        Ok(Self { each: compiled.collect::<Result<_, _>>()?, has_rest })
    }

    fn fits(&self, arguments: &[String]) -> bool {
        let is_long_enough = match self.has_rest {
            true => arguments.len() >= self.each.len(),
            false => arguments.len() == self.each.len(),
        };
        is_long_enough && self.each.iter().zip(arguments).all(|(pattern, argument)| pattern.is_match(argument))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn arguments_fit_a_pattern_as_a_whole() {
        let git = ProgramGrant::new("/bin/sh").arguments(["status"]).arguments(["log", "-[0-9]", "**"]);
        let git = Program::open(git.arguments(["show", "*.rs"])).unwrap();
        for fits in [&["status"][..], &["log", "-3"], &["log", "-3", "--stat", ".."], &["show", "a/b.rs"]] {
            assert!(git.admits(&words(fits)), "{fits:?}");
        }
        for fits_not in
            [&[][..], &["status", "x"], &["STATUS"], &["log"], &["log", "-33"], &["show", "a.rs\n/etc"], &["push"]]
        {
            assert!(!git.admits(&words(fits_not)), "{fits_not:?}");
        }
        assert!(Program::open(ProgramGrant::new("/bin/sh")).unwrap().admits(&words(&["-c", "anything"])));
        let none: [&str; 0] = [];
        let bare = Program::open(ProgramGrant::new("/bin/sh").arguments(none)).unwrap();
        assert!(bare.admits(&[]) && !bare.admits(&words(&["x"])));
    }

    #[test]
    fn what_cannot_be_granted_is_refused() {
        let refused = |grant: ProgramGrant| Program::open(grant).unwrap_err().to_string();
        assert!(refused(ProgramGrant::new("sh")).contains("absolute"));
        assert!(refused(ProgramGrant::new("/bin")).contains("no file"));
        assert!(refused(ProgramGrant::new("/etc/passwd")).contains("no file"));
        assert!(refused(ProgramGrant::new("/nowhere")).contains("No such file"));
        assert!(refused(ProgramGrant::new("/bin/sh").arguments(["**", "x"])).contains("nothing comes after"));
        assert!(refused(ProgramGrant::new("/bin/sh").arguments(["[a"])).contains("pattern"));
        assert!(refused(ProgramGrant::new("/bin/sh").environment("A=B", "x")).contains("no variable"));
        assert!(refused(ProgramGrant::new("/bin/sh").environment("A", "x\0")).contains("no variable"));
        let limits = ProgramLimits { cpu: Duration::from_millis(10), ..ProgramLimits::default() };
        assert!(refused(ProgramGrant::new("/bin/sh").limits(limits)).contains("so little cpu"));
    }

    #[test]
    fn the_values_of_variables_are_not_shown() {
        let shown = format!("{:?}", ProgramGrant::new("/bin/sh").environment("TOKEN", "hunter2"));
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
