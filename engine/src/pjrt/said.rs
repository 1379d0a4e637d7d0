//! What plugins say when a device cannot be had, and what to do about it: the one table.

use super::error::Code;

/// Whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Another process has the device; one that was killed leaves it after some seconds.
    MayHelp,
    IsVain,
}

/// What an error is known by.
enum Sign {
    /// All of these words are in the plugin's message.
    Words(&'static [&'static str]),
    /// The kind of error of a function of the C API.
    Kind(&'static str, Code),
}

/// The first line that an error fits counts. `{pid}` is the number after `pid` in the message.
const SAID: [(Sign, Again, &str); 5] = [
    (
        Sign::Words(&["already in use by process with pid"]),
        Again::MayHelp,
        "`ps -o pid,lstart,args -p {pid}` shows that process, and `kill {pid}` ends it: a TPU serves one process",
    ),
    (
        Sign::Words(&["open(/dev/", "Device or resource busy"]),
        Again::MayHelp,
        "another process has the TPU, which serves one: `cargo run -p doctor` says which, end that one",
    ),
    (
        Sign::Words(&["libtpu", "lockfile"]),
        Again::MayHelp,
        "another process uses the TPU: `cargo run -p doctor` says which, end that one; if it finds none, \
         `rm /tmp/libtpu_lockfile`",
    ),
    (
        Sign::Words(&["Failed to get global TPU topology"]),
        Again::IsVain,
        "libtpu finds no TPU: `cargo run -p doctor` says whether a device file is here and what the environment lacks",
    ),
    (
        Sign::Kind("PJRT_Client_Create", Code::DeadlineExceeded),
        Again::IsVain,
        "the plugin waited for something that does not answer, on a TPU mostly the metadata server: \
         `export TPU_SKIP_MDS_QUERY=1` and try again; `cargo run -p doctor` lists what else the environment lacks",
    ),
];

/// Whether trying again may help, and what else may.
pub(super) fn advice(function: &str, code: Code, message: &str) -> Option<(Again, String)> {
    let fits = |sign: &Sign| match sign {
        Sign::Words(words) => words.iter().all(|word| message.contains(word)),
        Sign::Kind(of, kind) => (*of, *kind) == (function, code),
    };
    let (_, again, remedy) = SAID.iter().find(|(sign, ..)| fits(sign))?;
    let rest = message.split_once("with pid ").map_or("", |(_, rest)| rest);
    let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((*again, remedy.replace("{pid}", &pid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_have_their_advice() {
        // As libtpu 0.0.52 writes them.
        let cases = [
            (
                "The TPU is already in use by process with pid 4321. Not attempting to load libtpu.so in this \
                 process.",
                Again::MayHelp,
                "kill 4321",
            ),
            (
                "TPU initialization failed: open(/dev/vfio/0): Device or resource busy: Device or resource \
                 busy; Couldn't open iommu group /dev/vfio/0",
                Again::MayHelp,
                "cargo run -p doctor",
            ),
            (
                "Internal error when accessing libtpu multi-process lockfile. Run \"$ sudo rm \
                 /tmp/libtpu_lockfile\".",
                Again::MayHelp,
                "rm /tmp/libtpu_lockfile",
            ),
            ("Failed to get global TPU topology.", Again::IsVain, "finds no TPU"),
        ];
        for (message, again, part) in cases {
            let (found, remedy) = advice("PJRT_Client_Create", Code::Internal, message).unwrap();
            assert!(found == again && remedy.contains(part) && !remedy.contains('{'), "{message}: {remedy}");
        }
        let waited = advice("PJRT_Client_Create", Code::DeadlineExceeded, "Deadline Exceeded").unwrap();
        assert!(waited.0 == Again::IsVain && waited.1.contains("export TPU_SKIP_MDS_QUERY=1"));
        assert_eq!(advice("PJRT_Event_Await", Code::DeadlineExceeded, "Deadline Exceeded"), None);
        assert_eq!(
            advice("PJRT_Client_Create", Code::Internal, "open(/dev/vfio/0): Permission denied"),
            None
        );
    }
}
