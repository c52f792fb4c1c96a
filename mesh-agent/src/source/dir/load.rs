//! From files to changes of the world. Owns: what is in force of each file, when a changed file is believed, and
//! which file holds an object that two of them name. Time comes in, so that tests need not wait.
//! Called by the directory's thread in `mod`.
//!
//! A file is believed when it has been still for [`SETTLE`]; one that shrank or went away for [`SETTLE_LOSS`], since
//! an editor truncates before it writes and removes before it renames. Nothing is applied while a file settles, so
//! that changes made together are seen together; a file that never settles holds the others up for no more than
//! [`HOLD_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::{self, Listing, ReadError, Stamp};
use super::parse::{self, Content};
use crate::compile::{self, Diagnostic, MeshSettings, Object, ObjectKey, Severity};
use crate::model::{Hits, Limit};
use crate::world::{Change, World};

/// How long a changed file must have been still.
pub(super) const SETTLE: Duration = Duration::from_millis(120);
/// The same for a file that lost something.
pub(super) const SETTLE_LOSS: Duration = Duration::from_millis(400);
/// How long files that settle may hold up those that have.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(600);
/// Shortest wait for a file that settles.
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// One file.
#[derive(Debug, Default)]
struct FileState {
    /// Of the content that was last read, in force or not.
    stamp: Option<Stamp>,
    /// What is in force.
    good: Content,
    /// Its length.
    good_bytes: u64,
    /// `good` was taken over without an error.
    sound: bool,
    /// Findings about a content that is not in force.
    refused: Vec<Diagnostic>,
    /// A new stamp (none = gone) and since when it has been seen.
    pending: Option<(Option<Stamp>, Instant)>,
}

/// What each touched object was before.
type Touched = BTreeMap<ObjectKey, Option<Object>>;

/// The directory as it was last understood.
#[derive(Debug)]
pub(super) struct Loader {
    directory: PathBuf,
    files: BTreeMap<Arc<str>, FileState>,
    /// Every object with the files that name it, the one in force first.
    claims: BTreeMap<ObjectKey, Vec<Arc<str>>>,
    /// Objects that several files name.
    duplicated: BTreeSet<ObjectKey>,
    /// Security objects whose definitions differed when the agent started: no earlier state says which one holds.
    ambiguous: BTreeSet<ObjectKey>,
    started: bool,
    pub(super) directory_error: Option<String>,
    hits: Hits,
}

/// What a refresh found.
#[derive(Debug, Default)]
pub(super) struct Refreshed {
    pub(super) changes: Vec<Change>,
    /// Something was read, refused or taken over.
    pub(super) looked: bool,
    /// When to look again, because something settles.
    pub(super) again: Option<Duration>,
}

impl Loader {
    pub(super) fn new(directory: PathBuf, hits: Hits) -> Self {
        Self {
            directory,
            files: BTreeMap::new(),
            claims: BTreeMap::new(),
            duplicated: BTreeSet::new(),
            ambiguous: BTreeSet::new(),
            started: false,
            directory_error: None,
            hits,
        }
    }

    /// The first load takes every file as it is.
    pub(super) fn start(&mut self, mesh: &MeshSettings) -> Result<Vec<Change>, ReadError> {
        let listing = files::list(&self.directory).inspect_err(|error| count(&self.hits, error))?;
        let names: Vec<Arc<str>> = listing.keys().map(Arc::clone).collect();
        for name in &names {
            self.files.insert(Arc::clone(name), FileState::default());
        }
        let changes = self.take(mesh, &listing, &names);
        for key in self.duplicated.clone() {
            let definitions: Vec<&Object> = self.definitions(&key).collect();
            if key.kind.is_security() && definitions.windows(2).any(|pair| pair.first() != pair.last()) {
                self.ambiguous.insert(key);
            }
        }
        self.started = true;
        // Only now is it known which of the objects are ambiguous.
        Ok(changes.into_iter().map(|change| self.disambiguate(change)).collect())
    }

    fn disambiguate(&self, change: Change) -> Change {
        match change {
            Change::Put(key, object) => {
                let object = self.in_force(&key).map_or(object, Box::new);
                Change::Put(key, object)
            }
            Change::Removed(key) => Change::Removed(key),
        }
    }

