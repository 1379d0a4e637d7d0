//! [`Text`]: bytes that come piece by piece, shown as whole characters and searched for stop strings.

/// The bytes of one completion so far.
#[derive(Clone, Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    /// Bytes that were shown.
    shown: usize,
    /// Where a stop string begins, and which.
    stop: Option<(usize, usize)>,
}

impl Text {
    /// Appends bytes and looks for the stop strings; `true` if one is there. The one that begins first counts, and of those
    /// that begin together the first in the list.
    pub fn push(&mut self, more: &[u8], stops: &[String]) -> bool {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(more);
        let found = stops.iter().enumerate().filter_map(|(which, stop)| {
            // A match may have begun in the bytes before.
            let from = (before + 1).saturating_sub(stop.len());
            let at = self.bytes[from..].windows(stop.len()).position(|window| window == stop.as_bytes())?;
            Some((from + at, which))
        });
        self.stop = found.min();
        self.stop.is_some()
    }

    /// The stop string that was found, as its index in the list.
    pub fn stopped_by(&self) -> Option<usize> {
        self.stop.map(|(_, which)| which)
    }

    /// What can be shown now and was not yet: whole characters, and nothing that may be the beginning of a stop string.
    pub fn news(&mut self, stops: &[String]) -> String {
        let mut end = match self.stop {
            Some((at, _)) => at,
            None => self.bytes.len() - stops.iter().map(|stop| self.begun(stop)).max().unwrap_or(0),
        };
        // No match begins within the text that was shown: possible beginnings were held back.
        end = end.max(self.shown);
        let new = &self.bytes[self.shown..end];
        let unfinished = match new.utf8_chunks().last() {
            Some(chunk) if self.stop.is_none() && could_go_on(chunk.invalid()) => chunk.invalid().len(),
            _ => 0,
        };
        let new = &new[..new.len() - unfinished];
        self.shown += new.len();
        String::from_utf8_lossy(new).into_owned()
    }

    /// The rest that was not shown yet, at the end.
    pub fn rest(&mut self) -> String {
        let end = self.end();
        let rest = String::from_utf8_lossy(&self.bytes[self.shown.min(end)..end]).into_owned();
        self.shown = end;
        rest
    }

    /// The whole text, up to the stop string.
    pub fn whole(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.end()]).into_owned()
    }

    fn end(&self) -> usize {
        self.stop.map_or(self.bytes.len(), |(at, _)| at)
    }

    /// The longest end of the text that a stop string begins with.
    fn begun(&self, stop: &str) -> usize {
        let longest = (stop.len() - 1).min(self.bytes.len());
        (1..=longest).rev().find(|&n| self.bytes.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
    }
}

/// Whether bytes that are not a character may become one with more bytes.
fn could_go_on(invalid: &[u8]) -> bool {
    !invalid.is_empty() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::Text;
    use property::property;
    use proptest::prelude::prop;

    /// Feeds bytes in pieces; what was shown, the whole text, and the stop.
    fn feed(pieces: &[&[u8]], stops: &[&str]) -> (String, String, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let (mut text, mut shown) = (Text::default(), String::new());
        for piece in pieces {
            let stopped = text.push(piece, &stops);
            shown += &text.news(&stops);
            if stopped {
                break;
            }
        }
        shown += &text.rest();
        (shown, text.whole(), text.stopped_by())
    }

    #[test]
    fn characters_are_shown_whole_and_stops_are_not() {
        let euro = "€".as_bytes();
        let stops = ["\ndef".to_owned()];
        let mut text = Text::default();
        assert!(!text.push(&euro[..1], &stops));
        assert_eq!(text.news(&stops), "");
        assert!(!text.push(&euro[1..], &stops));
        assert_eq!(text.news(&stops), "€");
        assert!(!text.push(b"x\nde", &stops));
        assert_eq!(text.news(&stops), "x");
        assert!(!text.push(b"l", &stops));
        assert_eq!(text.news(&stops), "\ndel");
        assert!(text.push(b"\ndef g", &stops));
        assert_eq!(
            (text.news(&stops), text.rest(), text.whole()),
            (String::new(), String::new(), "€x\ndel".into())
        );
    }

    #[test]
    fn the_first_stop_counts() {
        assert_eq!(feed(&[b"ab", b"cd"], &["cd", "bc"]), ("a".into(), "a".into(), Some(1)));
        assert_eq!(feed(&[b"ab\xff", b"c"], &["x"]), ("ab\u{fffd}c".into(), "ab\u{fffd}c".into(), None));
        assert_eq!(feed(&[b"a\xe2\x82"], &[]).0, "a\u{fffd}");
    }

    /// However bytes are cut into pieces, what is shown is the text, and the stop is the first one of the whole.
    #[test]
    fn pieces_make_no_difference() {
        let byte = prop::sample::select(vec![b'a', b'b', 0xE2, 0x82, 0xAC, 0xFF]);
        let cases = (prop::collection::vec(byte, 0..40), prop::collection::vec(0usize..40, 0..6));
        property(256, &cases, |(bytes, cuts)| {
            let mut cuts: Vec<usize> =
                cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let stops = ["abb", "bba"];
            let (shown, whole, which) = feed(&pieces, &stops);
            assert_eq!(shown, whole);
            let at = |stop: &str| bytes.windows(stop.len()).position(|window| window == stop.as_bytes());
            let first = stops.iter().enumerate().filter_map(|(which, stop)| Some((at(stop)?, which))).min();
            assert_eq!(which, first.map(|(_, which)| which));
            let end = first.map_or(bytes.len(), |(at, _)| at);
            assert_eq!(whole, String::from_utf8_lossy(&bytes[..end]));
        });
    }
}
