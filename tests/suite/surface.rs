//! The library's public surface, read from its sources: what a user can name from the crate's root.
//!
//! An item is a function, method, type, trait, function of a trait, constant, macro, module or re-export of another crate's item
//! that can be reached through public modules and re-exports, each once, under its shortest path outside of the prelude. Not
//! counted are fields, variants and implementations of traits, which belong to the types; what is `#[doc(hidden)]`, which the program,
//! the kernel and these tests use and which may change without notice; and what macros define: that is `evcxr_display`, the
//! method by which a notebook shows a value, which every type that can be shown has.
//!
//! `tests/api.txt` lists them, so that a change of the surface is seen in review.

use crate::support::root;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::{Attribute, Ident, ImplItem, Item, TraitItem, UseTree, Visibility};

/// A module's items by name, and what it re-exports.
#[derive(Default)]
struct Module {
    items: BTreeMap<String, Vec<Found>>,
    uses: Vec<Use>,
    globs: Vec<(bool, Vec<String>)>,
}

/// `pub use path as name`, or a private `use`, which resolves names of this module only.
struct Use {
    public: bool,
    name: String,
    path: Vec<String>,
}

#[derive(Clone, PartialEq)]
enum Kind {
    Module,
    Type,
    Other(&'static str),
}

#[derive(Clone)]
struct Found {
    kind: Kind,
    public: bool,
    /// Functions of a trait.
    inner: Vec<String>,
}

/// All modules of a crate by path, and the public methods of its types as (module of the `impl`, type, method).
#[derive(Default)]
pub struct Crate {
    modules: BTreeMap<Vec<String>, Module>,
    methods: Vec<(Vec<String>, Vec<String>, String)>,
}

fn of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test"))
}

fn hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut found = false;
        if attribute.path().is_ident("doc") {
            let _ = attribute.parse_nested_meta(|meta| {
                found |= meta.path.is_ident("hidden");
                Ok(())
            });
        }
        found
    })
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The path in `#[path = "..."]`, also within `cfg_attr`: then the file exists beside the one by name.
fn own_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find(|attribute| attribute.path().is_ident("path")).and_then(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) => match &pair.value {
            syn::Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

fn uses(tree: &UseTree, prefix: &mut Vec<String>, public: bool, module: &mut Module) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            uses(&path.tree, prefix, public, module);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            module.uses.push(Use { public, name: prefix.last().cloned().unwrap_or_default(), path: prefix.clone() });
        }
        UseTree::Name(name) => {
            let path = prefix.iter().cloned().chain([name.ident.to_string()]).collect();
            module.uses.push(Use { public, name: name.ident.to_string(), path });
        }
        UseTree::Rename(rename) => {
            let path = prefix.iter().cloned().chain([rename.ident.to_string()]).collect();
            module.uses.push(Use { public, name: rename.rename.to_string(), path });
        }
        UseTree::Glob(_) => module.globs.push((public, prefix.clone())),
        UseTree::Group(group) => group.items.iter().for_each(|item| uses(item, prefix, public, module)),
    }
}

impl Crate {
    /// Reads the crate whose root is `file`.
    pub fn read(file: &Path) -> Self {
        let mut found = Self::default();
        found.file(file, &file.with_file_name(""), Vec::new());
        found
    }