    /// Looks at the directory and takes over what has settled. `writing` says whether somebody has a file open for
    /// writing.
    pub(super) fn refresh(
        &mut self,
        mesh: &MeshSettings,
        now: Instant,
        writing: &dyn Fn(&str) -> bool,
    ) -> Refreshed {
        let listing = match files::list(&self.directory) {
            Ok(listing) => listing,
            Err(error) => {
                // A folder that cannot be read is not an empty folder.
                let looked = self.directory_error.is_none();
                if looked {
                    count(&self.hits, &error);
                }
                self.directory_error = Some(error.to_string());
                return Refreshed { looked, ..Refreshed::default() };
            }
        };
        let mut refreshed =
            Refreshed { looked: self.directory_error.take().is_some(), ..Refreshed::default() };
        refreshed.looked |= self.notice(&listing, now);
        let mut ready = Vec::new();
        let mut oldest = Duration::ZERO;
        for (name, file) in &self.files {
            let Some((stamp, since)) = file.pending else { continue };
            let still = now.saturating_duration_since(since);
            let need = file.settle(stamp);
            if still < need || writing(name) {
                let left = need.saturating_sub(still).max(SETTLE_STEP);
                refreshed.again = Some(refreshed.again.map_or(left, |other| other.min(left)));
            } else {
                ready.push(Arc::clone(name));
                oldest = oldest.max(still);
            }
        }
        if !ready.is_empty() && (refreshed.again.is_none() || oldest >= HOLD_MAX) {
            refreshed.changes = self.take(mesh, &listing, &ready);
            refreshed.looked = true;
        }
        if refreshed.again.is_none() && self.files.values().any(|file| file.pending.is_some()) {
            refreshed.again = Some(SETTLE);
        }
        refreshed
    }

    /// Notes every file whose stamp is another than the one last read; true if a finding is new.
    fn notice(&mut self, listing: &Listing, now: Instant) -> bool {
        let mut found = false;
        for name in listing.keys().filter(|name| !self.files.contains_key(*name)).cloned().collect::<Vec<_>>()
        {
            self.files.insert(name, FileState::default());
        }
        for (name, file) in &mut self.files {
            let stamp = match listing.get(name) {
                Some(Ok(stamp)) => Some(*stamp),
                None => None,
                // Listed but out of reach, such as a link to nowhere: an error, never a deletion.
                Some(Err(error)) => {
                    let finding = unreadable(name, error);
                    found |= file.refused.first() != Some(&finding);
                    *file = FileState {
                        refused: vec![finding],
                        stamp: None,
                        pending: None,
                        ..std::mem::take(file)
                    };
                    continue;
                }
            };
            if stamp.is_some() && stamp == file.stamp {
                file.pending = None;
            } else if file.pending.is_none_or(|(seen, _)| seen != stamp) {
                file.pending = Some((stamp, now));
            }
        }
        found
    }

    /// Takes these files over, in the order of their names.
    fn take(&mut self, mesh: &MeshSettings, listing: &Listing, names: &[Arc<str>]) -> Vec<Change> {
        let mut touched = Touched::new();
        for name in names {
            match listing.get(name) {
                Some(Ok(stamp)) => self.read(mesh, name, *stamp, &mut touched),
                Some(Err(error)) => {
                    if let Some(file) = self.files.get_mut(name) {
                        file.refused = vec![unreadable(name, error)];
                    }
                }
                None => {
                    self.replace(name, Content::default(), &mut touched);
                    self.files.remove(name);
                }
            }
        }
        let changes = touched.into_iter().filter_map(|(key, before)| match self.in_force(&key) {
            Some(object) if before.as_ref() != Some(&object) => Some(Change::Put(key, Box::new(object))),
            None if before.is_some() => Some(Change::Removed(key)),
            Some(_) | None => None,
        });
        changes.collect()
    }

    fn read(&mut self, mesh: &MeshSettings, name: &Arc<str>, stamp: Stamp, touched: &mut Touched) {
        let text = files::text(&self.directory, name, stamp);
        let Some(file) = self.files.get_mut(name) else { return };
        let text = match text {
            Ok(text) => text,
            // Its stamp is already another: the next look starts over.
            Err(ReadError::Moving) => return,
            Err(error) => {
                count(&self.hits, &error);
                file.refused = vec![unreadable(name, &error)];
                file.stamp = Some(stamp);
                file.pending = None;
                return;
            }
        };
        file.stamp = Some(stamp);
        file.pending = None;
        let mut content = parse::file(mesh, name, &text, !self.started);
        let has_last_good = file.sound && !file.good.objects.is_empty();
        if self.started && content.documents == 0 && !file.good.objects.is_empty() {
            file.refused = vec![emptied(name)];
            return;
        }
        if self.started && !content.sound() && (has_last_good || content.unreadable) {
            let effect = if has_last_good { LAST_GOOD } else { "nothing of this file is in force" };
            content.diagnostics.iter_mut().for_each(|finding| effect.clone_into(&mut finding.effect));
            file.refused = content.diagnostics;
            return;
        }
        file.refused.clear();
        file.sound = content.sound();
        file.good_bytes = stamp.bytes;
        self.replace(name, content, touched);
    }

