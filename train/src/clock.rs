//! How fast a run trains.

use std::time::{Duration, Instant};

/// Steps a second since the last record. Time counts only while steps are on their way: a pause stops the clock.
///
/// Metrics are read one step late: at most readings one more step is on its way, and before a pause none. Some devices
/// compute a step while it is launched, others afterwards. Between two readings with the same number of steps on their way,
/// either kind has computed as many steps as were read; so only such readings are compared.
pub(crate) struct Clock {
    /// Time that had counted when the last pause began.
    counted: Duration,
    /// When it began to count again; none in a pause.
    since: Option<Instant>,
    /// The reading of the last record (at first the very first reading) and the newest one; for readings with no step on its
    /// way, and for those with one.
    readings: [Option<[Reading; 2]>; 2],
    last: f64,
}

/// Metrics were read.
#[derive(Clone, Copy)]
struct Reading {
    /// Steps whose metrics are known.
    done: u64,
    /// Time that had counted.
    at: Duration,
}

impl Clock {
    /// A clock that runs, `done` steps into the run.
    pub(crate) fn start(done: u64, now: Instant) -> Clock {
        let begin = Reading { done, at: Duration::ZERO };
        Clock { counted: Duration::ZERO, since: Some(now), readings: [Some([begin; 2]), None], last: 0.0 }
    }

    /// Stops the clock for what is no training: a save, an evaluation.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.counted = self.at(now);
        self.since = None;
    }

    /// Starts the clock again.
    pub(crate) fn go_on(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// The metrics of step `done` were read, with `launched` steps launched: as many or one more.
    pub(crate) fn read(&mut self, done: u64, launched: u64, now: Instant) {
        let reading = Reading { done, at: self.at(now) };
        let pair = &mut self.readings[(launched - done) as usize];
        *pair = Some([pair.map_or(reading, |[first, _]| first), reading]);
    }

    /// Steps a second since the last record.
    pub(crate) fn steps_per_second(&mut self) -> f64 {
        let [drained, ahead] = self.readings;
        // The very first record may be that of the first step, of which is known only that it took no longer than this.
        let begun = drained.zip(ahead).map(|([begin, _], [_, newest])| [begin, newest]);
        let mut spans = [ahead, drained, begun].into_iter().flatten();
        if let Some([from, to]) = spans.find(|[from, to]| to.done > from.done) {
            self.last = (to.done - from.done) as f64 / (to.at - from.at).as_secs_f64();
        }
        self.readings = self.readings.map(|pair| pair.map(|[_, newest]| [newest; 2]));
        self.last
    }

    fn at(&self, now: Instant) -> Duration {
        self.counted + self.since.map_or(Duration::ZERO, |since| now - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a device computes a step.
    #[derive(Clone, Copy, Debug)]
    enum Computes {
        /// The call that launches it comes back when it is computed.
        WhileLaunching,
        /// Reading its metrics waits for it.
        Afterwards,
    }

    /// Rates of the records of the loop of a run, with their steps: step `n` takes `seconds(n)`, a pause of 100 seconds
    /// follows every `pauses`-th.
    fn rates_of(
        computes: Computes,
        steps: u64,
        log: u64,
        pauses: u64,
        seconds: impl Fn(u64) -> u64,
    ) -> Vec<(u64, f64)> {
        let (start, mut now) = (Instant::now(), 0);
        let mut computed = 0;
        let mut rates = Vec::new();
        let mut clock = Clock::start(0, start);
        for launched in 1..=steps {
            let mut read = |done: u64, now: &mut u64, clock: &mut Clock| {
                let wanted = match computes {
                    Computes::WhileLaunching => launched,
                    Computes::Afterwards => done,
                };
                *now += (computed + 1..=wanted).map(&seconds).sum::<u64>();
                computed = wanted;
                if done > 0 {
                    clock.read(done, launched, start + Duration::from_secs(*now));
                }
                if done > 0 && done.is_multiple_of(log) {
                    rates.push((done, clock.steps_per_second()));
                }
            };
            // After a pause no step is on its way whose metrics could be read.
            if !(launched - 1).is_multiple_of(pauses) {
                read(launched - 1, &mut now, &mut clock);
            }
            if launched.is_multiple_of(pauses) {
                read(launched, &mut now, &mut clock);
                clock.pause(start + Duration::from_secs(now));
                now += 100;
                clock.go_on(start + Duration::from_secs(now));
            }
        }
        rates
    }

    /// The same where a step takes a second.
    fn rates(computes: Computes, steps: u64, log: u64, pauses: u64) -> Vec<f64> {
        rates_of(computes, steps, log, pauses, |_| 1).into_iter().map(|(_, rate)| rate).collect()
    }

    /// However often it pauses, a record tells the speed of about the steps since the record before: two records after the
    /// speed changed, nothing of the old one is left.
    #[test]
    fn no_record_keeps_an_old_speed() {
        let seconds = |step: u64| 1 << ((step - 1) / 30);
        for computes in [Computes::WhileLaunching, Computes::Afterwards] {
            for (log, pauses) in
                [(1, 1), (1, 2), (5, 1), (5, 5), (5, 10), (5, 3), (3, 5), (10, 5), (10, 15), (6, 1000)]
            {
                for (step, rate) in rates_of(computes, 120, log, pauses, seconds) {
                    let (newest, oldest) = (
                        seconds(step + 1) as f64,
                        seconds((step + 1).saturating_sub(2 * log + 2).max(1)) as f64,
                    );
                    let bounds = 1.0 / newest..=1.0 / oldest;
                    let begun = step <= 2 && matches!(computes, Computes::WhileLaunching);
                    assert!(
                        bounds.contains(&rate) || begun,
                        "{computes:?} {log} {pauses}, step {step}: {rate} not in {bounds:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn pauses_do_not_count_wherever_they_lie() {
        for computes in [Computes::WhileLaunching, Computes::Afterwards] {
            for (log, pauses) in [(1, 1), (2, 1), (2, 2), (4, 2), (2, 3), (3, 2), (5, 7), (10, 1000)] {
                let rates = rates(computes, 60, log, pauses);
                let wanted = 60 / log - u64::from(!60_u64.is_multiple_of(pauses));
                assert_eq!(rates.len() as u64, wanted, "{log} {pauses}");
                assert!(rates.iter().all(|rate| *rate == 1.0), "{computes:?} {log} {pauses}: {rates:?}");
            }
        }
    }

    /// The first record of a run that records every step is the only one that cannot be exact.
    #[test]
    fn the_first_step_alone_is_rated_too_low_at_most() {
        assert_eq!(rates(Computes::Afterwards, 4, 1, 1000), [1.0, 1.0, 1.0]);
        assert_eq!(rates(Computes::WhileLaunching, 4, 1, 1000), [0.5, 1.0, 1.0]);
    }

    #[test]
    fn the_rate_follows_the_speed_though_every_interval_has_a_pause() {
        let start = Instant::now();
        let mut clock = Clock::start(0, start);
        let (mut now, mut rates) = (start, Vec::new());
        for (step, seconds) in [1, 2, 4, 8].into_iter().enumerate() {
            now += Duration::from_secs(seconds);
            clock.read(step as u64 + 1, step as u64 + 1, now);
            rates.push(clock.steps_per_second());
            clock.pause(now);
            now += Duration::from_secs(50);
            clock.go_on(now);
        }
        assert_eq!(rates, [1.0, 0.5, 0.25, 0.125]);
    }
}
