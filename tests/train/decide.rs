//! Where a command leads: the table of the docs is made here, and what must hold of every case is tried on all of them.

use std::fs;
use std::path::{Path, PathBuf};
use train::cli::Resume;
use train::decide::{Asked, Decision, Facts, Found, Given, Instead, Place, Where, decide};
use train::identity::{Identity, Parent, RunId};

const OUT: &str = "out";
const DRIVE: &str = "drive";
const TRUNK: &str = "trunk/checkpoints/step_00000004";
const WEIGHTS: &str = "weights";

fn run(id: &str, out: &str, init: Option<&str>, parent: Option<Option<u64>>) -> Identity {
    let parent = parent.map(|decay| Parent {
        path: TRUNK.into(),
        run: Some(RunId("trunk0000".into())),
        step: 4,
        decay,
    });
    Identity { id: RunId(id.into()), out: out.into(), init: init.map(PathBuf::from), parent }
}

fn checkpoint(folder: &str, step: u64, turns: &[u64], run: Option<&Identity>) -> Found {
    Found {
        path: Path::new(folder).join(format!("step_{step:08}")),
        step,
        turns: turns.to_vec(),
        stable: true,
        run: run.cloned(),
        init: run.and_then(|run| run.init.clone()),
    }
}

fn place(path: &str, run: Option<&Identity>, newest: Option<Found>) -> Place {
    Place { run: run.cloned(), newest, ..Place::empty(path.into()) }
}

fn own(step: u64, turns: &[u64], run: Option<&Identity>) -> Place {
    place(OUT, run, Some(checkpoint("out/checkpoints", step, turns, run)))
}

fn copy(step: u64, turns: &[u64], run: Option<&Identity>) -> Place {
    place(DRIVE, run, Some(checkpoint(DRIVE, step, turns, run)))
}

fn damaged(place: Place) -> Place {
    Place { damaged: Some(place.path.join("step_00000009")), ..place }
}

fn trunk() -> Found {
    Found { path: TRUNK.into(), ..checkpoint("", 4, &[], Some(&run("trunk0000", "trunk", None, None))) }
}

fn given(found: Result<Found, String>, beside: Option<Found>) -> Option<Given> {
    Some(Given { found, inside: false, beside })
}

fn from(path: &str) -> Resume {
    Resume::From(path.into())
}

fn asked(resume: Resume, init: Option<&str>, decay: Option<u64>) -> Asked {
    Asked { resume, init: init.map(PathBuf::from), decay }
}

