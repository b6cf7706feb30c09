//! Removes the names of torch wrappers from weight names: `DistributedDataParallel`, `torch.compile`, FSDP and activation
//! checkpointing wrap a module, and the names of its weights then contain the name of the wrapper.

use std::collections::{BTreeMap, BTreeSet};

use super::{Weights, duplicate};
use crate::error::Result;

/// Wrappers with reserved names, around the model or any submodule.
const PRIVATE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The wrapper of `DistributedDataParallel` and `DataParallel`. Removed only around the whole model, because a submodule may have
/// this name.
const MODULE: &str = "module";

impl Weights {
    /// Removes the names of wrappers that all weights of the wrapped module have.
    pub(super) fn unwrap_names(&mut self) -> Result<()> {
        let mut removed = BTreeSet::new();
        loop {
            // Prefixes of names, up to and including a wrapper.
            let wrapped: BTreeSet<String> = self
                .names()
                .flat_map(|name| {
                    wrappers(name).map(|(start, wrapper)| format!("{}{wrapper}.", &name[..start]))
                })
                .collect();
            let whole: Vec<&String> = wrapped.iter().filter(|wrapped| self.all_begin_with(wrapped)).collect();
            if whole.is_empty() {
                break;
            }
            let mut entries = BTreeMap::new();
            for (name, entry) in std::mem::take(&mut self.entries) {
                let outermost =
                    whole.iter().filter(|wrapped| name.starts_with(wrapped.as_str())).min_by_key(|w| w.len());
                let (parent, wrapper) = outermost.map_or(("", ""), |wrapped| split(wrapped));
                if !wrapper.is_empty() {
                    removed.insert(wrapper.to_string());
                }
                let bare = format!("{parent}{}", &name[parent.len() + wrapper.len()..]);
                if entries.insert(bare.clone(), entry).is_some() {
                    return Err(duplicate(&self.label, &bare));
                }
            }
            self.entries = entries;
        }
        // A partially wrapped module keeps its names, unless a weight exists with and without the wrapper.
        for name in self.names() {
            for (start, wrapper) in wrappers(name) {
                let bare = format!("{}{}", &name[..start], &name[start + wrapper.len() + 1..]);
                if self.entries.contains_key(&bare) {
                    return Err(duplicate(&self.label, &bare).cause(format!("also named `{name}`")));
                }
            }
        }
        if !removed.is_empty() {
            let removed: Vec<String> = removed.iter().map(|wrapper| format!("`{wrapper}`")).collect();
            tracing::warn!("`{}`: removed {} from the names of weights", self.label, removed.join(" and "));
        }
        Ok(())
    }

    /// Whether all names in the parent module of the wrapper start with `wrapped`.
    fn all_begin_with(&self, wrapped: &str) -> bool {
        let (parent, _) = split(wrapped);
        let of_parent = self.entries.range(parent.to_string()..).map(|(name, _)| name);
        of_parent.take_while(|name| name.starts_with(parent)).all(|name| name.starts_with(wrapped))
    }
}

/// Returns the wrappers in a name with their positions; the last component is never a wrapper.
fn wrappers(name: &str) -> impl Iterator<Item = (usize, &str)> {
    let parts = name.match_indices('.').scan(0, |start, (dot, _)| {
        let part = (*start, &name[*start..dot]);
        *start = dot + 1;
        Some(part)
    });
    parts.filter(|(start, part)| PRIVATE.contains(part) || (*start == 0 && *part == MODULE))
}

/// Splits `a.b.wrapper.` into `a.b.` and `wrapper.`.
fn split(wrapped: &str) -> (&str, &str) {
    let start = wrapped.trim_end_matches('.').rfind('.').map_or(0, |dot| dot + 1);
    wrapped.split_at(start)
}