    fn file(&mut self, file: &Path, folder: &Path, path: Vec<String>) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.items(&parsed.items, folder, path);
    }

    fn items(&mut self, items: &[Item], folder: &Path, path: Vec<String>) {
        let mut module = Module::default();
        for item in items {
            let mut add = |name: &Ident, attributes: &[Attribute], visibility: &Visibility, kind: Kind, inner: Vec<String>| {
                // What is hidden keeps its place: a type's methods are found in other modules too.
                let found = Found { kind, public: public(visibility) && !hidden(attributes), inner };
                module.items.entry(name.to_string()).or_default().push(found);
            };
            match item {
                Item::Fn(item) => add(&item.sig.ident, &item.attrs, &item.vis, Kind::Other("fn"), vec![]),
                Item::Struct(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Type, vec![]),
                Item::Enum(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Type, vec![]),
                Item::Union(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Type, vec![]),
                Item::Type(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Other("type"), vec![]),
                Item::Const(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Other("const"), vec![]),
                Item::Static(item) => add(&item.ident, &item.attrs, &item.vis, Kind::Other("static"), vec![]),
                Item::Trait(item) => {
                    let named = |part: &TraitItem| match part {
                        TraitItem::Fn(function) if !hidden(&function.attrs) => Some(function.sig.ident.to_string()),
                        _ => None,
                    };
                    add(&item.ident, &item.attrs, &item.vis, Kind::Other("trait"), item.items.iter().filter_map(named).collect());
                }
                Item::Macro(item) if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) => {
                    let found = Found { kind: Kind::Other("macro"), public: true, inner: vec![] };
                    let name = item.ident.as_ref().map(ToString::to_string).unwrap_or_default();
                    if !hidden(&item.attrs) {
                        self.modules.entry(vec![]).or_default().items.entry(name).or_default().push(found);
                    }
                }
                Item::Use(item) => uses(&item.tree, &mut Vec::new(), public(&item.vis) && !hidden(&item.attrs), &mut module),
                Item::Mod(item) if !of_tests(&item.attrs) => {
                    add(&item.ident, &item.attrs, &item.vis, Kind::Module, vec![]);
                    let name = item.ident.to_string();
                    let inside: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
                    if let Some((_, items)) = &item.content {
                        self.items(items, &folder.join(&name), inside);
                    } else {
                        let (file, below) = source(folder, &name, own_path(&item.attrs));
                        self.file(&file, &below, inside);
                    }
                }
                Item::Impl(item) if item.trait_.is_none() => {
                    if let syn::Type::Path(owner) = &*item.self_ty {
                        let owner: Vec<String> = owner.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
                        for part in &item.items {
                            let (name, attributes, visibility) = match part {
                                ImplItem::Fn(part) => (&part.sig.ident, &part.attrs, &part.vis),
                                ImplItem::Const(part) => (&part.ident, &part.attrs, &part.vis),
                                _ => continue,
                            };
                            if public(visibility) && !hidden(attributes) {
                                self.methods.push((path.clone(), owner.clone(), name.to_string()));
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        let all = self.modules.entry(path).or_default();
        all.items.extend(module.items);
        all.uses.extend(module.uses);
        all.globs.extend(module.globs);
    }

    /// Where `path`, written in `module`, is defined: (module, name). None for what other crates define.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<(Vec<String>, String)> {
        if depth > 16 {
            return None;
        }
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.to_vec(), &path[1..]),
            "super" => (module[..module.len().checked_sub(1)?].to_vec(), &path[1..]),
            _ => (module.to_vec(), path),
        };
        while rest.first().is_some_and(|name| name == "super") {
            at.pop();
            rest = &rest[1..];
        }
        let name = rest.first()?;
        let here = self.modules.get(&at)?;
        // A function may have the name of the private module that it lies in: the re-export is meant.
        let own = here.items.get(name).is_some_and(|found| rest.len() > 1 || found.iter().any(|found| found.kind != Kind::Module || found.public));
        let target = if own {
            (at.clone(), name.clone())
        } else if let Some(found) = here.uses.iter().find(|found| &found.name == name && found.path != [name.clone()]) {
            self.resolve(&at, &found.path, depth + 1)?
        } else {
            here.globs.iter().find_map(|(_, glob)| {
                let (mut inside, last) = self.resolve(&at, glob, depth + 1)?;
                inside.push(last);
                self.resolve(&inside, &[name.clone()], depth + 1)
            })?
        };
        if rest.len() == 1 {
            return Some(target);
        }
        let mut inside = target.0;
        inside.push(target.1);
        self.resolve(&inside, &rest[1..], depth + 1)
    }

    /// Every public item, one line each, sorted.
    pub fn listing(&self) -> Vec<String> {
        let mut shortest: BTreeMap<(Vec<String>, String), Vec<String>> = BTreeMap::new();
        let mut foreign = BTreeSet::new();
        let mut open = vec![(Vec::<String>::new(), Vec::<String>::new())];
        let mut seen = BTreeSet::new();
        while let Some((module, shown)) = open.pop() {
            if !seen.insert((module.clone(), shown.clone())) || shown.len() > 6 {
                continue;
            }
            let here = &self.modules[&module];
            let mut names: Vec<(String, Option<(Vec<String>, String)>)> = Vec::new();
            for (name, found) in &here.items {
                if found.iter().any(|found| found.public) {
                    names.push((name.clone(), Some((module.clone(), name.clone()))));
                }
            }
            for found in here.uses.iter().filter(|found| found.public) {
                names.push((found.name.clone(), self.resolve(&module, &found.path, 0)));
            }
            for (_, glob) in here.globs.iter().filter(|(public, _)| *public) {
                if let Some((mut inside, last)) = self.resolve(&module, glob, 0) {
                    inside.push(last);
                    open.push((inside, shown.clone()));
                }
            }
            for (name, target) in names {
                let path: Vec<String> = shown.iter().cloned().chain([name.clone()]).collect();
                let Some(target) = target else {
                    foreign.insert(format!("use {}", path.join("::")));
                    continue;
                };
                let is_module = self.modules.get(&target.0).and_then(|module| module.items.get(&target.1)).is_some_and(|found| found.iter().any(|found| found.kind == Kind::Module));
                let entry = shortest.entry(target.clone()).or_insert_with(|| path.clone());
                // The prelude only repeats what has a place of its own.
                let better = |path: &Vec<String>| (path.first().is_some_and(|first| first == "prelude"), path.len(), path.clone());
                if better(&path) < better(entry) {
                    *entry = path.clone();
                }
                if is_module {
                    let mut inside = target.0;
                    inside.push(target.1);
                    open.push((inside, path));
                }
            }
        }
        let mut lines = foreign;
        for ((module, name), path) in &shortest {
            let shown = path.join("::");
            for found in self.modules[module].items.get(name).into_iter().flatten() {
                let kind = match &found.kind {
                    Kind::Module => "mod",
                    Kind::Type => "type",
                    Kind::Other(kind) => kind,
                };
                lines.insert(format!("{kind} {shown}"));
                lines.extend(found.inner.iter().map(|inner| format!("fn {shown}::{inner}")));
            }
        }
        for (module, owner, method) in &self.methods {
            let Some(target) = self.resolve(module, owner, 0) else { panic!("impl {}: its type is not found from {}", owner.join("::"), module.join("::")) };
            if let Some(path) = shortest.get(&target) {
                lines.insert(format!("fn {}::{method}", path.join("::")));
            }
        }
        lines.into_iter().collect()
    }
}

/// A module's file, and the folder of its own modules.
fn source(folder: &Path, name: &str, own: Option<String>) -> (PathBuf, PathBuf) {
    if let Some(own) = own {
        let file = folder.join(own);
        let below = file.with_extension("");
        return (file, below);
    }
    let file = folder.join(format!("{name}.rs"));
    if file.exists() {
        return (file, folder.join(name));
    }
    (folder.join(name).join("mod.rs"), folder.join(name))
}

/// At most so many public items.
const MOST: usize = 450;

#[test]
fn the_public_surface_is_the_listed_one() {
    let found = Crate::read(&root().join("crate/src/lib.rs")).listing();
    let file = root().join("tests/api.txt");
    if std::env::var_os("CLTLAB_RENEW").is_some() {
        std::fs::write(&file, found.join("\n") + "\n").unwrap();
    }
    let listed = std::fs::read_to_string(&file).unwrap();
    let (found, listed): (BTreeSet<&str>, BTreeSet<&str>) = (found.iter().map(String::as_str).collect(), listed.lines().collect());
    let difference: Vec<String> = found.difference(&listed).map(|line| format!("+ {line}")).chain(listed.difference(&found).map(|line| format!("- {line}"))).collect();
    assert!(
        difference.is_empty(),
        "the library's public items are not those of tests/api.txt:\n{}\nwhat only the program, the kernel or tests need is #[doc(hidden)], what only the library needs pub(crate); \
         if the change is meant, renew the list: CLTLAB_RENEW=1 with this test, and name what was renamed or is gone in CHANGELOG.md",
        difference.join("\n")
    );
    assert!(found.len() <= MOST, "{} public items, at most {MOST}", found.len());
    for known in ["type Model", "fn Model::load", "fn notebook::display", "trait picture::Show", "fn picture::Show::text", "use prelude::Tensor"] {
        assert!(found.contains(known), "{known} is missing: the reader of sources is broken");
    }
}
