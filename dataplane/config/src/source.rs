//! The text of a configuration file, and what is wrong with it, line by line.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroize;

/// Largest configuration file, in octets.
pub const FILE_OCTETS_MAX: u64 = 16 << 20;
/// Mistakes reported in one run; further ones are only counted.
pub const PROBLEMS_MAX: usize = 50;

/// A configuration file that was read. It may hold secrets: it is overwritten when dropped, and
/// never printed.
pub struct Source {
    path: PathBuf,
    text: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file is larger than [`FILE_OCTETS_MAX`].
    #[error("{}: larger than {FILE_OCTETS_MAX} octets", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is wrong, in one or several places.
    #[error("{}", Listing { path, problems })]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Every mistake found.
        problems: Problems,
    },
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line it stands on, from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// The mistakes of one file, in the order of their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Source {
    /// Reads a file of at most [`FILE_OCTETS_MAX`] octets.
    ///
    /// # Errors
    /// The file cannot be read, is no UTF-8, or is too large.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(FILE_OCTETS_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_OCTETS_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), text })
    }

    /// A text that is already in memory; `path` is only what errors call it.
    #[must_use]
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// Where the text came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Turns the text into values.
    ///
    /// # Errors
    /// The text is no TOML, or has a key or a type that does not belong there.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let mut problems = Problems::new();
            problems.add(self, &error.span().unwrap_or(0..0), error.message());
            ConfigError::Wrong { path: self.path.clone(), problems }
        })
    }

    /// The value, if nothing was wrong.
    ///
    /// # Errors
    /// There were problems.
    pub fn finish<T>(&self, value: Option<T>, problems: Problems) -> Result<T, ConfigError> {
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(ConfigError::Wrong { path: self.path.clone(), problems }),
        }
    }

    /// The line, from 1, of each of these settings, named as in `[dataplane.outer] device`: of what
    /// encloses it where it is not there itself, since it has its default.
    #[must_use]
    pub fn lines_of(&self, settings: &[&str]) -> Vec<usize> {
        let Ok(file) = DeTable::parse(&self.text) else { return vec![1; settings.len()] };
        settings.iter().map(|setting| self.line_of(file.get_ref(), setting)).collect()
    }

    fn line_of(&self, file: &DeTable<'_>, setting: &str) -> usize {
        let words = setting.split(|c: char| "[]. ".contains(c)).filter(|word| !word.is_empty());
        let (mut table, mut line) = (file, 1);
        for word in words {
            let found = table.iter().find(|(name, _)| name.get_ref() == word);
            let Some((name, value)) = found else { break };
            line = self.line(name.span().start);
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        line
    }

    /// The line, from 1, that an offset stands on.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|octet| **octet == b'\n').count()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

impl Problems {
    /// No problems yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems, in the order of their lines.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// Notes a problem with what stands at `span`.
    pub fn add(&mut self, source: &Source, span: &Range<usize>, reason: impl Into<String>) {
        if self.list.len() == PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        let problem = Problem { line: source.line(span.start), reason: reason.into() };
        let at = self.list.partition_point(|other| other.line <= problem.line);
        self.list.insert(at, problem);
    }
}

/// The mistakes as `file:line: reason`, one a line, which editors can follow.
struct Listing<'a> {
    path: &'a Path,
    problems: &'a Problems,
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, reason }) in self.problems.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            // toml's own messages may have several lines; only the first says what is wrong.
            let reason = reason.trim_end().replace('\n', ", ");
            write!(formatter, "{separator}{}:{line}: {reason}", self.path.display())?;
        }
        if self.problems.more > 0 {
            write!(formatter, "\n{}: and {} more", self.path.display(), self.problems.more)?;
        }
        Ok(())
    }
}