    /// Puts a file's content in force, as far as no other file had its objects before.
    fn replace(&mut self, name: &Arc<str>, content: Content, touched: &mut Touched) {
        let old: Vec<ObjectKey> =
            self.files.get(name).map(|file| file.good.objects.keys().cloned().collect()).unwrap_or_default();
        for key in old.iter().chain(content.objects.keys()) {
            if !touched.contains_key(key) {
                touched.insert(key.clone(), self.in_force(key));
            }
        }
        for key in old.iter().filter(|key| !content.objects.contains_key(*key)) {
            if let Some(files) = self.claims.get_mut(key) {
                files.retain(|file| file != name);
                if files.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        for key in content.objects.keys() {
            let files = self.claims.entry(key.clone()).or_default();
            if !files.contains(name) {
                files.push(Arc::clone(name));
            }
        }
        for key in old.iter().chain(content.objects.keys()) {
            if self.claims.get(key).is_some_and(|files| files.len() > 1) {
                self.duplicated.insert(key.clone());
            } else {
                self.duplicated.remove(key);
                self.ambiguous.remove(key);
            }
        }
        if let Some(file) = self.files.get_mut(name) {
            file.good = content;
        }
    }

    fn definitions<'a>(&'a self, key: &'a ObjectKey) -> impl Iterator<Item = &'a Object> {
        let files = self.claims.get(key).into_iter().flatten();
        files.filter_map(|file| Some(&self.files.get(file)?.good.objects.get(key)?.1))
    }

    fn in_force(&self, key: &ObjectKey) -> Option<Object> {
        let object = self.definitions(key).next()?;
        if self.ambiguous.contains(key) {
            return Some(compile::ambiguous(object, "two files define the object differently"));
        }
        Some(object.clone())
    }

    /// `FILE:DOCUMENT` of the definition in force.
    fn source(&self, key: &ObjectKey) -> String {
        self.claims
            .get(key)
            .and_then(|files| files.first())
            .map_or_else(String::new, |file| self.place(file, key))
    }

    fn place(&self, file: &Arc<str>, key: &ObjectKey) -> String {
        let found = self.files.get(file).and_then(|state| state.good.objects.get(key));
        format!("{file}:{}", found.map_or(0, |(document, _)| *document))
    }

    /// Everything that is wrong now, worst first.
    pub(super) fn diagnostics(&self, world: &World) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for file in self.files.values() {
            found.extend(file.good.diagnostics.iter().chain(&file.refused).cloned());
        }
        for key in &self.duplicated {
            let places: Vec<String> =
                self.claims.get(key).into_iter().flatten().map(|file| self.place(file, key)).collect();
            let effect = match places.first() {
                _ if self.ambiguous.contains(key) => {
                    "it fails closed, as neither was in force before".to_owned()
                }
                Some(first) => format!("the one in {first} is in force"),
                None => String::new(),
            };
            found.push(Diagnostic {
                severity: Severity::Error,
                object: key.to_string(),
                source: places.first().cloned().unwrap_or_default(),
                field: "metadata.name".to_owned(),
                message: format!("is defined in {}", places.join(" and ")),
                effect,
                remedy: "keep one of them".to_owned(),
            });
        }
        found.extend(world.check(|key| self.source(key)));
        found.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        found
    }

    /// Whether something newer than what is in force was refused.
    pub(super) fn stale(&self) -> bool {
        self.directory_error.is_some() || self.files.values().any(|file| !file.refused.is_empty())
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.files.len(), self.claims.len())
    }
}

impl FileState {
    fn settle(&self, stamp: Option<Stamp>) -> Duration {
        // Against what is in force, not what was last seen: an emptied file that grows is still a loss.
        let loses = stamp.is_none_or(|new| new.bytes < self.good_bytes);
        if loses { SETTLE_LOSS } else { SETTLE }
    }
}

/// Counts what was not read because it is over a limit.
fn count(hits: &Hits, error: &ReadError) {
    match error {
        ReadError::TooLarge => hits.hit(Limit::ManifestBytes),
        ReadError::TooManyFiles { .. } => hits.hit(Limit::ManifestFiles),
        _ => {}
    }
}

const LAST_GOOD: &str = "the file's last good version stays in force";

fn unreadable(name: &str, error: &ReadError) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        object: "file".to_owned(),
        source: name.to_owned(),
        field: String::new(),
        message: format!("cannot be read: {error}"),
        effect: LAST_GOOD.to_owned(),
        remedy: "it is read again as soon as it changes".to_owned(),
    }
}

fn emptied(name: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        object: "file".to_owned(),
        source: name.to_owned(),
        field: String::new(),
        message: "is empty, and held objects before".to_owned(),
        effect: LAST_GOOD.to_owned(),
        remedy: "remove the file if its objects are to go".to_owned(),
    }
}
