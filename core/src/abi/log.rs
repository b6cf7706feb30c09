//! Forwards the tracing events of a plugin, which has a separate dispatcher, to the host.

use std::fmt::{self, Write};

use abi_stable::std_types::RStr;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::component::HostApi;

const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// The functions of the host that plugins call.
pub const HOST: HostApi = HostApi { enabled: host_enabled, log: host_log };

fn level_of(number: u8) -> Level {
    LEVELS[usize::from(number).clamp(1, LEVELS.len()) - 1]
}

fn number_of(level: Level) -> u8 {
    LEVELS.iter().position(|known| *known == level).map_or(5, |index| index as u8 + 1)
}

extern "C" fn host_enabled(level: u8) -> bool {
    level_of(level) <= LevelFilter::current()
}

extern "C" fn host_log(level: u8, target: RStr<'_>, text: RStr<'_>) {
    let (from, text) = (target.as_str(), text.as_str());
    match level_of(level) {
        Level::ERROR => tracing::error!(target: "unirl::plugin", from, "{text}"),
        Level::WARN => tracing::warn!(target: "unirl::plugin", from, "{text}"),
        Level::INFO => tracing::info!(target: "unirl::plugin", from, "{text}"),
        Level::DEBUG => tracing::debug!(target: "unirl::plugin", from, "{text}"),
        _ => tracing::trace!(target: "unirl::plugin", from, "{text}"),
    }
}

/// The subscriber of a plugin: forwards level, target and text of every event. Spans are dropped.
pub(super) struct Forward(pub(super) HostApi);

impl Subscriber for Forward {
    // `sometimes`, because the host may change its level after loading the plugin.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        (self.0.enabled)(number_of(*metadata.level()))
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        (self.0.log)(
            number_of(*event.metadata().level()),
            event.metadata().target().into(),
            text.0.trim().into(),
        );
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// `message key=value ..`
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?}"));
        } else {
            let _ = write!(self.0, " {}={value:?}", field.name()); // writing to a String cannot fail
        }
    }
}