/// A line of the table: the command, what lies in the folder and in the mirror, in words and as facts.
struct Line {
    words: [&'static str; 3],
    asked: Asked,
    facts: Facts,
}

fn lines() -> Vec<Line> {
    let fresh = &run("a1", OUT, None, None);
    let weighed = &run("a2", OUT, Some(WEIGHTS), None);
    let child = &run("a3", OUT, None, Some(None));
    let branch = &run("a4", OUT, None, Some(Some(5)));
    let other = &run("b1", "other", None, None);
    let mut lines = Vec::new();
    let mut line = |words: [&'static str; 3], asked: Asked, folder: Place, mirror: Option<Place>| {
        let given = match &asked.resume {
            Resume::From(path) if path == Path::new(TRUNK) => given(Ok(trunk()), None),
            Resume::From(path) if path.starts_with("out") => {
                let step = path.to_str().and_then(|path| path.rsplit('_').next()?.parse().ok()).unwrap();
                let found = checkpoint("out/checkpoints", step, &[], folder.run.as_ref());
                Some(Given { inside: true, ..given(Ok(found), None).unwrap() })
            }
            Resume::From(path) => given(Err(format!("{} is damaged", path.display())), Some(trunk())),
            Resume::Auto | Resume::Never => None,
        };
        lines.push(Line { words, asked, facts: Facts { folder, mirror, given } });
    };
    let empty = || Place::empty(OUT.into());
    let auto = || asked(Resume::Auto, None, None);
    let init = || asked(Resume::Auto, Some(WEIGHTS), None);
    let resume = || asked(from(TRUNK), None, None);
    let decay = || asked(from(TRUNK), None, Some(5));

    line(["`train`", "nothing", ""], auto(), empty(), None);
    line(["`train`", "`run.json`, no checkpoint yet", ""], auto(), place(OUT, Some(fresh), None), None);
    line(["`train`", "a run", ""], auto(), own(8, &[], Some(fresh)), None);
    line(
        ["`train`", "a run, its newest checkpoint damaged", ""],
        auto(),
        damaged(own(8, &[], Some(fresh))),
        None,
    );
    line(["`train`", "damaged checkpoints alone", ""], auto(), damaged(empty()), None);
    line(
        ["`train`", "a run begun with `--init`, or at a checkpoint", ""],
        auto(),
        own(8, &[], Some(weighed)),
        None,
    );
    line(["`train`", "a branch", ""], auto(), own(8, &[], Some(branch)), None);
    line(["`train`", "a run of a version without names", ""], auto(), own(8, &[], None), None);
    line(["`--resume never`", "nothing", ""], asked(Resume::Never, None, None), empty(), None);
    line(["`--resume never`", "a run", ""], asked(Resume::Never, None, None), own(8, &[], Some(fresh)), None);
    line(["`--init W`", "nothing", ""], init(), empty(), None);
    line(["`--init W`", "the run begun so", ""], init(), own(8, &[], Some(weighed)), None);
    line(["`--init W`", "another run", ""], init(), own(8, &[], Some(fresh)), None);
    line(["`--resume PATH`", "nothing", ""], resume(), empty(), None);
    line(["`--resume PATH`, damaged", "nothing", ""], asked(from("bad"), None, None), empty(), None);
    line(["`--resume PATH`", "the run begun so", ""], resume(), own(8, &[], Some(child)), None);
    line(
        ["`--resume PATH`, damaged or gone", "the run begun so", ""],
        asked(from("./trunk//checkpoints/step_00000004"), None, None),
        own(8, &[], Some(child)),
        None,
    );
    line(["`--resume PATH`", "another run", ""], resume(), own(8, &[], Some(fresh)), None);
    line(
        ["`--resume` its newest checkpoint", "a run", ""],
        asked(from("out/checkpoints/step_00000008"), None, None),
        own(8, &[], Some(fresh)),
        None,
    );
    line(
        ["`--resume` an older one of its own", "a run", ""],
        asked(from("out/checkpoints/step_00000006"), None, None),
        own(8, &[], Some(fresh)),
        None,
    );
    line(["`--resume PATH`", "a branch of it", ""], resume(), own(8, &[], Some(branch)), None);
    line(["`--resume PATH --init W`", "nothing", ""], asked(from(TRUNK), Some(WEIGHTS), None), empty(), None);
    line(["`--branch-decay 5`", "nothing", ""], asked(Resume::Auto, None, Some(5)), empty(), None);
    line(["`--branch-decay 5 --resume PATH`", "nothing", ""], decay(), empty(), None);
    line(["`--branch-decay 5 --resume PATH`", "that branch", ""], decay(), own(8, &[], Some(branch)), None);
    line(
        ["`--branch-decay 5`", "that branch", ""],
        asked(Resume::Auto, None, Some(5)),
        own(8, &[], Some(branch)),
        None,
    );
    line(
        ["`--branch-decay 7 --resume PATH`", "a branch of 5", ""],
        asked(from(TRUNK), None, Some(7)),
        own(8, &[], Some(branch)),
        None,
    );
    line(
        ["`--branch-decay 5 --resume` one of its own, by any name", "a run", ""],
        asked(from("out/checkpoints/step_00000006"), None, Some(5)),
        own(8, &[], Some(fresh)),
        None,
    );
    line(
        ["`--branch-decay 5 --init W`", "nothing", ""],
        asked(Resume::Auto, Some(WEIGHTS), Some(5)),
        empty(),
        None,
    );
    line(
        ["any of these", "nothing", "its copies: the machine is gone"],
        auto(),
        empty(),
        Some(copy(8, &[], Some(fresh))),
    );
    line(
        ["any of these", "a run", "an older copy"],
        auto(),
        own(8, &[], Some(fresh)),
        Some(copy(4, &[], Some(fresh))),
    );
    line(
        ["any of these", "a run", "a newer copy"],
        auto(),
        own(8, &[], Some(fresh)),
        Some(copy(12, &[], Some(fresh))),
    );
    line(
        ["any of these", "a run that went back to step 8", "a copy of step 12, of before"],
        auto(),
        own(8, &[8], Some(fresh)),
        Some(copy(12, &[], Some(fresh))),
    );
    line(
        ["any of these", "nothing", "another run's copies"],
        auto(),
        empty(),
        Some(copy(8, &[], Some(other))),
    );
    line(
        ["any of these", "a run", "another run's copies"],
        auto(),
        own(8, &[], Some(fresh)),
        Some(copy(12, &[], Some(other))),
    );
    line(
        ["any of these", "nothing", "another run's name, no copy"],
        auto(),
        empty(),
        Some(place(DRIVE, Some(other), None)),
    );
    line(
        ["any of these", "nothing", "copies of a version without names"],
        auto(),
        empty(),
        Some(copy(8, &[], None)),
    );
    line(
        ["any of these", "a run", "copies of a version without names"],
        auto(),
        own(8, &[], Some(fresh)),
        Some(copy(8, &[], None)),
    );
    line(
        ["`--resume never`", "nothing", "its copies"],
        asked(Resume::Never, None, None),
        empty(),
        Some(copy(8, &[], Some(fresh))),
    );
    lines
}

fn typed(asked: &Asked, into: Where) -> String {
    let mut words = Vec::new();
    if asked.resume != Resume::Auto {
        words.push(format!("--resume {}", asked.resume));
    }
    words.extend(asked.init.as_ref().map(|init| format!("--init {}", init.display())));
    words.extend(asked.decay.map(|steps| format!("--branch-decay {steps}")));
    if words.is_empty() {
        words.push("train".into());
    }
    let into = match into {
        Where::Same => "",
        Where::OtherMirror => ", another mirror",
        Where::Other => ", another --out",
    };
    format!("`{}`{into}", words.join(" "))
}

fn told(decision: &Decision) -> String {
    match decision {
        Decision::Start => "a new run from step 0".into(),
        Decision::From(found) => format!("a new run from `{}`", found.path.display()),
        Decision::Branch(found, steps) => {
            format!(
                "a new run from `{}`, whose rate decays over {steps} steps from there",
                found.path.display()
            )
        }
        Decision::Continue(found) => format!("goes on from `{}`", found.path.display()),
        Decision::Refuse(refusal) => {
            let instead = refusal.instead.as_ref();
            let instead = instead
                .map_or_else(|| "nothing is known that would do".into(), |it| typed(&it.asked, it.into));
            format!("refused: {}. Instead: {instead}", refusal.reason)
        }
    }
}

/// `BLESS=1` writes the table anew; then read what changed.
#[test]
fn the_table_of_the_docs_is_what_is_decided() {
    let mut table = String::from(
        "\n| command | the folder holds | the mirror holds | what comes of it |\n|---|---|---|---|\n",
    );
    for Line { words: [command, folder, mirror], asked, facts } in lines() {
        table += &format!("| {command} | {folder} | {mirror} | {} |\n", told(&decide(&asked, &facts)));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/src/decide.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    for (there, wanted) in there.lines().zip(table.lines()) {
        assert_eq!(there, wanted, "BLESS=1 writes the table anew");
    }
    assert_eq!(there, table);
}

/// Every command on every state of folder and mirror.
fn all() -> Vec<(Asked, Facts)> {
    let names = [
        run("a1", OUT, None, None),
        run("a2", OUT, Some(WEIGHTS), None),
        run("a3", OUT, None, Some(None)),
        run("a4", OUT, None, Some(Some(5))),
        run("a5", OUT, Some(WEIGHTS), Some(Some(5))),
    ];
    let other = run("b1", "other", Some(WEIGHTS), None);
    let empty = || Place::empty(OUT.into());
    let mut folders = vec![empty(), damaged(empty()), own(8, &[], None), damaged(own(8, &[], None))];
    let mut mirrors = vec![
        None,
        Some(Place::empty(DRIVE.into())),
        Some(copy(12, &[], None)),
        Some(damaged(Place::empty(DRIVE.into()))),
        Some(place(DRIVE, Some(&other), None)),
        Some(copy(12, &[], Some(&other))),
    ];
    for name in &names {
        folders.push(place(OUT, Some(name), None));
        folders.push(damaged(place(OUT, Some(name), None)));
        folders.push(own(8, &[], Some(name)));
        folders.push(damaged(own(8, &[8], Some(name))));
        mirrors.push(Some(place(DRIVE, Some(name), None)));
        mirrors.push(Some(copy(12, &[], Some(name))));
        mirrors.push(Some(copy(4, &[], Some(name))));
        mirrors.push(Some(damaged(place(DRIVE, Some(name), None))));
    }
    let bad = || Err("it is damaged".to_owned());
    let late = Found { stable: false, ..trunk() };
    let child = Found { init: Some(WEIGHTS.into()), ..trunk() };
    let mine = |step| checkpoint("out/checkpoints", step, &[], Some(&names[0]));
    let inside = |found| Some(Given { inside: true, ..given(found, None).unwrap() });
    let resumes = [
        (Resume::Auto, None),
        (Resume::Never, None),
        (from(TRUNK), given(Ok(trunk()), None)),
        (from(TRUNK), given(Ok(late.clone()), None)),
        (from(TRUNK), given(Ok(child), None)),
        (from(TRUNK), given(bad(), None)),
        (
            from(TRUNK),
            given(bad(), Some(Found { path: "trunk/checkpoints/step_00000002".into(), ..trunk() })),
        ),
        (from(TRUNK), given(bad(), Some(Found { path: "trunk/checkpoints/step_00000006".into(), ..late }))),
        (from("out/checkpoints/step_00000008"), inside(Ok(mine(8)))),
        (from("out/checkpoints/step_00000006"), inside(Ok(mine(6)))),
        (from("out/../out/checkpoints/step_00000009"), inside(bad())),
    ];
    let mut all = Vec::new();
    for (resume, given) in &resumes {
        for init in [None, Some(WEIGHTS), Some("others")] {
            for decay in [None, Some(5), Some(7), Some(0)] {
                for folder in &folders {
                    for mirror in &mirrors {
                        let facts =
                            Facts { folder: folder.clone(), mirror: mirror.clone(), given: given.clone() };
                        all.push((asked(resume.clone(), init, decay), facts));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn what_must_hold_of_every_case() {
    let cases = all();
    let mut counts = [0; 5];
    for (asked, facts) in &cases {
        let decision = decide(asked, facts);
        let context = || format!("{asked:?}\n{facts:#?}\n{decision:#?}");
        let holds = |place: &Place| place.newest.is_some() || place.damaged.is_some();
        match &decision {
            Decision::Start | Decision::From(_) | Decision::Branch(..) => {
                counts[0] += 1;
                assert!(!holds(&facts.folder), "written over: {}", context());
                assert!(facts.mirror.as_ref().is_none_or(|mirror| !holds(mirror)), "{}", context());
                goes_on_whatever_happens(asked, facts, &decision);
            }
            Decision::Continue(found) => {
                counts[1] += 1;
                let copy = facts.mirror.as_ref().and_then(|mirror| mirror.newest.as_ref());
                let own = facts.folder.newest.as_ref();
                assert!(own == Some(found) || copy == Some(found), "{}", context());
                assert_ne!(asked.resume, Resume::Never);
                // Never a checkpoint of another run, and never one that the run left when it went back.
                let id = |found: &Found| found.run.as_ref().map(|run| run.id.clone());
                assert!(own.is_none_or(|own| id(own) == id(found)), "{}", context());
                assert_ne!(id(found), Some(RunId("b1".into())), "{}", context());
                assert!(own.is_none_or(|own| own.turns.len() <= found.turns.len()), "{}", context());
            }
            Decision::Refuse(refusal) => match &refusal.instead {
                Some(instead) => {
                    counts[2] += 1;
                    let next = decide(&instead.asked, &facts.of(instead));
                    assert!(!matches!(next, Decision::Refuse(_)), "{next:?}\n{}", context());
                    assert_ne!((&instead.asked, instead.into), (asked, Where::Same), "{}", context());
                }
                None => {
                    counts[3] += 1;
                    // The named checkpoint is not there, and there is no other to name.
                    let nothing_good = facts.given.as_ref().is_some_and(|given| given.found.is_err());
                    let at_a_checkpoint = asked.decay.is_some();
                    assert!(nothing_good || at_a_checkpoint, "{}", context());
                }
            },
        }
    }
    println!(
        "{} cases: {} begin, {} go on, {} are led elsewhere, {} are not",
        cases.len(),
        counts[0],
        counts[1],
        counts[2],
        counts[3]
    );
    assert!(counts[..4].iter().all(|count| *count > 20), "{counts:?}");
}

/// A run that began stops: the same command goes on with it, with its beginning gone, and on another machine.
fn goes_on_whatever_happens(asked: &Asked, facts: &Facts, decision: &Decision) {
    let mut name = Identity { init: asked.init.clone(), ..run("new", OUT, None, None) };
    let begun_at = match decision {
        Decision::From(found) => Some((found, None)),
        Decision::Branch(found, steps) => Some((found, Some(*steps))),
        _ => None,
    };
    if let (Some((found, decay)), Resume::From(path)) = (begun_at, &asked.resume) {
        let run = found.run.as_ref().map(|run| run.id.clone());
        name.init = found.init.clone();
        name.parent = Some(Parent { path: path.clone(), run, step: found.step, decay });
    }
    let name = Some(&name);
    let gone = facts.given.clone().map(|given| Given { found: Err("it is gone".into()), ..given });
    for given in [facts.given.clone(), gone] {
        let stopped = [
            (own(20, &[], name), None),
            (own(20, &[], name), Some(Place::empty(DRIVE.into()))),
            (own(20, &[], name), Some(copy(16, &[], name))),
            // On another machine, and where only the name was written before it stopped again.
            (Place::empty(OUT.into()), Some(copy(16, &[], name))),
            (place(OUT, name, None), Some(copy(16, &[], name))),
        ];
        for (folder, mirror) in stopped {
            let facts = Facts { folder, mirror, given: given.clone() };
            match decide(asked, &facts) {
                Decision::Continue(_) => {}
                Decision::Refuse(refusal) if asked.resume == Resume::Never => {
                    let Some(instead @ Instead { into: Where::Same, .. }) = &refusal.instead else {
                        panic!("{refusal:?}")
                    };
                    assert!(matches!(decide(&instead.asked, &facts.of(instead)), Decision::Continue(_)));
                }
                decision => panic!("{asked:?} does not go on: {decision:?}\n{facts:#?}"),
            }
        }
        // Nothing was written yet but the name: begun again.
        if given == facts.given {
            let facts = Facts { folder: place(OUT, name, None), mirror: None, given: given.clone() };
            assert_eq!(decide(asked, &facts), *decision);
        }
    }
}
