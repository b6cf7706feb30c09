//! Stdout, output paths and input images.

use std::io::Write as _;
use std::path::Path;

use tch::Tensor;
use unirl::error::{Context, Error, Result};
use unirl::image_io;
use unirl::model::ModelCard;

/// How a model of this card reads a picture: `[1,3,H,W]` in `0..=1`.
pub(crate) fn picture_reader(card: &ModelCard) -> impl Fn(&Path) -> Result<Tensor> + use<> {
    let (side, grey) = (card.input_resolution.unwrap_or(card.resolution), card.pad_value);
    move |path| match grey {
        Some(grey) => image_io::read_padded(path, side, grey),
        None => image_io::read(path, side),
    }
}

/// Writes to stdout; who reads on may stop reading.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context(|| "cannot write to stdout"),
    }
}

/// Refuses an output file that cannot be written, before any work is done for it.
pub(crate) fn check_output(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::usage(format!("cannot write `{0}`: `{0}` is a folder", path.display())));
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(Error::usage(format!("cannot write `{}`: no folder `{}`", path.display(), parent.display())))
        }
        _ => Ok(()),
    }
}
