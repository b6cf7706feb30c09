//! Names that training with torch leaves in a checkpoint: `DistributedDataParallel`, `torch.compile`, FSDP and activation
//! checkpointing wrap a module, and the name of the wrapper becomes a part of the names of its weights.

use std::collections::{BTreeMap, BTreeSet};

use super::{Weights, twice};
use crate::error::Result;

/// Wrappers whose names torch keeps for itself: around the model or any part of it.
const PRIVATE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The wrapper of `DistributedDataParallel` and `DataParallel`: around the whole model alone, as a part may be called so.
const MODULE: &str = "module";

impl Weights {
    /// Takes the names of wrappers out of the names of weights, wherever all weights of the wrapped module have them.
    pub(super) fn unwrap_names(&mut self) -> Result<()> {
        let mut removed = BTreeSet::new();
        loop {
            // What a wrapped name begins with, the wrapper included.
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
                    return Err(twice(&self.label, &bare));
                }
            }
            self.entries = entries;
        }
        // What is wrapped in part alone stays as it is, but never beside a weight of the same name.
        for name in self.names() {
            for (start, wrapper) in wrappers(name) {
                let bare = format!("{}{}", &name[..start], &name[start + wrapper.len() + 1..]);
                if self.entries.contains_key(&bare) {
                    return Err(twice(&self.label, &bare).cause(format!("also as `{name}`")));
                }
            }
        }
        if !removed.is_empty() {
            let removed: Vec<String> = removed.iter().map(|wrapper| format!("`{wrapper}`")).collect();
            tracing::warn!(
                "`{}`: weights are read without {} in their names",
                self.label,
                removed.join(" and ")
            );
        }
        Ok(())
    }

    /// Whether all names that begin as `wrapped` without its wrapper begin with it.
    fn all_begin_with(&self, wrapped: &str) -> bool {
        let (parent, _) = split(wrapped);
        let of_parent = self.entries.range(parent.to_string()..).map(|(name, _)| name);
        of_parent.take_while(|name| name.starts_with(parent)).all(|name| name.starts_with(wrapped))
    }
}

/// The wrappers in a name, with the place where each begins; something has to follow.
fn wrappers(name: &str) -> impl Iterator<Item = (usize, &str)> {
    let parts = name.match_indices('.').scan(0, |start, (dot, _)| {
        let part = (*start, &name[*start..dot]);
        *start = dot + 1;
        Some(part)
    });
    parts.filter(|(start, part)| PRIVATE.contains(part) || (*start == 0 && *part == MODULE))
}

/// `a.b.wrapper.` as `a.b.` and `wrapper.`.
fn split(wrapped: &str) -> (&str, &str) {
    let start = wrapped.trim_end_matches('.').rfind('.').map_or(0, |dot| dot + 1);
    wrapped.split_at(start)
}
